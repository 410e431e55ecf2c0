package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/sidecar/datagram"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	appConnectTimeout = 1 * time.Second // it is on this machine, or on this node
	// An application may close an idle connection just as we send a request on it, and then nobody knows whether it was taken. So
	// ours end first: this is below the shortest keep-alive that frameworks have by default (5 s).
	appIdle = 4 * time.Second
	// Idle connections that are kept to one application.
	maxIdleToApp = 256
	// An application that did not take a connection is asked after the others for so long.
	appRest = 1 * time.Second
	// What an application's answer may hold when the caller does not take it, in bytes, for each HTTP/2 stream. The application is on this
	// machine or this node, so that a small window costs no throughput; and there is none for the connection as a whole, because then
	// one caller that takes nothing would stop the others. maxRequests bounds the sum.
	appWindow = 64 << 10
)

// apps are the applications behind this sidecar: one, or several behind a node proxy. It is the http.RoundTripper towards them.
type apps struct {
	connect func(ctx context.Context, address string) (net.Conn, error)
	now     func() time.Time
	http1   *http.Transport
	http2   *http.Transport // with prior knowledge

	mu    sync.Mutex
	known map[netip.AddrPort]*app // guarded by mu
}

// app is what is known of one application.
type app struct {
	inFlight atomic.Int64
	failed   atomic.Int64 // when it last took no connection, in Unix nanoseconds
}

// notTaken says that no connection could be opened: the application saw nothing.
type notTaken struct{ err error }

func (e *notTaken) Error() string { return e.err.Error() }
func (e *notTaken) Unwrap() error { return e.err }

func newApps(connect func(context.Context, string) (net.Conn, error), now func() time.Time) *apps {
	a := &apps{connect: connect, now: now, known: make(map[netip.AddrPort]*app)}
	dial := func(ctx context.Context, _, address string) (net.Conn, error) { return a.dial(ctx, address) }
	transport := func(set func(*http.Protocols)) *http.Transport {
		protocols := new(http.Protocols)
		set(protocols)
		return &http.Transport{
			DialContext:            dial,
			Protocols:              protocols,
			DisableCompression:     true,
			MaxIdleConns:           0, // bounded for each
			MaxIdleConnsPerHost:    maxIdleToApp,
			IdleConnTimeout:        appIdle,
			ExpectContinueTimeout:  1 * time.Second,
			MaxResponseHeaderBytes: maxHeaderBytes,
			HTTP2:                  &http.HTTP2Config{MaxReceiveBufferPerStream: appWindow, SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		}
	}
	a.http1 = transport(func(p *http.Protocols) { p.SetHTTP1(true) })
	a.http2 = transport(func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) })
	return a
}

func (a *apps) dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, appConnectTimeout)
	defer cancel()
	c, err := a.connect(ctx, address)
	if err != nil {
		return nil, &notTaken{err}
	}
	return c, nil
}

// order returns the targets as they are to be tried: of two at random the one with less in flight, then the others; those that
// took no connection a moment ago come last.
func (a *apps) order(targets []netip.AddrPort) []netip.AddrPort {
	if len(targets) <= 1 {
		return targets
	}
	now := a.now()
	var good, resting []netip.AddrPort
	for _, t := range targets {
		if now.Sub(time.Unix(0, a.of(t).failed.Load())) < appRest {
			resting = append(resting, t)
		} else {
			good = append(good, t)
		}
	}
	out := make([]netip.AddrPort, 0, len(targets))
	for len(good) > 0 {
		i := balance.Pick(len(good), func(int) float64 { return 1 }, func(i int) int64 { return a.of(good[i]).inFlight.Load() }, rand.Float64)
		out = append(out, good[i])
		good = append(good[:i], good[i+1:]...)
	}
	return append(out, resting...)
}

func (a *apps) of(t netip.AddrPort) *app {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.known[t]
	if k == nil {
		k = new(app)
		a.known[t] = k
	}
	return k
}

