// Package replay knows which requests may be sent again, and keeps what it takes to do so: the part of the body that has
// been read so far.
//
// Used by the sidecar's outbound side. A Body serves one attempt after another; each attempt reads it from one goroutine, and
// an attempt that was given up may still be inside Read while the next one reads.
package replay

import (
	"errors"
	"io"
	"net/http"
	"sync"
)

// Limit is how much of a request's body is kept for another attempt, in bytes. A longer one is streamed, and sent once.
const Limit = 64 << 10

// maxRead bounds one read from the client, and so what is kept above Limit.
const maxRead = 32 << 10

// Idempotent reports whether doing the request twice is as good as once: by its method (RFC 9110 section 9.2.2), or because
// the client says so with an Idempotency-Key. gRPC calls are POST, so they are not.
func Idempotent(method string, h http.Header) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	default:
		return h.Get("Idempotency-Key") != ""
	}
}

// errGivenUp is what reading the body of an attempt that has ended returns.
var errGivenUp = errors.New("replay: the attempt has ended")

// Body is a request's body that several attempts read, each from the start.
type Body struct {
	source io.Reader

	mu      sync.Mutex
	arrived *sync.Cond // on mu; signalled when a read from source has ended
	kept    []byte     // guarded by mu
	whole   bool       // guarded by mu; kept holds everything read so far
	reading bool       // guarded by mu; somebody is inside source.Read
	err     error      // guarded by mu; what source ended with
	current *attempt   // guarded by mu
	touched bool       // guarded by mu; the present attempt, or the last, has begun to read

	// aside: source is read by a goroutine of its own, so that an attempt that is closed need not wait for what may never come.
	aside bool
	room  []byte // guarded by reading; what that reads into
}

// New returns a Body over source, of which nothing has been read; nil for a nil source. It never closes source: who made it does.
func New(source io.Reader) *Body {
	if source == nil {
		return nil
	}
	b := &Body{source: source, whole: true}
	b.arrived = sync.NewCond(&b.mu)
	return b
}

// NewStream returns a Body as New does, over what may say nothing for long. Closing an attempt ends a Read of it that is under way: HTTP/2 clients count on
// that when what they send to has gone, and otherwise wait for source to say something.
func NewStream(source io.Reader) *Body {
	b := New(source)
	if b != nil {
		b.aside = true
	}
	return b
}

// Attempt returns the body for one attempt, and ends the one before. ok is false when what was read is no longer there.
func (b *Body) Attempt() (body io.ReadCloser, ok bool) {
	if b == nil {
		return http.NoBody, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.whole {
		return nil, false
	}
	b.current, b.touched = &attempt{body: b}, false
	b.arrived.Broadcast() // the attempt before may wait for bytes
	return b.current, true
}

// Touched reports whether the last attempt began to read.
func (b *Body) Touched() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.touched
}

// Replayable reports whether another attempt could be made.
func (b *Body) Replayable() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.whole
}

// Consumed reports whether the body has been read to its end.
func (b *Body) Consumed() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Is(b.err, io.EOF)
}

type attempt struct {
	body   *Body
	offset int // guarded by body.mu
}

// Read returns what is kept, then reads on. What it reads, it keeps, as long as that is at most Limit.
func (a *attempt) Read(p []byte) (int, error) {
	b := a.body
	b.mu.Lock()
	defer b.mu.Unlock()
	b.touched = b.touched || b.current == a
	for {
		switch {
		case b.current != a:
			return 0, errGivenUp
		case a.offset < len(b.kept):
			n := copy(p, b.kept[a.offset:])
			a.offset += n
			if !b.whole && a.offset == len(b.kept) { // nobody will ask for it again
				b.kept, a.offset = b.kept[:0], 0
			}
			return n, nil
		case b.err != nil:
			return 0, b.err
		case !b.reading && b.aside:
			b.reading = true
			go b.readAside()
		case !b.reading:
			if n, done := b.read(a, p); done {
				return n, nil
			}
		default:
			b.arrived.Wait()
		}
	}
}

// read reads once from source, with b.mu released. It keeps what came (done is false: the loop finds it), or, above the
// limit, hands it out at once.
func (b *Body) read(a *attempt, p []byte) (n int, done bool) {
	b.reading = true
	b.mu.Unlock()
	n, err := b.source.Read(p[:min(len(p), maxRead)])
	b.mu.Lock()
	b.reading = false
	b.arrived.Broadcast()
	b.err = err
	if n == 0 {
		return 0, false
	}
	if b.whole && len(b.kept)+n <= Limit {
		b.kept = append(b.kept, p[:n]...)
		return 0, false
	}
	b.whole = false
	if b.current == a {
		// Everything kept was handed to this attempt already.
		b.kept, a.offset = nil, 0
		return n, true
	}
	// Another attempt began while this read was under way: it has not seen these bytes yet.
	b.kept = append(b.kept, p[:n]...)
	return 0, false
}

// How much readAside reads at once: little, as long as little comes. Many streams may be open that say nothing.
const (
	firstAside = 1 << 10
	mostAside  = 16 << 10
)

// readAside reads once from source, and keeps what came: all, or, above the limit, what no attempt has seen yet.
func (b *Body) readAside() {
	if b.room == nil {
		b.room = make([]byte, firstAside)
	}
	n, err := b.source.Read(b.room)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.whole && len(b.kept)+n > Limit {
		b.whole = false
		if a := b.current; a != nil && a.offset == len(b.kept) { // another attempt may have begun meanwhile, which has not seen it yet
			b.kept, a.offset = nil, 0
		}
	}
	b.kept = append(b.kept, b.room[:n]...)
	if n == len(b.room) && n < mostAside {
		b.room = make([]byte, 4*n)
	}
	b.reading, b.err = false, err
	b.arrived.Broadcast()
}

// Close ends the attempt, not the body.
func (a *attempt) Close() error {
	b := a.body
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current == a {
		b.current = nil
		b.arrived.Broadcast()
	}
	return nil
}
