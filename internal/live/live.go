// Package live holds a value that changes: readers take the present one without a lock, and can wait for the next.
package live

import (
	"sync"
	"sync/atomic"
)

// Value is a T that changes. The zero Value holds the zero T. Safe for concurrent use.
type Value[T any] struct {
	current atomic.Pointer[T]

	mu      sync.Mutex
	changed chan struct{} // guarded by mu; closed by the next Store
}

// NewValue returns a Value that holds v.
func NewValue[T any](v T) *Value[T] {
	l := new(Value[T])
	l.current.Store(&v)
	return l
}

// Load returns the present value.
func (l *Value[T]) Load() T {
	if p := l.current.Load(); p != nil {
		return *p
	}
	var zero T
	return zero
}

// Store replaces the value and wakes everybody who waits on Changed.
func (l *Value[T]) Store(v T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current.Store(&v)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Changed returns a channel that the next Store closes. To miss nothing: take the channel first, then Load, then wait.
func (l *Value[T]) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}
