package sidecar

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"
)

// HTTP/2 of our servers. Receive windows bound what a body that nobody takes may hold, in bytes.
const (
	maxStreams       = 1000 // at a time on one connection; more than session.leastStreams
	connectionWindow = 4<<20 - 1
	streamWindow     = 512 << 10
	// A caller that froze keeps its connection for both.
	pingAfter   = 15 * time.Second
	pingTimeout = 15 * time.Second
)

// newServer returns an HTTP/1.1 server with the limits that hold on both sides; the caller adds HTTP/2 and an idle time-out.
func newServer(h http.Handler, logger *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:                      h,
		DisableGeneralOptionsHandler: true, // OPTIONS * is the application's
		ReadHeaderTimeout:            readHeaderTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		Protocols:                    protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: connectionWindow,
			MaxReceiveBufferPerStream:     streamWindow,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingTimeout,
		},
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

// serve serves connections from ln until stop is called or ctx ends.
func serve(ctx context.Context, s *http.Server, ln net.Listener) error {
	err := s.Serve(ln)
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// shutdown lets the server's requests end until ctx does, then breaks them.
func shutdown(ctx context.Context, s *http.Server) {
	if err := s.Shutdown(ctx); err != nil {
		_ = s.Close() // what is left was given its time
	}
}

// quietWriter leaves 100 Continue to net/http: it says so when the body is first read, once. Other interim answers pass, without
// what only the mesh may say: they are the application's, and modifyResponse does not see them.
type quietWriter struct{ http.ResponseWriter }

// WriteHeader writes all but 100.
func (w quietWriter) WriteHeader(status int) {
	h := w.Header()
	if status == http.StatusContinue {
		return
	}
	if status < http.StatusOK && status != http.StatusSwitchingProtocols {
		stripOwn(h)
	} else if _, said := h["Content-Type"]; !said {
		h["Content-Type"] = nil // net/http would guess one, and the application had its reasons
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w quietWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// restore puts back what ReverseProxy takes off, because we are a hop that the application asked for and not an edge: the
// forwarding headers as they came (none is added), and the query to the letter.
func restore(p *httputil.ProxyRequest) {
	for _, name := range [...]string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := p.In.Header[name]; ok {
			p.Out.Header[name] = v
		}
	}
	p.Out.URL.RawQuery = p.In.URL.RawQuery
	carryTrailers(p)
}

// stream makes ReverseProxy pass on a response's body as it comes: it does for those that do not say their length. One that has
// no body, or is here as a whole, is better sent in one piece: a gRPC status without a message must be.
func stream(resp *http.Response) {
	if _, held := resp.Body.(*heldBody); !held && resp.ContentLength > 0 {
		resp.ContentLength = -1 // the header stays
	}
}

// heldBody is a body that is here as a whole.
type heldBody struct{ bytes.Reader }

// Close does nothing.
func (*heldBody) Close() error { return nil }

// buffers are what bodies are copied through (httputil.BufferPool).
type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

func newBuffers() *buffers {
	return &buffers{pool: sync.Pool{New: func() any { return new([bufferSize]byte) }}}
}

// Get returns a buffer.
func (b *buffers) Get() []byte {
	return b.pool.Get().(*[bufferSize]byte)[:] // only its own kind is put in
}

// Put takes one back.
func (b *buffers) Put(p []byte) {
	if len(p) == bufferSize {
		b.pool.Put((*[bufferSize]byte)(p))
	}
}
