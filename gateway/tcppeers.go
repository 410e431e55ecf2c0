package gateway

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// What whoever connects over TCP can make us hold. A peer's streams count as those over QUIC do, and so do its control connections.
const (
	// maxShaking bounds the handshakes under way, and maxShakingFrom those from one address: nobody has shown yet who he is. A dialer has at
	// most maxDials of them. Past maxShaking the one that has been at it the longest makes room: whoever says nothing must not shut out those who do.
	maxShaking     = 512
	maxShakingFrom = 128
	// maxPeerWarm is how many connections of one peer cluster may wait for a stream, and warmTimeout for how long. Four gateways have maxWarm
	// each.
	maxPeerWarm = 4 * maxWarm
	warmTimeout = 2 * warmIdle
)

// acceptTCP takes connections of other clusters' gateways over TCP until ctx ends.
func (g *Gateway) acceptTCP(ctx context.Context) error {
	config := g.linkServer()
	listener := g.cfg.LinkTCP
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	backoff := minBackoff
	for {
		raw, err := listener.Accept()
		switch {
		case err == nil:
			backoff = minBackoff
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			// Too many open files, or a connection that was gone before it was taken: it passes.
			g.log.WarnContext(ctx, "cannot accept a link's connection", "error", err)
			select {
			case <-time.After(backoff):
			case <-ctx.Done():
				return nil
			}
			backoff = min(2*backoff, maxBackoff)
			continue
		}
		shaken, ok := g.shaking.take(raw)
		if !ok {
			g.metrics.shed.Inc()
			cut(raw)
			continue
		}
		g.wg.Go(func() { g.serveTCP(ctx, raw, config, sync.OnceFunc(shaken)) })
	}
}

// linkServer is how peers are met over TCP.
func (g *Gateway) linkServer() *tls.Config {
	return trust.ServerConfig(trust.TLS{
		Identity: g.cfg.Identity, Bundles: g.cfg.Bundles, Policy: g.allowPeer,
		Protocols: []string{preamble.ALPNLinkControl, preamble.ALPNLinkStream, preamble.ALPNLinkMove},
	})
}

// orLink is config for who doesn't say that he speaks a link's protocol, and linkServer for who does.
func (g *Gateway) orLink(config *tls.Config) *tls.Config {
	links := g.linkServer()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.ContainsFunc(hello.SupportedProtos, func(p string) bool { return slices.Contains(links.NextProtos, p) }) {
			return links, nil
		}
		return nil, nil //nolint:nilnil // crypto/tls: the configuration that it has
	}
	return config
}

// shaking counts the handshakes over TCP that are under way. The zero value is in use. Safe for concurrent use.
type shaking struct {
	from shares[netip.Addr]

	mu  sync.Mutex
	all list.List // guarded by mu; of net.Conn, the oldest first
}

