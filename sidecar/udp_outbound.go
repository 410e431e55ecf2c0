package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	records "github.com/isthmus-mesh/isthmus/internal/datagram"
	"github.com/isthmus-mesh/isthmus/sidecar/datagram"
	"github.com/isthmus-mesh/isthmus/sidecar/host"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	// defaultUDPIdle is how long a flow that carries nothing is remembered.
	defaultUDPIdle = 30 * time.Second
	// maxUDPFlows bounds the flows of one listener; the one that has been idle the longest makes room.
	maxUDPFlows = 4096
	// What a flow sends while there is no session for it waits: so many datagrams of it and so many bytes, and of all flows together so many
	// bytes, of which those to one service may have what they leave for others. The oldest makes room.
	maxUDPWaiting      = 32
	maxUDPWaitingBytes = 256 << 10
	maxUDPWaitingAll   = 16 << 20
	// udpPause is how long a flow that no copy takes is left alone.
	udpPause = 1 * time.Second
	// A copy is well when it took datagrams for so long and did not say that nothing listens: many a protocol answers nothing.
	udpWell = 1 * time.Second
)

// UDPListener is a socket whose datagrams go to one port of one service.
type UDPListener struct {
	Service topology.ServiceName
	Port    uint16
	Scope   topology.Scope
	Socket  *net.UDPConn
	Idle    time.Duration // how long a flow that carries nothing is remembered. Default 30 s
}

// udpListener serves one. Run is the parent of its goroutines.
type udpListener struct {
	o      *Outbound
	query  topology.Query
	socket *net.UDPConn
	idle   time.Duration
	ctx    context.Context //nolint:containedctx // of the work that datagrams begin
	work   sync.WaitGroup

	mu    sync.Mutex
	flows map[netip.AddrPort]*udpFlow // guarded by mu; by the client's address
}

// startUDP serves one listener.
func (s *Sidecar) startUDP(ctx, work context.Context, l UDPListener, start func(func() error)) {
	u := &udpListener{
		o: s.outbound, query: topology.Query{Service: l.Service, Port: l.Port, Scope: l.Scope, Datagrams: true},
		socket: l.Socket, idle: l.Idle, flows: make(map[netip.AddrPort]*udpFlow),
	}
	if u.idle <= 0 {
		u.idle = defaultUDPIdle
	}
	start(func() error { return u.run(ctx, work) })
}

func (u *udpListener) run(ctx, work context.Context) error {
	settling, stop := context.WithCancel(work)
	defer u.work.Wait()
	defer stop()
	u.ctx = settling
	defer context.AfterFunc(ctx, func() { _ = u.socket.Close() })()
	u.work.Go(func() { u.tend(settling) })
	buffer := make([]byte, datagram.MaxPayload+1)
	for {
		n, from, err := u.socket.ReadFromUDPAddrPort(buffer)
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil
		case err != nil: // what a client's machine said of an answer (ICMP) is no reason to stop
			continue
		}
		u.flow(from).send(buffer[:n])
	}
}

// flow returns the flow of a client.
func (u *udpListener) flow(client netip.AddrPort) *udpFlow {
	now := u.o.now()
	u.mu.Lock()
	f := u.flows[client]
	var victim *udpFlow
	if f == nil {
		if len(u.flows) >= maxUDPFlows {
			for _, other := range u.flows {
				if victim == nil || other.used.Load() < victim.used.Load() {
					victim = other
				}
			}
			delete(u.flows, victim.client)
		}
		f = &udpFlow{listener: u, client: client, began: now}
		u.flows[client] = f
		u.o.metrics.udp.flows.WithLabelValues(outbound).Inc()
	}
	f.used.Store(now.UnixNano())
	u.mu.Unlock()
	if victim != nil {
		victim.end()
	}
	return f
}

// tend looks after flows and sessions until ctx ends; then it ends the flows.
func (u *udpListener) tend(ctx context.Context) {
	tick := time.NewTicker(udpSweep)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		now := u.o.now()
		var over []*udpFlow
		u.mu.Lock()
		for client, f := range u.flows {
			if ctx.Err() != nil || now.Sub(time.Unix(0, f.used.Load())) >= u.idle {
				over = append(over, f)
				delete(u.flows, client)
				continue
			}
			f.look(now)
		}
		u.mu.Unlock()
		for _, f := range over {
			f.end()
		}
		u.o.udp.tend(now)
	}
}

