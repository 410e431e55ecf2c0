package sidecar

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	records "github.com/isthmus-mesh/isthmus/internal/datagram"
	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/sidecar/datagram"
	"github.com/isthmus-mesh/isthmus/sidecar/session"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	// A session to another cluster leads to one copy there, and the next one perhaps to another: a place gets another one when each that it has
	// carries so many flows.
	flowsBeforeAnother = 32
	maxSessionsToPlace = 4
	// sessionIdle is how long a session without flows is kept.
	sessionIdle = 30 * time.Second
	// Before the proof ends that it was opened with, a session takes no new flows, and then the old ones leave it.
	sessionLast = 5 * time.Minute
	sessionEnd  = 5 * time.Second
)

// udpSessions are the open datagram sessions to other workloads. Safe for concurrent use.
type udpSessions struct {
	o       *Outbound
	waiting *records.Budget // of what waits for a session

	mu      sync.Mutex
	open    map[udpPlace][]*udpSession // guarded by mu
	dialing map[udpPlace]chan struct{} // guarded by mu; closed when that dial has ended
	running sync.WaitGroup             // Add is called with mu held
	ended   bool                       // guarded by mu
}

// udpPlace tells sessions apart. A copy that came back at another address is another place.
type udpPlace struct {
	target  topology.Target
	address netip.AddrPort
}

// udpSession is one of them, shared by flows.
type udpSession struct {
	*datagram.Session
	inner  *session.Conn
	place  udpPlace
	began  time.Time
	o      *Outbound
	counts udpCounts
	gone   atomic.Bool // it carries nothing any more

	mu    sync.Mutex
	flows map[uint32]*udpFlow // guarded by mu; some have left it, and may still be answered
	next  uint32              // guarded by mu
	idle  time.Time           // guarded by mu; since when it has no flow; zero: it has some
}

