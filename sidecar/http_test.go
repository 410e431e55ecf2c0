package sidecar

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

func TestNearAndFar(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	_, there := serveApp(t, answering("us"))
	near, far := w.server(eu, "checkout", topology.HTTP, here), w.server(us, "checkout", topology.HTTP, there)
	g := w.gateway("gateway-0", to(far))

	t.Run("own cluster", func(t *testing.T) {
		c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
		for range 3 {
			if resp, body := get(t, c.client(), checkoutURL+"a"); resp.StatusCode != http.StatusOK || body != "eu /a" {
				t.Fatalf("got %d %q", resp.StatusCode, body)
			}
		}
		if n := c.counter("isthmus_session_dials_total"); n != 1 {
			t.Errorf("%v inner sessions were opened, want 1", n)
		}
	})
	t.Run("another cluster", func(t *testing.T) {
		c := w.caller(view{remotes: []topology.Remote{remote(1, far)}}, nil)
		for range 3 {
			if resp, body := get(t, c.client(), checkoutURL+"b"); resp.StatusCode != http.StatusOK || body != "us /b" {
				t.Fatalf("got %d %q", resp.StatusCode, body)
			}
		}
		if n := g.streams(); n != 1 {
			t.Errorf("%d streams were opened, want 1", n)
		}
		want := preamble.Preamble{Cluster: cluster("us"), Service: checkout, Port: 80}
		got := g.seen[0]
		got.Traceparent = ""
		if got != want {
			t.Errorf("preamble %+v", got)
		}
	})
}

// h2c is an application that speaks HTTP/2 with prior knowledge to whatever address dial connects to.
func h2c(tb testing.TB, dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Client {
	tb.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	t := &http.Transport{Protocols: protocols, DialContext: dial, DisableCompression: true}
	tb.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: patience}
}

// through dials a CONNECT tunnel.
func (s *side) through(ctx context.Context, _, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", s.proxy.Host)
	if err != nil {
		return nil, err
	}
	if _, err = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", address, address); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(&byteReader{c}, 16), nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		return nil, fmt.Errorf("CONNECT: %s: %s", resp.Status, body)
	}
	return c, nil
}

// byteReader reads no more than is asked for: what follows a CONNECT's answer is the tunnel's.
type byteReader struct{ r io.Reader }

func (b *byteReader) Read(p []byte) (int, error) { return b.r.Read(p[:1]) }