// udpFlow is what one client of a listener sends, and what it gets.
type udpFlow struct {
	listener *udpListener
	client   netip.AddrPort
	began    time.Time
	used     atomic.Int64 // when it last carried something, Unix nanoseconds

	sent, received atomic.Int64 // bytes

	mu       sync.Mutex
	via      *udpSession     // guarded by mu; nil: none
	number   uint32          // guarded by mu; in via
	last     topology.Target // guarded by mu; that it came to last
	since    time.Time       // guarded by mu; when it came to via
	well     bool            // guarded by mu; the copy is known to take what it sends
	plan     *plan           // guarded by mu; by which via was chosen, or was right when last looked
	settling bool            // guarded by mu; a session is being looked for
	waiting  *records.Queue  // guarded by mu; what is to be sent then; nil: nothing
	until    time.Time       // guarded by mu; no session is looked for before
	over     bool            // guarded by mu
}

// send sends what the client has sent. It doesn't wait.
func (f *udpFlow) send(payload []byte) {
	u := f.listener
	m, service, now := &u.o.metrics.udp, u.query.Service, u.o.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	if f.via != nil && !f.via.alive(now) {
		f.via = nil
	}
	if f.via != nil {
		f.sent.Add(int64(len(payload)))
		f.via.counts.sent.add(len(payload))
		if n := f.via.Send(datagram.Data, f.number, payload); n > 0 {
			m.drop(outbound, service, udpQueueFull, uint64(n))
		}
		if !u.o.resolver.holds(f.plan) && !now.Before(f.until) {
			f.settle()
		}
		return
	}
	if now.Before(f.until) {
		m.drop(outbound, service, udpNoCopy, 1)
		return
	}
	if f.waiting == nil {
		f.waiting = records.NewQueue(maxUDPWaiting, maxUDPWaitingBytes, u.o.udp.waiting, service.String())
	}
	m.drop(outbound, service, udpQueueFull, uint64(f.waiting.Put(slices.Clone(payload)))) //nolint:gosec // G115: a count
	f.settle()
}

// settle has a session looked for, or whether the present one is still right. mu is held.
func (f *udpFlow) settle() {
	if f.settling {
		return
	}
	f.settling = true
	u := f.listener
	u.work.Go(func() {
		p, s, err := u.find(f)
		f.settled(p, s, err)
	})
}

// find returns the session that a flow is to use, and the plan that says so; a nil session: it is to keep the one that it has.
func (u *udpListener) find(f *udpFlow) (*plan, *udpSession, error) {
	o := u.o
	p, err := o.resolver.plan(u.ctx, u.query)
	if err != nil {
		return nil, nil, err
	}
	f.mu.Lock()
	via := f.via
	f.mu.Unlock()
	if via != nil && via.alive(o.now()) && p.trusts(via) {
		return p, nil, nil
	}
	choices := newSelection(p, o.health, o.now, true)
	for range maxAttempts {
		c := choices.next()
		if err := choices.pause(u.ctx, c); err != nil {
			return nil, nil, err
		}
		s, err := o.udp.get(u.ctx, u.query, c)
		if err == nil {
			return p, s, nil
		}
		if refused, ok := errors.AsType[*Failure](err); ok {
			o.answered(c)
			return nil, nil, refused
		}
		if u.ctx.Err() != nil {
			if c.probe {
				o.health.Cancel(c.candidate.Target)
			}
			return nil, nil, u.ctx.Err()
		}
		choices.failed(c, err.Error())
	}
	return nil, nil, errors.New("no copy of " + host.String(u.query) + " took the session: " + choices.words())
}

// trusts reports whether a flow may stay at a session: whether its copies are among those that requests would go to, and neither drained nor a
// last resort.
func (p *plan) trusts(s *udpSession) bool {
	for i := range p.Tiers {
		t := &p.Tiers[i]
		if t.LastResort || t.Drained {
			continue
		}
		for j := range t.Candidates {
			c := &t.Candidates[j]
			if c.Target == s.place.target && (c.Endpoint == nil || c.Endpoint.Address == s.place.address) && answersFor(c, s.inner.Peer.ID) {
				return true
			}
		}
	}
	return false
}

