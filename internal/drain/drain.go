// Package drain ends work without breaking it: new work is refused, what is in flight is waited for.
package drain

import (
	"context"
	"sync"
)

// Drain counts what is in flight. The zero value is in use and not draining. Safe for concurrent use.
type Drain struct {
	mu       sync.Mutex
	inFlight int           // guarded by mu
	draining chan struct{} // guarded by mu; closed by Start
	started  bool          // guarded by mu
	idle     chan struct{} // guarded by mu; closed when draining and nothing is in flight
}

func (d *Drain) init() {
	if d.draining == nil {
		d.draining = make(chan struct{})
		d.idle = make(chan struct{})
	}
}

// Add counts one piece of work in. ok is false once draining has started: refuse the work. Otherwise call done when it has
// ended; calling it again does nothing.
func (d *Drain) Add() (done func(), ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.init()
	if d.started {
		return nil, false
	}
	d.inFlight++
	return sync.OnceFunc(d.done), true
}

func (d *Drain) done() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inFlight--
	if d.started && d.inFlight == 0 {
		close(d.idle)
	}
}

// InFlight returns how much work is in flight.
func (d *Drain) InFlight() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.inFlight
}

// Start refuses new work from now on.
func (d *Drain) Start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.init()
	if d.started {
		return
	}
	d.started = true
	close(d.draining)
	if d.inFlight == 0 {
		close(d.idle)
	}
}

// Draining returns a channel that Start closes.
func (d *Drain) Draining() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.init()
	return d.draining
}

// Wait starts draining and returns nil when nothing is in flight any more, or the cause of ctx's end.
func (d *Drain) Wait(ctx context.Context) error {
	d.Start()
	d.mu.Lock()
	idle := d.idle
	d.mu.Unlock()
	select {
	case <-idle:
		return nil
	default:
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
