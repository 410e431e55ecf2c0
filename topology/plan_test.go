package topology_test

import (
	"math"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/topology"
)

// equateComparable lets cmp compare values with private fields.
var equateComparable = cmp.Options{cmpopts.EquateComparable(topology.ClusterName{}, netip.Addr{}, topology.ServiceName{}, netip.AddrPort{}, topology.Self{}, topology.Target{}, spiffeid.ID{}, spiffeid.TrustDomain{})}

func planOf(portions ...float64) *topology.Plan {
	p := new(topology.Plan)
	for i, portion := range portions {
		p.Tiers = append(p.Tiers, topology.PlanTier{Name: string(rune('a' + i)), Portion: portion})
	}
	return p
}

func TestPlanWalk(t *testing.T) {
	almost := math.Nextafter(1, 0)
	for _, test := range []struct {
		name     string
		portions []float64
		u        float64
		want     string
	}{
		{"no tier", nil, 0.5, ""},
		{"all begin at the first", []float64{1, 0, 0}, almost, "abc"},
		{"spilt: begins at the first", []float64{0.7, 0.3, 0}, 0.69, "abc"},
		{"spilt: begins at the second, then the first", []float64{0.7, 0.3, 0}, 0.7, "bac"},
		{"begins where any may", []float64{0, 0, 1}, 0, "cab"},
		{"rounding doesn't fall off the end", []float64{0.1, 0.2, 0.6999999, 0}, almost, "cabd"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			for tier := range planOf(test.portions...).Walk(test.u) {
				got += tier.Name
			}
			if got != test.want {
				t.Errorf("walks %q, want %q", got, test.want)
			}
		})
	}
	t.Run("stops when told", func(t *testing.T) {
		for _, stop := range []int{1, 2} {
			n := 0
			for range planOf(0, 1, 0).Walk(0) {
				if n++; n == stop {
					break
				}
			}
			if n != stop {
				t.Errorf("%d tiers, want %d", n, stop)
			}
		}
	})
}

func TestPlanTierPick(t *testing.T) {
	tier := topology.PlanTier{Candidates: []topology.Candidate{{Share: 0.25}, {Share: 0.75}}}
	var got []int
	for _, u := range []float64{0, 0.24, 0.25, 0.99, 1, 2} {
		got = append(got, tier.Pick(u))
	}
	if want := []int{0, 0, 1, 1, 1, 1}; !slices.Equal(got, want) {
		t.Errorf("picks %v, want %v", got, want)
	}
}

func TestChooseSharesByWeight(t *testing.T) {
	const text = `
self a region=r
service s.n 80/http imported exported
  policy n/p
  tier - weights=a:70,b:30
  endpoint e0 10.0.0.1:1 ports=80
  endpoint e1 10.0.0.2:1 ports=80 capacity=3
  remote b ports=80 ready=1000
`
	plan, err := topology.Choose(parseSnapshot(t, text), topology.Query{Service: name(t, "s.n"), Port: 80}, topology.Load{})
	if err != nil {
		t.Fatal(err)
	}
	var got []float64
	for _, c := range plan.Tiers[0].Candidates {
		got = append(got, c.Share)
	}
	if diff := cmp.Diff([]float64{0.175, 0.525, 0.3}, got, cmpopts.EquateApprox(0, 1e-12)); diff != "" {
		t.Errorf("shares (-want +got):\n%s", diff)
	}
}

// A tier without a name is told by its number.
func TestChooseNamesTiers(t *testing.T) {
	service := &topology.Service{
		Name:      name(t, "s.n"),
		Ports:     []topology.Port{{Number: 80}},
		Endpoints: []topology.Endpoint{{ID: "e", Ports: []uint16{80}, Ready: true}},
		Policy:    &topology.Policy{Tiers: []topology.Tier{{Match: topology.Selector{Cluster: "b"}}, {}}},
	}
	s := topology.NewSnapshot(topology.SnapshotSpec{Self: topology.Self{Cluster: cluster(t, "a")}, Services: []*topology.Service{service}})
	plan, err := topology.Choose(s, topology.Query{Service: service.Name, Port: 80, Scope: topology.ClusterLocal}, topology.Load{})
	if err != nil || plan.Tiers[0].Name != "tier-2" {
		t.Errorf("tiers %+v, %v; want tier-2", plan.Tiers, err)
	}
}

// TestEvidenceIsOfAPort: that a copy failed on one port says nothing of another.
func TestEvidenceIsOfAPort(t *testing.T) {
	service := name(t, "checkout.shop")
	eu := cluster(t, "eu")
	s := topology.NewSnapshot(topology.SnapshotSpec{
		Self: topology.Self{Cluster: eu},
		Services: []*topology.Service{{
			Name: service, Ports: []topology.Port{{Number: 80, Protocol: topology.HTTP}, {Number: 7000, Protocol: topology.TCP}}, Imported: true, Exported: true,
			Endpoints: []topology.Endpoint{{ID: "a", Ports: []uint16{80, 7000}, Ready: true, Capacity: 1}, {ID: "b", Ports: []uint16{80, 7000}, Ready: true, Capacity: 1}},
		}},
	})
	load := topology.Load{Suspected: map[topology.Target]string{{Service: service, Port: 7000, Cluster: eu, Endpoint: "a"}: "broke off"}}
	for port, want := range map[uint16]int{80: 2, 7000: 1} {
		plan, err := topology.Choose(s, topology.Query{Service: service, Port: port}, load)
		if err != nil || len(plan.Tiers[0].Candidates) != want {
			t.Errorf("port %d: %d copies in the first tier, want %d; %v", port, len(plan.Tiers[0].Candidates), want, err)
		}
	}
}
