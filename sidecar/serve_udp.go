package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/sidecar/datagram"
)

const (
	// A flow of datagrams that carries nothing is forgotten after inboundUDPIdle; its caller, who says so when he forgets it, does sooner.
	inboundUDPIdle = 5 * time.Minute
	// udpSweep is how often flows are looked over for that.
	udpSweep = 1 * time.Second
	// leaveGrace is what answers on their way get once the callers were told to go elsewhere.
	leaveGrace = 1 * time.Second
	// maxUDPAnswers bounds, in bytes, what waits for callers that take nothing, of all sessions together. Each caller may have what it leaves
	// for others.
	maxUDPAnswers = 64 << 20
)

// datagramVisit is one datagram session on the called side.
type datagramVisit struct {
	*arrival
	in      *Inbound
	ctx     context.Context //nolint:containedctx // of the session, for flows that begin with a datagram
	session *datagram.Session
	counts  udpCounts
	readers sync.WaitGroup

	mu    sync.Mutex
	flows map[uint32]*appFlow // guarded by mu
	ended bool                // guarded by mu
}

// appFlow is one flow's socket to the application.
type appFlow struct {
	visit  *datagramVisit
	number uint32
	socket *datagram.Socket
	began  time.Time
	used   atomic.Int64 // when it last carried something, Unix nanoseconds

	sent, received atomic.Int64 // bytes: to the application, from it
	once           sync.Once
}

// carryDatagrams carries one datagram session. It ends with work; when ctx does, it takes nothing new.
func (in *Inbound) carryDatagrams(ctx, work context.Context, c *tls.Conn, raw net.Conn, a *arrival) {
	far := &opaque{c, raw}
	answer := byte(tunnelOpen)
	g := in.keeper.present()
	err := in.admit(g, a)
	switch {
	case g.portOf(a) == nil:
		answer, err = tunnelAppDown, errNotServed
	case err != nil:
		answer = tunnelRefused
	}
	if _, werr := far.Write([]byte{answer}); werr != nil && err == nil {
		err = werr
	}
	if err != nil {
		in.log.DebugContext(work, "datagram session refused", slog.String("caller", a.peer.ID.String()), slog.Any("error", err))
		_ = far.Close() // the answer has to arrive
		return
	}
	v := &datagramVisit{arrival: a, in: in, ctx: work, flows: make(map[uint32]*appFlow)}
	v.counts = in.metrics.udp.of(inbound, in.self().Cluster.String(), a.service.String())
	if v.session, err = datagram.NewSession(c, beneath(c.NetConn()), false, in.answers, in.waiter(a.peer.ID), v.receive); err != nil {
		far.Abort(err)
		return
	}
	ended := make(chan struct{})
	var tending sync.WaitGroup
	tending.Go(func() { v.tend(ctx, ended, far) })
	err = v.session.Run(work, far.Abort)
	close(ended)
	v.end()
	tending.Wait()
	v.readers.Wait()
	_ = far.Close()
	in.metrics.udp.drop(inbound, a.service, udpForged, v.session.Forged())
	in.log.DebugContext(work, "datagram session ended", slog.String("caller", a.peer.ID.String()), slog.String("service", a.service.String()), slog.Any("error", err))
}

// waiter is as whose counts what waits for a caller. Those of a foreign trust domain are one: it may make up any number of them.
func (in *Inbound) waiter(caller spiffeid.ID) string {
	if domain := caller.TrustDomain(); domain != in.self().Domain {
		return domain.Name()
	}
	return caller.String()
}

// tend forgets idle flows, and tells the caller to go elsewhere when ctx ends.
func (v *datagramVisit) tend(ctx context.Context, ended <-chan struct{}, far *opaque) {
	tick := time.NewTicker(udpSweep)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
			now, drilled := v.in.now(), v.in.drills.Of(v.service) != nil
			for _, f := range v.list() {
				if drilled { // it looks dead to those who are here, too
					v.session.Send(datagram.Unreachable, f.number, nil)
					f.close(errDrill)
					continue
				}
				if now.Sub(time.Unix(0, f.used.Load())) > inboundUDPIdle {
					v.session.Send(datagram.Closed, f.number, nil)
					f.close(nil)
				}
			}
		case <-ctx.Done():
			done, ok := v.in.work.Add() // so that answers may arrive; false: it is too late
			if ok {
				defer done()
				if v.session.Leave() == nil {
					select {
					case <-ended:
						return
					case <-time.After(leaveGrace):
					}
				}
			}
			_ = far.CloseWrite()
			far.Abort(errEnding)
			return
		}
	}
}

func (v *datagramVisit) list() []*appFlow {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make([]*appFlow, 0, len(v.flows))
	for _, f := range v.flows {
		out = append(out, f)
	}
	return out
}

