package sidecar

import (
	"bufio"
	"crypto/tls"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

func TestTimeoutOf(t *testing.T) {
	for _, c := range []struct {
		grpc, within, upgrade string
		want                  time.Duration
	}{
		{},
		{grpc: "100m", want: 100 * time.Millisecond},
		{grpc: "2S", want: 2 * time.Second},
		{grpc: "99999999n", want: 99999999},
		{grpc: "24H", want: 24 * time.Hour},
		{grpc: "25H"},
		{grpc: "99999999H"},
		{grpc: "123456789m"},
		{grpc: "m"},
		{grpc: "-1S"},
		{grpc: "+1S"},
		{grpc: "1"},
		{grpc: "1x"},
		{within: "250", want: 250 * time.Millisecond},
		{within: "0"},
		{within: "1e3"},
		{within: "99999999"},
		{grpc: "1S", within: "250", want: 250 * time.Millisecond},
		{grpc: "1S", within: "2500", want: time.Second},
		{within: "250", upgrade: "websocket"},
	} {
		h := http.Header{}
		for name, v := range map[string]string{headerGRPCTimeout: c.grpc, headerWithin: c.within, "Upgrade": c.upgrade} {
			if v != "" {
				h.Set(name, v)
			}
		}
		if got := timeoutOf(h); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

func FuzzTimeout(f *testing.F) {
	for _, seed := range []string{"", "1S", "99999999H", "250", "\x00m", "٣S"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, v string) {
		for _, d := range []time.Duration{grpcTimeout(v), millisecondsOf(v)} {
			if d < 0 || d > maxTimeout {
				t.Errorf("%q is %s", v, d)
			}
		}
	})
}

// TestDeadline: the caller's deadline goes along, shortened, and both ends keep it.
func TestDeadline(t *testing.T) {
	w := newWorld(t)
	called, gaveUp := make(chan http.Header, 10), make(chan struct{}, 10)
	_, app := serveApp(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // net/http looks for the end of a connection only then
		called <- r.Header.Clone()
		if r.URL.Path == "/quick" {
			_, _ = io.WriteString(w, "ok")
			return
		}
		<-r.Context().Done()
		gaveUp <- struct{}{}
	})
	near := w.server(eu, "checkout", topology.HTTP, app)
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
	client := c.client()
	ask := func(path string, header http.Header) (heard, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, strings.TrimSuffix(checkoutURL, "/")+path, strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		return do(t, client, req)
	}
	t.Run("in time", func(t *testing.T) {
		ask("/quick", http.Header{headerWithin: {"20000"}, headerTimeout: {"1"}, headerGRPCTimeout: {"30S"}})
		h := <-called
		ms, err := strconv.Atoi(h.Get(headerExpected))
		if err != nil || ms < 1 || ms > 20000 || h.Get(headerGRPCTimeout) != h.Get(headerExpected)+"m" || h.Get(headerTimeout) != "" {
			t.Errorf("the application was told %v", h)
		}
	})
	t.Run("none", func(t *testing.T) {
		ask("/quick", http.Header{headerTimeout: {"1"}})
		if h := <-called; h.Get(headerExpected) != "" || h.Get(headerTimeout) != "" {
			t.Errorf("the application was told %v", h)
		}
	})
	t.Run("too late", func(t *testing.T) {
		resp, body := ask("/slow", http.Header{headerWithin: {"100"}})
		if code := Code(resp.Header.Get(headerError)); resp.StatusCode != http.StatusGatewayTimeout || code != CodeDeadline && code != CodeAppLate { // whoever is first
			t.Errorf("got %d %v %q", resp.StatusCode, resp.Header, body)
		}
		<-called
		<-gaveUp
	})
	t.Run("gRPC", func(t *testing.T) {
		resp, _ := ask("/slow", http.Header{headerGRPCTimeout: {"100m"}, "Content-Type": {"application/grpc"}})
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Grpc-Status") != "4" {
			t.Errorf("got %d %v", resp.StatusCode, resp.Header)
		}
		<-called
		<-gaveUp
	})
	t.Run("the called side gives up by itself", func(t *testing.T) {
		conn, err := tls.Dial("tcp", near.inbound.String(), trust.ClientConfig(trust.TLS{
			Identity: w.issue(must(trust.WorkloadID(eu, "shop", "web"))), Bundles: w.bundles(), Policy: trust.AllowAny(),
			Protocols: []string{"http/1.1"}, ServerName: preamble.ServerName(checkout, 80, netip.Addr{}),
		}))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, err = io.WriteString(conn, "GET /slow HTTP/1.1\r\nHost: a\r\nIsthmus-Timeout: 100\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusGatewayTimeout || resp.Header.Get(headerError) != string(CodeAppLate) || resp.Header.Get(headerOutcome) != "" {
			t.Errorf("got %d %v", resp.StatusCode, resp.Header)
		}
		<-called
		<-gaveUp
	})
}

