package datagram

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/datagram"
)

// Kind is what a sealed datagram is. The values are on the wire: they are added to, never changed.
type Kind uint8

// The kinds. All but Data have no payload.
const (
	Data        Kind = iota // a datagram of the flow
	Closed                  // the sender has forgotten the flow
	Unreachable             // from the called: the application has no such port now (ICMP)
	Refused                 // from the called: the caller may not
	TooMany                 // from the called: above a quota
	Full                    // from the called: it carries as many flows as it may
)

// MaxFlow is the highest number of a flow.
const MaxFlow = 1<<kindShift - 1

const kindShift = 28

const (
	// What waits to be written to a stream that takes nothing now: the oldest makes room.
	queueDatagrams = 256
	queueBytes     = 1 << 20
	// maxBatch is what is written at once, in bytes.
	maxBatch = 16 << 10

	// An other end that froze, or a path that swallows packets, is noticed after both, while something is sent: nothing came, and a ping was not
	// answered.
	pingAfter   = 1 * time.Second
	pingTimeout = 2 * time.Second
)

// What TLS carries once the session is open, a byte each.
const (
	ping    = 1 // the caller asks, the called answers, with the same
	leaving = 2 // from the called: take new flows, and what the old ones have yet to send, elsewhere
)

// Why a session ended.
var (
	errSilent = errors.New("a ping was not answered")
	errSpeech = errors.New("the other end says what nobody asked for")
)

// Session is one end of a datagram session whose TLS handshake is over.
type Session struct {
	tls    *tls.Conn
	conn   *Conn
	caller bool
	sealer sealer
	opener opener // of the reader
	handle func(kind Kind, flow uint32, payload []byte)
	out    *datagram.Queue

	sent   atomic.Uint64
	heard  atomic.Uint64 // what came, TLS's or a datagram
	refuse atomic.Uint64 // datagrams that did not open
	leaves atomic.Bool
}

// Budget bounds what waits in several sessions together.
type Budget = datagram.Budget

// NewBudget returns one of so many bytes.
func NewBudget(bytes int) *Budget { return datagram.NewBudget(bytes) }

// NewSession makes a Session of c, which runs over conn. handle is called with each datagram that opens, in the order in which they come, by the
// goroutine that reads; payload holds until it returns. What waits because the other end takes nothing counts against budget, which may be nil, as
// owner's.
func NewSession(
	c *tls.Conn, conn *Conn, caller bool, budget *Budget, owner string, handle func(kind Kind, flow uint32, payload []byte),
) (*Session, error) {
	k, err := exportKeys(c.ConnectionState(), caller)
	if err != nil {
		return nil, err
	}
	s := &Session{
		tls: c, conn: conn, caller: caller, handle: handle,
		sealer: sealer{secret: k.send}, opener: opener{secret: k.receive},
		out: datagram.NewQueue(queueDatagrams, queueBytes, budget, owner),
	}
	conn.Deliver(s.receive)
	return s, nil
}

// Send seals a datagram and has it sent, and returns how many were dropped for want of room.
func (s *Session) Send(kind Kind, flow uint32, payload []byte) (dropped int) {
	if len(payload) > MaxPayload {
		return 1
	}
	size := len(payload) + overhead
	record := datagram.AppendHeader(make([]byte, 0, datagram.Header+size), size)
	record, err := s.sealer.append(record, uint32(kind)<<kindShift|flow&MaxFlow, payload)
	if err != nil {
		return 1
	}
	s.sent.Add(1)
	return s.out.Put(record)
}

// Forged returns how many datagrams came that did not open: replayed, forged, or damaged.
func (s *Session) Forged() uint64 { return s.refuse.Load() }

// Leaving reports whether the called end takes nothing new any more.
func (s *Session) Leaving() bool { return s.leaves.Load() }

// Leave says to the caller that this end takes nothing new any more.
func (s *Session) Leave() error {
	s.leaves.Store(true)
	_, err := s.tls.Write([]byte{leaving})
	return err
}

// receive takes a sealed datagram.
func (s *Session) receive(sealed []byte) {
	word, payload, err := s.opener.open(sealed)
	if err != nil {
		s.refuse.Add(1)
		return
	}
	s.heard.Add(1)
	s.handle(Kind(word>>kindShift), word&MaxFlow, payload)
}

// Run carries the session until it ends or ctx does, and returns why: nil when the other end has closed it. It doesn't close what the session
// runs over, but breaks it off with abort, which must make reading and writing fail.
func (s *Session) Run(ctx context.Context, abort func(error)) error {
	var first error
	var once sync.Once
	end := func(err error) {
		once.Do(func() {
			first = err
			s.out.Close()
			abort(err)
		})
	}
	stop := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.write(); err != nil {
			end(err)
		}
	})
	ended := make(chan struct{})
	if s.caller {
		wg.Go(func() {
			if err := s.watch(ended, &wg); err != nil {
				end(err)
			}
		})
	}
	end(s.listen())
	close(ended)
	wg.Wait()
	return first
}

// write sends what waits, as much at once as there is.
func (s *Session) write() error {
	var batch []byte
	for {
		record, ok := s.out.Take()
		if !ok {
			return nil
		}
		next := record
		if more, ok := s.out.TakeNow(); ok {
			batch = append(append(batch[:0], record...), more...)
			for len(batch) < maxBatch {
				if more, ok = s.out.TakeNow(); !ok {
					break
				}
				batch = append(batch, more...)
			}
			next = batch
		}
		if _, err := s.conn.Write(next); err != nil {
			return err
		}
	}
}

// listen reads what TLS carries, and with it the datagrams, to the end.
func (s *Session) listen() error {
	var buf [16]byte
	for {
		n, err := s.tls.Read(buf[:])
		if n > 0 {
			s.heard.Add(1)
		}
		for _, b := range buf[:n] {
			switch {
			case b == ping:
			case b == leaving && s.caller:
				s.leaves.Store(true)
			default:
				return errSpeech
			}
		}
		if n > 0 && !s.caller {
			if _, failed := s.tls.Write([]byte{ping}); failed != nil {
				return failed
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// watch asks the other end whether it is there, while something is sent and nothing comes.
func (s *Session) watch(ended <-chan struct{}, wg *sync.WaitGroup) error {
	tick := time.NewTicker(pingAfter)
	defer tick.Stop()
	var sent, heard uint64
	var asked time.Time // zero: nothing is asked
	for {
		select {
		case <-ended:
			return nil
		case <-tick.C:
		}
		nowSent, nowHeard := s.sent.Load(), s.heard.Load()
		switch {
		case nowHeard != heard:
			asked = time.Time{}
		case !asked.IsZero() && time.Since(asked) >= pingTimeout:
			return errSilent
		case asked.IsZero() && nowSent != sent:
			asked = time.Now()
			// Not waited for: where nothing goes out, the time runs all the same.
			wg.Go(func() { _, _ = s.tls.Write([]byte{ping}) })
		}
		sent, heard = nowSent, nowHeard
	}
}
