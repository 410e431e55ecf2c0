package sidecar

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/sidecar/host"
	"github.com/isthmus-mesh/isthmus/sidecar/session"
	"github.com/isthmus-mesh/isthmus/topology"
)

// A gRPC stream may live for days. When what it crosses goes away, it ends as gRPC ends streams: with a status in the trailers (UNAVAILABLE, which says that
// it may be tried again), between two messages. One that is in the midst of a message is broken off, as what is no gRPC is.

const (
	// A stream to a copy that is drained may go on for drainSpans times what its owner's drain takes, or up to one more, by chance; and for leastDrain: most
	// end by themselves by then.
	drainSpans = 3
	leastDrain = 5 * time.Second
)

// messages follows how a stream of gRPC is divided: each message has a byte of flags and four of its length before it (PROTOCOL-HTTP2, Length-Prefixed-Message).
type messages struct {
	prefix [5]byte
	n      int    // of prefix, that have come
	left   uint32 // of the message that has begun
}

// pass takes in what has come next.
func (m *messages) pass(p []byte) {
	for len(p) > 0 {
		if m.left > 0 {
			n := min(uint64(len(p)), uint64(m.left))
			m.left -= uint32(n) //nolint:gosec // G115: it is at most m.left
			p = p[n:]
			continue
		}
		n := copy(m.prefix[m.n:], p)
		m.n, p = m.n+n, p[n:]
		if m.n == len(m.prefix) {
			m.n, m.left = 0, binary.BigEndian.Uint32(m.prefix[1:])
		}
	}
}

// between reports whether a message has ended and the next has not begun.
func (m *messages) between() bool { return m.n == 0 && m.left == 0 }

// grpcBody is the body of an answer to a gRPC call, on its way to who called.
type grpcBody struct {
	strippedBody
	messages messages
	// broken says with what a stream ends that err has broken off; nil: it is broken off.
	broken func(err error) *Failure
}

// Read reads the body.
func (b *grpcBody) Read(p []byte) (int, error) {
	n, err := b.strippedBody.Read(p)
	b.messages.pass(p[:n])
	if err == nil || errors.Is(err, io.EOF) || !b.messages.between() {
		return n, err
	}
	f := b.broken(err)
	if f == nil {
		return n, err
	}
	trailer := make(http.Header, len(b.resp.Trailer)+2)
	for name := range b.resp.Trailer { // they were announced
		trailer[name] = nil
	}
	f.setGRPC(trailer)
	b.resp.Trailer = trailer
	return n, io.EOF
}

// grpcAnswer makes resp's body, of the answer to a gRPC call, one that ends with a status when it is broken off.
func grpcAnswer(resp *http.Response, broken func(err error) *Failure) {
	if b, ok := resp.Body.(*strippedBody); ok {
		resp.Body = &grpcBody{strippedBody: *b, broken: broken}
	}
}

// long out of time: a deadline.
var past = time.Unix(1, 0)

// hush has the sender of an HTTP/2 request's body heard no more. Whoever reads that waits for the sender, and net/http ends no call on whose body somebody waits.
func hush(w http.ResponseWriter) {
	if w != nil {
		_ = http.NewResponseController(w).SetReadDeadline(past) // HTTP/2 has it
	}
}

// brokenOff says what the application is told whose stream was broken off; nil: nothing, it has gone away, or its deadline is over.
func (o *Outbound) brokenOff(ctx context.Context, c *call, err error) *Failure {
	if ctx.Err() == nil {
		c.failure = &Failure{Status: http.StatusBadGateway, Code: CodeAnswerLost, Text: "the stream from " + host.String(c.query) + " broke off", Err: err}
		return c.failure
	}
	cause := context.Cause(ctx)
	if f, ok := errors.AsType[*Failure](cause); ok {
		c.failure = f
	} else if errors.Is(cause, errEnding) {
		c.failure = ending()
	}
	return c.failure
}

// streams are the gRPC calls that have an answer which has not ended. Safe for concurrent use.
type streams[C interface {
	comparable
	hush()
}] struct {
	mu   sync.Mutex
	open map[C]time.Time // guarded by mu; from when its copy counts as drained; zero: it isn't
}

// enter notes a call; leave follows before it has been served.
func (s *streams[C]) enter(ctx context.Context, c C) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[C]time.Time)
	}
	s.open[c] = time.Time{}
	if ctx.Err() != nil { // hush may have been before
		c.hush()
	}
}

func (s *streams[C]) leave(c C) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// hush has the contexts of all that have ended take effect.
func (s *streams[C]) hush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.hush()
	}
}

// end ends a call that has not ended.
func (s *streams[C]) end(c C, end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, open := s.open[c]; open {
		end()
		c.hush()
	}
}

// drainedFor returns the streams to copies that are drained, and have been for long enough.
func drainedFor(s *streams[*call], snapshot *topology.Snapshot, now time.Time) []*call {
	s.mu.Lock()
	defer s.mu.Unlock()
	var over []*call
	for c, since := range s.open {
		d := session.Drained(snapshot, c.target.Service, c.target.Cluster)
		switch {
		case d == nil:
			since = time.Time{}
		case since.IsZero(): // not all at once: opened anew, they are as many calls
			since = now.Add(rand.N(d.Over + 1)) //nolint:gosec // G404: spreading needs no secret
		case now.Sub(since) >= max(drainSpans*d.Over, leastDrain):
			over = append(over, c)
		}
		s.open[c] = since
	}
	return over
}

// endDrained ends streams to copies that are drained: who keeps them opens them anew, and they go elsewhere. Where there is nowhere else, they stay.
func (o *Outbound) endDrained() {
	snapshot := o.resolver.snapshots.Load()
	if snapshot == nil {
		return
	}
	plans := make(map[topology.Query]*plan) // thousands of streams may stay that have nowhere else to go
	for _, c := range drainedFor(&o.streams, snapshot, o.now()) {
		p := plans[c.query]
		if p == nil {
			p = o.resolver.choose(snapshot, c.query)
			plans[c.query] = p
		}
		if p.err != nil || p.Tiers[0].Drained || p.Tiers[0].LastResort {
			continue
		}
		o.streams.end(c, func() {
			c.endStream(fail(http.StatusServiceUnavailable, CodeMoved, "%s is drained: the stream can be opened anew, and goes elsewhere", place(c.target)))
		})
	}
}

// setGRPC writes f as a gRPC status into what is a call's trailers, or its headers where nothing else follows.
func (f *Failure) setGRPC(h http.Header) {
	maps.Copy(h, f.Header)
	h.Set(headerError, string(f.Code))
	status := "14"
	switch f.Status {
	case http.StatusForbidden:
		status = "7"
	case http.StatusUnauthorized:
		status = "16"
	case http.StatusTooManyRequests:
		status = "8"
	case http.StatusGatewayTimeout:
		status = "4"
	}
	h.Set("Grpc-Status", status)
	h.Set("Grpc-Message", url.PathEscape(f.message()))
}
