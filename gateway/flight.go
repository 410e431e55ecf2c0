package gateway

import (
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	// maxReplay is how much of what a caller sends is kept until a far gateway has answered. A TLS client sends a hello and waits,
	// so more is a rarity, and waits too.
	maxReplay = 16 << 10
	// maxAttempts bounds the connections that one stream is tried on.
	maxAttempts = 6
	// maxHedges bounds those of them that were tried while another one hadn't failed yet.
	maxHedges = 2
)

// flight is a stream to a peer cluster, as the relay sees it: what is written goes out at once, on a connection that may turn
// out to be the wrong one; until a gateway has answered, it may go out again on another. What is read begins with the answer
// for the caller. One goroutine reads, one writes; Abort may come from anywhere.
type flight struct {
	link           *link
	service        topology.ServiceName
	hop            string // this gateway
	opening        []byte // the preamble's frame
	timeout        time.Duration
	received, sent prometheus.Counter
	onAnswer       func(streamv1.Code) // called once, before the answer is handed to the caller
	onHedge        func()

	outcomes chan outcome // capacity maxAttempts
	readers  sync.WaitGroup
	opened   bool          // of the reader: the answer is known
	answer   []byte        // of the reader: what is left of it
	settled  chan struct{} // closed when the answer is known
	aborted  chan struct{} // closed by Abort

	mu       sync.Mutex
	first    []byte            // guarded by mu: what the caller has sent so far
	fin      bool              // guarded by mu: and that was all
	attempts []*attempt        // guarded by mu: not failed, not answered
	won      *linkStream       // guarded by mu
	carrier  *connection       // guarded by mu: of won
	path     []string          // guarded by mu: of won, from the far gateway on
	refusal  *preamble.Refusal // guarded by mu: or that
	stopped  bool              // guarded by mu: by Abort
}

// attempt is a stream on one connection, until it is answered.
type attempt struct {
	c      *connection
	stream lane
}

func (a *attempt) cancel() { reset(a.stream, resetCancelled) }

type outcome struct {
	*attempt
	err error // nil: it is the stream now
}

// Write sends p on, and keeps it while it may be needed again.
func (f *flight) Write(p []byte) (n int, err error) {
	for {
		f.mu.Lock()
		switch {
		case f.stopped:
			f.mu.Unlock()
			return n, io.ErrClosedPipe
		case f.refusal != nil:
			f.mu.Unlock()
			return n + len(p), nil // goes nowhere
		case f.won != nil:
			won := f.won
			f.mu.Unlock()
			m, err := won.Write(p)
			return n + m, err
		}
		room := min(maxReplay-len(f.first), len(p))
		f.first = append(f.first, p[:room]...)
		for _, a := range f.attempts {
			// A connection without room for a first flight is no way to go; its reader tells. What else can go wrong, the reader
			// finds out by itself, and there may be a refusal for it to read before.
			if errors.Is(a.stream.TryWriteAll(p[:room]), quic.ErrWouldBlock) {
				a.cancel()
			}
		}
		f.mu.Unlock()
		n += room
		if p = p[room:]; len(p) == 0 {
			return n, nil
		}
		select {
		case <-f.settled:
		case <-f.aborted:
		}
	}
}

// CloseWrite passes on that the caller has sent all.
func (f *flight) CloseWrite() error {
	f.mu.Lock()
	f.fin = true
	for _, a := range f.attempts {
		_ = a.stream.Close() // a reset one has failed already
	}
	won := f.won
	f.mu.Unlock()
	if won == nil {
		return nil
	}
	return won.CloseWrite()
}

// Read returns the answer's frame, then what the destination sends.
func (f *flight) Read(p []byte) (int, error) {
	if !f.opened {
		f.opened = true
		f.open()
		f.answer = f.frame()
	}
	if len(f.answer) > 0 {
		n := copy(p, f.answer)
		f.answer = f.answer[n:]
		return n, nil
	}
	f.mu.Lock()
	won, stopped := f.won, f.stopped
	f.mu.Unlock()
	switch {
	case won != nil:
		return won.Read(p)
	case stopped:
		return 0, io.ErrClosedPipe
	default:
		return 0, io.EOF // refused, and that was all
	}
}

// Abort breaks the stream on the far side.
func (f *flight) Abort(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return
	}
	f.stopped = true
	close(f.aborted)
	for _, a := range f.attempts {
		a.cancel()
	}
	if f.won != nil {
		f.won.Abort(err)
	}
}

// Close ends what hasn't ended and waits for what the flight has started.
func (f *flight) Close() error {
	f.mu.Lock()
	won := f.won
	if won == nil && f.refusal == nil && !f.stopped {
		f.stopped = true
		close(f.aborted)
	}
	for _, a := range f.attempts {
		a.cancel()
	}
	f.mu.Unlock()
	f.readers.Wait()
	if won == nil {
		return nil
	}
	return won.Close()
}

// release counts the stream out of its connection. After Close.
func (f *flight) release() {
	if f.carrier != nil {
		f.carrier.leave()
	}
}

// code says how the stream was answered; CODE_UNSPECIFIED when the caller left before. After Close.
func (f *flight) code() streamv1.Code {
	switch {
	case f.won != nil:
		return streamv1.Code_CODE_OK
	case f.refusal != nil:
		return f.refusal.Code
	default:
		return streamv1.Code_CODE_UNSPECIFIED
	}
}

