package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/internal/relay"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// acceptCallers takes connections of the own cluster's sidecars until the listener is closed.
func (g *Gateway) acceptCallers(ctx context.Context) {
	config := trust.ServerConfig(trust.TLS{
		Identity: g.cfg.Identity, Bundles: g.cfg.Bundles, Policy: g.allowCaller, Protocols: []string{preamble.ALPNStream},
	})
	if g.cfg.LinkOnStreams {
		config = g.orLink(config)
	}
	backoff := minBackoff
	for {
		raw, err := g.cfg.Streams.Accept()
		switch {
		case err == nil:
			backoff = minBackoff
		case errors.Is(err, net.ErrClosed):
			return
		default:
			// Too many open files, or a connection that was gone before it was taken: it passes.
			g.log.WarnContext(ctx, "cannot accept a connection", "error", err)
			select {
			case <-time.After(backoff):
			case <-ctx.Done():
				return
			}
			backoff = min(2*backoff, maxBackoff)
			continue
		}
		if g.callers.Add(1) > int64(g.cfg.MaxStreams)*callersPerStream {
			g.callers.Add(-1)
			g.metrics.shed.Inc()
			cut(raw)
			continue
		}
		g.wg.Go(func() {
			defer g.callers.Add(-1)
			g.serveCaller(ctx, raw, config)
		})
	}
}

// callersPerStream bounds the connections that are held while they haven't said yet what they want, or read why they can't.
const callersPerStream = 2

