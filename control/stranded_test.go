package control_test

import (
	"net/netip"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// TestStrandedCopies: copies that nobody can call are told of where somebody means them to be called.
func TestStrandedCopies(t *testing.T) {
	name, err := topology.NewServiceName("shop", "web")
	if err != nil {
		t.Fatal(err)
	}
	eu, err := topology.ParseClusterName("eu")
	if err != nil {
		t.Fatal(err)
	}
	self := control.Self{Cluster: eu, Domain: spiffeid.RequireTrustDomainFromString("eu.example")}
	meta := control.Meta{Kind: "Service", Namespace: "shop", Name: "web"}
	for title, c := range map[string]struct {
		change func(*control.Objects)
		want   int
	}{
		"in a cluster, for nobody": {func(*control.Objects) {}, 0},
		"in a file":                {func(o *control.Objects) { o.Services[0].File = "web.yaml" }, 1},
		"exported": {func(o *control.Objects) {
			o.Exports = []control.ServiceExport{{Meta: meta, Service: name}}
		}, 1},
		"beside one in the mesh": {func(o *control.Objects) {
			o.Workloads = []control.Workload{{
				Meta: control.Meta{Kind: "Pod", Namespace: "shop", Name: "web-0"}, Labels: map[string]string{"app": "web"},
				ServiceAccount: "web", Address: netip.MustParseAddr("10.0.0.2"), Ready: true, Inbound: 15008,
			}}
		}, 1},
	} {
		t.Run(title, func(t *testing.T) {
			objects := &control.Objects{
				Services: []control.Service{{
					Meta: meta, ID: name, Selector: map[string]string{"app": "web"},
					Ports: []control.ServicePort{{Number: 80, Transport: federation.TCP, TargetNumber: 8080}},
				}},
				Slices: []control.EndpointSlice{{
					Meta: control.Meta{Kind: "EndpointSlice", Namespace: "shop", Name: "web-1"}, Service: name,
					Ports:     []control.SlicePort{{Number: 8080, Transport: federation.TCP}},
					Endpoints: []control.SliceEndpoint{{Address: netip.MustParseAddr("10.0.0.1"), Ready: true}},
				}},
			}
			c.change(objects)
			built := build(t, control.Scene{Self: self, CIDR: control.DefaultClusterSetCIDR, Objects: objects})
			if len(built.Problems) != c.want {
				t.Errorf("problems %v, want %d", built.Problems, c.want)
			}
		})
	}
}
