// Package conn holds what the sidecar needs around a net.Conn: one that tells when it is closed, one of which some bytes
// were read too early, one that can be ended with an error, and a listener to which connections are handed.
//
// Each type is safe for the concurrent use that net.Conn and net.Listener promise.
package conn

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"
)

// ErrCut is what reading a Carry connection returns at its end.
var ErrCut = errors.New("cut off: the connection ended, what it carries did not")

// Told is a connection that tells when it is closed by its owner.
type Told struct {
	net.Conn
	carries bool

	mu     sync.Mutex
	closed bool     // guarded by mu
	tell   []func() // guarded by mu; called once, by the first Close
}

// Tell returns c as a connection that calls tell when it is closed.
func Tell(c net.Conn, tell ...func()) *Told { return &Told{Conn: c, tell: tell} }

// Carry returns c as a connection for TLS to run over, that calls tell when it is closed. What runs over it ends with a
// close_notify of its own; crypto/tls takes a plain end at a record's boundary for one, so here that is an error.
func Carry(c net.Conn, tell ...func()) *Told { return &Told{Conn: c, carries: true, tell: tell} }

// Read reads.
func (t *Told) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if t.carries && errors.Is(err, io.EOF) {
		err = ErrCut
	}
	return n, err
}

// OnClose calls f when the connection is closed; at once when it is already.
func (t *Told) OnClose(f func()) {
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.tell = append(t.tell, f)
	}
	t.mu.Unlock()
	if closed {
		f()
	}
}

// Close closes the connection, and tells.
func (t *Told) Close() error {
	err := t.Conn.Close()
	t.mu.Lock()
	tell := t.tell
	t.tell, t.closed = nil, true
	t.mu.Unlock()
	for _, f := range tell {
		f()
	}
	return err
}

// Reset closes c so that its peer sees it break, not end.
func Reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0) // a connection that is gone already needs none
	}
	_ = c.Close()
}

// SetLinger passes on what a TCP connection offers.
func (t *Told) SetLinger(sec int) error {
	if l, ok := t.Conn.(interface{ SetLinger(sec int) error }); ok {
		return l.SetLinger(sec)
	}
	return nil
}

// CloseWrite ends the sending half; of a connection that has none, all.
func (t *Told) CloseWrite() error {
	if w, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return t.Close()
}

// Unread returns c with what r holds of it put back in front.
func Unread(c net.Conn, r *bufio.Reader) net.Conn {
	early, err := r.Peek(r.Buffered())
	if err != nil || len(early) == 0 {
		return c
	}
	return &unread{Conn: c, early: append([]byte(nil), early...)}
}

type unread struct {
	net.Conn
	early []byte // only Read uses it
}

func (u *unread) Read(p []byte) (int, error) {
	if len(u.early) == 0 {
		return u.Conn.Read(p)
	}
	n := copy(p, u.early)
	u.early = u.early[n:]
	return n, nil
}

func (u *unread) SetLinger(sec int) error {
	if l, ok := u.Conn.(interface{ SetLinger(sec int) error }); ok {
		return l.SetLinger(sec)
	}
	return nil
}

func (u *unread) CloseWrite() error {
	if w, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return u.Close()
}

// Abort ends the connection with an error (relay.Aborter).
func (u *unread) Abort(error) { Reset(u.Conn) }

// Abort ends the connection with an error (relay.Aborter).
func (t *Told) Abort(error) { Reset(t) }

// Handoff is a net.Listener whose connections are given to it.
type Handoff struct {
	address net.Addr
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

// NewHandoff returns a listener that says to be at address.
func NewHandoff(address net.Addr) *Handoff {
	return &Handoff{address: address, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Give hands c over, or closes it when nobody takes it any more.
func (h *Handoff) Give(c net.Conn) {
	if !h.Offer(c) {
		_ = c.Close()
	}
}

// Offer hands c over; taken is false when nobody takes it any more.
func (h *Handoff) Offer(c net.Conn) (taken bool) {
	select {
	case h.conns <- c:
		return true
	case <-h.closed:
		return false
	}
}

// Accept returns the next connection; net.ErrClosed once closed.
func (h *Handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (h *Handoff) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr returns the address of the listener that the connections come from.
func (h *Handoff) Addr() net.Addr { return h.address }
