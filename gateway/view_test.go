package gateway

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/topology"
)

func TestWhoIsAPeersGateway(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString
	gateways := func(ids ...string) (out []topology.Gateway) {
		for _, id := range ids {
			out = append(out, topology.Gateway{ID: id, Identity: spiffeid.RequireFromString(id)})
		}
		return out
	}
	v := newView(topology.NewSnapshot(topology.SnapshotSpec{
		Self: topology.Self{Cluster: clusterName("eu"), Domain: td("eu.test")},
		Clusters: []*topology.Cluster{
			{Name: clusterName("us"), Domain: td("us.test"), Gateways: gateways("spiffe://us.test/isthmus/gateway/a", "spiffe://us.test/isthmus/gateway/b")},
			{Name: clusterName("ap"), Domain: td("ap.test")},
			{Name: clusterName("odd"), Domain: td("odd.test"), Gateways: gateways("spiffe://us.test/isthmus/gateway/c")},
			{Name: clusterName("one"), Domain: td("shared.test"), Gateways: gateways("spiffe://shared.test/isthmus/gateway/one")},
			{Name: clusterName("two"), Domain: td("shared.test")},
			{Name: clusterName("own"), Domain: td("eu.test")},
		},
	}), "gateway-0")
	for id, want := range map[string]string{
		"spiffe://us.test/isthmus/gateway/a":       "us",
		"spiffe://us.test/isthmus/gateway/b":       "us",
		"spiffe://us.test/isthmus/gateway/new":     "", // not named yet
		"spiffe://us.test/isthmus/gateway/c":       "", // named by another cluster, whose domain it isn't of
		"spiffe://ap.test/isthmus/gateway/first":   "ap",
		"spiffe://odd.test/isthmus/gateway/x":      "",
		"spiffe://shared.test/isthmus/gateway/one": "one",
		"spiffe://shared.test/isthmus/gateway/two": "",
		"spiffe://eu.test/isthmus/gateway/a":       "",
		"spiffe://elsewhere.test/x":                "",
	} {
		if c, ok := v.peer(spiffeid.RequireFromString(id)); c.String() != want || ok != (want != "") {
			t.Errorf("%s is of %q (%t), want %q", id, c, ok, want)
		}
	}
}

// connectionsFrom returns how many connections of a peer cluster's gateways the gateway has.
func (g *testGateway) connectionsFrom(c *testCluster) int {
	g.Gateway.mu.Lock()
	defer g.Gateway.mu.Unlock()
	return g.accepted[c.name]
}

// A gateway is a peer's when the configuration says so: not before, at once then, and no longer than that.
func TestGatewaysComeAndGoWithTheirName(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1)
		each := us[0].cfg.ConnectionsPerPeer
		us[0].up("eu", each)

		away := us[0].c
		away.hidden["gateway-1"] = true
		late := away.gateway("gateway-1")
		w.publish()
		time.Sleep(10 * time.Second)
		if n := len((*late.links.Load())[eu.c.name].live()); n != 0 {
			t.Errorf("a gateway that nobody named has %d connections", n)
		}
		us[0].up("eu", each)

		// It dials again: it need not be told.
		delete(away.hidden, "gateway-1")
		w.publish()
		time.Sleep(maxBackoff + time.Second)
		late.up("eu", each)
		us[0].up("eu", each)

		// What was removed loses its connections, the other doesn't; and it doesn't come back.
		away.hidden["gateway-1"] = true
		w.publish()
		time.Sleep(time.Second)
		if n := len((*late.links.Load())[eu.c.name].live()); n != 0 {
			t.Errorf("a gateway that was removed has %d connections", n)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := eu.connectionsFrom(away); n != each {
			t.Errorf("%d connections from us, want the %d of its other gateway", n, each)
		}
		us[0].up("eu", each)
		late.stop()
	})
}

// As long as no gateway of a peer is named, its domain says enough: both sides start in any order.
func TestThePeersFirstGateway(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		home, away := w.cluster("eu"), w.cluster("us")
		eu := home.gateway("gateway-0")
		away.hidden["gateway-0"] = true
		us := away.gateway("gateway-0")
		w.publish()
		us.up("eu", us.cfg.ConnectionsPerPeer)

		// Another one is named, and it still isn't.
		away.gateway("gateway-1")
		w.publish()
		time.Sleep(10 * time.Second)
		if n := len((*us.links.Load())[eu.c.name].live()); n != 0 {
			t.Errorf("a gateway that isn't named beside one that is has %d connections", n)
		}

		delete(away.hidden, "gateway-0")
		w.publish()
		time.Sleep(maxBackoff + time.Second)
		us.up("eu", us.cfg.ConnectionsPerPeer)
	})
}
