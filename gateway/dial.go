package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// How long to wait before dialing again: from the first to the second, doubling, each time a random part of it less.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
)

// again returns how long to wait before the next dial, after a wait and a connection that has lived for so long, or never did. What it has lived is
// set off against the wait: a peer that lets us in and closes at once is dialed as seldom as one that doesn't answer, and one that has served
// for a while, at once.
func again(waited, lived time.Duration) time.Duration {
	return min(max(2*waited-lived, minBackoff), maxBackoff)
}

// keep keeps a connection in s, for as long as it is wanted.
func (l *link) keep(ctx context.Context, s slot, domain spiffeid.TrustDomain, retired <-chan struct{}) {
	var wg sync.WaitGroup
	defer wg.Wait()
	logger := l.log.With("peer_gateway", s.gateway.ID, "transport", s.transport, "address", s.address())
	wait := time.Duration(0)
	for {
		type outcome struct {
			lived time.Duration
			err   error
		}
		ended := make(chan outcome, 1) // when nobody waits any more, a successor has been dialed
		renew := make(chan struct{})
		wg.Go(func() {
			lived, err := l.connect(ctx, s, domain, retired, func() { close(renew) })
			ended <- outcome{lived, err}
		})
		var o outcome
		select {
		case o = <-ended:
		case <-renew:
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-retired:
			return
		default:
		}
		switch {
		case errors.Is(o.err, errUnwanted):
			logger.InfoContext(ctx, "left a peer gateway that drains")
		case o.lived > 0:
			l.g.metrics.linkLost(l.cluster, s.gateway.ID)
			logger.WarnContext(ctx, "connection to a peer gateway ended", "error", o.err)
		}
		if l.explain(s, o.err) && o.lived == 0 {
			logger.WarnContext(ctx, "cannot connect to a peer gateway", "error", o.err)
		}
		wait = again(wait, o.lived)
		select {
		case <-time.After(wait/2 + rand.N(wait/2)): //nolint:gosec // G404: jitter needs no secret
		case <-ctx.Done():
			return
		case <-retired:
			return
		}
	}
}

// A connection's successor is dialed when between these parts of the time that the SVIDs leave have passed; what is left is for
// the streams of the old one to end.
const (
	renewAfter  = 0.6
	renewSpread = 0.2
	minRenew    = 10 * time.Second
	endMargin   = time.Second // before the peer's clock finds that the time is over
)

// lifetime returns when to renew a connection and when to end it.
func (g *Gateway) lifetime(cs tls.ConnectionState, now time.Time) (renewIn, endIn time.Duration, err error) {
	peer, err := trust.PeerOf(cs)
	if err != nil {
		return 0, 0, err
	}
	own, err := g.cfg.Identity.SVID()
	if err != nil {
		return 0, 0, err
	}
	left := min(peer.NotAfter.Sub(now), own.Certificates[0].NotAfter.Sub(now))
	part := renewAfter + renewSpread*rand.Float64() //nolint:gosec // G404: jitter needs no secret
	renewIn = max(time.Duration(part*float64(left)), minRenew)
	return renewIn, max(left-endMargin, 0), nil
}

