package sidecar

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/isthmus-mesh/isthmus/topology"
)

func TestExplain(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, near)}}, nil)
	q, err := ParseQuery("checkout.shop", "")
	if err != nil {
		t.Fatal(err)
	}
	x := c.Explain(t.Context(), q)
	if len(x.Rows) != 2 || x.Error != nil || x.From.Workload != "shop/web" {
		t.Errorf("got %+v", x)
	}
	if b, err := json.Marshal(x); err != nil || !strings.Contains(string(b), `"endpoint":"checkout-0"`) {
		t.Errorf("%s, %v", b, err)
	}
	if x = c.Explain(t.Context(), must(ParseQuery("none.shop.svc.clusterset.local", "81"))); x.Error == nil || x.Error.Code != "unknown_service" || x.Port != 81 {
		t.Errorf("got %+v", x)
	}
	for _, bad := range [][2]string{{"", ""}, {"example.org.", "80"}, {"checkout.shop", "0"}, {"checkout.shop", "x"}} {
		if q, err := ParseQuery(bad[0], bad[1]); err == nil {
			t.Errorf("%q was read as %+v", bad, q)
		}
	}
}

// TestOneTrace: the application's own span, ours on both sides, and the preamble for the gateways are of one trace.
func TestOneTrace(t *testing.T) {
	w := newWorld(t)
	var got string
	_, there := serveApp(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get("Traceparent") })
	far := w.server(us, "checkout", topology.HTTP, there)
	g := w.gateway("gateway-0", to(far))
	c := w.caller(view{remotes: []topology.Remote{remote(1, far)}}, nil)
	const id = "0af7651916cd43dd8448eb211c80319c"
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, checkoutURL, nil)
	req.Header.Set("Traceparent", "00-"+id+"-b7ad6b7169203331-01")
	do(t, c.client(), req)
	waitFor(t, "spans", func() bool { return len(c.spans.Ended()) >= 2 && len(far.spans.Ended()) >= 1 })
	find := func(s *side, kind trace.SpanKind, prefix string) sdktrace.ReadOnlySpan {
		t.Helper()
		i := slices.IndexFunc(s.spans.Ended(), func(sp sdktrace.ReadOnlySpan) bool {
			return sp.SpanKind() == kind && strings.HasPrefix(sp.Name(), prefix)
		})
		if i < 0 {
			t.Fatalf("no span %q of %s", prefix, s.id)
		}
		return s.spans.Ended()[i]
	}
	client, session, server := find(c, trace.SpanKindClient, "GET"), find(c, trace.SpanKindClient, "open session"), find(far, trace.SpanKindServer, "GET")
	for _, s := range []sdktrace.ReadOnlySpan{client, session, server} {
		if s.SpanContext().TraceID().String() != id {
			t.Errorf("%s is of another trace", s.Name())
		}
	}
	if client.Parent().SpanID().String() != "b7ad6b7169203331" || server.Parent().SpanID() != client.SpanContext().SpanID() || session.Parent().SpanID() != client.SpanContext().SpanID() {
		t.Error("the spans are not each other's children")
	}
	if !strings.Contains(got, id+"-"+server.SpanContext().SpanID().String()) {
		t.Errorf("the application got %q", got)
	}
	if want := id + "-" + session.SpanContext().SpanID().String(); !strings.Contains(g.seen[0].Traceparent, want) {
		t.Errorf("the gateway got %q", g.seen[0].Traceparent)
	}
	for _, want := range []attribute.KeyValue{
		attribute.StringSlice("isthmus.path", []string{"eu/gateway-0", "us/gateway-0"}),
		attribute.String("isthmus.destination.cluster", "us"),
		attribute.String("isthmus.peer", far.id.String()),
		attribute.Int("http.response.status_code", 200),
	} {
		if !slices.ContainsFunc(client.Attributes(), func(kv attribute.KeyValue) bool {
			return kv.Key == want.Key && kv.Value.String() == want.Value.String()
		}) {
			t.Errorf("no %s=%s in %v", want.Key, want.Value.String(), client.Attributes())
		}
	}
}

