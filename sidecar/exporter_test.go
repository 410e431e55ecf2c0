package sidecar

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/sidecar/session"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// unexport takes back what the server exports; its copies in the own cluster remain.
func (s *side) unexport() {
	last := s.snapshots.Load()
	spec := topology.SnapshotSpec{Self: last.Self(), Clusters: last.Clusters()}
	for _, in := range last.Inbounds() {
		kept := *in
		kept.Exported = false
		spec.Inbounds = append(spec.Inbounds, &kept)
	}
	s.snapshots.Store(topology.NewSnapshot(spec))
}

// intrude opens a session to a server past every gateway, as whoever holds that identity might.
func (w *world) intrude(s *side, id spiffeid.ID, protocol string) (*tls.Conn, error) {
	w.Helper()
	c, err := tls.Dial("tcp", s.inbound.String(), trust.ClientConfig(trust.TLS{
		Identity: w.issue(id), Bundles: w.bundles(), Policy: trust.AllowAny(), Protocols: []string{protocol}, ServerName: preamble.ServerName(checkout, 80, netip.Addr{}),
	}))
	if err == nil {
		w.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// TestForeignCallerOfAnUnexportedService: the called workload's sidecar refuses, whatever the gateways let through.
func TestForeignCallerOfAnUnexportedService(t *testing.T) {
	w := newWorld(t)
	var reached bool
	_, there := serveApp(t, func(http.ResponseWriter, *http.Request) { reached = true })
	far := w.server(us, "checkout", topology.HTTP, there)
	far.unexport()
	w.gateway("gateway-0", to(far)) // one that asks nobody
	c := w.caller(view{remotes: []topology.Remote{remote(1, far)}}, nil)
	for what, client := range clients(t, c) {
		resp, body := get(t, client, checkoutURL)
		if resp.StatusCode != http.StatusForbidden || resp.Header.Get(headerError) != string(CodeNotAllowed) || !strings.Contains(body, errNotExported.Error()) {
			t.Errorf("%s: got %s %q %q", what, resp.Status, resp.Header.Get(headerError), body)
		}
	}
	if reached {
		t.Error("the application saw the request")
	}
	// The own cluster's callers are no matter of exports.
	own, err := w.intrude(far, must(trust.WorkloadID(us, "shop", "web")), session.HTTP1)
	if err != nil {
		t.Fatal(err)
	}
	if status := ask(t, own); status != http.StatusOK || !reached {
		t.Errorf("a caller of the own cluster got %d", status)
	}
}

// ask sends a request on c and returns the status.
func ask(t *testing.T, c net.Conn) int {
	t.Helper()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// TestOpaqueBytesToARequestPort: where a port speaks HTTP, a session of opaque bytes is refused in the handshake. It would carry
// requests past whoever writes Isthmus-Caller.
func TestOpaqueBytesToARequestPort(t *testing.T) {
	w := newWorld(t)
	taken := make(chan struct{}, 10)
	app := tcpApp(t, func(c *net.TCPConn) {
		taken <- struct{}{}
		_, _ = io.Copy(io.Discard, c)
	})
	for _, protocol := range []topology.Protocol{topology.HTTP, topology.HTTP2, topology.GRPC} {
		server := w.server(eu, "checkout", protocol, app)
		c, err := w.intrude(server, must(trust.WorkloadID(eu, "shop", "web")), session.TCP)
		if err == nil {
			_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a\r\n%s: spiffe://eu.test/ns/shop/sa/admin\r\n\r\n", headerCaller)
			_, err = c.Read(make([]byte, 1))
		}
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: opaque bytes were taken: %v", protocol, err)
		}
	}
	select {
	case <-taken:
		t.Error("the application got a connection")
	default:
	}
	// The check can fail: the same bytes do get through where the port is opaque.
	server := w.server(eu, "checkout", topology.TCP, app)
	c, err := w.intrude(server, must(trust.WorkloadID(eu, "shop", "web")), session.TCP)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil || first[0] != tunnelOpen {
		t.Errorf("an opaque port answered %v, %v", first, err)
	}
}

// TestUnexportEndsWhatIsOpen: taking an export back closes the tunnels and the requests of other clusters, and no others.
func TestUnexportEndsWhatIsOpen(t *testing.T) {
	w := newWorld(t)
	echo := tcpApp(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	far := w.server(us, "checkout", topology.TCP, echo)
	w.gateway("gateway-0", to(far))
	_, ways := w.opaqueCaller(view{remotes: []topology.Remote{remote(1, far)}})
	own, err := w.intrude(far, must(trust.WorkloadID(us, "shop", "web")), session.TCP)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 1)
	if _, err := io.ReadFull(own, first); err != nil {
		t.Fatal(err)
	}
	foreign := make(map[string]net.Conn)
	for what, dial := range ways {
		foreign[what] = dial()
		_ = foreign[what].SetDeadline(time.Now().Add(patience))
		if !echoes(foreign[what]) {
			t.Fatalf("%s: no echo while it is exported", what)
		}
	}
	far.unexport()
	for what, c := range foreign {
		if got, err := io.ReadAll(c); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: did not break off: %q, %v", what, got, err)
		}
		_ = c.Close()
	}
	if !echoes(own) {
		t.Error("the own cluster's connection ended, too")
	}
}

func echoes(c net.Conn) bool {
	if _, err := io.WriteString(c, "ping"); err != nil {
		return false
	}
	got := make([]byte, 4)
	_, err := io.ReadFull(c, got)
	return err == nil && string(got) == "ping"
}

// TestApplicationsDoNotSpeakForTheMesh: what only the mesh may say is taken from an application's answers, interim ones and
// trailers too, and nothing else is.
func TestApplicationsDoNotSpeakForTheMesh(t *testing.T) {
	for _, protocol := range []topology.Protocol{topology.HTTP, topology.HTTP2} {
		w := newWorld(t)
		c, _ := w.across(protocol, func(w http.ResponseWriter, _ *http.Request) {
			h := w.Header()
			h.Set(headerError, "IST2104")
			h.Set(headerOutcome, outcomeUnsent)
			h.Set("Link", "</style.css>")
			w.WriteHeader(http.StatusEarlyHints)
			h.Set("Trailer", "X-Sum, "+headerOutcome)
			_, _ = io.WriteString(w, "body")
			h.Set("X-Sum", "42")
			h.Set(headerOutcome, outcomeUnsent)
			h.Set(http.TrailerPrefix+headerError, "IST2104")
			h.Set(http.TrailerPrefix+"X-Late", "43")
		})
		for what, client := range clients(t, c) {
			var hints []textproto.MIMEHeader
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
				Got1xxResponse: func(_ int, h textproto.MIMEHeader) error { hints = append(hints, h); return nil },
			})
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, checkoutURL, nil)
			resp, body := do(t, client, req)
			if resp.StatusCode != http.StatusOK || body != "body" {
				t.Errorf("%s, %s: %s %q", protocol, what, resp.Status, body)
			}
			if len(hints) != 1 || hints[0].Get("Link") == "" {
				t.Errorf("%s, %s: interim answers %v", protocol, what, hints)
			}
			if resp.Trailer.Get("X-Sum") != "42" || resp.Trailer.Get("X-Late") != "43" {
				t.Errorf("%s, %s: trailers %v", protocol, what, resp.Trailer)
			}
			said := []http.Header{resp.Header, resp.Trailer}
			for _, h := range hints {
				said = append(said, http.Header(h))
			}
			for _, h := range said {
				for name := range h {
					if isOwn(name) || slices.ContainsFunc(h[name], isOwn) {
						t.Errorf("%s, %s: the application said %s: %q", protocol, what, name, h[name])
					}
				}
			}
		}
	}
}

