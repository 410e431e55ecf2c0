package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"
	"golang.org/x/net/http2"

	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/sidecar/conn"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	domain   = spiffeid.RequireTrustDomainFromString("eu.test")
	checkout = func() topology.ServiceName {
		s, err := topology.NewServiceName("shop", "checkout")
		if err != nil {
			panic(err)
		}
		return s
	}()
)

// bench is a caller's Set and a server that it reaches over pipes, in virtual time.
type bench struct {
	*testing.T
	set      *Set
	server   *http.Server
	accepted atomic.Int64
	closed   atomic.Int64
	freeze   atomic.Bool // the server's side swallows what is sent, and says nothing
	refuse   atomic.Bool // connections fail
	to       Destination
	identity *trust.Identity // the caller's
	called   *trust.Identity // the server's
	issue    func(name string) *trust.Identity

	mu       sync.Mutex
	outcomes []error // guarded by mu
	wanted   int     // guarded by mu; dials that failed, and that somebody wanted
}

func newBench(t *testing.T, h http.HandlerFunc) *bench {
	t.Helper()
	authority, err := trust.OpenAuthority(trust.AuthorityConfig{TrustDomain: domain, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	bundles := trust.NewBundles()
	bundles.Set(domain, trust.Bundle{Authorities: authority.Roots()})
	b := &bench{T: t}
	b.issue = func(name string) *trust.Identity {
		id := must(trust.WorkloadID(domain, "shop", name))
		key, csr, requestErr := trust.NewRequest()
		if requestErr != nil {
			t.Fatal(requestErr)
		}
		chain := must(authority.Issue(csr, id))
		identity := trust.NewIdentity()
		identity.Set(&x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key})
		return identity
	}
	server := b.issue("checkout")
	b.called = server
	config := trust.ServerConfig(trust.TLS{Identity: server, Bundles: bundles, Policy: trust.AllowAny(), Protocols: []string{HTTP2, HTTP1, TCP}})
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	b.server = &http.Server{Handler: h, Protocols: protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 250}, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	inner := conn.NewHandoff(&net.TCPAddr{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.server.Serve(inner) })
	guard := trust.NewGuard(bundles, nil, nil)
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() { _ = guard.Run(ctx) })
	b.identity = b.issue("web")
	svid, err := server.SVID()
	if err != nil {
		t.Fatal(err)
	}
	b.to = Destination{
		Service: checkout, Port: 80,
		Endpoint: &topology.Endpoint{ID: "checkout-0", Address: netip.MustParseAddrPort("10.0.0.1:1"), Server: svid.ID},
	}
	b.set = NewSet(Config{
		Dialer: &Dialer{
			Identity: b.identity, Bundles: bundles, Guard: guard, Snapshots: live.NewValue[*topology.Snapshot](nil),
			Propagator: propagation.TraceContext{}, Now: time.Now,
			Connect: func(context.Context, string) (net.Conn, error) {
				if b.refuse.Load() {
					return nil, errors.New("connection refused")
				}
				near, far := net.Pipe()
				b.accepted.Add(1)
				wg.Go(func() { inner.Give(tls.Server(conn.Tell(&freezing{far, b}, func() { b.closed.Add(1) }), config)) })
				return near, nil
			},
		},
		Tracer: noop.NewTracerProvider().Tracer(""),
		Opened: func(_ Destination, err error, wanted bool) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.outcomes = append(b.outcomes, err)
			if err != nil && wanted {
				b.wanted++
			}
		},
		Count: func(Destination, int) {},
	})
	wg.Go(func() { _ = b.set.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		_ = inner.Close()
		_ = b.server.Close()
		wg.Wait()
	})
	return b
}

// freezing is a connection whose end can freeze.
type freezing struct {
	net.Conn
	b *bench
}

func (f *freezing) Write(p []byte) (int, error) {
	if f.b.freeze.Load() {
		return len(p), nil
	}
	return f.Conn.Write(p)
}

func (b *bench) get() (string, error) {
	s, err := b.set.Pool(b.to).Acquire(b.Context(), nil)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "https://checkout/", nil)
	if err != nil {
		return "", err
	}
	resp, err := s.RoundTrip(req, nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// tried returns how many sessions were tried, and how many failed that somebody wanted.
func (b *bench) tried() (all, wanted int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.outcomes), b.wanted
}

