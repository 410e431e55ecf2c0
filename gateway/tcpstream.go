package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// maxQueued bounds what a stream over TCP takes to send without waiting: a preamble and what is kept of the caller's first
// bytes, or several seconds of a control stream.
const maxQueued = 2 * maxControl

var (
	errStreamCancelled = errors.New("the stream was cancelled")
	errStreamEnded     = errors.New("the stream's sending half has ended")
)

// tcpStream is a TLS connection over TCP as one stream. A half ends cleanly with close_notify; whatever else ends it is a reset.
// TCP can't reset one half alone: a reset of the sending half breaks both.
//
// On the side that dials, it is there before its connection: what is written meanwhile is kept.
type tcpStream struct {
	ctx      context.Context //nolint:containedctx // ends when the connection has, as that of a quic.Stream
	end      context.CancelCauseFunc
	over     func()          // called once, when the connection has ended; with mu held
	wg       *sync.WaitGroup // of what the stream runs
	ready    chan struct{}   // closed when the connection is there
	sent     *atomic.Uint64  // bytes; nil: not counted
	received *atomic.Uint64

	mu        sync.Mutex
	changed   sync.Cond      // of the fields below
	conn      *tls.Conn      // guarded by mu until ready; nil until then
	raw       net.Conn       // likewise
	queue     []byte         // guarded by mu: to be sent by flush
	flushing  bool           // guarded by mu: flush runs
	writeErr  error          // guarded by mu: why nothing more can be sent
	writeOver bool           // guarded by mu: the sending half has ended cleanly, or will when the queue is sent
	readOver  bool           // guarded by mu: EOF was read, or the reading half was cancelled
	polite    bool           // guarded by mu: cancelled, and what still comes is read away for a while
	gone      bool           // guarded by mu: the connection was closed
	parting   func(net.Conn) // of the connection, before it is closed; may be nil
	release   func()         // guarded by mu: of the guard that watches the connection
	peeked    []byte         // of the reader: to be read again
}

func newTCPStream(ctx context.Context, wg *sync.WaitGroup, over func()) *tcpStream {
	s := &tcpStream{over: over, wg: wg, ready: make(chan struct{})}
	s.ctx, s.end = context.WithCancelCause(ctx)
	s.changed.L = &s.mu
	return s
}

// attach gives the stream its connection. False: it has ended meanwhile, and the connection is still the caller's. release is called
// when the connection has ended.
func (s *tcpStream) attach(conn *tls.Conn, raw net.Conn, release func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return false
	}
	s.conn, s.raw, s.release = conn, raw, release
	close(s.ready)
	return true
}

// connected waits for the connection.
func (s *tcpStream) connected() (*tls.Conn, error) {
	select {
	case <-s.ready:
		return s.conn, nil
	default:
	}
	select {
	case <-s.ready:
		return s.conn, nil
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
}

func (s *tcpStream) Read(p []byte) (int, error) {
	if len(s.peeked) > 0 {
		n := copy(p, s.peeked)
		s.peeked = s.peeked[n:]
		return n, nil
	}
	conn, err := s.connected()
	if err != nil {
		return 0, err
	}
	n, err := conn.Read(p)
	if s.received != nil {
		s.received.Add(uint64(n)) //nolint:gosec // G115: what was read isn't negative
	}
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.polite {
			return 0, errStreamCancelled
		}
		if s.gone {
			return 0, context.Cause(s.ctx)
		}
		if errors.Is(err, io.EOF) {
			s.readOver = true
			s.settle()
		}
	}
	return n, err
}

// unread makes p be read again. Of the reader.
func (s *tcpStream) unread(p []byte) { s.peeked = p }

func (s *tcpStream) Write(p []byte) (int, error) {
	s.mu.Lock()
	for s.flushing && !s.gone {
		s.changed.Wait()
	}
	err := s.unwritable()
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	conn, err := s.connected()
	if err != nil {
		return 0, err
	}
	n, err := conn.Write(p)
	s.count(n)
	return n, err
}

func (s *tcpStream) count(n int) {
	if s.sent != nil {
		s.sent.Add(uint64(n)) //nolint:gosec // G115: what was written isn't negative
	}
}

// unwritable says why nothing can be sent. mu is held.
func (s *tcpStream) unwritable() error {
	switch {
	case s.gone:
		return context.Cause(s.ctx)
	case s.writeErr != nil:
		return s.writeErr
	case s.writeOver:
		return errStreamEnded
	}
	return nil
}

func (s *tcpStream) TryWriteAll(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.unwritable(); err != nil {
		return err
	}
	if len(s.queue)+len(p) > maxQueued {
		return quic.ErrWouldBlock
	}
	s.queue = append(s.queue, p...)
	s.startFlush()
	return nil
}

// startFlush has the queue sent, and the end of it. mu is held.
func (s *tcpStream) startFlush() {
	if !s.flushing {
		s.flushing = true
		s.wg.Go(s.flush)
	}
}

