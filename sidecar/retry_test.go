package sidecar

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/internal/relay"
	"github.com/isthmus-mesh/isthmus/topology"
)

// wire is a TCP connection to somewhere that can be cut.
type wire struct {
	ln      net.Listener
	waiting sync.WaitGroup
	mu      sync.Mutex
	open    map[net.Conn]struct{} // guarded by mu
}

func newWire(tb testing.TB, target netip.AddrPort) *wire {
	tb.Helper()
	w := &wire{ln: listenTCP(tb), open: make(map[net.Conn]struct{})}
	w.waiting.Go(func() {
		for {
			c, err := w.ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", target.String())
			if err != nil {
				_ = c.Close()
				continue
			}
			w.mu.Lock()
			w.open[c] = struct{}{}
			w.mu.Unlock()
			w.waiting.Go(func() {
				_, _ = relay.Pipe(tb.Context(), c, far)
				w.mu.Lock()
				delete(w.open, c)
				w.mu.Unlock()
			})
		}
	})
	tb.Cleanup(func() {
		_ = w.ln.Close()
		w.cut()
		w.waiting.Wait()
	})
	return w
}

// cut breaks the connections that are open.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.open {
		_ = c.(*net.TCPConn).SetLinger(0) // it is one
		_ = c.Close()
	}
}

// ledger is an application that notes which requests it executed, by their id.
type ledger struct {
	name string
	// before runs before a request is answered, after it is noted; it may break things.
	before func(w http.ResponseWriter, r *http.Request)

	mu   sync.Mutex
	seen map[string]int // guarded by mu
}

func (l *ledger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // cut short: not executed
	}
	l.mu.Lock()
	if l.seen == nil {
		l.seen = make(map[string]int)
	}
	l.seen[r.URL.Query().Get("id")]++
	l.mu.Unlock()
	if l.before != nil {
		l.before(w, r)
	}
	_, _ = fmt.Fprintf(w, "%s got %d bytes", l.name, len(body))
}

func (l *ledger) times(id string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen[id]
}

