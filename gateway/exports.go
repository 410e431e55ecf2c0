package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/internal/relay"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// incoming is a connection that a gateway of a peer has dialed.
type incoming struct {
	conn   *quic.Conn // nil: it came over TCP
	peer   trust.Peer
	end    func(quic.ApplicationErrorCode, string)
	silent atomic.Int64 // streams that were reset because their preamble hadn't come

	mu      sync.Mutex
	streams map[uint64]*linkStream // guarded by mu: those that may move, by ID
}

// reset ends a stream that says nothing, and the connection when there were too many of them.
func (i *incoming) reset(s lane) {
	reset(s, resetRefused)
	if i.silent.Add(1) > maxSilent {
		i.end(closeOverloaded, "too many streams without a preamble")
	}
}

// serveExport serves one stream that a peer's gateway has opened: to a copy of an exported service. It calls heard when the stream
// counts among those that are carried.
func (g *Gateway) serveExport(ctx context.Context, from *incoming, stream lane, heard func()) {
	arrived := time.Now()
	_ = stream.SetReadDeadline(arrived.Add(preambleTimeout))
	p, err := preamble.Read(stream)
	_ = stream.SetReadDeadline(time.Time{})
	source, _ := g.peerCluster(from.peer) // none: refused below
	v := g.view()
	who := labels{source: source.String(), destination: v.name()}
	if err != nil {
		var malformed *preamble.Error
		switch {
		case errors.As(err, &malformed):
		case errors.Is(err, os.ErrDeadlineExceeded):
			from.reset(stream)
			return
		default: // it was cut short
			reset(stream, resetRefused)
			return
		}
		g.metrics.answered(who, streamv1.Code_CODE_BAD_PREAMBLE, arrived)
		refuse(stream, v, &preamble.Refusal{Code: streamv1.Code_CODE_BAD_PREAMBLE, Detail: malformed.Reason})
		return
	}

	ctx, forget := g.carried.add(ctx, source, p)
	defer forget()
	v = g.view() // whatever changes from here on, carried sees
	export, refusal := permit(v, source, p)
	if export != nil {
		who.service = g.metrics.service(p.Service)
	}
	var done func()
	if refusal == nil {
		done, refusal = admit(g, &g.ofPeers, source)
	}
	if refusal != nil {
		g.metrics.answered(who, refusal.Code, arrived)
		refuse(stream, v, refusal)
		return
	}
	defer done()
	heard()
	defer g.metrics.carrying(who)()

	span := g.startSpan(ctx, "stream from peer", p, who)
	endpoint, left, refusal, err := g.reachUnlessDrilled(stream.Context(), export, p)
	if err != nil { // the caller has left
		reset(stream, resetCancelled)
		g.metrics.answered(who, streamv1.Code_CODE_UNSPECIFIED, arrived)
		span.end(streamv1.Code_CODE_UNSPECIFIED, nil, err)
		return
	}
	if refusal != nil {
		g.metrics.answered(who, refusal.Code, arrived)
		refuse(stream, v, refusal)
		span.end(refusal.Code, refusal, nil)
		return
	}
	defer left()
	g.metrics.answered(who, streamv1.Code_CODE_OK, arrived)
	span.end(streamv1.Code_CODE_OK, nil, nil)
	received, sent := g.metrics.bytes(who)
	far := &linkStream{lane: stream, received: received, sent: sent}
	near := &endpointStream{Conn: endpoint}
	if _, err = stream.Write(preamble.AppendReply(nil, preamble.Reply{Path: []string{v.hop}})); err != nil {
		far.Abort(err)
		near.Abort(err)
	} else if p.Datagrams {
		err = g.relayDatagrams(ctx, &datagramRelay{
			near: near, far: far, nearOwner: export.Name.String(), farOwner: source.String(), counts: g.metrics.datagram.of(who, sent),
			way: func() (*datagramLink, uint64) { return g.datagramWay(from.conn, stream) },
		})
	} else {
		forget := from.carries(stream, far)
		_, err = relay.Pipe(ctx, far, near)
		forget()
	}
	if err != nil {
		g.metrics.broke(who)
		g.log.DebugContext(ctx, "a stream from a peer broke", "service", p.Service.String(), "cluster", source.String(), "error", err)
	}
}

