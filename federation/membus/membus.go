// Package membus is federation.Bus in memory: for tests in virtual time, and for members that share a process.
//
// A Hub is the broker; each member takes a Bus of it. A Hub can be made as bad as a broker may be: it can lose, delay, repeat,
// reorder and change messages, cut pairs off from each other, and break connections. All methods may be called at any time by
// several goroutines; it starts none of its own.
package membus

import (
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/federation"
)

// DefaultQueue is how many messages wait for a subscriber, unless Faults say otherwise.
const DefaultQueue = 1024

// Faults is how bad a Hub is. The zero value loses nothing and delivers at once.
type Faults struct {
	// Drop and Duplicate are probabilities, per message and receiver.
	Drop, Duplicate float64
	// Delay is how long each message takes, and Jitter a random time on top. Messages overtake each other when Jitter is set.
	Delay, Jitter time.Duration
	// Tamper may change, replace or (by returning false) swallow what goes from one member to another. It must not change the
	// bytes that it is given.
	Tamper func(from, to string, m federation.Message) (federation.Message, bool)
	// Queue is how many messages wait for a subscriber before it has a gap. Default DefaultQueue.
	Queue int
	// Seed makes two runs alike.
	Seed uint64
}

// Hub is a broker in memory.
type Hub struct {
	mu        sync.Mutex
	faults    Faults
	random    *rand.Rand
	members   map[string]*Bus
	down      map[string]bool
	cut       map[[2]string]bool
	published int
	delivered int
	sequence  uint64
}

// NewHub returns a hub.
func NewHub(f Faults) *Hub {
	h := &Hub{members: make(map[string]*Bus), down: make(map[string]bool), cut: make(map[[2]string]bool)}
	h.SetFaults(f)
	return h
}

// SetFaults changes how bad the hub is, for messages published from now on.
func (h *Hub) SetFaults(f Faults) {
	if f.Queue == 0 {
		f.Queue = DefaultQueue
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = f
	h.random = rand.New(rand.NewPCG(f.Seed, 1)) //nolint:gosec // G404: faults of a test
}

// Bus returns the connection of the named member, which is made the first time.
func (h *Hub) Bus(name string) *Bus {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.members[name]
	if b == nil || b.closed {
		b = &Bus{hub: h, name: name, changed: make(chan struct{}), readers: make(map[*reader]struct{})}
		h.members[name] = b
	}
	return b
}

// SetUp breaks or restores a member's connection. While it is down, Publish fails; subscriptions of before end with a gap.
func (h *Hub) SetUp(name string, up bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down[name] = !up
	if b := h.members[name]; b != nil {
		b.wakeLocked(!up)
	}
}

// Cut makes the hub swallow silently what goes between two members, both ways, or (with false) stop doing so.
func (h *Hub) Cut(a, b string, cut bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cut[[2]string{a, b}], h.cut[[2]string{b, a}] = cut, cut
}

// Published returns how many messages members have published so far.
func (h *Hub) Published() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.published
}

// Delivered returns how many messages have been put into subscribers' queues.
func (h *Hub) Delivered() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.delivered
}

// Subscriptions returns how many there are now.
func (h *Hub) Subscriptions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, b := range h.members {
		n += len(b.readers)
	}
	return n
}

// Bus is one member's connection to a Hub.
type Bus struct {
	hub  *Hub
	name string

	// Guarded by hub.mu:

	closed  bool
	changed chan struct{} // closed when the connection goes up or down
	readers map[*reader]struct{}
}

// reader is one subscription. Guarded by hub.mu.
type reader struct {
	queue queue
	gap   bool
	wake  chan struct{} // holds one
}

func (r *reader) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Publish implements federation.Bus.
func (b *Bus) Publish(ctx context.Context, m federation.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(m.Data) > federation.MaxMessage || !strings.HasPrefix(m.Subject, federation.SubjectPrefix) {
		return fmt.Errorf("membus: %d bytes under %q are not carried", len(m.Data), m.Subject)
	}
	h := b.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case b.closed:
		return federation.ErrBusClosed
	case h.down[b.name]:
		return fmt.Errorf("membus: %s is not connected", b.name)
	}
	h.published++
	for _, to := range h.members {
		if to != b && !h.down[to.name] && !h.cut[[2]string{b.name, to.name}] {
			h.carry(b, to, m)
		}
	}
	return nil
}

