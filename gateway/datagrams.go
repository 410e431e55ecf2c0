package gateway

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"

	"github.com/isthmus-mesh/isthmus/internal/datagram"
)

// A stream whose preamble says datagrams carries records (internal/datagram): those of the TLS session between two sidecars, and sealed
// datagrams. The records of TLS stay on the stream. A datagram goes beside it, as a QUIC datagram (RFC 9221) behind the stream's number, a
// quarter of its ID as in RFC 9297: lost, it holds nothing up. It stays on the stream where the carrier has no datagrams (TCP, an older
// gateway), and where it is longer than the path takes.

// What waits for a side that takes nothing now: of one stream in one direction, and of all, of which a peer cluster, a caller and an own service may
// have what they leave for others. The oldest makes room.
const (
	maxDatagramsWaiting = 256
	maxDatagramBytes    = 512 << 10
	datagramBudget      = 64 << 20
)

// quarter: the streams of a link are bidirectional, and opened by who dialed: the lowest two bits of their IDs are zero (RFC 9000 section 2.1).
const quarter = 4

// datagramLinks are the QUIC connections on which datagrams are received. The zero value is in use.
type datagramLinks struct {
	mu    sync.Mutex
	links map[*quic.Conn]*datagramLink // guarded by mu
}

// datagramLink is one of them: its datagrams, given to the streams that they are of.
type datagramLink struct {
	conn *quic.Conn

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
	l := &datagramLink{conn: conn, streams: make(map[uint64]*datagram.Queue)}
	if all.links == nil {
		all.links = make(map[*quic.Conn]*datagramLink)
	}
	all.links[conn] = l
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

// send sends a record's body as a QUIC datagram of a stream; false: it is too long for that. It waits while the connection has too much to
// send.
func (l *datagramLink) send(stream uint64, record []byte) (bool, error) {
	n := quicvarint.Len(stream)
	p := record
	if n <= datagram.Header { // the number fits where the header was
		p = record[datagram.Header-n:]
		quicvarint.Append(p[:0], stream)
	} else {
		p = append(quicvarint.Append(make([]byte, 0, n+len(record)), stream), record[datagram.Header:]...)
	}
	err := l.conn.SendDatagram(p)
	if _, long := errors.AsType[*quic.DatagramTooLargeError](err); long {
		datagram.AppendHeader(record[:0], len(record)-datagram.Header) // as it was
		return false, nil
	}
	return true, err
}

// half is a relayed stream, as halves.go has them.
type half interface {
	io.ReadWriteCloser
	CloseWrite() error
	Abort(error)
}

// datagramRelay carries one stream of records: near is the side of the own cluster, far that of the link.
type datagramRelay struct {
	g         *Gateway
	near, far half
	// whoever can make what waits for near and far grow, by taking nothing
	nearOwner, farOwner string
	// answer: what far reads first is its answer for near, and no record.
	answer bool
	// way returns where far's datagrams go, once it is known; nil: on the stream.
	way    func() (*datagramLink, uint64)
	counts datagramCounts

	out, in *datagram.Queue // to the link, to the own cluster

	nearMu, farMu sync.Mutex // held while a record is written

	once  sync.Once
	first error
}

// relayDatagrams relays a stream of records until both directions have ended, one broke, or ctx ended; then it closes both sides. The error is
// as relay.Pipe's.
func (g *Gateway) relayDatagrams(ctx context.Context, r *datagramRelay) error {
	r.g = g
	r.out = datagram.NewQueue(maxDatagramsWaiting, maxDatagramBytes, g.waiting, r.farOwner)
	r.in = datagram.NewQueue(maxDatagramsWaiting, maxDatagramBytes, g.waiting, r.nearOwner)
	opened := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { r.broke(context.Cause(ctx)) })
	defer stop()
	var senders, readers sync.WaitGroup
	var link *datagramLink
	var stream uint64
	var leave func()
	senders.Go(func() {
		<-opened
		r.failed(r.sendOut(link, stream))
	})
	senders.Go(func() { r.failed(r.sendIn()) })
	readers.Go(func() {
		err := r.read(r.near, r.far, &r.farMu, r.out)
		r.failed(err)
	})
	begun := sync.OnceFunc(func() {
		if link, stream = r.way(); link != nil {
			leave = link.enter(stream, r.in)
		}
		close(opened)
	})
	err := r.begin()
	begun()
	if err == nil {
		err = r.read(r.far, r.near, &r.nearMu, r.in)
	}
	r.failed(err)
	readers.Wait()
	if leave != nil {
		leave()
	}
	r.out.Close()
	r.in.Close()
	senders.Wait()
	r.counts.dropped.Add(float64(r.out.Dropped() + r.in.Dropped()))
	r.once.Do(func() {}) // what first holds is final from here on
	_ = r.near.Close()
	_ = r.far.Close()
	return r.first
}

