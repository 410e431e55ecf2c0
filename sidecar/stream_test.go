package sidecar

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// across is a caller in eu whose calls go to one server in us, and the gateway between.
func (w *world) across(protocol topology.Protocol, h http.HandlerFunc) (*side, *fakeGateway) {
	w.Helper()
	_, there := serveApp(w, h)
	far := w.server(us, "checkout", protocol, there)
	g := w.gateway("gateway-0", to(far))
	return w.caller(view{protocol: protocol, remotes: []topology.Remote{remote(1, far)}}, nil), g
}

// clients are the ways in which applications speak HTTP through the proxy.
func clients(t *testing.T, s *side) map[string]*http.Client {
	t.Helper()
	return map[string]*http.Client{
		"HTTP/1.1": s.client(),
		"HTTP/2": h2c(t, func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", s.proxy.Host)
		}),
		"CONNECT, HTTP/2": h2c(t, s.through),
	}
}

func TestTrailers(t *testing.T) {
	for _, protocol := range []topology.Protocol{topology.HTTP, topology.HTTP2} {
		w := newWorld(t)
		c, _ := w.across(protocol, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			body, _ := io.ReadAll(r.Body)
			_, _ = fmt.Fprintf(w, "%s then %s", body, r.Trailer.Get("X-Client"))
			w.Header().Set("X-Sum", "42")
			w.Header().Set(http.TrailerPrefix+"X-Late", "43")
		})
		for what, client := range clients(t, c) {
			r, wr := io.Pipe()
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL, r)
			req.Trailer = http.Header{"X-Client": nil}
			go func() {
				_, _ = io.WriteString(wr, "body")
				req.Trailer.Set("X-Client", "trailer")
				_ = wr.Close()
			}()
			resp, body := do(t, client, req)
			if body != "body then trailer" {
				t.Errorf("%s, %s: body %q", protocol, what, body)
			}
			if resp.Trailer.Get("X-Sum") != "42" || resp.Trailer.Get("X-Late") != "43" {
				t.Errorf("%s, %s: trailers %v", protocol, what, resp.Trailer)
			}
		}
	}
}

func TestInformational(t *testing.T) {
	w := newWorld(t)
	c, _ := w.across(topology.HTTP, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusNoContent)
	})
	for what, client := range clients(t, c) {
		var hints []string
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				hints = append(hints, fmt.Sprint(code, h.Get("Link")))
				return nil
			},
		})
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, checkoutURL, nil)
		resp, _ := do(t, client, req)
		if resp.StatusCode != http.StatusNoContent || len(hints) != 1 || hints[0] != "103</style.css>" {
			t.Errorf("%s: %d after %q", what, resp.StatusCode, hints)
		}
	}
}

// TestExpect: a body whose sender waits for the word is not sent when the application does not want it.
func TestExpect(t *testing.T) {
	w := newWorld(t)
	c, _ := w.across(topology.HTTP, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
	})
	for path, want := range map[string]string{"yes": "200 hello", "no": "403 "} {
		conn, err := net.Dial("tcp", c.proxy.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_, _ = fmt.Fprintf(conn, "PUT %s%s HTTP/1.1\r\nHost: checkout.shop.svc.clusterset.local\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", checkoutURL, path)
		r := bufio.NewReader(conn)
		first, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if path == "yes" {
			if first != "HTTP/1.1 100 Continue\r\n" {
				t.Fatalf("%s: %q", path, first)
			}
			_, _ = r.ReadString('\n')
			_, _ = io.WriteString(conn, "hello")
			first = ""
		}
		resp, err := http.ReadResponse(bufio.NewReader(io.MultiReader(strings.NewReader(first), r)), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if got := fmt.Sprint(resp.StatusCode, " ", string(body)); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q", path, got)
		}
	}
}

// TestFullDuplex: request and response stream at the same time, each byte as it comes.
func TestFullDuplex(t *testing.T) {
	w := newWorld(t)
	c, _ := w.across(topology.HTTP2, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = rc.Flush()
			if err != nil {
				return
			}
		}
	})
	for what, client := range clients(t, c) {
		r, wr := io.Pipe()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL, r)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for i := range 5 {
			want := fmt.Sprintf("message %d", i)
			_, _ = io.WriteString(wr, want)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != want {
				t.Fatalf("%s: got %q, %v", what, got, err)
			}
		}
		_ = wr.Close()
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
			t.Errorf("%s: %q, %v after the end", what, rest, err)
		}
		_ = resp.Body.Close()
	}
}