func (b *bench) mustGet() {
	b.Helper()
	if got, err := b.get(); err != nil || got != "ok" {
		b.Fatalf("got %q, %v", got, err)
	}
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

func TestIdleSessionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, ok)
		b.mustGet()
		time.Sleep(idleTimeout - 5*time.Second)
		b.mustGet()
		if n := b.accepted.Load(); n != 1 {
			t.Fatalf("%d sessions", n)
		}
		time.Sleep(idleTimeout + 2*tendEvery)
		synctest.Wait()
		if b.closed.Load() != 1 || len(b.set.pools) != 0 {
			t.Errorf("%d sessions closed, %d pools left", b.closed.Load(), len(b.set.pools))
		}
		b.mustGet()
		if n := b.accepted.Load(); n != 2 {
			t.Errorf("%d sessions", n)
		}
	})
}

// Sessions to what is drained end soon, and not while something is under way on them.
func TestDrainedSessionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		b := newBench(t, func(http.ResponseWriter, *http.Request) { <-release })
		var done sync.WaitGroup
		done.Go(func() { _, _ = b.get() })
		synctest.Wait()
		b.set.config.Dialer.Snapshots.Store(topology.NewSnapshot(topology.SnapshotSpec{Services: []*topology.Service{{
			Name: checkout, Drain: &topology.Drain{Began: time.Now(), Over: 10 * time.Second},
		}}}))
		time.Sleep(drainedIdle + 2*tendEvery)
		if n := b.closed.Load(); n != 0 {
			t.Errorf("%d sessions closed, and a request is under way", n)
		}
		close(release)
		done.Wait()
		time.Sleep(2 * tendEvery)
		if n := b.closed.Load(); n != 1 {
			t.Errorf("%d sessions closed, want 1", n)
		}
	})
}

// TestKeep: a session is kept ready as long as somebody says so, without a request, and no longer. That none can be opened is nobody's fault
// as long as nobody waits for it.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, ok)
		b.refuse.Store(true)
		keep := func(long time.Duration) {
			for start := time.Now(); time.Since(start) < long; time.Sleep(time.Second) {
				b.set.Pool(b.to).Keep()
			}
		}
		keep(time.Minute)
		if all, wanted := b.tried(); all < 10 || all > 20 || wanted != 0 {
			t.Errorf("%d sessions were tried in a minute, and %d failures are held against a place that nobody needs", all, wanted)
		}
		b.refuse.Store(false)
		keep(3 * maxAge)
		if n := b.accepted.Load(); n < 3 || n > 4 || !b.set.Pool(b.to).Ready() {
			t.Errorf("%d sessions in %s, ready: %t", n, 3*maxAge, b.set.Pool(b.to).Ready())
		}
		b.mustGet()
		time.Sleep(2*idleTimeout + 2*tendEvery) // it may have been renewed meanwhile
		synctest.Wait()
		if open := b.accepted.Load() - b.closed.Load(); open != 0 || len(b.set.pools) != 0 {
			t.Errorf("nobody keeps it, and %d sessions and %d pools are left", open, len(b.set.pools))
		}
		b.refuse.Store(true)
		b.set.Pool(b.to).Keep()
		_, err := b.get()
		if _, wanted := b.tried(); err == nil || wanted != 1 {
			t.Errorf("a request fails with %v, and %d failures are counted", err, wanted)
		}
	})
}

// TestRenewal: a session in use is replaced before it is closed, so that no request waits for a handshake.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, ok)
		b.mustGet()
		for start := time.Now(); time.Since(start) < 3*maxAge; time.Sleep(time.Second) {
			if !b.set.Pool(b.to).Ready() {
				t.Fatal("no session is ready")
			}
			b.mustGet()
		}
		// Every one lives 4 to 6 minutes: 2 to 3 renewals in 15.
		if n := b.accepted.Load(); n < 3 || n > 4 {
			t.Errorf("%d sessions in %s", n, 3*maxAge)
		}
		time.Sleep(2 * tendEvery) // one may have been renewed a moment ago
		synctest.Wait()
		if open := b.accepted.Load() - b.closed.Load(); open != 1 {
			t.Errorf("%d are open", open)
		}
	})
}