// TestMadeUpNames: an application that asks for names that do not exist does not shut itself out from those that do.
func TestMadeUpNames(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	// As control does, only what is asked for is told.
	var c *side
	c = w.caller(view{}, func(config *Config) {
		config.Snapshots.Store(topology.NewSnapshot(topology.SnapshotSpec{Self: config.Snapshots.Load().Self()}))
		config.Subscribe = func(_ context.Context, name topology.ServiceName) error {
			if name == checkout {
				c.snapshots.Store(w.snapshot(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}))
			}
			return nil
		}
	})
	r := c.outbound.resolver
	for i := range maxAsked + 10 {
		name := must(topology.NewServiceName("made-up", fmt.Sprintf("n%d", i)))
		if _, err := r.snapshot(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.asked); n > maxAsked {
		t.Errorf("%d names are remembered, want at most %d", n, maxAsked)
	}
	if resp, body := get(t, c.client(), checkoutURL); resp.StatusCode != http.StatusOK {
		t.Errorf("a service that exists: %s %q", resp.Status, body)
	}
}

// TestExportTakenBack: callers with open sessions hear of it by being refused, and what another cluster still serves is no error.
func TestExportTakenBack(t *testing.T) {
	w := newWorld(t)
	app := func(name string) (*atomic.Int64, netip.AddrPort) {
		n := new(atomic.Int64)
		_, at := serveApp(t, func(w http.ResponseWriter, _ *http.Request) { n.Add(1); _, _ = io.WriteString(w, name) })
		return n, at
	}
	_, there := app("away")
	posted, here := app("home")
	far, near := w.server(us, "checkout", topology.HTTP, there), w.server(eu, "checkout", topology.HTTP, here)
	w.gateway("gateway-0", to(far))
	c := w.caller(view{
		remotes: []topology.Remote{remote(1, far)}, endpoints: []topology.Endpoint{near.endpoint("checkout-0")},
		policy: &topology.Policy{Tiers: []topology.Tier{{Name: "away", Match: topology.Selector{Cluster: "us"}}, {Name: "home"}}},
	}, nil)
	if _, body := get(t, c.client(), checkoutURL); body != "away" {
		t.Fatalf("answered %q", body)
	}
	far.unexport()
	for i := range 5 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL, strings.NewReader("x"))
		if i == 0 { // one that was on its way when the session ended may have been carried out
			req, err = http.NewRequestWithContext(t.Context(), http.MethodGet, checkoutURL, http.NoBody)
		}
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if string(body) != "home" {
			t.Errorf("answered %s %q", resp.Status, body)
		}
	}
	if posted.Load() != 5 {
		t.Errorf("carried out %d times", posted.Load())
	}
}