// get returns a session to the copies that c is, opening one if need be. Errors are as tryTunnel's.
func (u *udpSessions) get(ctx context.Context, q topology.Query, c choice) (*udpSession, error) {
	place := udpPlace{target: c.candidate.Target}
	if e := c.candidate.Endpoint; e != nil {
		place.address = e.Address
	}
	for {
		u.mu.Lock()
		best, n := u.best(place, c.candidate)
		enough := best != nil && (c.candidate.Endpoint != nil || best.load() < flowsBeforeAnother || n >= maxSessionsToPlace)
		under := u.dialing[place]
		switch {
		case u.ended:
			u.mu.Unlock()
			return nil, errEnding
		case enough || best != nil && under != nil: // one is on its way
			u.mu.Unlock()
			return best, nil
		case under == nil:
			under = make(chan struct{})
			u.dialing[place] = under
			u.mu.Unlock()
			s, err := u.dial(ctx, q, c, place)
			u.mu.Lock()
			delete(u.dialing, place)
			close(under)
			u.mu.Unlock()
			if err != nil && best != nil {
				return best, nil
			}
			return s, err
		}
		u.mu.Unlock()
		select {
		case <-under:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// best returns the session to a place with the fewest flows of those that take new ones, and how many these are. mu is held.
func (u *udpSessions) best(place udpPlace, c *topology.Candidate) (best *udpSession, n int) {
	now := u.o.now()
	for _, s := range u.open[place] {
		if !s.takes(now) || !answersFor(c, s.inner.Peer.ID) {
			continue
		}
		n++
		if best == nil || s.load() < best.load() {
			best = s
		}
	}
	return best, n
}

func (u *udpSessions) dial(ctx context.Context, q topology.Query, c choice, place udpPlace) (*udpSession, error) {
	inner, err := u.o.tryTunnel(ctx, q, c)
	if err != nil {
		return nil, err
	}
	s := &udpSession{
		inner: inner, place: place, o: u.o, flows: make(map[uint32]*udpFlow), began: u.o.now(), idle: u.o.now(),
		counts: u.o.metrics.udp.of(outbound, place.target.Cluster.String(), q.Service.String()),
	}
	if s.Session, err = datagram.NewSession(inner.Conn, inner.Records, true, nil, "", s.receive); err != nil {
		inner.Abort(err)
		return nil, &session.Error{Verdict: balance.Broken, Err: err}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended {
		inner.Abort(errEnding)
		return nil, errEnding
	}
	u.open[place] = append(u.open[place], s)
	u.running.Go(func() { u.run(s) })
	return s, nil
}

// run carries a session to its end.
func (u *udpSessions) run(s *udpSession) {
	err := s.Run(context.Background(), s.inner.Abort) // close ends it
	_ = s.inner.Close()
	wanted := s.gone.Swap(true)
	u.mu.Lock()
	rest := u.open[s.place][:0:0]
	for _, other := range u.open[s.place] {
		if other != s {
			rest = append(rest, other)
		}
	}
	if u.open[s.place] = rest; len(rest) == 0 {
		delete(u.open, s.place)
	}
	u.mu.Unlock()
	u.o.metrics.udp.drop(outbound, s.place.target.Service, udpForged, s.Forged())
	if err != nil && !wanted && !s.Leaving() {
		u.o.failed(s.place.target, balance.Broken, err)
	}
}

// tend closes sessions that nobody uses.
func (u *udpSessions) tend(now time.Time) {
	u.mu.Lock()
	var idle []*udpSession
	for _, sessions := range u.open {
		for _, s := range sessions {
			if s.isIdle(now) {
				idle = append(idle, s)
			}
		}
	}
	u.mu.Unlock()
	for _, s := range idle {
		s.gone.Store(true)
		s.inner.Abort(nil)
	}
}

// close closes all sessions and waits for their ends.
func (u *udpSessions) close() {
	u.mu.Lock()
	u.ended = true
	var all []*udpSession
	for _, sessions := range u.open {
		all = append(all, sessions...)
	}
	u.mu.Unlock()
	for _, s := range all {
		s.gone.Store(true)
		s.inner.Abort(errEnding)
	}
	u.running.Wait()
}

// answersFor reports whether that is who may answer there.
func answersFor(c *topology.Candidate, id spiffeid.ID) bool {
	if c.Endpoint != nil {
		return c.Endpoint.Server == id
	}
	return slices.Contains(c.Remote.Servers, id)
}

// alive reports whether flows may go on using it.
func (s *udpSession) alive(now time.Time) bool {
	return !s.gone.Load() && !s.Leaving() && now.Before(s.inner.Expires.Add(-sessionEnd))
}

// takes reports whether it takes new flows. Where proofs last but minutes, their second half is not the last.
func (s *udpSession) takes(now time.Time) bool {
	return s.alive(now) && now.Before(s.inner.Expires.Add(-min(sessionLast, s.inner.Expires.Sub(s.began)/2)))
}

func (s *udpSession) load() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.flows)
}

// enter gives a flow a number.
func (s *udpSession) enter(f *udpFlow) (uint32, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.flows) >= maxUDPFlows {
		return 0, false
	}
	for s.flows[s.next] != nil {
		s.next = (s.next + 1) & datagram.MaxFlow
	}
	number := s.next
	s.next = (s.next + 1) & datagram.MaxFlow // not the next one's: late answers to this one are told apart
	s.flows[number], s.idle = f, time.Time{}
	return number, true
}

// leave forgets a flow.
func (s *udpSession) leave(number uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.flows, number)
	if len(s.flows) == 0 {
		s.idle = s.o.now()
	}
}

func (s *udpSession) isIdle(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.flows) == 0 && !s.idle.IsZero() && now.Sub(s.idle) >= sessionIdle
}

// receive takes what the called side sends.
func (s *udpSession) receive(kind datagram.Kind, number uint32, payload []byte) {
	s.mu.Lock()
	f := s.flows[number]
	s.mu.Unlock()
	if f == nil {
		return // it was forgotten
	}
	switch kind {
	case datagram.Data:
		f.answer(s, payload)
	case datagram.Closed:
		f.lost(s, "")
	case datagram.Unreachable:
		s.o.failed(s.place.target, balance.Refused, errNoPort)
		f.lost(s, udpUnreachable)
	case datagram.Refused, datagram.TooMany, datagram.Full:
		f.lost(s, udpRefused)
	}
}