// permit returns the export that a stream of a peer asks for, or why it can't have it. It is the exporter who decides.
func permit(v *view, source topology.ClusterName, p preamble.Preamble) (*topology.Export, *preamble.Refusal) {
	switch {
	case v == nil:
		return nil, &preamble.Refusal{Code: streamv1.Code_CODE_INTERNAL, Detail: errNoSnapshot.Error()}
	case source.IsZero():
		return nil, &preamble.Refusal{Code: streamv1.Code_CODE_NOT_ALLOWED, Detail: "not a gateway of a peer"}
	case p.Cluster != v.snapshot.Self().Cluster:
		// Carrying it on could loop, and would lend our name to others.
		return nil, &preamble.Refusal{
			Code: streamv1.Code_CODE_UNKNOWN_CLUSTER, Detail: "this is " + v.name() + ", which carries nothing on to " + p.Cluster.String(),
		}
	}
	export := v.snapshot.Export(p.Service)
	switch {
	case export == nil:
		return nil, &preamble.Refusal{Code: streamv1.Code_CODE_NOT_EXPORTED, Detail: p.Service.String()}
	case !slices.Contains(portsFor(export.Ports, export.UDPPorts, p.Datagrams), p.Port):
		return export, &preamble.Refusal{Code: streamv1.Code_CODE_NOT_EXPORTED, Detail: fmt.Sprintf("port %d of %s", p.Port, p.Service)}
	case !inAudience(export, source):
		return export, &preamble.Refusal{Code: streamv1.Code_CODE_NOT_ALLOWED, Detail: "cluster " + source.String() + " is not in the audience of " + p.Service.String()}
	}
	return export, nil
}

// reach connects to a copy, or to the one that p names; left counts the stream out of it. The error is that ctx ended.
func (g *Gateway) reach(ctx context.Context, export *topology.Export, p preamble.Preamble) (conn net.Conn, left func(), refusal *preamble.Refusal, err error) {
	all, what := eligible(export, p.Port, p.Datagrams), export.Name.String()
	if p.Host.IsValid() {
		all, what = named(export, p.Port, p.Datagrams, p.Host), "copy "+p.Host.String()+" of "+what
	}
	if len(all) == 0 {
		return nil, nil, &preamble.Refusal{Code: streamv1.Code_CODE_NO_ENDPOINT, Detail: what}, nil
	}
	untried := slices.Clone(all)
	for range endpointAttempts {
		target := g.endpoints.take(export.Name, untried, time.Now())
		if target == nil {
			break
		}
		key := keyOf(export.Name, target)
		dialing, cancel := context.WithTimeout(ctx, endpointTimeout)
		conn, err = g.cfg.DialEndpoint(dialing, target.Address)
		cancel()
		if err == nil {
			g.endpoints.reached(key)
			return conn, func() { g.endpoints.release(key) }, nil, nil
		}
		g.endpoints.release(key)
		if ctx.Err() != nil {
			return nil, nil, nil, context.Cause(ctx)
		}
		g.metrics.endpointFailed(export.Name)
		if g.endpoints.unreachable(key, all, time.Now()) {
			g.log.WarnContext(ctx, "leaving out an endpoint that can't be reached", "service", export.Name.String(), "endpoint", target.ID, "error", err)
		}
		untried = slices.DeleteFunc(untried, func(e *topology.Endpoint) bool { return e == target })
	}
	return nil, nil, &preamble.Refusal{Code: streamv1.Code_CODE_ENDPOINT_UNREACHABLE, Detail: what}, nil
}

// refuse answers a stream of a peer. What else it sends isn't read.
func refuse(stream lane, v *view, r *preamble.Refusal) {
	if v != nil {
		r.Path = []string{v.hop}
	}
	stream.CancelRead(resetRefused)
	_ = stream.SetWriteDeadline(time.Now().Add(lingerTimeout))
	if _, err := stream.Write(preamble.AppendRefusal(nil, r)); err != nil {
		stream.CancelWrite(resetRefused)
		return
	}
	_ = stream.Close() // fails when the peer has left
}