func TestWaysToAsk(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, r.URL)
	})
	near := w.server(eu, "checkout", topology.HTTP, here)
	direct := listenTCP(t)
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, func(c *Config) {
		c.Listeners = []LocalListener{{Service: checkout, Port: 80, Listener: direct}}
	})
	const name = "checkout.shop.svc.clusterset.local"
	raw := func(head string) func(t *testing.T) string {
		return func(t *testing.T) string {
			t.Helper()
			conn, err := net.Dial("tcp", c.proxy.Host)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if _, err = io.WriteString(conn, head); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			body, _ := io.ReadAll(resp.Body)
			return string(body)
		}
	}
	with := func(client *http.Client, url string) func(t *testing.T) string {
		return func(t *testing.T) string {
			t.Helper()
			_, body := get(t, client, url)
			return body
		}
	}
	toProxy := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", c.proxy.Host)
	}
	plain := &http.Client{Transport: &http.Transport{DialContext: c.through}, Timeout: patience}
	t.Cleanup(plain.CloseIdleConnections)
	for what, f := range map[string]struct {
		ask  func(t *testing.T) string
		want string
	}{
		"absolute form":           {with(c.client(), "http://"+name+"/a?b=%zz;c"), "GET " + name + " /a?b=%zz;c"},
		"absolute form, own copy": {with(c.client(), "http://checkout.shop.svc.cluster.local:80/"), "GET checkout.shop.svc.cluster.local:80 /"},
		"origin form":             {raw("GET /a HTTP/1.1\r\nHost: " + name + "\r\n\r\n"), "GET " + name + " /a"},
		"HTTP/1.0":                {raw("GET http://" + name + "/a HTTP/1.0\r\n\r\n"), "GET " + name + " /a"},
		"OPTIONS *":               {raw("OPTIONS * HTTP/1.1\r\nHost: " + name + "\r\n\r\n"), "OPTIONS " + name + " *"},
		"HTTP/2 to the proxy":     {with(h2c(t, toProxy), "http://"+name+"/a"), "GET " + name + " /a"},
		"CONNECT, HTTP/1.1":       {with(plain, "http://"+name+"/a"), "GET " + name + " /a"},
		"CONNECT, HTTP/2":         {with(h2c(t, c.through), "http://"+name+"/a"), "GET " + name + " /a"},
		"local listener":          {with(&http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}, "http://"+direct.Addr().String()+"/a"), "GET " + direct.Addr().String() + " /a"},
		"an odd path":             {with(c.client(), "http://"+name+"//a/../b%2Fc"), "GET " + name + " //a/../b%2Fc"},
	} {
		t.Run(what, func(t *testing.T) {
			if got := f.ask(t); got != f.want {
				t.Errorf("got %q, want %q", got, f.want)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	direct := listenTCP(t)
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, func(c *Config) {
		c.Listeners = []LocalListener{{Service: checkout, Port: 80, Listener: direct}}
	})
	ask := func(t *testing.T, address, request string) (int, string, string) {
		t.Helper()
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, err = io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, resp.Header.Get(headerError), string(body)
	}
	const name = "checkout.shop.svc.clusterset.local"
	absolute := func(authority, more string) string {
		return "GET http://" + authority + "/ HTTP/1.1\r\nHost: " + authority + "\r\n" + more + "\r\n"
	}
	for what, f := range map[string]struct {
		address, request string
		status           int
		code             Code
		words            string
	}{
		"outside":              {c.proxy.Host, absolute("example.org", ""), 502, CodeNotMesh, "no_proxy"},
		"outside, CONNECT":     {c.proxy.Host, "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n", 502, CodeNotMesh, "no_proxy"},
		"https in absolute":    {c.proxy.Host, "GET https://" + name + "/ HTTP/1.1\r\nHost: " + name + ":80\r\n\r\n", 400, CodeBadTarget, "CONNECT"},
		"not a service":        {c.proxy.Host, absolute("shop.svc.clusterset.local", ""), 400, CodeBadTarget, "name.namespace"},
		"unknown":              {c.proxy.Host, absolute("none.shop.svc.clusterset.local", ""), 502, CodeUnknown, "none.shop"},
		"unknown, CONNECT":     {c.proxy.Host, "CONNECT none.shop.svc.clusterset.local:1 HTTP/1.1\r\nHost: none.shop.svc.clusterset.local:1\r\n\r\n", 502, CodeUnknown, "none.shop"},
		"unknown port":         {c.proxy.Host, absolute(name+":81", ""), 502, CodeUnknownPort, "80/http"},
		"Host disagrees":       {c.proxy.Host, "GET http://" + name + "/ HTTP/1.1\r\nHost: other.shop.svc.clusterset.local\r\n\r\n", 400, "", ""},
		"misdirected":          {direct.Addr().String(), "GET / HTTP/1.1\r\nHost: other.shop.svc.clusterset.local\r\n\r\n", 421, CodeMisdirected, "other.shop"},
		"loop":                 {c.proxy.Host, absolute(name, "Isthmus-Hops: 10\r\n"), 508, CodeLoop, "circles"},
		"hops that are none":   {c.proxy.Host, absolute(name, "Isthmus-Hops: x\r\n"), 508, CodeLoop, "circles"},
		"smuggling":            {c.proxy.Host, absolute(name, "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400, "", ""},
		"headers too large":    {c.proxy.Host, absolute(name, "X: "+strings.Repeat("x", 70<<10)+"\r\n"), 431, "", ""},
		"too many headers":     {c.proxy.Host, absolute(name, strings.Repeat("X: y\r\n", 200)), 400, "", ""},
		"gRPC, unknown method": {c.proxy.Host, "POST http://none.shop.svc.clusterset.local/ HTTP/1.1\r\nHost: none.shop.svc.clusterset.local\r\nContent-Type: application/grpc\r\n\r\n", 200, CodeUnknown, ""},
	} {
		t.Run(what, func(t *testing.T) {
			status, code, body := ask(t, f.address, f.request)
			if status != f.status || code != string(f.code) || !strings.Contains(body, f.words) {
				t.Errorf("got %d %q %q, want %d %q %q", status, code, body, f.status, f.code, f.words)
			}
		})
	}
	t.Run("HTTP/2 with too many headers", func(t *testing.T) {
		client := h2c(t, func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", c.proxy.Host)
		})
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, checkoutURL, nil)
		for i := range 150 {
			req.Header.Add("X", fmt.Sprint(i))
		}
		if resp, _ := do(t, client, req); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge || resp.Header.Get(headerError) != string(CodeTooLarge) {
			t.Errorf("got %d %v", resp.StatusCode, resp.Header)
		}
	})
	if n := c.counter("isthmus_requests_total", "error="+string(CodeUnknown), "destination_service=unknown"); n < 2 {
		t.Errorf("unknown services are counted by name, or not at all: %v", n)
	}
}

func TestNowhereToGo(t *testing.T) {
	w := newWorld(t)
	down := topology.Endpoint{ID: "checkout-0", Address: netip.MustParseAddrPort("127.0.0.1:1"), Ports: []uint16{80}}
	for what, f := range map[string]struct {
		view view
		code Code
	}{
		"not ready": {view{endpoints: []topology.Endpoint{down}}, CodeNoCopy},
		"none":      {view{}, CodeNoCopy},
	} {
		c := w.caller(f.view, nil)
		resp, body := get(t, c.client(), checkoutURL)
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get(headerError) != string(f.code) {
			t.Errorf("%s: got %d %v %q", what, resp.StatusCode, resp.Header, body)
		}
	}
	// Known, but not imported.
	c := w.caller(view{}, nil)
	service := *c.snapshots.Load().Service(checkout)
	service.Imported = false
	c.snapshots.Store(topology.NewSnapshot(topology.SnapshotSpec{Services: []*topology.Service{&service}}))
	if resp, body := get(t, c.client(), checkoutURL); resp.Header.Get(headerError) != string(CodeNotImported) {
		t.Errorf("got %d %v %q", resp.StatusCode, resp.Header, body)
	}
}

// TestSubscribesOnce: a service is asked for when it is first called, and that call waits for it.
func TestSubscribesOnce(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	full := w.snapshot(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}})
	var c *side
	c = w.start(must(trust.WorkloadID(eu, "shop", "web")), topology.NewSnapshot(topology.SnapshotSpec{}), func(config *Config) {
		config.Subscribe = func(_ context.Context, name topology.ServiceName) error {
			c.asked.Add(1)
			if name == checkout {
				c.snapshots.Store(full)
			}
			return nil
		}
	})
	for range 3 {
		if resp, body := get(t, c.client(), checkoutURL); resp.StatusCode != http.StatusOK {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
	}
	if n := c.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestHeaders(t *testing.T) {
	w := newWorld(t)
	var got http.Header
	_, there := serveApp(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		for name, value := range map[string]string{
			headerOutcome: outcomeUnsent, headerError: "IST2999", headerCaller: "me", "Isthmus-Other": "x", "X-App": "y",
			"Connection": "X-Hop", "X-Hop": "z",
		} {
			w.Header().Set(name, value)
		}
		w.WriteHeader(http.StatusTeapot)
	})
	far := w.server(us, "checkout", topology.HTTP, there)
	w.gateway("gateway-0", to(far))
	c := w.caller(view{remotes: []topology.Remote{remote(1, far)}}, nil)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, checkoutURL, nil)
	for name, value := range map[string]string{
		headerCaller: "spiffe://evil.test/ns/a/sa/b", "Isthmus_Caller": "spiffe://evil.test/ns/a/sa/b", headerOutcome: "sent", "isthmus-new": "x",
		headerHops: "3", "X-Forwarded-For": "192.0.2.1", "Forwarded": "for=192.0.2.1", "X-App": "y",
		"Connection": "X-Hop", "X-Hop": "z", "Proxy-Authorization": "secret", "Te": "gzip", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA",
	} {
		req.Header[http.CanonicalHeaderKey(name)] = []string{value}
	}
	req.Header["Isthmus_Caller"] = []string{"spiffe://evil.test/ns/a/sa/b"}
	resp, _ := do(t, c.client(), req)
	if got.Get(headerCaller) != c.id.String() || len(got[headerCaller]) != 1 {
		t.Errorf("the application heard that %q calls", got[headerCaller])
	}
	for name := range got {
		if isOwn(name) && name != headerCaller && name != headerHops {
			t.Errorf("the application saw %s: %s", name, got[name])
		}
	}
	for name, want := range map[string]string{
		headerHops: "4", "X-Forwarded-For": "192.0.2.1", "Forwarded": "for=192.0.2.1", "X-App": "y",
		"X-Hop": "", "Proxy-Authorization": "", "Te": "", "Upgrade": "", "Http2-Settings": "", "X-Forwarded-Host": "",
	} {
		if got.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, got.Get(name), want)
		}
	}
	if resp.StatusCode != http.StatusTeapot || resp.Header.Get("X-App") != "y" {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
	for name := range resp.Header {
		if isOwn(name) || name == "X-Hop" {
			t.Errorf("the caller saw %s: %s", name, resp.Header[name])
		}
	}
}

