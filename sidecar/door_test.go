package sidecar

import (
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// TestDoorMakesRoom: whoever says nothing is shown out for whoever comes, the oldest first.
func TestDoorMakesRoom(t *testing.T) {
	var d door
	var silent []net.Conn
	for range maxHandshakes {
		near, far := net.Pipe()
		silent = append(silent, far)
		d.knock(near)
	}
	near, far := net.Pipe()
	done := d.knock(near)
	if _, err := silent[0].Read(make([]byte, 1)); err == nil {
		t.Error("the oldest is still there")
	}
	go func() { _, _ = far.Write([]byte("x")) }()
	if _, err := near.Read(make([]byte, 1)); err != nil {
		t.Errorf("the newest was shown out: %v", err)
	}
	done()
	if n := d.waiting.Len(); n != maxHandshakes-1 {
		t.Errorf("%d wait, want %d", n, maxHandshakes-1)
	}
}

// TestDoorKeepsRoomForOthers: one caller can't hold every session.
func TestDoorKeepsRoomForOthers(t *testing.T) {
	var d door
	greedy, modest := must(trust.WorkloadID(us, "shop", "greedy")), must(trust.WorkloadID(eu, "shop", "web"))
	var leave []func()
	for {
		g, l := d.enter(greedy)
		if g == nil {
			break
		}
		leave = append(leave, l)
	}
	if len(leave) != maxFromCaller {
		t.Errorf("one caller got %d sessions, want %d", len(leave), maxFromCaller)
	}
	if g, _ := d.enter(modest); g == nil {
		t.Error("another caller did not get in")
	}
	leave[0]()
	leave[0]() // again does nothing
	if g, _ := d.enter(greedy); g == nil {
		t.Error("what has left still counts")
	}
	for _, l := range leave[1:] {
		l()
	}
	if n := d.inside[greedy].sessions; n != 1 || d.total != 2 {
		t.Errorf("%d of the caller, %d in all are left", n, d.total)
	}
	// Callers that come and go leave nothing behind, however many a peer's authority makes up.
	var other door
	for range 3 {
		_, gone := other.enter(modest)
		gone()
	}
	if len(other.inside) != 0 {
		t.Errorf("%d callers are remembered", len(other.inside))
	}
}

// TestDoorSharesRequests: one caller can't hold every request.
func TestDoorSharesRequests(t *testing.T) {
	var d door
	greedy, _ := d.enter(must(trust.WorkloadID(us, "shop", "greedy")))
	modest, _ := d.enter(must(trust.WorkloadID(eu, "shop", "web")))
	for range maxRequestsFrom {
		if !d.ask(greedy) {
			t.Fatal("refused below its share")
		}
	}
	if d.ask(greedy) {
		t.Error("one caller got more than its share")
	}
	d.answered(greedy)
	if !d.ask(modest) {
		t.Error("another caller was refused")
	}
	if n := d.requests.Load(); n != maxRequestsFrom+1 {
		t.Errorf("%d are counted", n)
	}
}

// TestOverload: a copy that carries as much as it may sends a request elsewhere, whatever its method, and lets it through afterwards.
func TestOverload(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	_, there := serveApp(t, answering("us"))
	near, far := w.server(eu, "checkout", topology.HTTP, here), w.server(us, "checkout", topology.HTTP, there)
	w.gateway("gateway-0", to(far))
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, far)}}, nil)
	post := func() string {
		resp, err := c.client().Post(checkoutURL, "text/plain", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, _ := io.ReadAll(resp.Body)
		return string(body)
	}
	near.Sidecar.inbound.door.requests.Add(maxRequests)
	if got := post(); got != "us /" {
		t.Errorf("while the near copy is full: %q", got)
	}
	near.Sidecar.inbound.door.requests.Add(-maxRequests)
	if got := post(); got != "eu /" {
		t.Errorf("afterwards: %q", got)
	}
}

// TestOneRequestEjectsNobody: a request that no copy can answer says nothing against the copies.
func TestOneRequestEjectsNobody(t *testing.T) {
	w := newWorld(t)
	breaking := tcpApp(t, func(c *net.TCPConn) { _, _ = c.Read(make([]byte, 1)) })
	near := w.server(eu, "checkout", topology.HTTP, breaking)
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
	if resp, _ := get(t, c.client(), checkoutURL); resp.StatusCode != http.StatusServiceUnavailable {
		t.Fatalf("got %s", resp.Status)
	}
	if evidence, _ := c.outbound.health.Evidence(); len(evidence) != 0 {
		t.Errorf("ejected: %v", evidence)
	}
	for range 2 { // three requests are
		_, _ = get(t, c.client(), checkoutURL)
	}
	if evidence, _ := c.outbound.health.Evidence(); len(evidence) != 1 {
		t.Errorf("ejected after three requests: %v", evidence)
	}
}