// TestExpiry: before the SVIDs end that a session was opened with, it is replaced by one with their successors.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, ok)
		time.Sleep(time.Hour - 2*time.Minute) // both SVIDs have two minutes left
		b.mustGet()
		for range 30 {
			time.Sleep(time.Second)
			b.mustGet()
		}
		b.identity.Set(must(b.issue("web").SVID()))
		b.called.Set(must(b.issue("checkout").SVID()))
		for range 300 {
			time.Sleep(time.Second)
			b.mustGet()
		}
		if n := b.accepted.Load(); n < 2 || n > 3 {
			t.Errorf("%d sessions", n)
		}
	})
	// Nobody renews the SVIDs: sessions are used to the end, and not a moment longer.
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, ok)
		start := time.Now()
		time.Sleep(time.Hour - 10*time.Minute)
		for time.Since(start) < time.Hour-2*time.Second {
			time.Sleep(time.Second)
			b.mustGet()
		}
		if n := b.accepted.Load(); n > 12 {
			t.Errorf("%d sessions in ten minutes", n)
		}
		time.Sleep(5 * time.Second)
		if _, err := b.get(); err == nil {
			t.Error("a session was opened with SVIDs that have ended")
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestFrozenPeer: one that takes everything and says nothing is noticed by pings, and costs its requests no longer.
func TestFrozenPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		entered := make(chan struct{})
		b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hang" {
				entered <- struct{}{}
				<-r.Context().Done()
				return
			}
			ok(w, r)
		})
		b.mustGet()
		s, err := b.set.Pool(b.to).Acquire(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://checkout/hang", nil)
		start := time.Now()
		failed := make(chan error)
		go func() {
			_, tripErr := s.RoundTrip(req, nil) //nolint:bodyclose // there is none
			failed <- tripErr
		}()
		<-entered
		b.freeze.Store(true)
		err = <-failed
		lost, isLost := errors.AsType[*LostError](err)
		if !isLost || lost.Unsent || lost.Alone {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took > pingAfter+pingTimeout+time.Second {
			t.Errorf("noticed after %s", took)
		}
		if !s.Blame() || s.Blame() {
			t.Error("a session is not blamed exactly once")
		}
		b.freeze.Store(false)
		b.mustGet()
	})
}

// TestDialsAreShared: requests that come together wait for one dial; one that fails fails them all, and the next dials anew.
func TestDialsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, ok)
		b.refuse.Store(true)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				_, err := b.get()
				if e, ok := errors.AsType[*Error](err); !ok || e.Verdict != balance.Broken || !strings.Contains(err.Error(), "refused") {
					t.Errorf("got %v", err)
				}
			})
		}
		wg.Wait()
		if len(b.outcomes) > 10 || len(b.outcomes) == 0 {
			t.Errorf("%d dials", len(b.outcomes))
		}
		b.refuse.Store(false)
		for range 10 {
			wg.Go(b.mustGet)
		}
		wg.Wait()
		if n := b.accepted.Load(); n != 1 {
			t.Errorf("%d sessions for ten requests", n)
		}
		if n := b.set.Pool(b.to).InFlight(); n != 0 {
			t.Errorf("%d in flight", n)
		}
	})
}

// TestLeave: who waits for a session to a place that is given up hears so at once; who comes later may wait for it.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, ok)
		b.set.Leave(b.to.Target()) // nobody waits
		b.freeze.Store(true)
		left := make(chan error)
		begun := time.Now()
		go func() {
			_, err := b.get()
			left <- err
		}()
		synctest.Wait()
		b.set.Leave(topology.Target{Service: checkout, Port: 81})
		b.set.Leave(b.to.Target())
		if err := <-left; !errors.Is(err, ErrLeft) || time.Since(begun) != 0 {
			t.Errorf("got %v after %s", err, time.Since(begun))
		}
		go func() {
			_, err := b.get()
			left <- err
		}()
		if err := <-left; errors.Is(err, ErrLeft) || time.Since(begun) != openTimeout {
			t.Errorf("who comes later got %v after %s", err, time.Since(begun))
		}
		b.freeze.Store(false)
		b.mustGet()
		if n := b.set.Pool(b.to).InFlight(); n != 0 {
			t.Errorf("%d in flight", n)
		}
	})
}

// TestFull: more requests than streams wait; none is refused, and nothing is left behind.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var most, now atomic.Int64
		b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			time.Sleep(10 * time.Millisecond)
			now.Add(-1)
			ok(w, r)
		})
		var wg sync.WaitGroup
		for range 1500 {
			wg.Go(b.mustGet)
		}
		wg.Wait()
		if n := b.accepted.Load(); n > maxToEndpoint {
			t.Errorf("%d sessions, at most %d", n, maxToEndpoint)
		}
		if n := most.Load(); n > 250*maxToEndpoint {
			t.Errorf("%d at a time", n)
		}
	})
}

