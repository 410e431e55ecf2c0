package gateway

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	// bulkRun is how many bytes in one direction, with next to nothing in the other, are bulk.
	bulkRun = 1 << 20
	// bulkPiece is after how many of them a stream is looked at: it may be bulk, and better off elsewhere.
	bulkPiece = 256 << 10
	// bulkFor is how long a service counts as one that has bulk to move, after it had.
	bulkFor = 2 * time.Minute
	// What the layers above acknowledge and grant is no turn: so much, and one byte in so many.
	turnBytes = 4 << 10
	turnShare = 32
)

// hauls knows which services have had bulk to move lately. What a stream says, the gateway can't see; but requests and answers take turns, and
// bulk doesn't. The zero value knows none. Safe for concurrent use.
type hauls struct {
	mu       sync.Mutex
	services map[topology.ServiceName]*atomic.Int64 // guarded by mu: when last, Unix nanoseconds
}

// of returns where to note when a service has moved bulk; nil: there are too many services.
func (b *hauls) of(s topology.ServiceName) *atomic.Int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	last, ok := b.services[s]
	if ok || len(b.services) >= maxServices {
		return last
	}
	if b.services == nil {
		b.services = make(map[topology.ServiceName]*atomic.Int64)
	}
	last = new(atomic.Int64)
	b.services[s] = last
	return last
}

// lately reports whether the service has moved bulk lately.
func (b *hauls) lately(s topology.ServiceName, now time.Time) bool {
	b.mu.Lock()
	last := b.services[s]
	b.mu.Unlock()
	return last != nil && now.Sub(time.Unix(0, last.Load())) < bulkFor
}

// run counts what goes in one direction without a turn. Of the goroutine that moves it, but for total.
type run struct {
	total atomic.Uint64
	bytes uint64 // of this run
	other uint64 // the other direction's total when it began
}

// add counts n bytes. When another bulkPiece is full it returns how many bytes the run has, and otherwise 0.
func (r *run) add(n int, other *run) uint64 {
	size := uint64(n) //nolint:gosec // G115: of a buffer
	r.total.Add(size)
	if there := other.total.Load(); there-r.other > r.bytes/turnShare+turnBytes {
		r.bytes, r.other = 0, there
	}
	before := r.bytes
	r.bytes += size
	if r.bytes/bulkPiece == before/bulkPiece {
		return 0
	}
	return r.bytes
}