// take counts one in, and cuts another off where there are too many; ok is false where there are too many from its address. Call done once.
func (s *shaking) take(c net.Conn) (done func(), ok bool) {
	other, ok := s.from.take(neighbourhood(c.RemoteAddr()), maxShakingFrom)
	if !ok {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all.Len() >= maxShaking {
		oldest := s.all.Front()
		s.all.Remove(oldest)
		cut(oldest.Value.(net.Conn)) // nothing else is put in
	}
	place := s.all.PushBack(c)
	return func() {
		s.mu.Lock()
		s.all.Remove(place) // does nothing when it made room
		s.mu.Unlock()
		other()
	}, true
}

// neighbourhood is whose a connection counts as before anybody has shown who he is: an address's, or of IPv6, where one host has as many as it
// likes, its network's.
func neighbourhood(from net.Addr) netip.Addr {
	at, _ := netip.ParseAddrPort(from.String()) // what is none counts together
	address := at.Addr().Unmap().WithZone("")
	if !address.Is6() {
		return address
	}
	network, _ := address.Prefix(64) // fails for no IPv6 address
	return network.Addr()
}

// serveTCP does the handshake of a connection over TCP, and serves it.
func (g *Gateway) serveTCP(ctx context.Context, raw net.Conn, config *tls.Config, shaken func()) {
	defer shaken()
	under := &linkConn{wholeConn: wholeConn{raw}}
	conn := tls.Server(under, config)
	opening, cancel := context.WithTimeout(ctx, handshakeTimeout)
	err := conn.HandshakeContext(opening)
	cancel()
	if err != nil {
		g.metrics.handshakeFailed("link", err)
		g.log.DebugContext(ctx, "a handshake over TCP failed", "remote", raw.RemoteAddr().String(), "error", err)
		cut(raw)
		return
	}
	shaken()
	g.serveLink(ctx, conn, under)
}

// serveLink serves a connection over TCP whose handshake is over: a control stream, or one other.
func (g *Gateway) serveLink(ctx context.Context, conn *tls.Conn, under *linkConn) {
	under.own.Store(true)
	raw := under.Conn
	tuneTCP(raw)
	state := conn.ConnectionState()
	peer, err := trust.PeerOf(state)
	if err != nil {
		cut(raw)
		return
	}
	cluster, ok := g.peerCluster(peer)
	if !ok {
		cut(raw)
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	s := newTCPStream(ctx, &wg, func() {})
	defer s.abort(errStreamEnded) // what hasn't ended
	logger := g.log.With("cluster", cluster.String(), "peer", peer.ID.String(), "transport", transportTCP)
	release := g.cfg.Guard.Watch(state, g.allowPeer, func(err error) {
		logger.WarnContext(ctx, "closing the connection of a peer that may no longer speak", "error", err)
		cut(raw)
	})
	s.attach(conn, raw, release)
	if state.NegotiatedProtocol == preamble.ALPNLinkControl {
		stop := context.AfterFunc(ctx, func() { s.finish(errShutdown) })
		defer stop()
		g.serveControl(s, peer, cluster, &wg)
		return
	}
	stop := context.AfterFunc(ctx, func() { s.abort(errShutdown) })
	defer stop()
	if state.NegotiatedProtocol == preamble.ALPNLinkMove {
		g.serveMove(ctx, s, peer, cluster)
	} else {
		g.serveTCPStream(ctx, s, peer, cluster)
	}
	s.leave()
}

// serveControl serves the control stream of a carrier over TCP until it ends.
func (g *Gateway) serveControl(s *tcpStream, peer trust.Peer, cluster topology.ClusterName, wg *sync.WaitGroup) {
	defer s.finish(errStreamEnded)
	if g.draining() {
		return
	}
	leave, ok := g.enter(cluster)
	if !ok {
		return
	}
	defer leave()
	writer := &controlWriter{stream: s}
	wg.Go(func() { g.tell(s.Context(), peer, writer) })
	_ = answerProbes(&vigil{lane: s}, writer)
}

// serveTCPStream waits until a connection becomes a stream, and serves that.
func (g *Gateway) serveTCPStream(ctx context.Context, s *tcpStream, peer trust.Peer, cluster topology.ClusterName) {
	used, ok := g.warm.take(cluster, maxPeerWarm)
	if !ok {
		return
	}
	var first [1]byte
	_ = s.SetReadDeadline(time.Now().Add(warmTimeout))
	_, err := io.ReadFull(s, first[:])
	used()
	if err != nil {
		return // nobody needed it
	}
	s.unread(first[:])
	heard, ok := g.silent.take(cluster, part(g.cfg.MaxStreams, silentShare))
	if !ok {
		return
	}
	heard = sync.OnceFunc(heard)
	defer heard()
	from := &incoming{peer: peer, end: func(quic.ApplicationErrorCode, string) { s.abort(errStreamEnded) }}
	g.serveExport(ctx, from, s, heard)
}
