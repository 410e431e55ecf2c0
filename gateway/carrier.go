package gateway

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// How a carrier's bytes travel, as reports and metrics name it.
const (
	transportQUIC = "quic"
	transportTCP  = "tcp"
)

// carrier is what takes streams to one gateway of a peer cluster: a QUIC connection, or TLS connections over TCP, one for each
// stream. Safe for concurrent use.
type carrier interface {
	transport() string
	// control opens the control stream. Called once, before any other stream is opened.
	control() (lane, error)
	// open opens a stream without waiting for the network.
	open() (lane, error)
	// Context ends when the carrier has, with the reason as its cause.
	Context() context.Context
	// close ends the carrier and all its streams.
	close(code quic.ApplicationErrorCode, why string)
	// wait returns when all that the carrier runs has ended. After close.
	wait()
	// refused is closed when the peer's machine says that nobody listens there; nil where that shows otherwise.
	refused() <-chan struct{}
	state() tls.ConnectionState // of the connection with the control stream
	remote() net.Addr
	counts() counts
}

// lane is one stream of a carrier, in either direction. Its two halves end by themselves: cleanly (the other side reads EOF)
// or by a reset (it reads an error), and which of the two it was is never in doubt on the other side.
type lane interface {
	io.Reader
	io.Writer
	// TryWriteAll takes all of p to be sent, without waiting, or nothing of it: quic.ErrWouldBlock.
	TryWriteAll(p []byte) error
	// Close ends the sending half cleanly. Not while a Write is under way.
	Close() error
	// CancelWrite resets the sending half unless it has ended, CancelRead stops reading and has the peer told so.
	CancelWrite(quic.StreamErrorCode)
	CancelRead(quic.StreamErrorCode)
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	// Context ends when nothing more can be sent.
	Context() context.Context
}

// reset ends both halves of s.
func reset(s lane, code quic.StreamErrorCode) {
	s.CancelRead(code)
	s.CancelWrite(code)
}

// quicCarrier is one QUIC connection.
type quicCarrier struct {
	*quic.Conn

	nobody chan struct{} // see refused
	refuse func()        // closes it

	// The peer's address. Conn.RemoteAddr is none to ask later: it reads what quic-go sets anew, without a lock, when the
	// connection moves to another path (quic-go 0.65, Conn.switchToNewPath). No path that is dialed changes the peer's address.
	peer net.Addr

	paths paths
	wg    sync.WaitGroup
	free  func() // what the connection was made with
	once  sync.Once
}

func (c *quicCarrier) transport() string { return transportQUIC }

func (c *quicCarrier) control() (lane, error) {
	s, err := c.OpenStream()
	if err != nil {
		return nil, err
	}
	s.SetPriority(0, false) // probes go ahead of bulk
	return s, nil
}

func (c *quicCarrier) open() (lane, error) {
	s, err := c.OpenStream()
	if err != nil {
		return nil, err // not a stream that is nil and yet not
	}
	return s, nil
}

func (c *quicCarrier) close(code quic.ApplicationErrorCode, why string) {
	_ = c.CloseWithError(code, why) // it ends either way
}

// follow looks after the path of what bulk the connection carries. Called once, before wait.
func (c *quicCarrier) follow(b *bulk) { c.wg.Go(func() { c.paths.run(c.Context(), b) }) }

func (c *quicCarrier) wait() {
	c.wg.Wait()
	c.once.Do(c.free)
}

func (c *quicCarrier) refused() <-chan struct{} { return c.nobody }

func (c *quicCarrier) state() tls.ConnectionState { return c.ConnectionState().TLS }
func (c *quicCarrier) remote() net.Addr           { return c.peer }

func (c *quicCarrier) counts() counts {
	s := c.ConnectionStats()
	return counts{sent: s.BytesSent, received: s.BytesReceived, packets: s.PacketsSent, lost: s.PacketsLost}
}
