package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

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

// datagramEnd is what the other direction gets to end, once one has: sidecars end both together.
const datagramEnd = 5 * time.Second

var errHeldOpen = fmt.Errorf("one direction has ended, and the other not within %s", datagramEnd)

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
	over    chan struct{}   // closed when nothing is sent any more
	end     func()          // closes it, and both queues
	ending  *time.Timer     // runs once one side has said all

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
	r.over = make(chan struct{})
	r.end = sync.OnceFunc(func() {
		close(r.over)
		r.out.Close()
		r.in.Close()
	})
	r.ending = time.AfterFunc(datagramEnd, func() { r.broke(errHeldOpen) })
	r.ending.Stop() // until then
	defer r.ending.Stop()
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
	r.end()
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
		r.end()
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
			r.ending.Reset(datagramEnd) // the lock may be held by who waits for a side that takes nothing
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
		if size := len(record) - datagram.Header; link != nil && link.fits(size+quicvarint.Len(stream)) {
			if !link.send(stream, record, r.over) {
				return context.Cause(link.conn.Context()) // nil: the relay ends
			}
			r.counts.beside.Inc()
			r.counts.bytes.Add(float64(size))
			continue
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