// TestSessionFromBeforeTheExport: one that was opened when it was not exported, and was let in later, ends with the export as any other.
func TestSessionFromBeforeTheExport(t *testing.T) {
	w := newWorld(t)
	entered := make(chan struct{}, 1)
	_, there := serveApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			entered <- struct{}{}
			<-r.Context().Done()
		}
	})
	far := w.server(us, "checkout", topology.HTTP, there)
	exported := far.snapshots.Load()
	far.unexport()
	c, err := w.intrude(far, must(trust.WorkloadID(eu, "shop", "web")), session.HTTP1)
	if err != nil {
		t.Fatal(err)
	}
	if status := ask(t, c); status != http.StatusForbidden {
		t.Fatalf("before the export: %d", status)
	}
	far.snapshots.Store(exported)
	if status := ask(t, c); status != http.StatusOK {
		t.Fatalf("while it is exported: %d", status)
	}
	_, _ = io.WriteString(c, "GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
	<-entered
	far.unexport()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the session goes on without the export: %v", err)
	}
}

// TestNoConnectToApplications: a CONNECT that is carried as a request would let its sender speak to the application as anybody.
func TestNoConnectToApplications(t *testing.T) {
	for _, protocol := range []topology.Protocol{topology.HTTP, topology.HTTP2} {
		w := newWorld(t)
		var reached atomic.Int64
		app := tcpApp(t, func(c *net.TCPConn) { reached.Add(1); _, _ = io.Copy(io.Discard, c) })
		near := w.server(eu, "checkout", protocol, app)
		direct := listenTCP(t)
		c := w.caller(view{protocol: protocol, endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, func(c *Config) {
			c.Listeners = []LocalListener{{Service: checkout, Port: 80, Listener: direct}}
		})
		smuggled := "GET /admin HTTP/1.1\r\nHost: a\r\nIsthmus-Caller: spiffe://eu.test/ns/shop/sa/admin\r\n\r\n"
		toListener := func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", direct.Addr().String())
		}
		inner := func(protocol string) func(context.Context, string, string) (net.Conn, error) {
			return func(context.Context, string, string) (net.Conn, error) {
				return w.intrude(near, must(trust.WorkloadID(eu, "shop", "web")), protocol)
			}
		}
		for what, client := range map[string]*http.Client{
			"h2 in a tunnel": h2c(t, c.through), "h2 to the proxy": clients(t, c)["HTTP/2"], "h2 to a listener": h2c(t, toListener), "h2 inside": h2c(t, inner(session.HTTP2)),
		} {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodConnect, checkoutURL, io.NopCloser(strings.NewReader(smuggled)))
			req.Host, req.ContentLength = "checkout.shop.svc.clusterset.local:80", -1
			if resp, err := client.Do(req); err == nil {
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusNotImplemented {
					t.Errorf("%s, %s: %s", protocol, what, resp.Status)
				}
			}
		}
		for what, dial := range map[string]func(context.Context, string, string) (net.Conn, error){
			"h1 in a tunnel": c.through, "h1 to a listener": toListener, "h1 inside": inner(session.HTTP1),
		} {
			conn, err := dial(t.Context(), "", "checkout.shop.svc.clusterset.local:80")
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(conn, "CONNECT checkout.shop.svc.clusterset.local:80 HTTP/1.1\r\nHost: checkout.shop.svc.clusterset.local:80\r\n\r\n"+smuggled)
			got, err := io.ReadAll(conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s, %s: the connection stays open", protocol, what)
			}
			if !strings.HasPrefix(string(got), "HTTP/1.1 501 ") || strings.Count(string(got), "HTTP/1.1 ") != 1 {
				t.Errorf("%s, %s: got %q", protocol, what, got)
			}
			_ = conn.Close()
		}
		if n := reached.Load(); n != 0 {
			t.Errorf("%s: the application got %d connections", protocol, n)
		}
	}
}
