package sidecar

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/isthmus-mesh/isthmus/internal/drill"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/sidecar/conn"
	"github.com/isthmus-mesh/isthmus/topology"
)

var errDrill = errors.New("a failover drill makes the service look dead here")

// followDrills takes in which drills the present configuration tells of.
func (in *Inbound) followDrills() {
	snapshot := in.snapshots.Load()
	if snapshot == nil {
		return
	}
	var told map[topology.ServiceName]*topology.Drill
	for _, i := range snapshot.Inbounds() {
		if i.Drill != nil {
			if told == nil {
				told = make(map[topology.ServiceName]*topology.Drill)
			}
			told[i.Name] = i.Drill
		}
	}
	in.drills.Follow(told)
}

// drilled refuses a new session to a service of which a drill is on: in its handshake, as one that isn't served. A silent drill lets it wait, and
// refuses it once nobody waits for it any more.
func (in *Inbound) drilled(hello *tls.ClientHelloInfo) error {
	service, _, _, err := preamble.ParseServerName(hello.ServerName)
	if err != nil {
		return err
	}
	d := in.drills.Of(service)
	switch {
	case d == nil:
		return nil
	case d.Silent:
		select {
		case <-d.Over():
		case <-hello.Context().Done():
		}
	}
	return errDrill
}

// drillFailure is the answer to a request during a drill. It is marked as not executed: the caller's sidecar goes elsewhere with it.
func drillFailure(d *drill.Drill, service topology.ServiceName) *Failure {
	return &Failure{
		Status: http.StatusServiceUnavailable, Code: CodeDrill, Err: errDrill,
		Text: "the failover drill " + d.ID + " makes " + service.String() + " look dead here",
	}
}

// hushed is the connection below an inner session. While a silent drill of the session's service is on, nothing gets through it in either direction,
// as if packets were dropped. What was kept back never arrives later: a session that lost something is cut off when the drill ends.
type hushed struct {
	net.Conn
	drills  *drill.Board
	service atomic.Pointer[topology.ServiceName] // nil until the handshake is over
	closed  chan struct{}
	close   func()
	once    sync.Once // that the session is cut off is arranged
}

func newHushed(c net.Conn, drills *drill.Board) *hushed {
	h := &hushed{Conn: c, drills: drills, closed: make(chan struct{})}
	h.close = sync.OnceFunc(func() { close(h.closed) })
	return h
}

// watch says which service the session is for.
func (h *hushed) watch(service topology.ServiceName) { h.service.Store(&service) }

// silenced returns the drill that silences the session now; nil when there is none.
func (h *hushed) silenced() *drill.Drill {
	service := h.service.Load()
	if service == nil {
		return nil
	}
	if d := h.drills.Of(*service); d != nil && d.Silent {
		h.once.Do(func() {
			d.After(func() { conn.Reset(h) })
		})
		return d
	}
	return nil
}

// Read reads. What arrives during a silent drill is lost.
func (h *hushed) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if d := h.silenced(); d != nil && err == nil {
		select {
		case <-d.Over():
			conn.Reset(h)
		case <-h.closed:
		}
		return 0, net.ErrClosed
	}
	return n, err
}

// Write writes. What is written during a silent drill is lost.
func (h *hushed) Write(p []byte) (int, error) {
	if h.silenced() != nil {
		return len(p), nil
	}
	return h.Conn.Write(p)
}

// SetLinger passes on what a TCP connection offers.
func (h *hushed) SetLinger(sec int) error {
	if l, ok := h.Conn.(interface{ SetLinger(sec int) error }); ok {
		return l.SetLinger(sec)
	}
	return nil
}

// CloseWrite ends the sending half.
func (h *hushed) CloseWrite() error {
	if w, ok := h.Conn.(interface{ CloseWrite() error }); ok && h.silenced() == nil {
		return w.CloseWrite()
	}
	return h.Close()
}

// Close closes the connection.
func (h *hushed) Close() error {
	h.close()
	return h.Conn.Close()
}
