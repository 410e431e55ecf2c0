package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"

	"github.com/isthmus-mesh/isthmus/internal/relay"
	"github.com/isthmus-mesh/isthmus/sidecar/conn"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

// opaque is an inner session of opaque bytes, on the called workload's side.
type opaque struct {
	*tls.Conn
	raw net.Conn
}

// Abort ends the session so that the caller sees it break, not end.
func (o *opaque) Abort(error) {
	conn.Reset(o.raw)
	_ = o.Close()
}

// tunnel relays one opaque connection to the application. The caller's sidecar hears first whether the application took it.
func (in *Inbound) tunnel(ctx context.Context, c *tls.Conn, raw net.Conn, a *arrival) {
	far := &opaque{c, raw}
	began := in.now()
	done, ok := in.work.Add()
	if !ok {
		far.Abort(errEnding)
		return
	}
	defer done()
	a.served.begin(a.from)
	defer a.served.end(a.from)
	var stats relay.Stats
	near, err := in.openApp(ctx, a, far)
	if err == nil {
		stats, err = relay.Pipe(ctx, far, near)
	}
	service := a.service.String()
	self := in.self().Cluster.String()
	in.metrics.bytes.WithLabelValues(inbound, self, service, "sent").Add(float64(stats.AToB))
	in.metrics.bytes.WithLabelValues(inbound, self, service, "received").Add(float64(stats.BToA))
	in.log.LogAttrs(ctx, in.requestLevel, "connection",
		slog.String("direction", inbound), slog.String("service", service), slog.Int("port", int(a.port)),
		slog.String("caller", a.peer.ID.String()), slog.Int64("sent", stats.AToB), slog.Int64("received", stats.BToA),
		slog.Duration("duration", in.now().Sub(began)), slog.Any("error", err))
}

// openApp opens the connection to the application and says so. On failure far is closed.
func (in *Inbound) openApp(ctx context.Context, a *arrival, far *opaque) (net.Conn, error) {
	to, no, err := in.judgeOpaque(ctx, a)
	var near net.Conn
	if err == nil {
		near, err = in.apps.open(ctx, to.Targets)
	}
	answer := byte(tunnelOpen)
	if err != nil {
		answer = no
	}
	if _, werr := far.Write([]byte{answer}); werr != nil && err == nil {
		err = werr
	}
	if err != nil {
		if near != nil {
			conn.Reset(near)
		}
		_ = far.Close() // the answer has to arrive
		return nil, err
	}
	return near, nil
}

// judgeOpaque says whether an opaque connection, or a flow of datagrams, may reach the application, and where that is. It counts as a request.
// Where there is an error, no is the answer to the caller.
func (in *Inbound) judgeOpaque(ctx context.Context, a *arrival) (to *topology.InboundPort, no byte, err error) {
	g := in.keeper.present()
	if to = g.portOf(a); to == nil || to.Protocol.IsHTTP() {
		return nil, tunnelAppDown, errNotServed
	}
	no = tunnelAppDown
	if in.drills.Of(a.service) != nil {
		return nil, no, errDrill
	}
	if err = in.admit(g, a); err != nil && !errors.Is(err, errNotServed) {
		no = tunnelRefused
	}
	q := access.Request{Caller: a.peer.ID}
	guard, d := g.guard(a.service), unguarded(g.isPeer(a.peer.ID))
	if guard != nil {
		d = guard.decide(&q, to, g.isPeer(a.peer.ID))
	}
	in.decided(ctx, a, to, &q, &d)
	if guard != nil && err == nil {
		if _, over := in.spend(ctx, guard, &q, a); over != nil {
			return to, tunnelTooMany, over.Err
		}
	}
	return to, no, err
}