// TestCallerGoesAway: the application hears of it.
func TestCallerGoesAway(t *testing.T) {
	w := newWorld(t)
	entered, heard := make(chan struct{}, 10), make(chan struct{}, 10)
	c, _ := w.across(topology.HTTP, func(_ http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
		heard <- struct{}{}
	})
	for what, client := range clients(t, c) {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, checkoutURL, nil)
		go func() {
			<-entered
			cancel()
		}()
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s: %v", what, resp.Status)
		}
		select {
		case <-heard:
		case <-time.After(patience):
			t.Fatalf("%s: the application never heard", what)
		}
	}
	waitFor(t, "499", func() bool { return c.counter("isthmus_requests_total", "code=499") == 3 })
	if n := c.counter("isthmus_ejections_total"); n != 0 {
		t.Errorf("%v ejections for callers that went away", n)
	}
}

func TestLargeBodies(t *testing.T) {
	w := newWorld(t)
	c, _ := w.across(topology.HTTP, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	const size = 8 << 20
	for what, client := range clients(t, c) {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, checkoutURL, io.LimitReader(pattern{}, size))
		req.ContentLength = size
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if n != size || err != nil {
			t.Errorf("%s: got %d bytes, %v", what, n, err)
		}
	}
}

type pattern struct{}

func (pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i)
	}
	return len(p), nil
}

func TestWebSocket(t *testing.T) {
	w := newWorld(t)
	c, g := w.across(topology.HTTP, func(w http.ResponseWriter, r *http.Request) {
		websocket.Server{Handler: func(ws *websocket.Conn) {
			_, _ = io.WriteString(ws, "caller "+r.Header.Get(headerCaller))
			_, _ = io.Copy(ws, ws)
		}}.ServeHTTP(w, r)
	})
	if resp, _ := get(t, c.client(), checkoutURL); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("no upgrade: %s", resp.Status)
	}
	before := g.streams()
	config, err := websocket.NewConfig("ws://checkout.shop.svc.clusterset.local/ws", "http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		conn, err := net.Dial("tcp", c.proxy.Host)
		if err != nil {
			t.Fatal(err)
		}
		ws, err := websocket.NewClient(config, conn)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 200)
		if n, err := ws.Read(buf); err != nil || string(buf[:n]) != "caller "+c.id.String() {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
		for i := range 3 {
			want := fmt.Sprintf("message %d", i)
			_, _ = io.WriteString(ws, want)
			if n, err := ws.Read(buf); err != nil || string(buf[:n]) != want {
				t.Fatalf("got %q, %v", buf[:n], err)
			}
		}
		_ = ws.Close()
	}
	if n := g.streams() - before; n != 2 {
		t.Errorf("%d streams for two upgrades", n)
	}
	waitFor(t, "upgraded sessions end", func() bool { return c.counter("isthmus_sessions") <= 1 })
	waitFor(t, "a count of upgrades", func() bool { return c.counter("isthmus_requests_total", "code=101") == 2 })
}

func TestGRPC(t *testing.T) {
	w := newWorld(t)
	ln := listenTCP(t)
	var caller atomic.Value
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		caller.Store(strings.Join(md.Get(headerCaller), ","))
		return next(ctx, req)
	}))
	healthServer := health.NewServer()
	healthServer.SetServingStatus("a", grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(server, healthServer)
	served := make(chan error)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	far := w.server(us, "checkout", topology.GRPC, addrOf(ln))
	g := w.gateway("gateway-0", to(far))
	c := w.caller(view{protocol: topology.GRPC, remotes: []topology.Remote{remote(1, far)}}, nil)

	for what, options := range map[string][]grpc.DialOption{
		"CONNECT": {grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return c.through(ctx, "", "checkout.shop.svc.clusterset.local:80")
		})},
		"the proxy itself": {
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", c.proxy.Host)
			}),
			grpc.WithAuthority("checkout.shop.svc.clusterset.local:80"),
		},
	} {
		t.Run(what, func(t *testing.T) {
			cc, err := grpc.NewClient("passthrough:///checkout", append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cc.Close() }()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			client := grpc_health_v1.NewHealthClient(cc)
			for range 10 {
				resp, checkErr := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "a"})
				if checkErr != nil || resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
					t.Fatalf("got %v, %v", resp, checkErr)
				}
			}
			if got := caller.Load(); got != c.id.String() {
				t.Errorf("the application heard that %q calls", got)
			}
			// An error of the application's own comes as it is.
			for range 50 { // it has no message: its status must not come apart from its headers
				if _, err = client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "none"}); status.Code(err) != codes.NotFound {
					t.Fatalf("got %v", err)
				}
			}
			stream, err := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{Service: "a"})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range []grpc_health_v1.HealthCheckResponse_ServingStatus{1, 2, 1} {
				healthServer.SetServingStatus("a", s)
				for {
					resp, err := stream.Recv()
					if err != nil {
						t.Fatal(err)
					}
					if resp.GetStatus() == s {
						break
					}
				}
			}
			cancel()
			if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
				t.Errorf("got %v", err)
			}
		})
	}
	// What the mesh itself says comes as a status, with words.
	g.kill()
	waitFor(t, "its sessions end", func() bool { return c.counter("isthmus_sessions") == 0 })
	cc, err := grpc.NewClient("passthrough:///checkout", grpc.WithAuthority("checkout.shop.svc.clusterset.local:80"),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", c.proxy.Host)
		}), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cc.Close() }()
	_, err = grpc_health_v1.NewHealthClient(cc).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), string(CodeNoAnswer)) {
		t.Errorf("got %v", err)
	}
}