// settled takes in what find found.
func (f *udpFlow) settled(p *plan, s *udpSession, err error) {
	u := f.listener
	m, service, now := &u.o.metrics.udp, u.query.Service, u.o.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settling = false
	if f.over {
		return
	}
	waiting := f.waits()
	switch {
	case err == nil && s != nil:
		err = f.come(s, now)
	case err != nil && f.via != nil: // it may go nowhere now
		f.via.Send(datagram.Closed, f.number, nil)
		f.via.leave(f.number)
		f.via = nil
	}
	if err != nil || f.via == nil { // it may have been lost while that was looked for: the next datagram looks again
		m.drop(outbound, service, udpNoCopy, uint64(len(waiting)))
		if err != nil {
			f.until = now.Add(udpPause)
			if refused, _ := errors.AsType[*Failure](err); u.ctx.Err() == nil && (refused == nil || !refused.final()) {
				u.o.tallies.of(service, topology.ClusterName{}).ended(0, true, 0, false)
			}
			u.o.log.LogAttrs(u.ctx, u.o.requestLevel, "no session for a flow", slog.String("destination", host.String(u.query)), slog.Int("port", int(u.query.Port)), slog.Any("error", err))
		}
		return
	}
	f.plan = p
	for _, payload := range waiting {
		f.sent.Add(int64(len(payload)))
		f.via.counts.sent.add(len(payload))
		f.via.Send(datagram.Data, f.number, payload)
	}
}

// waits returns what has waited, which does so no more. mu is held.
func (f *udpFlow) waits() (all [][]byte) {
	if f.waiting == nil {
		return nil
	}
	for {
		payload, ok := f.waiting.TakeNow()
		if !ok {
			f.waiting = nil
			return all
		}
		all = append(all, payload)
	}
}

// come has the flow use s. mu is held.
func (f *udpFlow) come(s *udpSession, now time.Time) error {
	if f.via == s {
		return nil
	}
	number, ok := s.enter(f)
	if !ok {
		return errFull
	}
	if old := f.via; old != nil {
		old.Send(datagram.Closed, f.number, nil)
		old.leave(f.number)
	}
	if target := s.place.target; f.last != target {
		if !f.last.Service.IsZero() {
			f.listener.o.metrics.udp.moved.WithLabelValues(target.Service.String()).Inc()
		}
		f.listener.o.tallies.of(target.Service, target.Cluster).ended(0, false, 0, false)
	}
	f.via, f.number, f.last, f.since, f.well = s, number, s.place.target, now, false
	return nil
}

// answer gives the client what the called side sent.
func (f *udpFlow) answer(s *udpSession, payload []byte) {
	u := f.listener
	now := u.o.now()
	f.used.Store(now.UnixNano())
	f.mu.Lock()
	over, fresh := f.over, f.via == s && !f.well
	f.well = f.well || fresh
	f.mu.Unlock()
	if over {
		return
	}
	if fresh {
		u.o.alive(s.place.target)
	}
	if _, err := u.socket.WriteToUDPAddrPort(payload, f.client); err != nil {
		u.o.metrics.udp.drop(outbound, u.query.Service, udpWriteFailed, 1)
		return
	}
	f.received.Add(int64(len(payload)))
	s.counts.received.add(len(payload))
}

// look takes in that the copy has not refused what the flow sent.
func (f *udpFlow) look(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.via != nil && !f.well && now.Sub(f.since) >= udpWell && f.via.alive(now) {
		f.well = true
		f.listener.o.alive(f.via.place.target)
	}
}

// lost takes in that the called side has no such flow any more, and why: empty where there is no harm in it.
func (f *udpFlow) lost(s *udpSession, reason string) {
	u := f.listener
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.via != s {
		return
	}
	s.leave(f.number)
	f.via = nil
	if reason != "" {
		u.o.metrics.udp.drop(outbound, u.query.Service, reason, 1)
	}
	if reason == udpRefused {
		f.until = u.o.now().Add(udpPause)
	}
}

// end forgets the flow.
func (f *udpFlow) end() {
	u := f.listener
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	f.over = true
	if f.via != nil {
		f.via.Send(datagram.Closed, f.number, nil)
		f.via.leave(f.number)
		f.via = nil
	}
	f.waits()
	u.o.metrics.udp.flows.WithLabelValues(outbound).Dec()
	u.o.log.LogAttrs(u.ctx, u.o.requestLevel, "flow",
		slog.String("direction", outbound), slog.String("destination", host.String(u.query)), slog.Int("port", int(u.query.Port)),
		slog.String("target", place(f.last)), slog.Int64("sent", f.sent.Load()), slog.Int64("received", f.received.Load()),
		slog.Duration("duration", u.o.now().Sub(f.began)))
}
