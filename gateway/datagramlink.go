package gateway

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"

	"github.com/isthmus-mesh/isthmus/internal/datagram"
)

const (
	// maxDatagramsOutgoing is how many wait for quic-go to take them, of one connection; it holds 32 itself. The others wait with their streams.
	maxDatagramsOutgoing = 32
	// datagramPatience is for how long the peer may let none of them go.
	datagramPatience = 10 * time.Second
	// surelyFits is a size, with the number of a stream, that every path takes: QUIC wants packets of 1,200 bytes.
	surelyFits = 1000
)

// quarter: the streams of a link are bidirectional, and opened by who dialed: the lowest two bits of their IDs are zero (RFC 9000 section 2.1).
const quarter = 4

// datagramLinks are the QUIC connections on which datagrams are received. The zero value is in use.
type datagramLinks struct {
	mu    sync.Mutex
	links map[*quic.Conn]*datagramLink // guarded by mu
}

// datagramLink is one of them: its datagrams, given to the streams that they are of, and those that streams send.
type datagramLink struct {
	conn     *quic.Conn
	outgoing chan []byte

	mu      sync.Mutex
	streams map[uint64]*datagram.Queue // guarded by mu; by the number of the stream
}

// datagramsOn returns the datagrams of a connection; nil when it has none.
func (g *Gateway) datagramsOn(conn *quic.Conn) *datagramLink {
	if conn == nil {
		return nil
	}
	if has := conn.ConnectionState().SupportsDatagrams; !has.Local || !has.Remote {
		return nil
	}
	all := &g.datagrams
	all.mu.Lock()
	defer all.mu.Unlock()
	if l := all.links[conn]; l != nil {
		return l
	}
	l := &datagramLink{conn: conn, outgoing: make(chan []byte, maxDatagramsOutgoing), streams: make(map[uint64]*datagram.Queue)}
	if all.links == nil {
		all.links = make(map[*quic.Conn]*datagramLink)
	}
	all.links[conn] = l
	g.wg.Go(l.transmit)
	g.wg.Go(func() {
		l.receive(g.metrics.datagram.stray)
		all.mu.Lock()
		delete(all.links, conn)
		all.mu.Unlock()
	})
	return l
}

// receive gives datagrams to their streams until the connection ends. One for a stream that is none here, or none of datagrams, is dropped:
// what the peer may open it may speak of, and nothing else.
func (l *datagramLink) receive(stray prometheus.Counter) {
	for {
		p, err := l.conn.ReceiveDatagram(l.conn.Context())
		if err != nil {
			return
		}
		stream, record, ok := parseDatagram(p)
		var q *datagram.Queue
		if ok {
			l.mu.Lock()
			q = l.streams[stream]
			l.mu.Unlock()
		}
		if q == nil {
			stray.Inc()
			continue
		}
		q.Put(record)
	}
}

// parseDatagram returns of which stream a QUIC datagram is, and the record that it was.
func parseDatagram(p []byte) (stream uint64, record []byte, ok bool) {
	stream, n, err := quicvarint.Parse(p)
	if err != nil || len(p)-n > datagram.MaxBody {
		return 0, nil, false
	}
	body := p[n:]
	record = datagram.AppendHeader(make([]byte, 0, datagram.Header+len(body)), len(body))
	return stream, append(record, body...), true
}

// enter has the datagrams of a stream put into q, until leave is called.
func (l *datagramLink) enter(stream uint64, q *datagram.Queue) (leave func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams[stream] = q
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.streams, stream)
	}
}

// fits reports whether a datagram of so many bytes goes beside the stream now.
func (l *datagramLink) fits(size int) bool {
	if size <= surelyFits {
		return true
	}
	// What fits grows as the path is found to take more. Nobody tells, but who is asked for the impossible.
	long, ok := errors.AsType[*quic.DatagramTooLargeError](l.conn.SendDatagram(impossible[:]))
	return ok && int64(size) <= long.MaxDatagramPayloadSize
}

// impossible fits in no packet.
var impossible [1 << 16]byte

// send has a record's body sent as a QUIC datagram of a stream. It waits while the connection has too much to send, until over is closed; false: it
// was, or the connection has ended.
func (l *datagramLink) send(stream uint64, record []byte, over <-chan struct{}) bool {
	n := quicvarint.Len(stream)
	p := record
	if n <= datagram.Header { // the number fits where the header was
		p = record[datagram.Header-n:]
		quicvarint.Append(p[:0], stream)
	} else {
		p = append(quicvarint.Append(make([]byte, 0, n+len(record)), stream), record[datagram.Header:]...)
	}
	select {
	case l.outgoing <- p:
		return true
	case <-over:
	case <-l.conn.Context().Done():
	}
	return false
}

// transmit sends datagrams until the connection ends. quic-go waits, for ever if need be, for a peer that acknowledges nothing: so streams don't
// send by themselves, and such a peer is given up.
func (l *datagramLink) transmit() {
	untaken := time.AfterFunc(datagramPatience, func() {
		_ = l.conn.CloseWithError(closeDead, "no datagram could be sent in "+datagramPatience.String())
	})
	defer untaken.Stop()
	for {
		untaken.Stop()
		select {
		case p := <-l.outgoing:
			untaken.Reset(datagramPatience)
			_ = l.conn.SendDatagram(p) // one that fits no more is lost; when the connection has ended, its context says so
		case <-l.conn.Context().Done():
			return
		}
	}
}

// datagramWay returns where the datagrams of a stream of the link go.
func (g *Gateway) datagramWay(conn *quic.Conn, stream lane) (*datagramLink, uint64) {
	s, ok := stream.(*quic.Stream)
	if !ok {
		return nil, 0
	}
	link := g.datagramsOn(conn)
	return link, uint64(s.StreamID()) / quarter //nolint:gosec // G115: never negative
}

// datagramWay returns where its datagrams go, once it is answered.
func (f *flight) datagramWay(g *Gateway) (*datagramLink, uint64) {
	f.mu.Lock()
	won, over := f.won, f.carrier
	f.mu.Unlock()
	if won == nil {
		return nil, 0
	}
	c, ok := over.conn.(*quicCarrier)
	if !ok {
		return nil, 0
	}
	return g.datagramWay(c.Conn, won.lane)
}