// TestTruncation: an answer that was cut short never looks complete.
func TestTruncation(t *testing.T) {
	w := newWorld(t)
	started := make(chan struct{}, 10)
	c, g := w.across(topology.HTTP, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/length":
			w.Header().Set("Content-Length", "1000000")
		case "/crash":
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, "beginning")
		_ = http.NewResponseController(w).Flush()
		started <- struct{}{}
		<-r.Context().Done()
	})
	for _, path := range []string{"length", "chunked", "crash"} {
		for what, client := range clients(t, c) {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, checkoutURL+path, nil)
			resp, err := client.Do(req)
			if err != nil && path == "crash" {
				continue // broken off before its headers were on the wire
			}
			if err != nil {
				t.Fatalf("%s, %s: %v", path, what, err)
			}
			if path != "crash" {
				<-started
				g.cut()
			}
			broke := path == "crash" && resp.Header.Get(headerError) == string(CodeNoAnswer) // before its headers were on the wire
			if body, err := io.ReadAll(resp.Body); err == nil && !broke {
				t.Errorf("%s, %s: %q looks complete", path, what, body)
			}
			_ = resp.Body.Close()
		}
	}
	if n := c.counter("isthmus_requests_total", "code=0") + c.counter("isthmus_requests_total", "error="+string(CodeNoAnswer)); n != 9 {
		t.Errorf("%v answers are counted as broken off, want 9", n)
	}
}

// TestDrainingGateway: sessions that cross a gateway that drains are opened anew through another one, and the old ones end when
// their requests have: the gateway need not wait out its grace, nor break anything.
func TestDrainingGateway(t *testing.T) {
	for what, draining := range map[string]func(*topology.SnapshotSpec){
		"near": func(s *topology.SnapshotSpec) { s.Gateways[0].Draining = true },
		"far": func(s *topology.SnapshotSpec) {
			s.Clusters = []*topology.Cluster{{
				Name: cluster("us"), Domain: us, Link: topology.LinkUp,
				Gateways: []topology.Gateway{{ID: "gateway-0", Identity: must(trust.GatewayID(us, "gateway-0")), Draining: true}},
			}}
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			entered, leave := make(chan struct{}, 10), make(chan struct{})
			_, there := serveApp(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					entered <- struct{}{}
					<-leave
				}
				_, _ = io.WriteString(w, "us")
			})
			far := w.server(us, "checkout", topology.HTTP, there)
			g := w.gateway("gateway-0", to(far))
			c := w.caller(view{remotes: []topology.Remote{remote(1, far)}}, nil)
			slow := make(chan string)
			go func() {
				resp, err := c.client().Post(checkoutURL+"slow", "text/plain", strings.NewReader("not to be sent twice"))
				if err != nil {
					slow <- err.Error()
					return
				}
				defer func() { _ = resp.Body.Close() }()
				body, _ := io.ReadAll(resp.Body)
				slow <- string(body)
			}()
			<-entered
			other := w.gateway("gateway-1", func(preamble.Preamble) (netip.AddrPort, *preamble.Refusal) { return far.inbound, nil })
			other.far = "us/gateway-1"
			spec := topology.SnapshotSpec{
				Self: c.snapshots.Load().Self(), Clusters: c.snapshots.Load().Clusters(), Services: c.snapshots.Load().Services(),
				Gateways: []topology.Gateway{
					{ID: g.name, Address: g.ln.Addr().String(), Identity: g.id},
					{ID: other.name, Address: other.ln.Addr().String(), Identity: other.id},
				},
			}
			draining(&spec)
			if what == "far" { // the gateway of the own cluster knows better than to go there
				spec.Gateways = spec.Gateways[1:]
			}
			c.snapshots.Store(topology.NewSnapshot(spec))
			waitFor(t, "another session is open", func() bool { return other.streams() > 0 })
			if resp, body := get(t, c.client(), checkoutURL); resp.StatusCode != http.StatusOK || body != "us" {
				t.Errorf("meanwhile: %s %q", resp.Status, body)
			}
			close(leave)
			if got := <-slow; got != "us" {
				t.Errorf("the request in flight: %s", got)
			}
			waitFor(t, "the old session has ended", func() bool {
				g.mu.Lock()
				defer g.mu.Unlock()
				return len(g.open) == 0
			})
		})
	}
}
