package control_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// TestStandInsAreBounded: a peer that tells of more copies than anybody has takes no more than its share of the clusterset range.
func TestStandInsAreBounded(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/build/headless.txtar")
	if err != nil {
		t.Fatal(err)
	}
	scene := readScene(t, archive)
	v := scene.Views[slices.IndexFunc(scene.Views, func(v *federation.View) bool { return v.Cluster.String() == "us" })]
	e := v.Exports[slices.IndexFunc(v.Exports, func(e federation.Export) bool { return e.Type == federation.Headless })]
	const services = 20
	for i := range services {
		more := e
		if more.Name, err = topology.NewServiceName("shop", fmt.Sprintf("more-%d", i)); err != nil {
			t.Fatal(err)
		}
		more.Endpoints = nil
		for n := range federation.MaxEndpoints {
			more.Endpoints = append(more.Endpoints, federation.Endpoint{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{172, 30, byte(i), byte(n)})}})
		}
		v.Exports = append(v.Exports, more)
	}
	built := build(t, scene)
	if !slices.ContainsFunc(built.Problems, func(p control.Problem) bool { return strings.Contains(p.Reason, "one cluster has at most 4096") }) {
		t.Errorf("%d copies, and no problem: %v", services*federation.MaxEndpoints, built.Problems)
	}
	if got := built.Hosts; got != 4096+1 { // one is another cluster's
		t.Errorf("%d copies have an address", got)
	}
}