// keep forgets applications that are served no more.
func (a *apps) keep(s *topology.Snapshot) {
	served := make(map[netip.AddrPort]struct{})
	for _, in := range s.Inbounds() {
		for _, p := range in.Ports {
			for _, t := range p.Targets {
				served[t] = struct{}{}
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for t := range a.known {
		if _, ok := served[t]; !ok {
			delete(a.known, t)
		}
	}
}

// RoundTrip sends a request to the first application that takes a connection. The error is a *Failure when none did.
func (a *apps) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodConnect { // checkHead has refused it; net/http would send its body without a frame
		return nil, errors.New("CONNECT is not carried to applications")
	}
	v := visitOf(req.Context())
	transport := a.http1
	if (v.to.Protocol == topology.HTTP2 || v.to.Protocol == topology.GRPC) && req.Header.Get("Upgrade") == "" {
		transport = a.http2
	}
	var errs []error
	for _, target := range a.order(v.to.Targets) {
		k := a.of(target)
		try := new(*req)
		try.URL = new(*req.URL)
		try.URL.Host = target.String()
		if req.Body != nil {
			try.Body = &appBody{Reader: req.Body, visit: v, now: a.now} // a target that takes no connection must not cost the others the body
		}
		k.inFlight.Add(1)
		resp, err := transport.RoundTrip(try)
		if err == nil {
			if resp.StatusCode == http.StatusSwitchingProtocols {
				k.inFlight.Add(-1) // its body is a connection, and counts for little
			} else {
				resp.Body = &countedBody{ReadCloser: resp.Body, app: k}
			}
			resp.Request = req
			return resp, nil
		}
		k.inFlight.Add(-1)
		if _, untouched := errors.AsType[*notTaken](err); !untouched || req.Context().Err() != nil {
			return nil, err
		}
		k.failed.Store(a.now().UnixNano())
		errs = append(errs, fmt.Errorf("%s: %w", target, err))
	}
	return nil, appDown(v.service, errs)
}

func appDown(service topology.ServiceName, errs []error) *Failure {
	err := errors.Join(errs...)
	if err == nil {
		err = errors.New("there is none")
	}
	return &Failure{Status: http.StatusServiceUnavailable, Code: CodeAppDown, Text: "the application behind " + service.String() + " does not take connections", Err: err}
}

// open opens a plain connection to the first of the targets that takes one.
func (a *apps) open(ctx context.Context, targets []netip.AddrPort) (net.Conn, error) {
	var errs []error
	for _, target := range a.order(targets) {
		c, err := a.dial(ctx, target.String())
		if err == nil {
			return c, nil
		}
		a.of(target).failed.Store(a.now().UnixNano())
		errs = append(errs, fmt.Errorf("%s: %w", target, err))
	}
	if len(errs) == 0 {
		return nil, errors.New("there is none")
	}
	return nil, errors.Join(errs...)
}

func (a *apps) close() {
	a.http1.CloseIdleConnections()
	a.http2.CloseIdleConnections()
}

// appBody is the body of a request on its way to an application.
type appBody struct {
	io.Reader
	visit *visit
	now   func() time.Time
	open  atomic.Bool // it is being read, and has not ended
}

// Read reads the body, a little at a time: what an application does not take yet is to wait where its sender is held back for it.
func (b *appBody) Read(p []byte) (int, error) {
	b.open.Store(true)
	n, err := b.Reader.Read(p[:min(len(p), bufferSize)])
	b.visit.said.Store(int64(b.now().Sub(b.visit.started)))
	if err != nil {
		b.open.Store(false)
		b.visit.whole.Store(errors.Is(err, io.EOF))
	}
	return n, err
}

// Close ends a Read that is under way: an application that has gone takes no more of it, and the caller need not say something first to hear of that. Where
// nothing was read, no application took the connection.
func (b *appBody) Close() error {
	if b.open.Load() {
		b.visit.hush()
	}
	return nil
}

// countedBody counts its request as in flight until it is closed.
type countedBody struct {
	io.ReadCloser
	app  *app
	once sync.Once
}

// Close closes the body.
func (b *countedBody) Close() error {
	b.once.Do(func() { b.app.inFlight.Add(-1) })
	return b.ReadCloser.Close()
}

// connectUDP opens a socket for one flow of datagrams, to the first of the targets that can be had.
func (a *apps) connectUDP(targets []netip.AddrPort) (*datagram.Socket, error) {
	var errs []error
	for _, target := range a.order(targets) {
		s, err := datagram.Connect(target)
		if err == nil {
			return s, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", target, err))
	}
	if len(errs) == 0 {
		return nil, errors.New("there is none")
	}
	return nil, errors.Join(errs...)
}
