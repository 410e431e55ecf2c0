package control_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

// BenchmarkBuild is what one change costs in a cluster of 1,000 services with two copies each, all exported, and a peer of the same
// size: all of it is computed anew.
func BenchmarkBuild(b *testing.B) {
	const services = 1000
	var text strings.Builder
	for i := range services {
		fmt.Fprintf(&text, `---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: svc-%[1]d}
spec: {selector: {app: "app-%[1]d", tier: prod}, ports: [{name: http, port: 80}]}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {namespace: shop, name: svc-%[1]d, creationTimestamp: "2026-01-01T00:00:00Z"}
`, i)
		for copies := range 2 {
			fmt.Fprintf(&text, `---
apiVersion: isthmus.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: w-%[1]d-%[2]d, labels: {app: "app-%[1]d", tier: prod}}
spec: {address: 10.0.%[2]d.1, sidecar: {inboundPort: 9443}}
`, i, copies)
		}
	}
	us, err := topology.ParseClusterName("us")
	if err != nil {
		b.Fatal(err)
	}
	eu, err := topology.ParseClusterName("eu")
	if err != nil {
		b.Fatal(err)
	}
	scene := control.Scene{
		Self:    control.Self{Cluster: eu, Domain: spiffeid.RequireTrustDomainFromString("eu.example")},
		CIDR:    netip.MustParsePrefix("241.0.0.0/8"),
		Objects: new(control.Objects), Complete: true,
	}
	addManifest(b, scene.Objects, txtar.File{Name: "all.yaml", Data: []byte(text.String())})
	view := &federation.View{Cluster: us, Domain: spiffeid.RequireTrustDomainFromString("us.example"), Freshness: federation.Fresh}
	for i := range scene.Objects.Services {
		view.Exports = append(view.Exports, federation.Export{
			Name: scene.Objects.Services[i].ID, Type: federation.ClusterSetIP, Ports: []federation.Port{{Name: "http", Number: 80}},
			Servers: []spiffeid.ID{spiffeid.RequireFromString("spiffe://us.example/ns/shop/sa/default")},
		})
	}
	scene.Views = []*federation.View{view}
	scene.Objects.Peers = []control.ClusterPeer{{Cluster: us, Domain: view.Domain}}
	run := func(b *testing.B) {
		b.Helper()
		for b.Loop() {
			built, err := control.Build(scene)
			if err != nil {
				b.Fatal(err)
			}
			if len(built.Imports) != services {
				b.Fatal(len(built.Imports))
			}
			configstream.NewWorld(built.Resources)
		}
	}
	b.Run("open", run)
	// One policy for all of them, and one for each.
	for i := range services + 1 {
		p := control.AccessPolicy{Meta: control.Meta{Kind: "AccessPolicy", Namespace: "shop", Name: fmt.Sprintf("p-%d", i)}}
		if i > 0 {
			p.Selects.Labels = map[string]string{"app": fmt.Sprintf("app-%d", i-1)}
		}
		for r := range 10 {
			p.Rules = append(p.Rules, control.AccessRule{
				Name: fmt.Sprintf("r-%d", r), From: []control.Caller{{Clusters: []string{"us", topology.Same}, Source: access.Source{Namespaces: []string{"shop"}}}},
				To: []access.Operation{{Methods: []string{"GET"}, Paths: []access.Pattern{{Text: fmt.Sprintf("/%d/", r), Kind: access.Prefix}}}},
			})
		}
		scene.Objects.Access = append(scene.Objects.Access, p)
	}
	b.Run("policies", run)
}