func TestMetricsAndLogs(t *testing.T) {
	w := newWorld(t)
	c, _ := w.across(topology.HTTP, answering("us"))
	get(t, c.client(), checkoutURL)
	waitFor(t, "the request is counted", func() bool {
		return c.counter("isthmus_requests_total", "direction=outbound", "source_cluster=eu", "source_workload=shop/web",
			"destination_cluster=us", "destination_service=checkout.shop", "destination_port=80", "code=200", "error=") == 1
	})
	if log := c.logs.String(); !strings.Contains(log, "msg=request direction=outbound method=GET destination=checkout.shop.svc.clusterset.local port=80 target=us status=200") {
		t.Errorf("log %q", log)
	}
}

// TestManyCallers: the callers that are told apart are bounded.
func TestManyCallers(t *testing.T) {
	m := &metrics{callers: make(map[string]struct{})}
	for i := range 3 * maxCallers {
		m.caller(strings.Repeat("x", i))
	}
	if len(m.callers) != maxCallers || m.caller("one more") != "other" || m.caller("x") != "x" {
		t.Errorf("%d callers", len(m.callers))
	}
}

// TestSessions: requests share sessions; a service that is used much gets more of them, up to a bound.
func TestSessions(t *testing.T) {
	w := newWorld(t)
	_, there := serveApp(t, answering("us"))
	far := w.server(us, "checkout", topology.HTTP, there)
	g := w.gateway("gateway-0", to(far))
	c := w.caller(view{remotes: []topology.Remote{remote(10, far)}}, nil)
	client := c.client()
	get(t, client, checkoutURL)
	if n := g.streams(); n != 1 {
		t.Errorf("%d sessions for one request", n)
	}
	for range 100 {
		get(t, client, checkoutURL)
	}
	waitFor(t, "four sessions", func() bool { get(t, client, checkoutURL); return g.streams() == 4 })
	for range 50 {
		get(t, client, checkoutURL)
	}
	if n := g.streams(); n != 4 {
		t.Errorf("%d sessions", n)
	}
}

// TestServersChange: a session to somebody who should not answer any more carries no further request.
func TestServersChange(t *testing.T) {
	w := newWorld(t)
	_, a := serveApp(t, answering("old"))
	_, b := serveApp(t, answering("new"))
	before, after := w.server(us, "checkout", topology.HTTP, a), w.server(us, "checkout-v2", topology.HTTP, b)
	g := w.gateway("gateway-0", to(before))
	c := w.caller(view{remotes: []topology.Remote{remote(1, before)}}, nil)
	if _, body := get(t, c.client(), checkoutURL); body != "old /" {
		t.Fatal(body)
	}
	g.set(to(after))
	c.snapshots.Store(w.snapshot(view{remotes: []topology.Remote{remote(1, after)}}))
	if _, body := get(t, c.client(), checkoutURL); body != "new /" {
		t.Error(body)
	}
}

// TestAddressChange: a copy that came back elsewhere is called there.
func TestAddressChange(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("old"))
	_, there := serveApp(t, answering("new"))
	before, after := w.server(eu, "checkout", topology.HTTP, here), w.server(eu, "checkout", topology.HTTP, there)
	c := w.caller(view{endpoints: []topology.Endpoint{before.endpoint("checkout-0")}}, nil)
	if _, body := get(t, c.client(), checkoutURL); body != "old /" {
		t.Fatal(body)
	}
	c.snapshots.Store(w.snapshot(view{endpoints: []topology.Endpoint{after.endpoint("checkout-0")}}))
	if _, body := get(t, c.client(), checkoutURL); body != "new /" {
		t.Error(body)
	}
}

// TestDocumentation: every code, metric and header is in the reference.
func TestDocumentation(t *testing.T) {
	page, err := os.ReadFile("../docs/reference/sidecar.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"failure.go", "metrics.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`"(IST\d{4}|isthmus_[a-z_]+|Isthmus-[A-Z][a-z]+)"`).FindAllStringSubmatch(string(source), -1) {
			if !strings.Contains(string(page), name[1]) {
				t.Errorf("docs/reference/sidecar.md says nothing of %s", name[1])
			}
		}
	}
}

var _ io.Writer = (*buffer)(nil)
