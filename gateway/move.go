package gateway

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// What a stream moves, nobody knows when it begins, and one that turns out to be bulk is on QUIC by then. So it goes on over TCP: who dialed makes
// another connection to the same gateway, says on it which stream is meant, hears yes, and says go. From then on each side ends what it sends on
// the first lane, in order, and sends the rest on the other one; and each reads the first lane to its end and then the other one. Nothing is framed, and
// nothing is sent twice.
//
// An end on the first lane is the stream's end only for who knows of no move. Who dialed has moved once go is on its way: if that gets lost, it reads
// an error, not an end. Who was dialed waits, after its yes, for go or stay: if neither comes, it takes an end for a break. So what was cut short
// never looks complete.
//
// The words on the new connection: 16 bytes that only the two ends of the QUIC connection know (RFC 5705) and the stream's ID in 8, big endian; yes or no;
// go or stay.
const (
	moveSecret  = 16
	moveRequest = moveSecret + 8
	moveLabel   = "EXPORTER-isthmus-link-move"

	moveYes  = 1
	moveNo   = 2 // it is over, or has been moved, or this gateway drains
	moveGo   = 3
	moveStay = 4

	// alertNoProtocol is what a gateway answers that knows of no moves (RFC 7301).
	alertNoProtocol = 120

	// moveTimeout bounds the wait for each of them.
	moveTimeout = 2 * time.Second
	// maxPeerMoves is how many connections of one peer cluster may be about to say which stream is meant, or to go.
	maxPeerMoves = 64
)

var (
	errMoveBroken = errors.New("the connection that the stream was to go on on was lost")
	errMoveNo     = errors.New("the far gateway moves this stream no more")
)

// move is where a stream goes on, or may.
type move struct {
	known chan struct{} // closed when it is known
	over  chan struct{} // closed when the stream is
	bulk  *bulk         // of the connection that it goes on on
	at    uint64        // what the stream had moved when it was asked for
	asks  bool          // it is the own side that dialed, and that may leave it at that until it has said go

	// The rest is guarded by the stream's mu, and final when known is closed.
	settled bool
	failed  bool       // nothing was agreed
	to      *tcpStream // nil: it stays where it is
	err     error      // it may not have ended where it seems to
}

// secretOf names a connection to its two ends alone.
func secretOf(cs tls.ConnectionState) (s [moveSecret]byte, err error) {
	b, err := cs.ExportKeyingMaterial(moveLabel, nil, moveSecret)
	copy(s[:], b)
	return s, err
}

// mayMove begins a move, unless the stream has one, or an end. Nil: it does.
func (s *linkStream) mayMove(asks bool) *move {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.moving; m != nil && m.failed && s.moved() >= 2*m.at {
		s.moving = nil // another time
	}
	if s.moving != nil || s.closed || s.gone || s.drained.Load() {
		return nil
	}
	s.moving = &move{asks: asks, at: s.moved(), known: make(chan struct{}), over: make(chan struct{})}
	return s.moving
}

// moved is how many bytes have gone both ways.
func (s *linkStream) moved() uint64 { return s.inRun.total.Load() + s.outRun.total.Load() }

// fail says that the stream stays, for now: who asks may ask again when it has moved twice as much.
func (s *linkStream) fail(m *move) {
	s.settle(m, nil, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	m.failed = true
}

// settle says where the stream goes on; false: it is over, or stays.
func (s *linkStream) settle(m *move, to *tcpStream, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.settled {
		return false
	}
	m.settled = true
	defer close(m.known)
	if s.gone {
		return false
	}
	m.to, m.err = to, err
	return true
}

// goOn has what is written from now on go there: at once, or by whoever is writing when he has.
func (s *linkStream) goOn(m *move) {
	s.onward.Store(m)
	s.hurry()
}

// hurry does what goOn wants, unless somebody is writing: he calls it, too.
func (s *linkStream) hurry() {
	for s.onward.Load() != nil && s.writing.TryLock() {
		if m := s.onward.Swap(nil); m != nil {
			s.divert(m)
		}
		s.writing.Unlock()
	}
}

// divert ends the first lane's sending half. writing is held.
func (s *linkStream) divert(m *move) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outlet, s.out = m.to, flow{of: m.bulk}
	if s.closed || s.gone {
		_ = m.to.Close() // nothing was left to be said
		return
	}
	_ = s.lane.Close()
}

// elsewhere returns where the stream goes on at the end of its first lane; nil: that was its end.
func (s *linkStream) elsewhere() (lane, error) {
	s.mu.Lock()
	m := s.moving
	if m == nil {
		s.drained.Store(true)
	}
	s.mu.Unlock()
	if m == nil {
		return nil, nil //nolint:nilnil // it is an end
	}
	if m.asks {
		s.settle(m, nil, nil) // unless it has gone
	}
	<-m.known
	switch {
	case m.err != nil:
		return nil, m.err
	case m.to == nil:
		s.drained.Store(true)
		return nil, nil //nolint:nilnil // likewise
	}
	s.in = flow{of: m.bulk}
	return m.to, nil
}

