package sidecar

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/topology"
)

// TestStandby: a service that is called has a session open to where its requests would go next, which has seen none of them; one that isn't
// called has none. When the copy that answered is gone, nobody waits for a handshake.
func TestStandby(t *testing.T) {
	w := newWorld(t)
	near, far := &ledger{name: "near"}, &ledger{name: "far"}
	_, a := serveApp(t, near.ServeHTTP)
	_, b := serveApp(t, far.ServeHTTP)
	first, second := w.server(eu, "checkout", topology.HTTP, a), w.server(us, "checkout", topology.HTTP, b)
	g := w.gateway("gateway-0", to(second))
	caller := w.caller(view{endpoints: []topology.Endpoint{first.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, second)}}, nil)
	caller.outbound.resolver.keepStandby()
	if n := g.streams(); n != 0 {
		t.Fatalf("%d streams for a service that nobody calls", n)
	}
	client := caller.client()
	get(t, client, checkoutURL+"?id=1")
	waitFor(t, "a standby session", func() bool { return caller.counter("isthmus_sessions", "destination_cluster=us") == 1 })
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	if _, body := get(t, client, checkoutURL+"?id=2"); body[:4] != "far " || far.times("1") != 0 {
		t.Errorf("answered %q", body)
	}
	if n := g.streams(); n != 1 {
		t.Errorf("%d streams: the standby session was not used", n)
	}
}

// TestLeftWhileDialing: a request that waits for a session to a copy that is given up meanwhile goes elsewhere, whatever its method: nothing of it was
// sent.
func TestLeftWhileDialing(t *testing.T) {
	w := newWorld(t)
	far := &ledger{name: "far"}
	_, b := serveApp(t, far.ServeHTTP)
	_, a := serveApp(t, far.ServeHTTP)
	mute, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mute.Close() })
	near := w.server(eu, "checkout", topology.HTTP, a).endpoint("checkout-0")
	near.Address = netip.MustParseAddrPort(mute.Addr().String())
	second := w.server(us, "checkout", topology.HTTP, b)
	w.gateway("gateway-0", to(second))
	caller := w.caller(view{endpoints: []topology.Endpoint{near}, remotes: []topology.Remote{remote(1, second)}}, nil)
	answered := make(chan string, 1)
	go func() {
		_, body := post(t, caller.client(), checkoutURL+"?id=1")
		answered <- body
	}()
	c, err := mute.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	caller.outbound.failed(topology.Target{Service: checkout, Port: 80, Cluster: cluster("eu"), Endpoint: "checkout-0"}, balance.Refused, errors.New("gone"))
	if body := <-answered; !strings.HasPrefix(body, "far ") {
		t.Errorf("answered %q", body)
	}
	if n := caller.counter("isthmus_session_dials_total", "result=failed"); n != 0 {
		t.Error("it waited until the session could not be opened")
	}
}

// TestStandbyForWhom: which destinations have a standby session, and where to.
func TestStandbyForWhom(t *testing.T) {
	w := newWorld(t)
	near, us1 := w.server(eu, "checkout", topology.HTTP, netip.MustParseAddrPort("127.0.0.1:1")), w.server(us, "checkout", topology.HTTP, netip.MustParseAddrPort("127.0.0.1:1"))
	own, away := []topology.Endpoint{near.endpoint("checkout-0")}, []topology.Remote{remote(1, us1)}
	q := topology.Query{Service: checkout, Port: 80}
	evidence := func(s *side, where, endpoint string) {
		s.outbound.health.Failed(time.Now(), topology.Target{Service: checkout, Port: 80, Cluster: cluster(where), Endpoint: endpoint}, balance.Refused, "x")
	}
	for name, c := range map[string]struct {
		view  view
		spoil func(*side)
		want  string // a cluster
	}{
		"the next tier":             {view: view{endpoints: own, remotes: away}, want: "us"},
		"nowhere else":              {view: view{remotes: away}},
		"what failed is no way out": {view: view{endpoints: own, remotes: away}, spoil: func(s *side) { evidence(s, "us", "") }},
		"all failed":                {view: view{endpoints: own, remotes: away}, spoil: func(s *side) { evidence(s, "us", ""); evidence(s, "eu", "checkout-0") }},
	} {
		t.Run(name, func(t *testing.T) {
			s := w.caller(c.view, nil)
			if c.spoil != nil {
				c.spoil(s)
			}
			p, err := s.outbound.resolver.plan(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if c, ok := p.standby(); ok {
				got = c.candidate.Cluster.String()
			}
			if got != c.want {
				t.Errorf("standby to %q, want %q", got, c.want)
			}
		})
	}
}
