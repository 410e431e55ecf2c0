package gateway

import (
	"math"
	"sync"
	"time"
)

const (
	// bulkAt is how much a stream moves, one way and within bulkSpell, to be called bulk: a hundred and more calls.
	bulkAt    = 256 << 10
	bulkSpell = 500 * time.Millisecond
	// bulkCall is how much of what bulk streams have moved lately weighs as much as another stream when a connection is chosen.
	bulkCall = 64 << 10
)

// bulk is what the bulk streams of one connection have moved lately. Small calls are placed elsewhere: behind bulk they would wait for their
// turn, and for every packet of it that is lost. Safe for concurrent use.
type bulk struct {
	began chan struct{} // capacity 1: a stream has moved much

	mu    sync.Mutex
	level float64   // guarded by mu: bytes; falls to a third in bulkSpell
	at    time.Time // guarded by mu: when it was that
}

func newBulk() *bulk { return &bulk{began: make(chan struct{}, 1)} }

// add notes what a stream has moved within bulkSpell.
func (b *bulk) add(now time.Time, bytes int64) {
	b.mu.Lock()
	b.level = b.fallen(now) + float64(bytes)
	b.at = now
	b.mu.Unlock()
	select {
	case b.began <- struct{}{}:
	default:
	}
}

// weight says how many streams the bulk weighs as much as. Nil weighs nothing.
func (b *bulk) weight(now time.Time) int64 {
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.level == 0 {
		return 0
	}
	level := b.fallen(now)
	if level < bulkCall {
		b.level = 0
	}
	return int64(level / bulkCall)
}

// fallen is what the level is now. mu is held.
func (b *bulk) fallen(now time.Time) float64 {
	if b.level == 0 {
		return 0
	}
	return b.level * math.Exp(-float64(now.Sub(b.at))/float64(bulkSpell))
}

// flow counts what a stream moves one way. One goroutine uses it. Without a bulk it counts nothing.
type flow struct {
	of    *bulk
	moved int64
	since time.Time // the first of moved
}

// add notes that n bytes were moved. It asks for the time once in bulkAt: it is called for every piece.
func (f *flow) add(n int) {
	if f.of == nil {
		return
	}
	if f.moved += int64(n); f.moved < bulkAt {
		return
	}
	now := time.Now()
	if now.Sub(f.since) < bulkSpell {
		f.of.add(now, f.moved)
	}
	f.moved, f.since = 0, now
}