// relocate moves a stream that has turned out to be bulk to TCP, if the link carries bulk there and the gateway takes it.
func (l *link) relocate(s *linkStream, from *connection) {
	q, ok := s.lane.(*quic.Stream)
	if !ok || from.stays.Load() || l.choice.of(true) != transportTCP {
		return
	}
	to := l.overTCP(from.gateway, time.Now())
	if to == nil {
		return
	}
	m := s.mayMove(true)
	if m == nil {
		return
	}
	m.bulk = to.bulk
	to.active.Add(1)
	l.g.wg.Go(func() {
		defer to.leave()
		lane, err := l.agree(from, to.conn.(*tcpCarrier), q.StreamID()) //nolint:forcetypeassert // overTCP returns no other
		switch {
		case err != nil:
			s.fail(m)
			if alert, ok := errors.AsType[tls.AlertError](err); ok && alert == alertNoProtocol {
				from.stays.Store(true)
			}
			l.log.Info("bulk stays on QUIC", "peer_gateway", from.gateway.ID, "error", err)
			return
		case !s.settle(m, lane, nil):
			_, _ = lane.Write([]byte{moveStay})
			lane.finish(errMoveNo)
			return
		}
		if _, err = lane.Write([]byte{moveGo}); err != nil {
			s.Abort(err)
		}
		s.goOn(m)
		l.g.metrics.relocated(l.cluster)
		<-m.over
	})
}

// overTCP returns a connection over TCP to a gateway that is well.
func (l *link) overTCP(gw topology.Gateway, now time.Time) *connection {
	for _, c := range l.live() {
		if c.gateway.ID == gw.ID && c.conn.transport() == transportTCP && c.usable() && !c.aged.Load() && !c.pulse.suspect(now) {
			return c
		}
	}
	return nil
}

// agree makes a connection for the rest of a stream, up to the far gateway's yes.
func (l *link) agree(from *connection, c *tcpCarrier, stream quic.StreamID) (*tcpStream, error) {
	secret, err := secretOf(from.conn.state())
	if err != nil {
		return nil, err
	}
	lane, err := c.branch()
	if err != nil {
		return nil, err
	}
	request := binary.BigEndian.AppendUint64(secret[:], uint64(stream)) //nolint:gosec // G115: never negative
	var answer [1]byte
	_ = lane.SetReadDeadline(time.Now().Add(moveTimeout))
	if _, err = lane.Write(request); err == nil {
		_, err = io.ReadFull(lane, answer[:])
	}
	_ = lane.SetReadDeadline(time.Time{})
	switch {
	case err == nil && answer[0] == moveNo:
		err = errMoveNo
	case err == nil && answer[0] != moveYes:
		err = fmt.Errorf("answered with %d", answer[0])
	}
	if err != nil {
		lane.abort(err)
		return nil, err
	}
	return lane, nil
}

// movables are the streams that peers opened over QUIC and may move, by the connection's secret. The zero value is in use.
type movables struct {
	mu    sync.Mutex
	conns map[[moveSecret]byte]*incoming // guarded by mu
}

// enter makes the streams of a connection known.
func (m *movables) enter(from *incoming) (leave func()) {
	secret, err := secretOf(from.conn.ConnectionState().TLS)
	if err != nil {
		return func() {}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conns == nil {
		m.conns = make(map[[moveSecret]byte]*incoming)
	}
	m.conns[secret] = from
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.conns, secret)
	}
}

// find returns the stream that is meant by who asks.
func (m *movables) find(request [moveRequest]byte, who trust.Peer) *linkStream {
	m.mu.Lock()
	from := m.conns[[moveSecret]byte(request[:moveSecret])]
	m.mu.Unlock()
	if from == nil || from.peer.ID != who.ID {
		return nil
	}
	from.mu.Lock()
	defer from.mu.Unlock()
	return from.streams[binary.BigEndian.Uint64(request[moveSecret:])]
}

// carries makes a stream known by which relayed bytes come and go, until forget is called.
func (i *incoming) carries(stream lane, s *linkStream) (forget func()) {
	q, ok := stream.(*quic.Stream)
	if !ok {
		return func() {}
	}
	id := uint64(q.StreamID()) //nolint:gosec // G115: never negative
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.streams == nil {
		i.streams = make(map[uint64]*linkStream)
	}
	i.streams[id] = s
	return func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.streams, id)
	}
}

// serveMove serves a connection on which a stream is to go on.
func (g *Gateway) serveMove(ctx context.Context, s *tcpStream, peer trust.Peer, cluster topology.ClusterName) {
	asking, ok := g.moves.take(cluster, maxPeerMoves)
	if !ok {
		return
	}
	asking = sync.OnceFunc(asking)
	defer asking()
	var request [moveRequest]byte
	_ = s.SetReadDeadline(time.Now().Add(moveTimeout))
	if _, err := io.ReadFull(s, request[:]); err != nil {
		return
	}
	answer, stream := byte(moveNo), g.movables.find(request, peer)
	var m *move
	if stream != nil && !g.draining() {
		if m = stream.mayMove(false); m != nil {
			answer = moveYes
		}
	}
	var word [1]byte
	_ = s.SetReadDeadline(time.Now().Add(moveTimeout))
	_, err := s.Write([]byte{answer})
	if err == nil {
		_, err = io.ReadFull(s, word[:]) // after a no, who asked leaves
	}
	_ = s.SetReadDeadline(time.Time{})
	asking()
	switch {
	case m == nil:
		return
	case err == nil && word[0] == moveStay:
		stream.settle(m, nil, nil)
		return
	case err != nil || word[0] != moveGo:
		stream.settle(m, nil, errMoveBroken)
		return
	case !stream.settle(m, s, nil):
		return
	}
	stream.goOn(m)
	select {
	case <-m.over:
	case <-ctx.Done():
	}
}