// broke breaks both sides off.
func (r *datagramRelay) broke(err error) {
	r.once.Do(func() {
		r.first = err
		r.near.Abort(err)
		r.far.Abort(err)
		r.out.Close()
		r.in.Close()
	})
}

func (r *datagramRelay) failed(err error) {
	if err != nil {
		r.broke(err)
	}
}

// begin passes the answer on, where there is one.
func (r *datagramRelay) begin() error {
	if !r.answer {
		return nil
	}
	var buffer [2 << 10]byte // more than an answer takes; what comes with it hasn't been asked for yet
	n, err := r.far.Read(buffer[:])
	if n > 0 {
		r.nearMu.Lock()
		defer r.nearMu.Unlock()
		if _, failed := r.near.Write(buffer[:n]); failed != nil {
			return failed
		}
	}
	if errors.Is(err, io.EOF) {
		return nil // reading on says so again
	}
	return err
}

// read takes records from one side to its end: TLS's to the other, at once, and datagrams to the queue for it.
func (r *datagramRelay) read(from, to half, writing *sync.Mutex, q *datagram.Queue) error {
	records := datagram.NewReader(from)
	for {
		record, err := records.Next()
		if err != nil {
			writing.Lock()
			defer writing.Unlock()
			if errors.Is(err, io.EOF) {
				_ = to.CloseWrite() // its reader may have gone already, and then the other direction says so
				return nil
			}
			return err
		}
		if record.Datagram {
			q.Put(record.Bytes)
			continue
		}
		writing.Lock()
		_, err = to.Write(record.Bytes)
		writing.Unlock()
		if err != nil {
			return err
		}
	}
}

// sendOut sends the own cluster's datagrams across.
func (r *datagramRelay) sendOut(link *datagramLink, stream uint64) error {
	for {
		record, ok := r.out.Take()
		if !ok {
			return nil
		}
		if link != nil {
			size := len(record) - datagram.Header
			beside, err := link.send(stream, record)
			if err != nil {
				return err
			}
			if beside {
				r.counts.beside.Inc()
				r.counts.bytes.Add(float64(size))
				continue
			}
		}
		r.counts.within.Inc()
		r.farMu.Lock()
		_, err := r.far.Write(record)
		r.farMu.Unlock()
		if err != nil {
			return err
		}
	}
}

// sendIn gives the own cluster the datagrams that came, as many at once as there are.
func (r *datagramRelay) sendIn() error {
	var batch []byte
	for {
		record, ok := r.in.Take()
		if !ok {
			return nil
		}
		batch = append(batch[:0], record...)
		n := 1
		for len(batch) < maxReplay {
			more, ok := r.in.TakeNow()
			if !ok {
				break
			}
			batch = append(batch, more...)
			n++
		}
		r.counts.received.Add(float64(n))
		r.nearMu.Lock()
		_, err := r.near.Write(batch)
		r.nearMu.Unlock()
		if err != nil {
			return err
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