// carry puts m into to's queues, as well as the faults let it. The caller holds h.mu.
func (h *Hub) carry(from, to *Bus, m federation.Message) {
	if h.faults.Tamper != nil {
		var ok bool
		if m, ok = h.faults.Tamper(from.name, to.name, m); !ok {
			return
		}
	}
	copies := 1
	if h.random.Float64() < h.faults.Duplicate {
		copies = 2
	}
	for range copies {
		if h.random.Float64() < h.faults.Drop {
			continue
		}
		delay := h.faults.Delay
		if h.faults.Jitter > 0 {
			delay += time.Duration(h.random.Int64N(int64(h.faults.Jitter)))
		}
		for r := range to.readers {
			if len(r.queue) >= h.faults.Queue {
				r.gap = true
			} else {
				h.sequence++
				h.delivered++
				heap.Push(&r.queue, item{time.Now().Add(delay), h.sequence, m})
			}
			r.poke()
		}
	}
}

// Subscribe implements federation.Bus.
func (b *Bus) Subscribe(ctx context.Context, ready func(), deliver func(federation.Message)) error {
	r := &reader{wake: make(chan struct{}, 1)}
	if err := b.attach(ctx, r); err != nil {
		return err
	}
	defer b.detach(r)
	ready()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		m, wait, err := b.next(ctx, r)
		switch {
		case err != nil:
			return err
		case m != nil:
			deliver(*m)
			continue
		case wait > 0:
			timer.Reset(wait)
		default:
			timer.Stop()
		}
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-timer.C:
		}
	}
}

// attach waits until the connection is up, and subscribes.
func (b *Bus) attach(ctx context.Context, r *reader) error {
	for {
		b.hub.mu.Lock()
		closed, down, changed := b.closed, b.hub.down[b.name], b.changed
		if !closed && !down {
			b.readers[r] = struct{}{}
		}
		b.hub.mu.Unlock()
		switch {
		case closed:
			return federation.ErrBusClosed
		case !down:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (b *Bus) detach(r *reader) {
	b.hub.mu.Lock()
	defer b.hub.mu.Unlock()
	delete(b.readers, r)
}

// next returns a message, or how long to wait for one (0: until woken), or why there will be none.
func (b *Bus) next(ctx context.Context, r *reader) (*federation.Message, time.Duration, error) {
	b.hub.mu.Lock()
	defer b.hub.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, 0, ctx.Err()
	case b.closed:
		return nil, 0, federation.ErrBusClosed
	case r.gap:
		return nil, 0, federation.ErrGap
	case len(r.queue) == 0:
		return nil, 0, nil
	}
	if wait := time.Until(r.queue[0].at); wait > 0 {
		return nil, wait, nil
	}
	i, _ := heap.Pop(&r.queue).(item)
	return &i.message, 0, nil
}

// Close ends the connection and its subscriptions.
func (b *Bus) Close() error {
	b.hub.mu.Lock()
	defer b.hub.mu.Unlock()
	b.closed = true
	b.wakeLocked(false)
	return nil
}

// wakeLocked tells who waits that something has changed. The caller holds hub.mu.
func (b *Bus) wakeLocked(gap bool) {
	close(b.changed)
	b.changed = make(chan struct{})
	for r := range b.readers {
		r.gap = r.gap || gap
		r.poke()
	}
}

type item struct {
	at       time.Time
	sequence uint64
	message  federation.Message
}

// queue is a heap by time, then by order of publishing.
type queue []item

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	if q[i].at.Equal(q[j].at) {
		return q[i].sequence < q[j].sequence
	}
	return q[i].at.Before(q[j].at)
}

func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

func (q *queue) Push(x any) {
	i, _ := x.(item)
	*q = append(*q, i)
}

func (q *queue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = item{}
	*q = old[:len(old)-1]
	return last
}