// serveCaller serves one connection of a sidecar: one stream.
func (g *Gateway) serveCaller(ctx context.Context, raw net.Conn, config *tls.Config) {
	stop := context.AfterFunc(ctx, func() { cut(raw) })
	defer stop()
	under := &linkConn{wholeConn: wholeConn{raw}}
	conn := tls.Server(under, config)
	shaking, cancel := context.WithTimeout(ctx, handshakeTimeout)
	err := conn.HandshakeContext(shaking)
	cancel()
	if err != nil {
		g.metrics.handshakeFailed("stream", err)
		g.log.DebugContext(ctx, "a caller's handshake failed", "remote", raw.RemoteAddr().String(), "error", err)
		cut(raw)
		return
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != preamble.ALPNStream {
		stop()
		g.serveLink(ctx, conn, under)
		return
	}
	who, err := trust.PeerOf(state)
	if err != nil {
		cut(raw)
		return
	}
	release := g.cfg.Guard.Watch(state, g.allowCaller, func(error) { cut(raw) })
	defer release()
	under.own.Store(true)
	caller := &callerStream{Conn: conn, raw: raw}

	arrived := time.Now()
	_ = conn.SetReadDeadline(arrived.Add(preambleTimeout))
	p, err := preamble.Read(conn)
	if err != nil {
		var malformed *preamble.Error
		if !errors.As(err, &malformed) {
			cut(raw) // it left, or never said a word
			return
		}
		g.metrics.answered(labels{}, streamv1.Code_CODE_BAD_PREAMBLE, arrived)
		g.turnAway(caller, &preamble.Refusal{Code: streamv1.Code_CODE_BAD_PREAMBLE, Detail: malformed.Reason})
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	g.carry(ctx, caller, who.ID, p, arrived)
}

// carry takes a caller's stream to the cluster it asks for.
func (g *Gateway) carry(ctx context.Context, caller *callerStream, id spiffeid.ID, p preamble.Preamble, arrived time.Time) {
	v := g.view()
	l, refusal := g.linkFor(v, p.Cluster)
	if refusal != nil {
		g.metrics.answered(labels{source: v.name(), service: g.metrics.service(p.Service)}, refusal.Code, arrived)
		g.turnAway(caller, refusal)
		return
	}
	who := labels{source: v.name(), destination: p.Cluster.String(), service: g.metrics.service(p.Service)}
	done, refusal := admit(g, &g.ofCallers, id)
	if refusal != nil {
		g.metrics.answered(who, refusal.Code, arrived)
		g.turnAway(caller, refusal)
		return
	}
	defer done()
	defer g.metrics.carrying(who)()

	span := g.startSpan(ctx, "stream to peer", p, who)
	p.Traceparent, p.Tracestate = span.carry()
	received, sent := g.metrics.bytes(who)
	var f *flight
	f = &flight{
		link: l, service: p.Service, hop: v.hop, opening: p.Append(nil), timeout: g.cfg.OpenTimeout,
		received: received, sent: sent,
		onAnswer: func(c streamv1.Code) {
			g.metrics.answered(who, c, arrived)
			span.end(c, f.refusal, nil)
			if c != streamv1.Code_CODE_OK {
				caller.linger()
			}
		},
		onHedge:  func() { g.metrics.hedged(who) },
		outcomes: make(chan outcome, maxAttempts),
		settled:  make(chan struct{}),
		aborted:  make(chan struct{}),
	}
	var err error
	if p.Datagrams {
		err = g.relayDatagrams(ctx, &datagramRelay{
			near: caller, far: f, nearOwner: id.String(), farOwner: p.Cluster.String(), answer: true, counts: g.metrics.datagram.of(who, sent),
			way: func() (*datagramLink, uint64) { return f.datagramWay(g) },
		})
	} else {
		_, err = relay.Pipe(ctx, caller, f)
	}
	f.release()
	if f.code() == streamv1.Code_CODE_UNSPECIFIED {
		g.metrics.answered(who, streamv1.Code_CODE_UNSPECIFIED, arrived) // the caller didn't wait
		span.end(streamv1.Code_CODE_UNSPECIFIED, nil, err)
	}
	if err != nil && f.code() == streamv1.Code_CODE_OK {
		g.metrics.broke(who)
		g.log.DebugContext(ctx, "a stream to a peer broke", "service", p.Service.String(), "cluster", p.Cluster.String(), "error", err)
	}
}

// linkFor returns the link to a cluster, or why there is none.
func (g *Gateway) linkFor(v *view, c topology.ClusterName) (*link, *preamble.Refusal) {
	if v == nil {
		return nil, &preamble.Refusal{Code: streamv1.Code_CODE_INTERNAL, Detail: errNoSnapshot.Error()}
	}
	if c == v.snapshot.Self().Cluster {
		return nil, &preamble.Refusal{Code: streamv1.Code_CODE_UNKNOWN_CLUSTER, Detail: c.String() + " is this cluster: its copies are reached without a gateway"}
	}
	if v.snapshot.Cluster(c) == nil {
		return nil, &preamble.Refusal{Code: streamv1.Code_CODE_UNKNOWN_CLUSTER, Detail: fmt.Sprintf("cluster %q", c)}
	}
	l := (*g.links.Load())[c]
	if l == nil {
		return nil, &preamble.Refusal{Code: streamv1.Code_CODE_LINK_DOWN, Detail: "no gateway of cluster " + c.String() + " is known"}
	}
	return l, nil
}

// turnAway refuses a caller without having asked anybody.
func (g *Gateway) turnAway(caller *callerStream, r *preamble.Refusal) {
	if v := g.view(); v != nil {
		r.Path = []string{v.hop}
	}
	_ = caller.raw.SetWriteDeadline(time.Now().Add(lingerTimeout))
	if _, err := caller.Write(preamble.AppendRefusal(nil, r)); err != nil {
		caller.Abort(err)
		return
	}
	_ = caller.CloseWrite() // fails when the caller is gone: then nobody reads anyway
	caller.linger()
	_, _ = io.Copy(io.Discard, io.LimitReader(caller, maxLinger)) // the caller's word isn't asked for any more
	_ = caller.Close()
}

// maxLinger is how much of what a refused caller has sent is read away.
const maxLinger = 1 << 20
