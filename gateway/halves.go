package gateway

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"
)

// The streams that are relayed, each with the three ends that relay.Pipe knows: CloseWrite (the sending half ends cleanly,
// the other goes on), Abort (both halves break, and the other side sees that they did) and Close (whatever isn't over breaks).

// linkStream is one stream of a link, past its opening.
type linkStream struct {
	lane           // the first; there may be another one (move)
	received, sent prometheus.Counter
	in, out        flow
	inRun, outRun  run
	hauls          *atomic.Int64 // when the service has moved bulk; nil: nobody asks
	relocate       func()        // called when it turns out to be bulk; nil: it stays

	inlet   lane                 // of the reader: where it reads, once that is not the first lane
	writing sync.Mutex           // held while something is written; nobody waits for it
	onward  atomic.Pointer[move] // what is written is to go there

	mu      sync.Mutex
	outlet  lane  // changed with mu and writing held: where it writes, once that is not the first lane
	moving  *move // guarded by mu
	closed  bool  // guarded by mu: the sending half was ended or reset
	gone    bool  // guarded by mu: both halves were
	drained atomic.Bool
}

func (s *linkStream) Read(p []byte) (int, error) {
	from := s.inlet
	if from == nil {
		from = s.lane
	}
	n, err := from.Read(p)
	s.received.Add(float64(n))
	s.in.add(n)
	s.ran(s.inRun.add(n, &s.outRun))
	if errors.Is(err, io.EOF) {
		if s.inlet != nil {
			s.drained.Store(true)
			return n, err
		}
		there, broken := s.elsewhere()
		switch {
		case broken != nil:
			return n, broken
		case there == nil:
			return n, err
		}
		s.inlet = there
		if n > 0 {
			return n, nil
		}
		return s.Read(p)
	}
	return n, err
}

func (s *linkStream) Write(p []byte) (int, error) {
	s.writing.Lock()
	n, err := s.writes().Write(p)
	s.sent.Add(float64(n))
	s.out.add(n)
	s.ran(s.outRun.add(n, &s.inRun))
	s.writing.Unlock()
	s.hurry()
	return n, err
}

// writes returns where is written. writing is held.
func (s *linkStream) writes() lane {
	if s.outlet != nil {
		return s.outlet
	}
	return s.lane
}

// ran takes in that so many bytes went one way without a turn, another bulkPiece of them.
func (s *linkStream) ran(bytes uint64) {
	if bytes == 0 {
		return
	}
	if bytes >= bulkRun && s.hauls != nil {
		s.hauls.Store(time.Now().UnixNano())
	}
	if s.relocate != nil {
		s.relocate()
	}
}

// CloseWrite sends the end of what was written. Like Write, it must not be called while a Write is under way.
func (s *linkStream) CloseWrite() error {
	s.writing.Lock()
	to := s.writes()
	ended, err := s.closeWrite(to)
	s.writing.Unlock()
	s.hurry()
	if ended || err != nil {
		return err
	}
	if t, ok := to.(*tcpStream); ok {
		return t.flushed() // while it counts among those that are carried
	}
	return nil
}

func (s *linkStream) closeWrite(to lane) (before bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return true, nil
	}
	s.closed = true
	return false, to.Close()
}

// Abort resets both halves. A FIN that was sent already stands only if the peer has got it.
func (s *linkStream) Abort(err error) {
	if errors.Is(err, errWithdrawn) {
		s.reset(resetWithdrawn)
		return
	}
	s.reset(resetBroken)
}

func (s *linkStream) reset(code quic.StreamErrorCode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.CancelRead(code)
	s.CancelWrite(code)
	if s.end() && s.moving.to != nil {
		s.moving.to.abort(errStreamCancelled)
	}
}

// Close resets the halves that have not ended.
func (s *linkStream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	over := s.drained.Load() && s.closed
	if !s.drained.Load() {
		s.CancelRead(resetBroken)
	}
	if !s.closed {
		s.closed = true
		s.CancelWrite(resetBroken)
	}
	if s.end() && s.moving.to != nil && !over {
		s.moving.to.abort(errStreamCancelled)
	}
	return nil
}

// end says that the stream is over. It reports whether there is a move. mu is held.
func (s *linkStream) end() bool {
	if s.moving == nil {
		s.gone = true
		return false
	}
	if !s.gone {
		s.gone = true
		close(s.moving.over)
	}
	return true
}

// callerStream is the TLS connection of a sidecar.
type callerStream struct {
	*tls.Conn
	raw     net.Conn
	broken  atomic.Bool
	drained atomic.Bool
	ended   atomic.Bool // close_notify was sent
}

func (s *callerStream) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		s.drained.Store(true)
	}
	return n, err
}

// CloseWrite sends close_notify: the end that can't be taken for a cut. It waits for a slow reader as Write does.
func (s *callerStream) CloseWrite() error {
	s.ended.Store(true)
	return s.Conn.CloseWrite()
}

// Abort drops the TCP connection, without a close_notify and with RST instead of FIN where that can be had.
func (s *callerStream) Abort(error) {
	s.broken.Store(true)
	cut(s.raw)
}

// Close closes a connection whose two halves have ended, and breaks it otherwise.
func (s *callerStream) Close() error {
	if s.broken.Load() || !s.drained.Load() || !s.ended.Load() {
		s.Abort(nil)
		return nil
	}
	return s.Conn.Close()
}

// linger lets a refused caller read the refusal: closing with unread bytes would send RST, which may overtake it.
func (s *callerStream) linger() { _ = s.SetReadDeadline(time.Now().Add(lingerTimeout)) }

// endpointStream is the TCP connection to a copy.
type endpointStream struct {
	net.Conn
	broken atomic.Bool
}

// CloseWrite sends FIN.
func (s *endpointStream) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return s.Close()
}

// Abort sends RST.
func (s *endpointStream) Abort(error) {
	s.broken.Store(true)
	cut(s.Conn)
}

// cut closes c so that its peer sees an error.
func cut(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}

// wholeConn is the TCP connection beneath a server's TLS. FIN without a close_notify is a cut, which crypto/tls would pass off
// as a clean end when it comes between two records.
type wholeConn struct{ net.Conn }

var errCut = errors.New("connection was cut: TCP ended without TLS's close_notify")

func (c wholeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		err = errCut
	}
	return n, err
}