// TestDeadlineNear: what can't end in time is not begun.
func TestDeadlineNear(t *testing.T) {
	w := newWorld(t)
	bad, far := &ledger{name: "bad", before: func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("id") == "x" {
			panic(http.ErrAbortHandler)
		}
	}}, &ledger{name: "far"}
	_, a := serveApp(t, bad.ServeHTTP)
	_, b := serveApp(t, far.ServeHTTP)
	first, second := w.server(eu, "checkout", topology.HTTP, a), w.server(us, "checkout", topology.HTTP, b)
	w.gateway("gateway-0", to(second))
	c := w.caller(view{endpoints: []topology.Endpoint{first.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, second)}}, nil)
	c.outbound.pace.Heard(time.Now(), topology.Target{Service: checkout, Port: 80, Cluster: cluster("us")}, time.Hour)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, checkoutURL+"?id=x", nil)
	req.Header.Set(headerWithin, "20000")
	resp, body := do(t, c.client(), req)
	if resp.StatusCode != http.StatusGatewayTimeout || resp.Header.Get(headerError) != string(CodeDeadline) || !strings.Contains(body, "too near") || far.times("x") != 0 {
		t.Errorf("got %d %q; the other copy saw it %d times", resp.StatusCode, body, far.times("x"))
	}
	req, _ = http.NewRequestWithContext(t.Context(), http.MethodGet, checkoutURL+"?id=x", nil)
	if resp, body = do(t, c.client(), req); resp.StatusCode != http.StatusOK {
		t.Errorf("without a deadline: %d %q", resp.StatusCode, body)
	}
}

// TestDeadlineTooShort: deadlines that no answer could meet are no evidence against a copy of which no answer has been seen. Silence is.
func TestDeadlineTooShort(t *testing.T) {
	w := newWorld(t)
	_, a := serveApp(t, (&ledger{name: "a"}).ServeHTTP)
	s := w.server(eu, "checkout", topology.HTTP, a)
	o := w.caller(view{endpoints: []topology.Endpoint{s.endpoint("checkout-0")}}, nil).outbound
	ctx, cancel := within(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, checkoutURL, nil)
	p, err := o.resolver.plan(t.Context(), topology.Query{Service: checkout, Port: 80})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	f := &forwarding{outbound: o, request: req, selection: newSelection(p, o.health, func() time.Time { return now }, true)}
	for range 5 {
		f.ranOut(f.next(), now.Add(-time.Millisecond))
	}
	if evidence, _ := o.health.Evidence(); len(evidence) > 0 {
		t.Errorf("ejected: %v", evidence)
	}
	for range 5 {
		f.ranOut(f.next(), now.Add(-time.Second))
	}
	if evidence, _ := o.health.Evidence(); len(evidence) == 0 {
		t.Error("a silent copy is not ejected")
	}
}

func TestIsGRPC(t *testing.T) {
	for contentType, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc;x=y": true,
		"application/grpc-web": false, "application/grpc-web-text+proto": false, "application/json": false, "": false,
	} {
		r := &http.Request{Header: http.Header{"Content-Type": {contentType}}}
		if got := isGRPC(r); got != want {
			t.Errorf("%q: %t", contentType, got)
		}
	}
}
