package sidecar

import (
	"container/list"
	"net"
	"sync"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/sidecar/conn"
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
	waiting list.List           // guarded by mu; of net.Conn, the oldest first
	inside  map[spiffeid.ID]int // guarded by mu; sessions by caller
	total   int                 // guarded by mu

	asking sync.Map // spiffeid.ID to *atomic.Int64: requests by caller. Callers are few, and known to the trust domain
}

// ask counts a request in; ok is false when there are too many. Call done in either case.
func (d *door) ask(caller spiffeid.ID) (done func(), ok bool) {
	own, found := d.asking.Load(caller)
	if !found {
		own, _ = d.asking.LoadOrStore(caller, new(atomic.Int64))
	}
	n := own.(*atomic.Int64) // nothing else is put in
	mine, all := n.Add(1), d.requests.Add(1)
	return func() { n.Add(-1); d.requests.Add(-1) }, mine <= maxRequestsFrom && all <= maxRequests
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

// enter counts a session in; ok is false when there are too many. Call leave when it has ended.
func (d *door) enter(caller spiffeid.ID) (leave func(), ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.total >= maxSessions || d.inside[caller] >= maxFromCaller {
		return nil, false
	}
	if d.inside == nil {
		d.inside = make(map[spiffeid.ID]int)
	}
	d.inside[caller]++
	d.total++
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.total--
		if d.inside[caller]--; d.inside[caller] == 0 {
			delete(d.inside, caller)
		}
	}), true
}
