//go:build linux

package control_test

import (
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/trust"
)

// Who shares a root is named, and nobody is shut out: a peer could shut out another otherwise. The verifier sees to the rest.
func TestSharedRoots(t *testing.T) {
	_, ours := makeCA(t, nil, nil, nil)
	_, shared := makeCA(t, nil, nil, nil)
	_, alone := makeCA(t, nil, nil, nil)
	view := func(cluster string, roots ...*x509.Certificate) *federation.View {
		return &federation.View{
			Cluster: clusterName(t, cluster), Domain: spiffeid.RequireTrustDomainFromString(cluster + ".example"), Freshness: federation.Fresh,
			Bundle: trust.Bundle{Authorities: roots}, NotAfter: time.Now().Add(time.Hour),
		}
	}
	views := []*federation.View{view("ap", shared), view("de", ours, alone), view("eu", shared), view("sa", alone)}
	objects := new(control.Objects)
	for _, v := range views {
		objects.Peers = append(objects.Peers, control.ClusterPeer{
			Meta: control.Meta{Name: v.Cluster.String()}, Cluster: v.Cluster, Domain: v.Domain, RootFingerprint: v.Cluster.String(), BusKey: v.Cluster.String(),
		})
	}
	scene := control.Scene{
		Self:  control.Self{Cluster: clusterName(t, "us"), Domain: usDomain},
		Trust: trust.Bundle{Authorities: []*x509.Certificate{ours}}, Objects: objects, Views: views, CIDR: control.DefaultClusterSetCIDR, Named: true,
	}
	w, err := control.Build(scene)
	if err != nil {
		t.Fatal(err)
	}
	trusted := func(td string) bool {
		for _, r := range w.Resources {
			if r.GetKey() == "bundle/"+td {
				return true
			}
		}
		return false
	}
	for td, want := range map[string]bool{"ap.example": true, "de.example": true, "eu.example": true, "sa.example": true} {
		if trusted(td) != want {
			t.Errorf("%s trusted: %v", td, !want)
		}
	}
	said := func(part string) bool {
		return slices.ContainsFunc(w.Problems, func(p control.Problem) bool { return strings.Contains(p.Reason, part) })
	}
	if !said("de.example has a root that us.example has too") || !said("eu.example has a root that ap.example has too") {
		t.Errorf("problems: %+v", w.Problems)
	}
	// Where no CA here says whose it is, whoever tells our root as its own would have the verifier refuse all that is issued here.
	scene.Named = false
	if w, err = control.Build(scene); err != nil {
		t.Fatal(err)
	}
	for td, want := range map[string]bool{"ap.example": true, "de.example": false, "eu.example": true, "sa.example": true} {
		if trusted(td) != want {
			t.Errorf("%s trusted, and the own SVIDs are anybody's: %v", td, !want)
		}
	}
	if !said("de.example has a root that is this cluster's own too") {
		t.Errorf("problems: %+v", w.Problems)
	}
}