// TestGoingAway: a server that ends lets requests in flight end, and takes no more; that is no failure.
func TestGoingAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		entered := make(chan struct{})
		b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
			entered <- struct{}{}
			time.Sleep(5 * time.Second)
			ok(w, r)
		})
		done := make(chan error)
		go func() { _, err := b.get(); done <- err }()
		<-entered
		s := b.set.Pool(b.to).sessions[0]
		shut := make(chan struct{})
		go func() { _ = b.server.Shutdown(context.Background()); close(shut) }()
		time.Sleep(2 * time.Second) // GOAWAY has been sent
		p := b.set.Pool(b.to)
		p.mu.Lock()
		if p.pick() != nil || !s.draining {
			t.Error("a session that was told to take no more is picked")
		}
		p.mu.Unlock()
		if err := <-done; err != nil {
			t.Errorf("the request in flight: %v", err)
		}
		<-shut
	})
}

// TestUnsent holds net/http to the words by which it is told that a request was not sent.
func TestUnsent(t *testing.T) {
	serve := func(answer func(f *http2.Framer, stream uint32) error) error {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			far, acceptErr := ln.Accept()
			if acceptErr != nil {
				return
			}
			defer func() { _ = far.Close() }()
			preface := make([]byte, len(http2.ClientPreface))
			if _, readErr := io.ReadFull(far, preface); readErr != nil {
				return
			}
			f := http2.NewFramer(far, far)
			if f.WriteSettings() != nil {
				return
			}
			for {
				frame, frameErr := f.ReadFrame()
				if frameErr != nil {
					return
				}
				if h, ok := frame.(*http2.HeadersFrame); ok {
					if answer(f, h.StreamID) != nil {
						return
					}
				}
			}
		}()
		defer func() { _ = ln.Close(); <-done }()
		near, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(true)
		transport := &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn, error) { return near, nil }}
		client, err := transport.NewClientConn(t.Context(), "http", "a:80")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a/", strings.NewReader("x"))
		resp, err := client.RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	for what, c := range map[string]struct {
		answer func(f *http2.Framer, stream uint32) error
		want   LostError
	}{
		"GOAWAY before it": {func(f *http2.Framer, stream uint32) error { return f.WriteGoAway(stream-1, http2.ErrCodeNo, nil) }, LostError{Unsent: true, Polite: true}},
		"refused stream": {func(f *http2.Framer, stream uint32) error {
			return f.WriteRSTStream(stream, http2.ErrCodeRefusedStream)
		}, LostError{Unsent: true, Polite: true, Alone: true}},
		"reset":           {func(f *http2.Framer, stream uint32) error { return f.WriteRSTStream(stream, http2.ErrCodeInternal) }, LostError{Alone: true}},
		"connection lost": {func(*http2.Framer, uint32) error { return io.EOF }, LostError{}},
	} {
		err := serve(c.answer)
		if err == nil {
			t.Errorf("%s: answered", what)
			continue
		}
		got := lost(err)
		got.Err = nil
		if *got != c.want {
			t.Errorf("%s: %v: got %+v, want %+v", what, err, *got, c.want)
		}
	}
	// A session that was closed before the request.
	near, far := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, far) }()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn, error) { return near, nil }}
	client, err := transport.NewClientConn(t.Context(), "http", "a:80")
	if err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	_ = far.Close()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a/", nil)
	resp, err := client.RoundTrip(req)
	if err == nil {
		_ = resp.Body.Close()
		t.Fatal("answered by a closed session")
	}
	if got := lost(err); !got.Unsent || !got.Polite {
		t.Errorf("closed before: %v: %+v", err, got)
	}
}

// TestRefusedCertificate: in TLS 1.3 a client hears that it was refused only when it reads. Nothing was served by then.
func TestRefusedCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, ok)
		b.identity.Set(nil)
		if _, err := b.get(); err == nil {
			t.Error("a session without an identity")
		}
	})
	for _, words := range []string{"tls: bad certificate", "tls: expired certificate", "tls: certificate required"} {
		if got := lost(&net.OpError{Op: "remote error", Err: errors.New(words)}); !got.Unsent || got.Polite {
			t.Errorf("%s: %+v", words, got)
		}
	}
	if got := lost(&net.OpError{Op: "remote error", Err: errors.New("tls: internal error")}); got.Unsent {
		t.Error("an alert that may come at any time counts as unsent")
	}
	if got := lost(fmt.Errorf("tls: %w", &net.OpError{Op: "write", Err: errors.New("broken pipe")})); got.Unsent || !got.Write {
		t.Errorf("%+v", got)
	}
	if got := lost(fmt.Errorf("other")); got.Unsent || got.Alone {
		t.Errorf("%+v", got)
	}
}
