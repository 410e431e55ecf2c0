package control

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// TestAbsence: an export whose Service is declared and not understood says so, and why.
func TestAbsence(t *testing.T) {
	w := &world{in: inputs{objects: &Objects{Problems: []Problem{{Object: "Service shop/pay", Reason: "spec.ports[0].protocol: SCTP is not carried"}}}}}
	for name, want := range map[string]string{
		"pay": "Service shop/pay is not in force: spec.ports[0].protocol: SCTP is not carried", "gone": "there is no Service shop/gone",
	} {
		if got := w.absence(&ServiceExport{Meta: Meta{Namespace: "shop", Name: name}}); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestPeerConditions: a ClusterPeer is Ready while its cluster's word is fresh, and says what it is otherwise.
func TestPeerConditions(t *testing.T) {
	peer := func(name string) ClusterPeer {
		cluster, err := topology.ParseClusterName(name)
		if err != nil {
			t.Fatal(err)
		}
		return ClusterPeer{Meta: Meta{Kind: "ClusterPeer", Name: name}, Cluster: cluster, Domain: spiffeid.RequireTrustDomainFromString(name + ".test")}
	}
	fresh, stale, torn, silent, doubled := peer("fresh"), peer("stale"), peer("torn"), peer("silent"), peer("doubled")
	w := &world{
		in: inputs{objects: &Objects{Peers: []ClusterPeer{doubled, fresh, silent, stale, torn}}, views: []*federation.View{
			{Cluster: fresh.Cluster, Domain: fresh.Domain, Freshness: federation.Fresh},
			{Cluster: stale.Cluster, Domain: stale.Domain, Freshness: federation.Stale, Reason: "no newer head has come"},
			{Cluster: torn.Cluster, Domain: torn.Domain, Freshness: federation.Fresh, Quarantined: true, Reason: "it told two stories: x"},
		}},
		peers:    []ClusterPeer{fresh, silent, stale, torn},
		problems: []Problem{{Object: "ClusterPeer doubled", Reason: "spec.bus.key: is that of ClusterPeer fresh too"}},
	}
	var got []string
	for _, p := range w.peerConditions() {
		c := p.Conditions[0]
		got = append(got, fmt.Sprintf("%s %s=%s %s %s", p.Peer.Name, c.Type, c.Status, c.Reason, c.Message))
	}
	want := []string{
		"doubled Ready=False NotInForce spec.bus.key: is that of ClusterPeer fresh too",
		"fresh Ready=True Fresh ",
		"silent Ready=False Waiting " + peerStates["Waiting"],
		"stale Ready=False Stale " + peerStates["Stale"] + ": no newer head has come",
		"torn Ready=False Quarantined it told two stories: x",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
