package sidecar

import (
	"container/list"
	"net"
	"sync"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/sidecar/conn"
	"github.com/isthmus-mesh/isthmus/sidecar/limit"
)

const (
	// maxHandshakes bounds the connections whose handshake is under way, and who may be nobody. Past it, the one that has been at it the
	// longest makes room: whoever says nothing must not shut out those who do.
	maxHandshakes = 4096
	// maxSessions bounds the inner sessions that are open: each costs a file descriptor and some 60 KiB. maxFromCaller is what one
	// identity may hold of them, so that others get in.
	maxSessions   = 8192
	maxFromCaller = 4096
)

// What a session may hold of requests' bodies that the application does not take is what its window lets in. Callers with few sessions, which most are, get wide
// ones; more than that get narrow ones, with which uploads across a long way are slower. So all together hold 1 GiB at most (128 of 4 MiB, 8,192 of 64 KiB), and
// one caller 320 MiB.
const (
	maxWide      = 128
	maxWideFrom  = 16
	narrowWindow = 64 << 10 // bytes, of a connection and of a stream
)

// maxRequests bounds the requests to the application, of all sessions together, and maxRequestsFrom those of one caller: whoever takes all
// that it may leaves room for others.
const (
	maxRequests     = 10_000
	maxRequestsFrom = maxRequests / 2
)

// door counts who is on the way in, who is in, and what they ask for. The zero value is in use. Safe for concurrent use.
type door struct {
	requests atomic.Int64 // to the application

	mu      sync.Mutex
	waiting list.List              // guarded by mu; of net.Conn, the oldest first
	inside  map[spiffeid.ID]*guest // guarded by mu; callers with a session, and no others: who vouches for them may make up any number
	total   int                    // guarded by mu
	wide    int                    // guarded by mu; sessions with a wide window
}

// guest is a caller that is in.
type guest struct {
	sessions int          // guarded by the door's mu
	wide     int          // guarded by the door's mu
	requests atomic.Int64 // to the application
	shares   sync.Map     // *limit.Caller by *limit.Limiter: as many as ports are served
}

// share returns the caller's part of what a limiter lets in.
func (g *guest) share(l *limit.Limiter) *limit.Caller {
	if c, ok := g.shares.Load(l); ok {
		return c.(*limit.Caller) // nothing else is put in
	}
	c, _ := g.shares.LoadOrStore(l, new(limit.Caller))
	return c.(*limit.Caller)
}

// ask counts a request of a caller in; ok is false when there are too many. Call answered in either case.
func (d *door) ask(g *guest) (ok bool) {
	mine, all := g.requests.Add(1), d.requests.Add(1)
	return mine <= maxRequestsFrom && all <= maxRequests
}

// answered counts a request out.
func (d *door) answered(g *guest) {
	g.requests.Add(-1)
	d.requests.Add(-1)
}

// knock lets a connection begin its handshake; call done when that has ended. The connection is reset when it takes too long and others
// want in.
func (d *door) knock(c net.Conn) (done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting.Len() >= maxHandshakes {
		oldest := d.waiting.Front()
		d.waiting.Remove(oldest)
		conn.Reset(oldest.Value.(net.Conn)) // nothing else is put in
	}
	place := d.waiting.PushBack(c)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.waiting.Remove(place) // does nothing when it made room
	}
}

// enter counts a session in, and returns its caller; nil when there are too many. Call leave when it has ended.
func (d *door) enter(caller spiffeid.ID) (g *guest, leave func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g = d.inside[caller]
	if d.total >= maxSessions || g != nil && g.sessions >= maxFromCaller {
		return nil, nil
	}
	if d.inside == nil {
		d.inside = make(map[spiffeid.ID]*guest)
	}
	if g == nil {
		g = new(guest)
		d.inside[caller] = g
	}
	g.sessions++
	d.total++
	return g, sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.total--
		if g.sessions--; g.sessions == 0 {
			delete(d.inside, caller)
		}
	})
}

// widen says whether a session of a caller gets a wide window. Call narrow when it has ended; nil: it gets a narrow one.
func (d *door) widen(g *guest) (narrow func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wide >= maxWide || g.wide >= maxWideFrom {
		return nil
	}
	d.wide++
	g.wide++
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.wide--
		g.wide--
	})
}