func (s *tcpStream) flush() {
	conn, err := s.connected()
	s.mu.Lock()
	defer s.mu.Unlock()
	for err == nil && len(s.queue) > 0 && !s.gone {
		p := s.queue
		s.queue = nil
		s.mu.Unlock()
		_, err = conn.Write(p)
		s.count(len(p))
		s.mu.Lock()
	}
	if err == nil && s.writeOver && !s.gone {
		s.mu.Unlock()
		err = conn.CloseWrite()
		s.mu.Lock()
	}
	// The reading half goes on: there may be a refusal in it.
	s.writeErr = err
	s.flushing = false
	s.changed.Broadcast()
	s.settle()
}

// Close sends close_notify, after what is queued.
func (s *tcpStream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.unwritable(); err != nil {
		return err
	}
	s.writeOver = true
	s.startFlush()
	return nil
}

// settle closes the connection when both halves have ended. mu is held.
func (s *tcpStream) settle() {
	if s.gone || !s.readOver || !s.writeOver || s.flushing {
		return
	}
	if s.writeErr != nil {
		s.cut(s.writeErr)
		return
	}
	if !s.polite {
		s.shut(io.EOF)
		return
	}
	// Closing while there is something to read would send RST, which may overtake what was sent.
	s.polite = false
	s.wg.Go(func() {
		_ = s.raw.SetReadDeadline(time.Now().Add(lingerTimeout))
		_, _ = io.Copy(io.Discard, io.LimitReader(s.raw, maxLinger)) // ciphertext: nobody asks any more what it says
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.gone {
			s.shut(errStreamCancelled)
		}
	})
}

// shut closes the connection. mu is held.
func (s *tcpStream) shut(why error) {
	s.gone = true
	s.part()
	_ = s.raw.Close()
	s.ended(why)
}

// part has a last look at the connection. mu is held.
func (s *tcpStream) part() {
	if s.parting != nil {
		s.parting(s.raw)
	}
}

// ended says that the connection has. mu is held.
func (s *tcpStream) ended(why error) {
	s.end(why)
	s.changed.Broadcast()
	if s.release != nil {
		s.release()
	}
	s.over()
}

// flushed returns when the kernel has all that was taken to be sent.
func (s *tcpStream) flushed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.flushing && !s.gone {
		s.changed.Wait()
	}
	return s.writeErr
}

// leave waits a little for the connection to end by itself, as it does when both halves have.
func (s *tcpStream) leave() {
	late := time.NewTimer(2 * lingerTimeout)
	defer late.Stop()
	s.mu.Lock()
	ending := s.writeOver && s.readOver
	s.mu.Unlock()
	if ending {
		select {
		case <-s.ctx.Done():
		case <-late.C:
		}
	}
}

// finish ends the sending half cleanly and closes the connection as soon as the kernel has the end of it.
func (s *tcpStream) finish(why error) {
	late := time.AfterFunc(lingerTimeout, func() { s.abort(why) })
	defer late.Stop()
	_ = s.Close() // fails when it has ended already
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.flushing && !s.gone {
		s.changed.Wait()
	}
	if !s.gone {
		s.shut(why)
	}
}

// abort breaks both halves.
func (s *tcpStream) abort(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut(why)
}

// cut is abort. mu is held.
func (s *tcpStream) cut(why error) {
	if s.gone {
		return
	}
	s.gone, s.queue = true, nil
	if s.raw != nil {
		s.part()
		cut(s.raw)
	}
	s.ended(why)
}

// CancelWrite breaks the stream, unless the sending half has ended.
func (s *tcpStream) CancelWrite(quic.StreamErrorCode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.writeOver {
		s.cut(errStreamCancelled)
	}
}

// CancelRead reads no more. When the sending half has ended, or does, the connection is closed: after a while that the peer has to read
// it, if it was refused.
func (s *tcpStream) CancelRead(code quic.StreamErrorCode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || s.readOver {
		return
	}
	if code != resetRefused {
		if s.writeOver {
			s.cut(errStreamCancelled)
		}
		return // or else the sending half is cancelled too, or the peer finds that nobody reads
	}
	s.readOver, s.polite = true, true
	if s.raw != nil {
		_ = s.raw.SetReadDeadline(time.Now()) // whoever reads now
	}
	s.settle()
}

// SetReadDeadline has no effect before the connection is there.
func (s *tcpStream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.raw == nil {
		return nil
	}
	return s.raw.SetReadDeadline(t)
}

// SetWriteDeadline has no effect before the connection is there.
func (s *tcpStream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.raw == nil {
		return nil
	}
	return s.raw.SetWriteDeadline(t)
}

func (s *tcpStream) Context() context.Context { return s.ctx }

// linkConn is the TCP connection beneath TLS. FIN without close_notify is a cut.
type linkConn struct {
	wholeConn

	// own: crypto/tls sets no deadlines. It gives close_notify five seconds to be taken by the kernel; a slow reader may need longer, and must
	// not take the end for a break.
	own atomic.Bool
}

func (c *linkConn) SetWriteDeadline(t time.Time) error {
	if c.own.Load() {
		return nil
	}
	return c.wholeConn.SetWriteDeadline(t)
}