// TestForgedCaller: not even another workload's sidecar can say who calls.
func TestForgedCaller(t *testing.T) {
	w := newWorld(t)
	var got http.Header
	_, here := serveApp(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() })
	near := w.server(eu, "checkout", topology.HTTP, here)
	forger := must(trust.WorkloadID(us, "shop", "forger"))
	c, err := tls.Dial("tcp", near.inbound.String(), trust.ClientConfig(trust.TLS{
		Identity: w.issue(forger), Bundles: w.bundles(), Policy: trust.AllowAny(), Protocols: []string{"http/1.1"}, ServerName: preamble.ServerName(checkout, 80, netip.Addr{}),
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nIsthmus-Caller: x\r\nISTHMUS_CALLER: x\r\nisthmus-caller: y\r\nIsthmus-Error: z\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	for name, values := range got {
		if isOwn(name) && (name != headerCaller || !slices.Equal(values, []string{forger.String()})) {
			t.Errorf("the application saw %s: %q", name, values)
		}
	}
	if got.Get(headerCaller) == "" {
		t.Error("the application did not hear who calls")
	}
}

// TestOwnHeadersStayHere: what an application makes up in the mesh's name does not even leave its sidecar.
func TestOwnHeadersStayHere(t *testing.T) {
	w := newWorld(t)
	c := w.caller(view{}, nil)
	in, _ := http.NewRequestWithContext(context.WithValue(t.Context(), callKey{}, &call{query: topology.Query{Service: checkout, Port: 80}}), http.MethodGet, checkoutURL, nil)
	in.Header.Set(headerCaller, "x")
	in.Header["Isthmus_outcome"] = []string{"x"}
	p := &httputil.ProxyRequest{In: in, Out: in.Clone(in.Context())}
	c.outbound.rewrite(p)
	for name := range p.Out.Header {
		if isOwn(name) && name != headerHops {
			t.Errorf("%s: %s", name, p.Out.Header[name])
		}
	}
}

// TestIdentity: a copy that is not who it should be gets nothing, whoever vouches for it.
func TestIdentity(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	impostor := w.server(eu, "impostor", topology.HTTP, here)
	honest := impostor.endpoint("checkout-0")
	honest.Server = must(trust.WorkloadID(eu, "shop", "checkout"))
	c := w.caller(view{endpoints: []topology.Endpoint{honest}}, nil)
	resp, body := get(t, c.client(), checkoutURL)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get(headerError) != string(CodeNoAnswer) || !strings.Contains(body, "want spiffe://eu.test/ns/shop/sa/checkout") {
		t.Errorf("got %d %v %q", resp.StatusCode, resp.Header, body)
	}
	if n := impostor.counter("isthmus_requests_total"); n != 0 {
		t.Errorf("the impostor got %v requests", n)
	}
}

// TestUnknownCallers: who is of no known trust domain, or shows nothing, gets no session.
func TestUnknownCallers(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	near.bundles.Remove(us)
	open := func(identity *trust.Identity, serverName string, protocols ...string) error {
		c, err := tls.Dial("tcp", near.inbound.String(), trust.ClientConfig(trust.TLS{
			Identity: identity, Bundles: w.bundles(), Policy: trust.AllowAny(), Protocols: protocols, ServerName: serverName,
		}))
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		return err
	}
	name := preamble.ServerName(checkout, 80, netip.Addr{})
	stranger := w.issue(must(trust.WorkloadID(us, "shop", "web")))
	friend := w.issue(must(trust.WorkloadID(eu, "shop", "web")))
	for what, err := range map[string]error{
		"unknown domain":  open(stranger, name, "http/1.1"),
		"no certificate":  open(nil, name, "http/1.1"),
		"unknown service": open(friend, preamble.ServerName(must(topology.NewServiceName("shop", "cart")), 80, netip.Addr{}), "http/1.1"),
		"unknown port":    open(friend, preamble.ServerName(checkout, 81, netip.Addr{}), "http/1.1"),
		"no name":         open(friend, "", "http/1.1"),
		"no protocol":     open(friend, name),
		"another one":     open(friend, name, "spdy/3"),
	} {
		if err == nil {
			t.Errorf("%s: let in", what)
		}
	}
	if err := open(friend, name, "http/1.1"); err != nil {
		t.Errorf("a friend was refused: %v", err)
	}
}

// TestBundleChange: when a trust domain is no longer trusted, its open sessions end.
func TestBundleChange(t *testing.T) {
	w := newWorld(t)
	_, there := serveApp(t, answering("us"))
	far := w.server(us, "checkout", topology.HTTP, there)
	w.gateway("gateway-0", to(far))
	c := w.caller(view{remotes: []topology.Remote{remote(1, far)}}, nil)
	if resp, _ := get(t, c.client(), checkoutURL); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	waitFor(t, "a session", func() bool { return c.counter("isthmus_sessions") == 1 })
	far.bundles.Remove(eu)
	waitFor(t, "the session's end", func() bool { return c.counter("isthmus_sessions") == 0 })
	if resp, body := get(t, c.client(), checkoutURL); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
}

// TestInboundRoutesBySNI: Host chooses nothing.
func TestInboundRoutesBySNI(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	c, err := tls.Dial("tcp", near.inbound.String(), trust.ClientConfig(trust.TLS{
		Identity: w.issue(must(trust.WorkloadID(eu, "shop", "web"))), Bundles: w.bundles(), Policy: trust.AllowAny(),
		Protocols: []string{"http/1.1"}, ServerName: preamble.ServerName(checkout, 80, netip.Addr{}),
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	r := bufio.NewReader(c)
	for _, f := range []struct {
		host string
		want int
	}{
		{"whatever", 200},
		{"checkout.shop.svc.cluster.local", 200},
		{"cart.shop.svc.clusterset.local", 421},
		{"cart.shop.svc.clusterset.local:80", 421},
	} {
		if _, err = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", f.host); err != nil {
			t.Fatal(err)
		}
		resp, readErr := http.ReadResponse(r, nil)
		if readErr != nil {
			t.Fatal(readErr)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != f.want {
			t.Errorf("Host %s: %d, want %d", f.host, resp.StatusCode, f.want)
		}
	}
	// The service goes: what was a session to it is one no more.
	near.snapshots.Store(topology.NewSnapshot(topology.SnapshotSpec{Self: near.snapshots.Load().Self()}))
	if _, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != 421 || resp.Header.Get(headerOutcome) != outcomeUnsent {
		t.Errorf("got %v", resp)
	}
}

// TestNodeProxy: several copies behind one address; one that is down costs nothing.
func TestNodeProxy(t *testing.T) {
	w := newWorld(t)
	_, one := serveApp(t, answering("one"))
	_, two := serveApp(t, answering("two"))
	gone := listenTCP(t)
	_ = gone.Close()
	node := w.server(eu, "node-0", topology.HTTP, one, addrOf(gone), two)
	e := node.endpoint("node-0")
	e.Capacity, e.StandIn = 3, true
	c := w.caller(view{endpoints: []topology.Endpoint{e}}, nil)
	client := c.client()
	var got []string
	for range 60 {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL, strings.NewReader("body"))
		resp, body := do(t, client, req)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
		got = append(got, body)
	}
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, []string{"one /", "two /"}) {
		t.Errorf("answers of %q", got)
	}
	if n := c.counter("isthmus_retries_total"); n != 0 {
		t.Errorf("%v retries", n)
	}
}
