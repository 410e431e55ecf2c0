package sidecar

import (
	"container/list"
	"net"
	"sync"

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

// door counts who is on the way in, and who is in. The zero value is in use. Safe for concurrent use.
type door struct {
	mu      sync.Mutex
	waiting list.List           // guarded by mu; of net.Conn, the oldest first
	inside  map[spiffeid.ID]int // guarded by mu; sessions by caller
	total   int                 // guarded by mu
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