// connect dials once and stays until that carrier has ended. It returns for how long the peer has let us in, 0 if it never did, and why it ended.
func (l *link) connect(ctx context.Context, s slot, domain spiffeid.TrustDomain, retired <-chan struct{}, renew func()) (lived time.Duration, err error) {
	g := l.g
	policy := allowGateway(l.cluster, domain, s.gateway)
	dialing, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("no answer in %s", dialTimeout))
	defer cancel()
	var conn carrier
	if s.transport == transportTCP {
		conn, err = l.dialTCP(ctx, dialing, s.gateway, policy, domain)
	} else {
		conn, err = l.dialQUIC(dialing, s.gateway, policy, domain)
	}
	if err != nil {
		if dialing.Err() != nil {
			err = context.Cause(dialing)
		}
		return 0, fmt.Errorf("dial: %w", err)
	}
	release := g.cfg.Guard.Watch(conn.state(), policy, func(error) {
		conn.close(closeUntrusted, "the peer no longer passes verification")
	})
	defer release()
	defer conn.wait()

	renewIn, endIn, err := g.lifetime(conn.state(), time.Now())
	if err != nil {
		conn.close(closeUntrusted, err.Error())
		return 0, err
	}
	c := &connection{
		conn: conn, gateway: s.gateway, since: time.Now(), bulk: newBulk(),
		pulse: newPulse(g.cfg.ProbeInterval, g.cfg.DeadAfter, time.Now()),
	}
	if q, ok := conn.(*quicCarrier); ok {
		q.follow(c.bulk)
	}
	var up time.Time
	err = c.run(ctx, life{
		retired: retired, grace: g.cfg.DrainGrace, renewIn: renewIn, endIn: endIn, renew: renew,
		idle: l.idle, heir: func() bool { return l.hasHeir(c) }, other: func() bool { return l.hasOther(c) },
		up: func() {
			up = time.Now()
			l.add(c)
			l.log.InfoContext(ctx, "connected to a peer gateway", "peer_gateway", s.gateway.ID, "transport", s.transport, "address", s.address())
		},
	})
	if up.IsZero() {
		return 0, err
	}
	l.remove(c)
	return max(time.Since(up), 1), err
}

// dialQUIC makes a QUIC connection to a gateway.
func (l *link) dialQUIC(dialing context.Context, gw topology.Gateway, policy trust.Policy, domain spiffeid.TrustDomain) (carrier, error) {
	g := l.g
	address, err := g.cfg.Resolve(dialing, gw.QUIC)
	if err != nil {
		return nil, fmt.Errorf("resolve: %w", err)
	}
	dialing, stop := context.WithCancelCause(dialing)
	defer stop(nil)
	c := &quicCarrier{nobody: make(chan struct{})}
	c.refuse = sync.OnceFunc(func() { close(c.nobody) })
	open := func() (net.PacketConn, *quic.Transport, error) {
		return g.newTransport(func() {
			c.refuse()
			stop(errRefused)
			l.refused(gw.QUIC)
		})
	}
	packets, transport, err := open()
	if err != nil {
		return nil, err
	}
	free := func() {
		_ = transport.Close()
		_ = packets.Close()
	}
	config := trust.ClientConfig(trust.TLS{
		Identity: g.cfg.Identity, Bundles: g.cfg.Bundles, Policy: policy,
		Protocols: []string{preamble.ALPNLink}, ServerName: domain.Name(),
	})
	conn, err := transport.Dial(dialing, address, config, g.quicConfig(-1)) // the far side opens none
	if err != nil {
		free()
		return nil, err
	}
	watch(transport.Conn, conn)
	g.windows.assign(conn, l.cluster)
	c.Conn, c.peer, c.paths = conn, conn.RemoteAddr(), paths{conn: conn, open: open, sockets: [2]*quic.Transport{transport}, onMove: func(moved bool) {
		g.metrics.moved(l.cluster, moved)
		l.log.DebugContext(conn.Context(), "bulk is slow: trying another path", "peer_gateway", gw.ID, "moved", moved)
	}}
	c.free = func() {
		g.windows.release(conn)
		c.paths.close()
		free()
	}
	return c, nil
}

// newTransport opens a socket for a connection. Each has its own: its own queue in the kernel, and when a path fails another one, perhaps on
// another path. refused is called when the peer's machine says that nobody listens there.
func (g *Gateway) newTransport(refused func()) (net.PacketConn, *quic.Transport, error) {
	packets, err := g.cfg.DialPacket()
	if err != nil {
		return nil, nil, fmt.Errorf("open a socket: %w", err)
	}
	prepared := g.socket.prepare(packets)
	listen(prepared, refused)
	return packets, &quic.Transport{Conn: prepared}, nil
}
