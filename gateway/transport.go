package gateway

import (
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"
)

// What a peer can make us hold. A stream's receive window is the most that a sender may have in flight to a reader that
// doesn't read; a connection's window bounds all its streams together. Windows begin small and grow, up to the maximum,
// only while the reader keeps up; the growth of all connections together stays under windowBudget, and that of one peer cluster's under
// what is left for others (windows). So at most
//
//	connections × connectionWindow + windowBudget
//
// bytes are buffered for readers that don't read, whatever peers do: for one peer cluster maxPeerConnections × connectionWindow and half of
// windowBudget. A stream at rest holds nothing.
const (
	streamWindow        = 256 << 10
	maxStreamWindow     = 4 << 20 // 50 MB/s at 80 ms
	connectionWindow    = 4 << 20 // sixteen readers may stand still before the others on their connection wait
	maxConnectionWindow = 16 << 20
	windowBudget        = 256 << 20

	// maxIncomingStreams bounds the streams that a peer may have open on one connection: quic-go holds them before they can be counted. Four
	// connections, as a peer's gateway has them, carry a peer's share of Config.MaxStreams.
	maxIncomingStreams = 2048
)

const (
	// idleTimeout ends a connection whose peer vanished when the probes' verdict can't (on the acceptor's side). quic-go wants
	// no less than 5 s.
	idleTimeout = 6 * time.Second
	// dialTimeout bounds one attempt. Short, because the first packets of a handshake are repeated ever more slowly: a fresh
	// attempt finds a healed path sooner.
	dialTimeout = 2 * time.Second

	// handshakeRate is how many handshakes a second are taken at their word; above it a client must first show that its
	// address is its own (RFC 9000 section 8.1.2).
	handshakeRate  = 100
	handshakeBurst = 200

	// socketBuffer is what quic-go wants of a UDP socket.
	socketBuffer = 7 << 20
)

// quicConfig returns the configuration of both ends; streams is how many the peer may open.
//
// Keep-alives are off, because the probes of the control stream are more often; so is 0-RTT, which can be replayed; path MTU
// discovery is on.
func (g *Gateway) quicConfig(streams int64) *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           2 * dialTimeout, // a dialer gives up sooner, always in the same words
		MaxIdleTimeout:                 idleTimeout,
		InitialStreamReceiveWindow:     streamWindow,
		MaxStreamReceiveWindow:         maxStreamWindow,
		InitialConnectionReceiveWindow: connectionWindow,
		MaxConnectionReceiveWindow:     maxConnectionWindow,
		AllowConnectionWindowIncrease:  g.windows.grow,
		EnableDatagrams:                true, // quic-go holds 128 that nobody takes, and drops the others
		MaxIncomingStreams:             streams,
		MaxIncomingUniStreams:          -1,
	}
}

// verifyAddresses returns a Transport's VerifySourceAddress.
func verifyAddresses() func(net.Addr) bool {
	limit := rate.NewLimiter(handshakeRate, handshakeBurst)
	return func(net.Addr) bool { return !limit.Allow() }
}

// socket prepares a packet conn for QUIC: quic-go takes any net.PacketConn, and uses the faster calls of those that have them.
type socket struct {
	warn sync.Once
	log  *slog.Logger
}

func (s *socket) prepare(c net.PacketConn) net.PacketConn {
	u, ok := c.(*net.UDPConn)
	if !ok {
		return c
	}
	if got := growBuffers(u, socketBuffer); got < socketBuffer {
		s.warn.Do(func() {
			s.log.Warn("UDP socket buffers are smaller than QUIC wants: raise net.core.rmem_max and net.core.wmem_max",
				"bytes", got, "wanted", socketBuffer)
		})
	}
	return newReceiver(u)
}

// listen has told called when a peer's machine says that nobody listens where a socket that was prepared sends to.
func listen(packets net.PacketConn, told func()) {
	if r, ok := packets.(*receiver); ok {
		r.listen(told)
	}
}

// watch tells a socket that was prepared which connection it serves, so that it gives no more packets than that takes.
func watch(packets net.PacketConn, c *quic.Conn) {
	if r, ok := packets.(*receiver); ok {
		r.watch(c)
	}
}
