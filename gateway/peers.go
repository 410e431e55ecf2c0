package gateway

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// A peer's probes are answered up to this rate; a control stream has no other business that is worth more.
const (
	replyRate  = 1000 // a second
	replyBurst = 100
)

// acceptPeers takes connections of other clusters' gateways until ctx ends.
func (g *Gateway) acceptPeers(ctx context.Context, transport *quic.Transport) error {
	config := trust.ServerConfig(trust.TLS{
		Identity: g.cfg.Identity, Bundles: g.cfg.Bundles, Policy: g.allowPeer, Protocols: []string{preamble.ALPNLink},
	})
	listener, err := transport.Listen(config, g.quicConfig(maxIncomingStreams))
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	for {
		conn, err := listener.Accept(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		watch(transport.Conn, conn)
		g.wg.Go(func() { g.servePeer(ctx, conn) })
	}
}

// servePeer serves one connection that a gateway of a peer has dialed.
func (g *Gateway) servePeer(ctx context.Context, conn *quic.Conn) {
	end := func(code quic.ApplicationErrorCode, why string) { _ = conn.CloseWithError(code, why) }
	peer, err := trust.PeerOf(conn.ConnectionState().TLS)
	if err != nil {
		end(closeUntrusted, err.Error())
		return
	}
	cluster, ok := g.peerCluster(peer)
	if !ok {
		end(closeUnknownPeer, "no peer")
		return
	}
	select {
	case <-g.drain.Draining():
		end(closeDraining, "draining")
		return
	default:
	}
	leave, ok := g.enter(cluster)
	if !ok {
		end(closeOverloaded, "too many connections")
		return
	}
	defer leave()
	g.windows.assign(conn, cluster)
	defer g.windows.release(conn)
	logger := g.log.With("cluster", cluster.String(), "peer", peer.ID.String())
	release := g.cfg.Guard.Watch(conn.ConnectionState().TLS, g.allowPeer, func(err error) {
		logger.WarnContext(ctx, "closing the connection of a peer that may no longer speak", "error", err)
		end(closeUntrusted, "no longer passes verification")
	})
	defer release()
	stop := context.AfterFunc(ctx, func() { end(closeShutdown, errShutdown.Error()) })
	defer stop()

	opening, cancel := context.WithTimeout(ctx, handshakeTimeout)
	control, err := conn.AcceptStream(opening)
	cancel()
	if err != nil {
		end(closeProtocol, "no control stream")
		return
	}
	logger.DebugContext(ctx, "a peer gateway has connected", "remote", conn.RemoteAddr().String())
	control.SetPriority(0, false)
	writer := &controlWriter{stream: control}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		err := answerProbes(&vigil{lane: control}, writer)
		if errors.Is(err, errDeaf) {
			end(closeDead, err.Error())
		}
		end(closeProtocol, err.Error())
	})
	wg.Go(func() { g.tell(conn.Context(), peer, writer) })
	from := &incoming{conn: conn, peer: peer, end: end}
	defer g.movables.enter(from)()
	for {
		stream, err := conn.AcceptStream(conn.Context())
		if err != nil {
			logger.DebugContext(ctx, "the connection of a peer gateway ended", "error", context.Cause(conn.Context()))
			return
		}
		heard, ok := g.silent.take(cluster, part(g.cfg.MaxStreams, silentShare))
		if !ok {
			from.reset(stream)
			continue
		}
		heard = sync.OnceFunc(heard)
		wg.Go(func() {
			defer heard()
			g.serveExport(ctx, from, stream, heard)
		})
	}
}

// peerCluster returns the cluster that a peer's gateway belongs to at this moment.
func (g *Gateway) peerCluster(p trust.Peer) (topology.ClusterName, bool) {
	v := g.view()
	if v == nil {
		return topology.ClusterName{}, false
	}
	return v.peer(p.ID)
}

// enter counts a connection of a peer cluster in.
func (g *Gateway) enter(c topology.ClusterName) (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.accepted[c] >= maxPeerConnections {
		return nil, false
	}
	g.accepted[c]++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.accepted[c]--; g.accepted[c] == 0 {
			delete(g.accepted, c)
		}
	}, true
}

// answerProbes reads the control stream of a connection that was dialed to us, to its end. It always returns an error.
func answerProbes(stream io.Reader, writer *controlWriter) error {
	limit := rate.NewLimiter(replyRate, replyBurst)
	buf := make([]byte, maxControl)
	for {
		m, err := readControl(stream, buf)
		if err != nil {
			return err
		}
		switch m := m.GetMessage().(type) {
		case *streamv1.LinkMessage_Probe:
			if limit.Allow() {
				writer.send(probeReply(m.Probe.GetSeq())) // no room: the peer finds us silent, and rightly so
			}
		case *streamv1.LinkMessage_Draining: // a dialer that drains simply opens no more streams
		default:
			return &controlError{errors.New("a dialer only probes")}
		}
	}
}

// tell keeps a peer informed of what it can have here, until the connection ends: the ready copies of each service exported to
// it, and that this gateway drains.
func (g *Gateway) tell(ctx context.Context, peer trust.Peer, writer *controlWriter) {
	var (
		told     map[topology.ServiceName]uint32
		draining = g.drain.Draining()
		leaving  bool // to be said
	)
	for {
		changed := g.cfg.Snapshots.Changed()
		full := false // the stream takes no more now
		if v := g.view(); v != nil {
			cluster, _ := v.peer(peer.ID) // a stranger is told of nothing; the guard closes
			now := v.capacity(cluster)
			for _, m := range capacityMessages(told, now) {
				if full = !writer.send(m); full {
					now = nil // tell all of it, later
					break
				}
			}
			told = now
		}
		if leaving {
			leaving = !writer.send(drainingMessage())
		}
		var retry <-chan time.Time
		if full || leaving {
			retry = time.After(g.cfg.ProbeInterval)
		}
		select {
		case <-changed:
		case <-retry:
		case <-draining:
			draining, leaving = nil, true
		case <-ctx.Done():
			return
		}
	}
}
