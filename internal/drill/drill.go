// Package drill keeps the failover drills that are in force in one program, a sidecar or a gateway: which services are to look dead, and until when.
//
// A drill is a lease that control holds and renews (topology.Drill). Here it has a timer of its own: whatever becomes of control, and of whoever
// began the drill, it ends. Its program asks Of for each session, request or stream; that costs one atomic read as long as there is none.
package drill

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// Drill is one that is in force.
type Drill struct {
	ID string
	// Silent: nothing is answered, as if packets were dropped; else it is refused, as if nothing listened.
	Silent bool

	ctx context.Context //nolint:containedctx // it is the drill's life, for those who have to end something with it
	end context.CancelFunc
}

// Over returns a channel that is closed when the drill ends.
func (d *Drill) Over() <-chan struct{} { return d.ctx.Done() }

// After calls f when the drill ends, in a goroutine of its own.
func (d *Drill) After(f func()) { context.AfterFunc(d.ctx, f) }

// Board is the drills of one program. The zero value has none. Safe for concurrent use.
type Board struct {
	running atomic.Int64 // entries in by that have not ended

	mu sync.RWMutex
	by map[topology.ServiceName]*entry // guarded by mu; of ended ones too, as long as they are told of
}

type entry struct {
	told  topology.Drill
	drill *Drill // nil: it has ended
	timer *time.Timer
}

// Of returns the drill that is in force for a service; nil when there is none.
func (b *Board) Of(name topology.ServiceName) *Drill {
	if b.running.Load() == 0 {
		return nil
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if e := b.by[name]; e != nil {
		return e.drill
	}
	return nil
}

// Follow takes in what the present configuration tells, by service. What it has told before is no news: that a drill has ended here stays so until
// control speaks of a later end.
func (b *Board) Follow(told map[topology.ServiceName]*topology.Drill) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, e := range b.by {
		if d := told[name]; d == nil || d.ID != e.told.ID || d.Silent != e.told.Silent {
			b.stop(e)
			delete(b.by, name)
		}
	}
	for name, d := range told {
		e := b.by[name]
		if e == nil {
			if b.by == nil {
				b.by = make(map[topology.ServiceName]*entry)
			}
			e = new(entry)
			b.by[name] = e
		}
		if !d.Ends.After(e.told.Ends) {
			continue
		}
		e.told = *d
		if e.drill == nil {
			e.drill = &Drill{ID: d.ID, Silent: d.Silent}
			e.drill.ctx, e.drill.end = context.WithCancel(context.Background())
			b.running.Add(1)
		} else {
			e.timer.Stop()
		}
		e.timer = time.AfterFunc(d.Left, func() { b.expired(name, d) })
	}
}

// expired ends a drill whose time is up, unless it has been renewed meanwhile.
func (b *Board) expired(name topology.ServiceName, d *topology.Drill) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.by[name]; e != nil && e.told.ID == d.ID && e.told.Ends.Equal(d.Ends) {
		b.stop(e)
	}
}

// stop ends a drill, if it has not ended. mu is held.
func (b *Board) stop(e *entry) {
	if e.drill == nil {
		return
	}
	e.timer.Stop()
	e.drill.end()
	e.drill = nil
	b.running.Add(-1)
}

// Close ends all.
func (b *Board) Close() { b.Follow(nil) }
