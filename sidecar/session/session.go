package session

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
)

// The protocols of inner sessions (ALPN).
const (
	HTTP2 = "h2"             // requests, several at a time
	HTTP1 = "http/1.1"       // one request that becomes another protocol (WebSocket)
	TCP   = preamble.ALPNTCP // opaque bytes
	UDP   = preamble.ALPNUDP // datagrams
)

// HTTP/2 on an inner session.
const (
	// A peer that froze, or a path that swallows packets, is noticed after both: nothing came, and a ping was not answered.
	pingAfter   = 1 * time.Second
	pingTimeout = 1 * time.Second
	// What a response that its reader does not take may hold, in bytes. There is no limit for a session as a whole, because
	// then one slow reader would stop the others: the number of requests in flight bounds the sum.
	streamWindow = 1 << 20
	maxHeaders   = 64 << 10
	// How long a request with Expect: 100-continue waits for the word before it sends its body all the same.
	expectTimeout = 1 * time.Second
)

// Requests is an open inner session that carries HTTP requests.
type Requests struct {
	*Conn
	client *http.ClientConn

	pool     *Pool // nil outside the pools
	inFlight atomic.Int64
	blamed   atomic.Bool
	jitter   time.Duration // of its age

	// Guarded by the mutex of the pool that it is in.
	opened   time.Time
	used     time.Time
	draining bool
}

// connKey hands a connection that is open already to a Transport.
type connKey struct{}

var transports = map[string]*http.Transport{
	HTTP2: newTransport(func(p *http.Protocols) { p.SetHTTP2(true) }),
	HTTP1: newTransport(func(p *http.Protocols) { p.SetHTTP1(true) }),
}

func newTransport(set func(*http.Protocols)) *http.Transport {
	protocols := new(http.Protocols)
	set(protocols)
	return &http.Transport{
		Protocols: protocols,
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return ctx.Value(connKey{}).(*Conn).Conn, nil // only newRequests dials
		},
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaders,
		ExpectContinueTimeout:  expectTimeout,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:           pingAfter,
			PingTimeout:               pingTimeout,
			MaxReceiveBufferPerStream: streamWindow,
		},
	}
}

// newRequests speaks HTTP over conn, which it closes on failure.
func newRequests(ctx context.Context, conn *Conn, now time.Time) (*Requests, error) {
	protocol := conn.ConnectionState().NegotiatedProtocol
	client, err := transports[protocol].NewClientConn(context.WithValue(ctx, connKey{}, conn), "https", "inner:443")
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &Requests{Conn: conn, client: client, jitter: jitter(), opened: now, used: now}, nil
}

// RoundTrip sends one request. An error is a *LostError unless it is that of the request's own context. The request is in
// flight until the response's body is closed; a response that breaks in its middle is told to broken, if that is not nil.
func (r *Requests) RoundTrip(req *http.Request, broken func(*LostError)) (*http.Response, error) {
	r.count(1)
	resp, err := r.client.RoundTrip(req)
	if err != nil {
		r.count(-1)
		if ctx := req.Context().Err(); ctx != nil {
			return nil, ctx
		}
		return nil, lost(err)
	}
	body := &responseBody{ReadCloser: resp.Body, session: r, broken: broken}
	resp.Body = body
	if w, ok := body.ReadCloser.(io.Writer); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = &upgradedBody{responseBody: body, Writer: w}
	}
	return resp, nil
}

func (r *Requests) count(n int64) {
	r.inFlight.Add(n)
	if r.pool != nil {
		r.pool.load.Add(n)
	}
}

// Blame reports, once, that the session was found broken: many requests may be lost with one session, and prove no more
// than one would.
func (r *Requests) Blame() bool { return !r.blamed.Swap(true) }

// Close closes the session at once.
func (r *Requests) Close() { _ = r.client.Close() }

// dead reports whether no request can be sent any more.
func (r *Requests) dead() bool { return r.client.Err() != nil }

// LostError says that a session failed a request.
type LostError struct {
	// Unsent: the request did not reach the application, and never will.
	Unsent bool
	// Polite: the other end only asked to go elsewhere with it. It proves nothing against the copy.
	Polite bool
	// Alone: only this request was broken off; the session goes on.
	Alone bool
	// Write: writing to the connection failed. What was written in pieces can't be read by the other end (it is TLS), so a
	// request of which nothing but its headers was written is unsent.
	Write bool
	Err   error
}

// Error returns what the session failed with.
func (e *LostError) Error() string {
	if e.Alone {
		return "broken off: " + e.Err.Error()
	}
	return "session lost: " + e.Err.Error()
}

// Unwrap returns what the session failed with.
func (e *LostError) Unwrap() error { return e.Err }

// refusedStream is the HTTP/2 error code of a stream that the peer did not process (RFC 9113 section 8.7).
const refusedStream = 0x7

// streamError takes what net/http's HTTP/2 client returns for a stream that was reset; its own type is not exported, but
// converts to any struct of the same shape.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (e streamError) Error() string { return e.Cause.Error() }

// lost tells what err proves of whether the server began to process the request.
func lost(err error) *LostError {
	if reset, ok := errors.AsType[streamError](err); ok {
		refused := reset.Code == refusedStream
		return &LostError{Unsent: refused, Polite: refused, Alone: true, Err: err}
	}
	operation, _ := errors.AsType[*net.OpError](err)
	if operation != nil && operation.Op == "write" {
		return &LostError{Write: true, Err: err}
	}
	if operation != nil && operation.Op == "remote error" {
		// A TLS alert. These come before the first byte of HTTP is read.
		switch operation.Err.Error() {
		case "tls: bad certificate", "tls: unsupported certificate", "tls: revoked certificate", "tls: expired certificate",
			"tls: unknown certificate", "tls: unknown certificate authority", "tls: access denied", "tls: certificate required":
			return &LostError{Unsent: true, Err: err}
		}
	}
	switch err.Error() { // net/http does not export these; a test holds it to the words
	case "http2: client conn not usable",
		"http2: client conn could not be established",
		"http2: Transport received Server's graceful shutdown GOAWAY":
		return &LostError{Unsent: true, Polite: true, Err: err}
	}
	return &LostError{Err: err}
}

// responseBody ends the request that it answers when it is closed.
type responseBody struct {
	io.ReadCloser
	session *Requests
	broken  func(*LostError)
	once    sync.Once
}

func (b *responseBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) && b.broken != nil {
		b.broken(lost(err))
		b.broken = nil
	}
	return n, err
}

func (b *responseBody) Close() error {
	b.once.Do(func() { b.session.count(-1) })
	return b.ReadCloser.Close()
}

// upgradedBody is the connection that a request became.
type upgradedBody struct {
	*responseBody
	io.Writer
}

// CloseWrite ends the sending half.
func (b *upgradedBody) CloseWrite() error { return b.session.CloseWrite() }