// frame returns the answer for the caller; nil when he has left.
func (f *flight) frame() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.won != nil:
		return preamble.AppendReply(nil, preamble.Reply{Path: append([]string{f.hop}, f.path...)})
	case f.refusal != nil:
		return preamble.AppendRefusal(nil, f.refusal)
	default:
		return nil
	}
}

// open finds a gateway that takes the stream: won is set, or refusal, or the caller has left.
func (f *flight) open() {
	var (
		tried   []*connection
		pending int
		hedges  int
		last    *preamble.Refusal // what to say when there is no other way
	)
	try := func() bool {
		for len(tried) < maxAttempts {
			c, refusal := f.link.pick(f.service, tried)
			if c == nil {
				if last == nil || refusal.Code == streamv1.Code_CODE_LINK_DOWN {
					last = refusal
				}
				return false
			}
			tried = append(tried, c)
			if err := f.launch(c); err != nil {
				last = noWay(err)
				continue
			}
			pending++
			return true
		}
		return false
	}
	f.link.hedges.earn()
	if !try() {
		f.refuse(last)
		return
	}
	deadline := time.NewTimer(f.timeout)
	defer deadline.Stop()
	impatience := time.NewTimer(tried[0].pulse.patience())
	defer impatience.Stop()
	for {
		select {
		case <-f.aborted:
			return
		case <-deadline.C:
			f.refuse(&preamble.Refusal{Code: streamv1.Code_CODE_LINK_DOWN, Detail: "no answer in " + f.timeout.String()})
			return
		case <-impatience.C:
			c := tried[len(tried)-1]
			suspect := c.pulse.suspect(time.Now())
			if hedges < maxHedges && len(tried) < maxAttempts && (suspect || f.link.hedges.spend()) && try() {
				hedges++
				f.onHedge()
			}
			impatience.Reset(max(c.pulse.patience(), c.pulse.interval/2))
		case o := <-f.outcomes:
			pending--
			var refusal *preamble.Refusal
			switch {
			case o.err == nil:
				return
			case !errors.As(o.err, &refusal):
				refusal = noWay(o.err)
			case refusal.Code == streamv1.Code_CODE_DRAINING:
				o.c.draining.Store(true)
			case !elsewhere(refusal.Code):
				f.refuse(refusal)
				return
			}
			last = refusal
			if !try() && pending == 0 {
				f.refuse(last)
				return
			}
		}
	}
}

// elsewhere reports whether another gateway of the same cluster may answer differently: when the word is of the gateway itself.
func elsewhere(c streamv1.Code) bool {
	return c == streamv1.Code_CODE_DRAINING || c == streamv1.Code_CODE_OVERLOADED || c == streamv1.Code_CODE_INTERNAL
}

// noWay makes a refusal of what went wrong with a connection.
func noWay(err error) *preamble.Refusal {
	r := &preamble.Refusal{Code: streamv1.Code_CODE_LINK_DOWN, Detail: err.Error()}
	var full quic.StreamLimitReachedError
	if errors.As(err, &full) || errors.Is(err, quic.ErrWouldBlock) {
		r.Code = streamv1.Code_CODE_OVERLOADED
	}
	return r
}

// launch starts an attempt on c: the preamble and what the caller has sent, in one flight.
func (f *flight) launch(c *connection) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return io.ErrClosedPipe
	}
	stream, err := c.conn.open()
	if err != nil {
		return err
	}
	a := &attempt{c, stream}
	if err := stream.TryWriteAll(append(slices.Clip(f.opening), f.first...)); err != nil {
		a.cancel()
		return err
	}
	if f.fin {
		_ = stream.Close() // can't fail: it was opened just now
	}
	f.attempts = append(f.attempts, a)
	c.active.Add(1)
	f.readers.Go(func() {
		reply, err := preamble.ReadReply(stream)
		if err == nil {
			err = f.claim(a, reply)
		}
		if err != nil {
			f.drop(a)
		}
		f.outcomes <- outcome{a, err}
	})
	return nil
}

var errLate = errors.New("another gateway answered first")

// claim makes a's stream the stream, if it is the first that was taken. The other attempts are cancelled.
func (f *flight) claim(a *attempt, reply preamble.Reply) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped || f.won != nil || f.refusal != nil {
		return errLate
	}
	f.won = &linkStream{
		lane: a.stream, received: f.received, sent: f.sent, in: flow{of: a.c.bulk}, out: flow{of: a.c.bulk}, closed: f.fin,
		hauls: f.link.hauls.of(f.service),
	}
	won := f.won
	won.relocate = func() { f.link.relocate(won, a.c) }
	f.carrier, f.path = a.c, reply.Path
	f.forget(a)
	f.settle()
	f.onAnswer(streamv1.Code_CODE_OK)
	return nil
}

// refuse ends the flight, unless it was claimed at the last moment.
func (f *flight) refuse(r *preamble.Refusal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped || f.won != nil {
		return
	}
	f.refusal = &preamble.Refusal{Code: r.Code, Detail: r.Detail, Path: append([]string{f.hop}, r.Path...)}
	f.settle()
	f.onAnswer(r.Code)
}

// settle ends what is open no more. mu is held.
func (f *flight) settle() {
	for _, a := range f.attempts {
		a.cancel()
	}
	f.first = nil
	close(f.settled)
}

// drop ends a failed attempt.
func (f *flight) drop(a *attempt) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a.cancel()
	a.c.leave()
	f.forget(a)
}

// forget takes a out of the attempts. mu is held.
func (f *flight) forget(a *attempt) {
	f.attempts = slices.DeleteFunc(f.attempts, func(o *attempt) bool { return o == a })
}
