package sidecar

import (
	"errors"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// TestExporterDecides: whom the called workload's sidecar lets call what, whatever the caller names in its handshake.
func TestExporterDecides(t *testing.T) {
	own := must(trust.WorkloadID(eu, "shop", "web"))
	peer := must(trust.WorkloadID(us, "shop", "web"))
	stranger := must(trust.WorkloadID(spiffeid.RequireTrustDomainFromString("elsewhere.test"), "shop", "web"))
	for _, c := range []struct {
		name    string
		inbound *topology.Inbound
		caller  spiffeid.ID
		want    error
	}{
		{"own cluster, not exported", &topology.Inbound{Name: checkout}, own, nil},
		{"peer, not exported", &topology.Inbound{Name: checkout}, peer, errNotExported},
		{"peer, exported to all", &topology.Inbound{Name: checkout, Exported: true}, peer, nil},
		{"peer, in the audience", &topology.Inbound{Name: checkout, Exported: true, Audience: []topology.ClusterName{cluster("us")}}, peer, nil},
		{"peer, outside of the audience", &topology.Inbound{Name: checkout, Exported: true, Audience: []topology.ClusterName{cluster("ap")}}, peer, errNotExported},
		{"no peer's domain", &topology.Inbound{Name: checkout, Exported: true}, stranger, errNoPeer},
	} {
		k := &keeper{log: discard, snapshots: live.NewValue(topology.NewSnapshot(topology.SnapshotSpec{
			Self:     topology.Self{Cluster: cluster("eu"), Domain: eu},
			Clusters: []*topology.Cluster{{Name: cluster("us"), Domain: us}},
			Inbounds: []*topology.Inbound{c.inbound},
		}))}
		if err := k.present().authorize(c.caller, checkout); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	gateway := must(trust.GatewayID(us, "gateway-0"))
	if err := onlyCallers(trust.Peer{ID: gateway}); !errors.Is(err, errNoCaller) {
		t.Errorf("a gateway may call: %v", err)
	}
	if err := onlyCallers(trust.Peer{ID: peer}); err != nil {
		t.Error(err)
	}
}