// end closes all flows.
func (v *datagramVisit) end() {
	v.mu.Lock()
	v.ended = true
	v.mu.Unlock()
	for _, f := range v.list() {
		f.close(nil)
	}
}

// receive takes what the caller sends.
func (v *datagramVisit) receive(kind datagram.Kind, number uint32, payload []byte) {
	v.mu.Lock()
	f := v.flows[number]
	v.mu.Unlock()
	switch kind {
	case datagram.Data:
	case datagram.Closed:
		if f != nil {
			f.close(nil)
		}
		return
	default: // the caller has no other, or a later version has
		return
	}
	if f == nil {
		if f = v.open(number); f == nil {
			return
		}
	}
	f.used.Store(v.in.now().UnixNano())
	n, err := f.socket.Write(payload)
	if err != nil {
		f.broke(err)
		return
	}
	f.sent.Add(int64(n))
	v.counts.sent.add(n)
}

// open begins a flow, or says why not, and returns nil.
func (v *datagramVisit) open(number uint32) *appFlow {
	in := v.in
	no := func(k datagram.Kind, reason string) *appFlow {
		v.session.Send(k, number, nil)
		in.metrics.udp.drop(inbound, v.service, reason, 1)
		return nil
	}
	if v.session.Leaving() {
		return no(datagram.Closed, udpEnding)
	}
	to, answer, err := in.judgeOpaque(v.ctx, v.arrival)
	if err != nil {
		in.log.DebugContext(v.ctx, "flow refused", slog.String("caller", v.peer.ID.String()), slog.String("service", v.service.String()), slog.Any("error", err))
		switch answer {
		case tunnelRefused:
			return no(datagram.Refused, udpRefused)
		case tunnelTooMany:
			return no(datagram.TooMany, udpRefused)
		default:
			return no(datagram.Unreachable, udpUnreachable)
		}
	}
	socket, err := in.apps.connectUDP(to.Targets)
	if err != nil {
		in.log.DebugContext(v.ctx, "no socket to the application", slog.String("service", v.service.String()), slog.Any("error", err))
		return no(datagram.Unreachable, udpUnreachable)
	}
	now := in.now()
	f := &appFlow{visit: v, number: number, socket: socket, began: now}
	f.used.Store(now.UnixNano())
	v.mu.Lock()
	if v.ended {
		v.mu.Unlock()
		_ = socket.Close()
		return nil
	}
	v.flows[number] = f
	v.served.begin(v.from)
	v.mu.Unlock()
	in.metrics.udp.flows.WithLabelValues(inbound).Inc()
	in.apps.of(socket.To()).inFlight.Add(1)
	if victim := in.sockets.enter(v.peer.ID, f); victim != nil {
		victim.visit.session.Send(datagram.Closed, victim.number, nil)
		victim.close(nil)
	}
	v.readers.Go(func() {
		f.broke(socket.Receive(f.answer))
	})
	return f
}

// answer takes what the application sends.
func (f *appFlow) answer(payload []byte) {
	in := f.visit.in
	f.used.Store(in.now().UnixNano())
	f.received.Add(int64(len(payload)))
	f.visit.counts.received.add(len(payload))
	if n := f.visit.session.Send(datagram.Data, f.number, payload); n > 0 {
		in.metrics.udp.drop(inbound, f.visit.service, udpQueueFull, uint64(n))
	}
}

// broke takes in that the socket failed: mostly that nothing listens at the application's port (ICMP).
func (f *appFlow) broke(err error) {
	if err == nil || errors.Is(err, net.ErrClosed) {
		return
	}
	in := f.visit.in
	in.apps.of(f.socket.To()).failed.Store(in.now().UnixNano())
	in.metrics.udp.drop(inbound, f.visit.service, udpUnreachable, 1)
	f.visit.session.Send(datagram.Unreachable, f.number, nil)
	f.close(err)
}

// close ends the flow here.
func (f *appFlow) close(err error) {
	f.once.Do(func() {
		v, in := f.visit, f.visit.in
		v.mu.Lock()
		if v.flows[f.number] == f {
			delete(v.flows, f.number)
		}
		v.mu.Unlock()
		v.served.end(v.from)
		in.sockets.leave(f)
		in.apps.of(f.socket.To()).inFlight.Add(-1)
		_ = f.socket.Close()
		in.metrics.udp.flows.WithLabelValues(inbound).Dec()
		in.log.LogAttrs(v.ctx, in.requestLevel, "flow",
			slog.String("direction", inbound), slog.String("service", v.service.String()), slog.Int("port", int(v.port)),
			slog.String("caller", v.peer.ID.String()), slog.Int64("sent", f.sent.Load()), slog.Int64("received", f.received.Load()),
			slog.Duration("duration", in.now().Sub(f.began)), slog.Any("error", err))
	})
}