// TestWhatIsRetried has a row for each way to fail and each kind of request: the first copy fails in that way, the second is well.
func TestWhatIsRetried(t *testing.T) {
	type outcome struct {
		status int
		code   Code
		by     string // who answered
	}
	ok := outcome{200, "", "well got"}
	lost := outcome{502, CodeAnswerLost, ""}
	large := strings.Repeat("x", 200<<10)
	requests := map[string]struct {
		method, body string
		key          bool
	}{
		"GET":            {http.MethodGet, "", false},
		"DELETE":         {http.MethodDelete, "", false},
		"PUT, small":     {http.MethodPut, "small", false},
		"PUT, large":     {http.MethodPut, large, false},
		"POST":           {http.MethodPost, "small", false},
		"POST, empty":    {http.MethodPost, "", false},
		"POST, with key": {http.MethodPost, "small", true},
		"PATCH":          {http.MethodPatch, "small", false},
	}
	all := func(o outcome, but map[string]outcome) map[string]outcome {
		m := make(map[string]outcome)
		for r := range requests {
			m[r] = o
		}
		maps.Copy(m, but)
		return m
	}
	onlyRepeatable := all(ok, map[string]outcome{"POST": lost, "POST, empty": lost, "PATCH": lost, "PUT, large": lost})
	hang := func(cut func()) func(http.ResponseWriter, *http.Request) {
		return func(_ http.ResponseWriter, r *http.Request) {
			cut()
			<-r.Context().Done()
		}
	}
	failures := map[string]struct {
		// set makes the first copy fail; it returns its endpoint.
		set  func(w *world) (topology.Endpoint, *ledger)
		want map[string]outcome
	}{
		"nothing listens": {func(w *world) (topology.Endpoint, *ledger) {
			near := w.server(eu, "checkout", topology.HTTP)
			e := near.endpoint("checkout-0")
			ln := listenTCP(w)
			_ = ln.Close()
			e.Address = addrOf(ln)
			return e, new(ledger)
		}, all(ok, nil)},
		"it is not who it should be": {func(w *world) (topology.Endpoint, *ledger) {
			l := &ledger{name: "bad"}
			_, a := serveApp(w, l.ServeHTTP)
			e := w.server(eu, "impostor", topology.HTTP, a).endpoint("checkout-0")
			e.Server = w.server(eu, "checkout", topology.HTTP).id
			return e, l
		}, all(ok, nil)},
		"it does not serve this": {func(w *world) (topology.Endpoint, *ledger) {
			near := w.server(eu, "checkout", topology.HTTP)
			near.snapshots.Store(topology.NewSnapshot(topology.SnapshotSpec{}))
			return near.endpoint("checkout-0"), new(ledger)
		}, all(ok, nil)},
		"its application is down": {func(w *world) (topology.Endpoint, *ledger) {
			ln := listenTCP(w)
			_ = ln.Close()
			return w.server(eu, "checkout", topology.HTTP, addrOf(ln)).endpoint("checkout-0"), new(ledger)
			// What is not kept may be on its way before the other side finds out.
		}, all(ok, map[string]outcome{"PUT, large": {503, CodeNoAnswer, "isthmus: no application"}})},
		"lost before the answer": {func(w *world) (topology.Endpoint, *ledger) {
			l := &ledger{name: "bad"}
			_, a := serveApp(w, l.ServeHTTP)
			near := w.server(eu, "checkout", topology.HTTP, a)
			wi := newWire(w, near.inbound)
			l.before = hang(wi.cut)
			e := near.endpoint("checkout-0")
			e.Address = addrOf(wi.ln)
			return e, l
		}, onlyRepeatable},
		"the application breaks off": {func(w *world) (topology.Endpoint, *ledger) {
			l := &ledger{name: "bad", before: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }}
			_, a := serveApp(w, l.ServeHTTP)
			return w.server(eu, "checkout", topology.HTTP, a).endpoint("checkout-0"), l
		}, onlyRepeatable},
		"lost in the midst of a small answer": {func(w *world) (topology.Endpoint, *ledger) {
			l := &ledger{name: "bad"}
			_, a := serveApp(w, l.ServeHTTP)
			near := w.server(eu, "checkout", topology.HTTP, a)
			wi := newWire(w, near.inbound)
			l.before = func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "100")
				_, _ = io.WriteString(w, "half")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(50 * time.Millisecond) // so that it is on its way; the outcome does not depend on it
				hang(wi.cut)(w, r)
			}
			e := near.endpoint("checkout-0")
			e.Address = addrOf(wi.ln)
			return e, l
			// What can't be repeated is not held, and its answer is cut short.
		}, all(ok, map[string]outcome{"POST": {}, "POST, empty": {}, "PATCH": {}, "PUT, large": {}})},
		"the application says 503 itself": {func(w *world) (topology.Endpoint, *ledger) {
			l := &ledger{name: "busy", before: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }}
			_, a := serveApp(w, l.ServeHTTP)
			return w.server(eu, "checkout", topology.HTTP, a).endpoint("checkout-0"), l
		}, all(outcome{503, "", "busy got"}, nil)},
	}
	for failure, f := range failures {
		t.Run(failure, func(t *testing.T) {
			w := newWorld(t)
			well := &ledger{name: "well"}
			_, there := serveApp(t, well.ServeHTTP)
			far := w.server(us, "checkout", topology.HTTP, there)
			w.gateway("gateway-0", to(far))
			first, bad := f.set(w)
			for name, r := range requests {
				c := w.caller(view{endpoints: []topology.Endpoint{first}, remotes: []topology.Remote{remote(1, far)}}, nil)
				req, _ := http.NewRequestWithContext(t.Context(), r.method, checkoutURL+"?id="+strings.ReplaceAll(name, " ", "+"), strings.NewReader(r.body))
				if r.body == "" {
					req.Body = nil
				}
				if r.key {
					req.Header.Set("Idempotency-Key", "k")
				}
				client := c.client()
				resp, err := client.Do(req)
				want := f.want[name]
				if want.status == 0 {
					if err == nil {
						if _, err = io.ReadAll(resp.Body); err == nil {
							t.Errorf("%s: looks complete", name)
						}
						_ = resp.Body.Close()
					}
				} else {
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					body, err := io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					if failure == "its application is down" && resp.StatusCode == http.StatusOK {
						want = ok
					}
					if resp.StatusCode != want.status || resp.Header.Get(headerError) != string(want.code) || !strings.HasPrefix(string(body), want.by) {
						t.Errorf("%s: got %d %q %q, want %+v", name, resp.StatusCode, resp.Header.Get(headerError), body, want)
					}
					if want.status == 200 && string(body) != fmt.Sprintf("well got %d bytes", len(r.body)) {
						t.Errorf("%s: body %q", name, body)
					}
				}
				client.CloseIdleConnections()
				repeatable := r.key || r.method == http.MethodGet || r.method == http.MethodPut || r.method == http.MethodDelete
				if n := bad.times(name) + well.times(name); n > 1 && !repeatable {
					t.Errorf("%s: executed %d times", name, n)
				}
				if err := c.stop(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// TestRefusalsOfGateways: what a gateway refuses reached nobody, so it is tried elsewhere, whatever it is.
func TestRefusalsOfGateways(t *testing.T) {
	for code := range streamv1.Code_name {
		code := streamv1.Code(code)
		if code <= streamv1.Code_CODE_OK {
			continue
		}
		t.Run(code.String(), func(t *testing.T) {
			w := newWorld(t)
			_, here := serveApp(t, answering("eu"))
			near := w.server(eu, "checkout", topology.HTTP, here)
			w.gateway("gateway-0", func(preamble.Preamble) (netip.AddrPort, *preamble.Refusal) {
				return netip.AddrPort{}, &preamble.Refusal{Code: code, Detail: "because", Path: []string{"eu/gateway-0", "us/gateway-0"}}
			})
			c := w.caller(view{
				endpoints: []topology.Endpoint{near.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, near)},
				policy: &topology.Policy{Tiers: []topology.Tier{{Name: "away", Match: topology.Selector{Cluster: "us"}}, {Name: "home"}}},
			}, nil)
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL, strings.NewReader("x"))
			resp, body := do(t, c.client(), req)
			if resp.StatusCode != http.StatusOK || body != "eu /" {
				t.Errorf("got %d %q", resp.StatusCode, body)
			}
			// The evidence is there for Explain; the copy is ejected when the refusal was sure of it.
			x := c.Explain(t.Context(), topology.Query{Service: checkout, Port: 80})
			var states []topology.State
			for _, r := range x.Rows {
				states = append(states, r.State)
				if r.State == topology.LastResort && !strings.Contains(r.Reason, "because") {
					t.Errorf("reason %q", r.Reason)
				}
			}
			sure := slices.Contains([]streamv1.Code{
				streamv1.Code_CODE_UNKNOWN_CLUSTER, streamv1.Code_CODE_LINK_DOWN, streamv1.Code_CODE_NOT_EXPORTED,
				streamv1.Code_CODE_NOT_ALLOWED, streamv1.Code_CODE_NO_ENDPOINT, streamv1.Code_CODE_ENDPOINT_UNREACHABLE,
			}, code)
			if slices.Contains(states, topology.LastResort) != sure {
				t.Errorf("states %v", states)
			}
		})
	}
}

// TestGatewayFailover: what one gateway of the own cluster can't do, another does, within the same attempt.
func TestGatewayFailover(t *testing.T) {
	w := newWorld(t)
	_, there := serveApp(t, answering("us"))
	far := w.server(us, "checkout", topology.HTTP, there)
	dead := w.gateway("gateway-dead", to(far))
	dead.kill()
	w.gateway("gateway-cut-off", func(preamble.Preamble) (netip.AddrPort, *preamble.Refusal) {
		return netip.AddrPort{}, &preamble.Refusal{Code: streamv1.Code_CODE_LINK_DOWN, Path: []string{"eu/gateway-cut-off"}}
	})
	well := w.gateway("gateway-well", to(far))
	for range 5 { // whatever the order
		c := w.caller(view{remotes: []topology.Remote{remote(1, far)}}, nil)
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL, strings.NewReader("x"))
		if resp, body := do(t, c.client(), req); resp.StatusCode != http.StatusOK {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
		if n := c.counter("isthmus_retries_total") + c.counter("isthmus_ejections_total"); n != 0 {
			t.Errorf("%v retries and ejections", n)
		}
	}
	if well.streams() != 5 {
		t.Errorf("%d streams", well.streams())
	}
}

// TestExhausted: when every copy fails, the answer says which were tried, and why each failed.
func TestExhausted(t *testing.T) {
	w := newWorld(t)
	ln := listenTCP(t)
	_ = ln.Close()
	near := w.server(eu, "checkout", topology.HTTP, addrOf(ln))
	e := near.endpoint("checkout-0")
	gone := near.endpoint("checkout-1")
	gone.Address = addrOf(ln)
	w.gateway("gateway-0", func(preamble.Preamble) (netip.AddrPort, *preamble.Refusal) {
		return netip.AddrPort{}, &preamble.Refusal{Code: streamv1.Code_CODE_NO_ENDPOINT, Detail: "0 of 2 are ready", Path: []string{"eu/gateway-0", "us/gateway-0"}}
	})
	c := w.caller(view{endpoints: []topology.Endpoint{e, gone}, remotes: []topology.Remote{remote(2, near)}}, nil)
	resp, body := get(t, c.client(), checkoutURL)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get(headerError) != string(CodeNoAnswer) || resp.Header.Get("Retry-After") == "" {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
	for _, want := range []string{
		"eu/checkout-0: isthmus: the application behind checkout.shop does not take connections", "eu/checkout-1: dial tcp", "connection refused",
		"us: the service has no ready copy there: 0 of 2 are ready (said by us/gateway-0)",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is not in %q", want, body)
		}
	}
	// Five attempts at three copies: what went the same way twice is told once.
	if n := strings.Count(body, "; "); n != 2 || strings.Count(body, "(2 times)") != maxAttempts-3 {
		t.Errorf("%d attempts are told of: %q", n+1, body)
	}
}

// TestEjection: a copy that fails is left alone, and one request finds out when it is well again.
func TestEjection(t *testing.T) {
	w := newWorld(t)
	var broken atomic.Bool
	broken.Store(true)
	clock := newClock()
	bad := &ledger{name: "bad", before: func(http.ResponseWriter, *http.Request) {
		if broken.Load() {
			panic(http.ErrAbortHandler)
		}
	}}
	_, a := serveApp(t, bad.ServeHTTP)
	_, b := serveApp(t, (&ledger{name: "well"}).ServeHTTP)
	first, second := w.server(eu, "checkout", topology.HTTP, a), w.server(us, "checkout", topology.HTTP, b)
	w.gateway("gateway-0", to(second))
	c := w.caller(view{endpoints: []topology.Endpoint{first.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, second)}}, clock.use)
	client := c.client()
	for i := range 20 {
		if resp, body := get(t, client, checkoutURL+"?id=x"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "well") {
			t.Fatalf("request %d: got %d %q", i, resp.StatusCode, body)
		}
	}
	if n := bad.times("x"); n != 3 {
		t.Errorf("the bad copy was tried %d times, want 3", n)
	}
	if n := c.counter("isthmus_retries_total", "destination_service=checkout.shop", "unsent=false"); n != 3 {
		t.Errorf("%v retries", n)
	}
	if n := c.counter("isthmus_ejections_total", "destination_cluster=eu"); n != 1 {
		t.Errorf("%v ejections", n)
	}
	x := c.Explain(t.Context(), topology.Query{Service: checkout, Port: 80})
	if r := x.Rows[len(x.Rows)-1]; r.Endpoint != "checkout-0" || r.State != topology.LastResort || !strings.Contains(r.Reason, "3 failures in a row") || r.NextTry.IsZero() {
		t.Errorf("explained as %+v", r)
	}
	// Its time is up, it is still broken: one request looks, and is answered by the other.
	clock.advance(1100 * time.Millisecond)
	for range 5 {
		if resp, body := get(t, client, checkoutURL+"?id=y"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "well") {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
	}
	if n := bad.times("y"); n != 1 {
		t.Errorf("the bad copy was probed %d times, want once", n)
	}
	// What can't be repeated does not probe.
	broken.Store(false)
	clock.advance(2100 * time.Millisecond)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL, strings.NewReader("x"))
	if _, body := do(t, client, req); !strings.HasPrefix(body, "well") {
		t.Errorf("a POST probed: %q", body)
	}
	// It is well again: the first request that may look brings it back, for all.
	for i := range 5 {
		if resp, body := get(t, client, checkoutURL); resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "bad") {
			t.Fatalf("request %d: got %d %q", i, resp.StatusCode, body)
		}
	}
}

// TestOneSessionDies: its requests go to the same cluster's other copies, and are one failure, however many they are.
func TestOneSessionDies(t *testing.T) {
	w := newWorld(t)
	entered := make(chan struct{}, 100)
	_, a := serveApp(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			entered <- struct{}{}
			<-r.Context().Done()
		}
	})
	_, b := serveApp(t, answering("us"))
	_, here := serveApp(t, answering("eu"))
	dying, well, home := w.server(us, "checkout", topology.HTTP, a), w.server(us, "checkout", topology.HTTP, b), w.server(eu, "checkout", topology.HTTP, here)
	g := w.gateway("gateway-0", to(dying, well))
	c := w.caller(view{
		endpoints: []topology.Endpoint{home.endpoint("checkout-0")}, remotes: []topology.Remote{remote(2, dying, well)},
		policy: &topology.Policy{Tiers: []topology.Tier{{Name: "away", Match: topology.Selector{Cluster: "us"}}, {Name: "home"}}},
	}, nil)
	client := c.client()
	waitFor(t, "a session to each, in use", func() bool {
		get(t, client, checkoutURL)
		return well.counter("isthmus_requests_total") > 0
	})
	g.set(to(well))
	const n = 20
	answers := make(chan string, n)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			// It may be repeated, and is not hedged however long it hangs.
			req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, checkoutURL+"hang", http.NoBody)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			answers <- string(body)
		})
	}
	<-entered
	waitFor(t, "all are under way", func() bool { return len(entered)+1+len(answers) == n })
	hanging := len(entered) + 1
	g.cut(dying)
	wg.Wait()
	close(answers)
	for body := range answers {
		if body != "us /hang" {
			t.Errorf("answered by %q", body)
		}
	}
	if hanging < 3 {
		t.Fatalf("only %d requests were on the session that died", hanging)
	}
	if got := c.counter("isthmus_ejections_total"); got != 0 {
		t.Errorf("%d requests lost with one session ejected the cluster", hanging)
	}
}

// TestRetryBudget: when everything fails, retries do not multiply the load.
func TestRetryBudget(t *testing.T) {
	w := newWorld(t)
	bad := &ledger{name: "bad", before: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }}
	_, a := serveApp(t, bad.ServeHTTP)
	near := w.server(eu, "checkout", topology.HTTP, a)
	frozen := time.Now()
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0"), near.endpoint("checkout-1"), near.endpoint("checkout-2")}}, func(c *Config) {
		c.Now = func() time.Time { return frozen }
	})
	client := c.client()
	const n = 100
	var wg sync.WaitGroup
	var spent atomic.Int64
	for range 4 {
		wg.Go(func() {
			for range n / 4 {
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, checkoutURL+"?id=x", nil)
				resp, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.Header.Get(headerError) == string(CodeBudget) {
					spent.Add(1)
				}
			}
		})
	}
	wg.Wait()
	// 10 a second over 10 s, and a fifth of the requests.
	if got := bad.times("x"); got > n+100+n/5 {
		t.Errorf("%d requests reached the application, of %d", got, n)
	}
	if spent.Load() == 0 {
		t.Error("no request heard that the budget is used up")
	}
}
