package topology_test

import (
	"math"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/topology"
)

// What the properties know by themselves, not from the code under test.

// place is what there is to know of a target.
type place struct {
	region, zone  string
	labels        map[string]string
	ports         []uint16
	copies, total float64
	ready         bool
	linkDown      bool
}

func (w world) place(target topology.Target) place {
	for _, e := range w.service.Endpoints {
		if target.Cluster == w.self.Cluster && e.ID == target.Endpoint {
			p := place{region: e.Locality.Region, zone: e.Locality.Zone, labels: e.Labels, ports: e.Ports, ready: e.Ready}
			if p.region == "" {
				p.region = w.self.Locality.Region
			}
			p.copies = float64(max(e.Capacity, 1))
			p.total = max(p.copies, float64(e.Total))
			return p
		}
	}
	for _, r := range w.service.Remotes {
		if r.Cluster == target.Cluster {
			p := place{labels: r.Labels, ports: r.Ports, ready: r.Ready > 0, copies: float64(r.Ready)}
			p.total = max(p.copies, float64(r.Total))
			for _, k := range w.clusters {
				if k.Name == r.Cluster {
					p.region, p.linkDown = k.Region, k.Link == topology.LinkDown
				}
			}
			return p
		}
	}
	panic("no such copy")
}

func (w world) matches(s topology.Selector, target topology.Target) bool {
	p := w.place(target)
	for _, f := range [...][3]string{{s.Cluster, w.self.Cluster.String(), target.Cluster.String()}, {s.Region, w.self.Locality.Region, p.region}, {s.Zone, w.self.Locality.Zone, p.zone}} {
		want := f[0]
		if want == topology.Same {
			want = f[1]
		}
		if f[0] != "" && (want == "" || want != f[2]) {
			return false
		}
	}
	for k, v := range s.Labels {
		if p.labels[k] != v {
			return false
		}
	}
	return true
}

// tier is the number of the policy's tier that a copy belongs to, or would if it were ready; -1: none.
func (w world) tier(target topology.Target) int {
	p, own := w.place(target), target.Cluster == w.self.Cluster
	served := false
	for _, port := range p.ports {
		served = served || port == w.query.Port
	}
	if !served || own && w.query.Scope == topology.ClusterSet && !w.service.Exported || !own && w.query.Scope == topology.ClusterLocal {
		return -1
	}
	for _, n := range w.service.Policy.Never {
		if w.matches(n, target) {
			return -1
		}
	}
	for i, t := range w.service.Policy.Tiers {
		if !w.matches(t.Match, target) {
			continue
		}
		if len(t.Weights) > 0 && t.Weights[target.Cluster.String()] == 0 {
			return -1
		}
		return i
	}
	return -1
}

// tierID is the tier of a policy, for its levels; empty without a policy.
func (w world) tierID(target topology.Target) topology.TierID {
	if w.service.Policy == nil {
		return ""
	}
	return topology.TierID(strconv.Itoa(w.tier(target) + 1))
}

func (w world) level(tier int, c topology.ClusterName) float64 {
	part := func(k topology.LevelKey) float64 {
		if l, ok := w.load.Levels[k]; ok {
			return l.Part
		}
		return 1
	}
	id := topology.TierID(strconv.Itoa(tier + 1))
	if c.IsZero() {
		return part(topology.LevelKey{Tier: id})
	}
	return part(topology.LevelKey{Tier: id, Cluster: c}) * part(topology.LevelKey{Cluster: c})
}

// reckon pours a million requests through the tiers of a policy and says how many each keeps.
func (w world) reckon(obey bool) map[int]float64 {
	type cluster struct{ healthy, total, level, weight float64 }
	b := float64(w.service.Policy.Spill.BelowHealthyPercent) / 100
	const million = 1e6
	offered, kept, all := million, make(map[int]float64), 0.0
	for i, tier := range w.service.Policy.Tiers {
		clusters := make(map[topology.ClusterName]cluster)
		usable := false
		for _, target := range w.targets() {
			if w.tier(target) != i {
				continue
			}
			p, c := w.place(target), clusters[target.Cluster]
			c.total += p.total
			_, ejected := w.load.Suspected[target]
			drained := w.load.Levels[topology.LevelKey{Cluster: target.Cluster}]
			_, drains := w.load.Levels[topology.LevelKey{Cluster: target.Cluster}]
			if p.ready && !p.linkDown && !ejected && (!drains || drained.Part > 0) {
				c.healthy += p.copies
				usable = true
			}
			c.level, c.weight = 1, float64(tier.Weights[target.Cluster.String()])
			if obey {
				c.level = w.level(i, target.Cluster)
			}
			clusters[target.Cluster] = c
		}
		if !usable {
			continue
		}
		highest, has, wants := 0.0, 0.0, 0.0
		for _, c := range clusters {
			if c.healthy > 0 {
				highest = math.Max(highest, c.level)
			}
			if len(tier.Weights) == 0 {
				has, wants = has+c.healthy*c.level, wants+c.total*b
			} else {
				if c.healthy > 0 && b == 0 {
					has += c.weight * c.level
				} else if c.healthy > 0 {
					has += c.weight * c.level * math.Min(1, c.healthy/c.total/b)
				}
				wants += c.weight
			}
		}
		takes := highest
		if b > 0 {
			takes = math.Min(takes, has/wants)
		}
		if obey {
			takes = math.Min(takes, w.level(i, topology.ClusterName{}))
		}
		kept[i] = offered * takes
		all += kept[i]
		offered -= kept[i]
	}
	if all == 0 {
		if obey {
			return w.reckon(false)
		}
		return nil
	}
	for i := range kept {
		kept[i] /= all
	}
	return kept
}

func portionsAreReckoned(t *rapid.T, w world) {
	if w.service.Policy == nil {
		return
	}
	want := w.reckon(true)
	plan, _ := w.choose()
	got := make(map[int]float64)
	for _, tier := range plan.Tiers {
		if tier.LastResort || tier.Drained {
			continue
		}
		got[w.tier(tier.Candidates[0].Target)] = tier.Portion
	}
	for i := range w.service.Policy.Tiers {
		if math.Abs(got[i]-want[i]) > epsilon {
			t.Fatalf("tier %d gets %v, and should %v (of %v and %v)", i+1, got[i], want[i], got, want)
		}
	}
}

// levelOfOne: of two clusters, one at full level, the other gets exactly its level's part of the share that it would have.
func levelOfOne(t *rapid.T, _ world) {
	a, b := rapid.IntRange(1, 9).Draw(t, "a"), rapid.IntRange(1, 9).Draw(t, "b")
	part := rapid.Float64Range(0, 1).Draw(t, "part")
	service := &topology.Service{
		Name: name(t, "svc.ns"), Ports: []topology.Port{{Number: 80}}, Imported: true,
		Remotes: []topology.Remote{{Cluster: cluster(t, "c1"), Ports: []uint16{80}, Ready: a}, {Cluster: cluster(t, "c2"), Ports: []uint16{80}, Ready: b}},
		Policy:  &topology.Policy{Name: "p", Tiers: []topology.Tier{{Name: "all"}}},
	}
	s := topology.NewSnapshot(topology.SnapshotSpec{Self: topology.Self{Cluster: cluster(t, "c0")}, Services: []*topology.Service{service}})
	plan, err := topology.Choose(s, topology.Query{Service: service.Name, Port: 80}, topology.Load{Levels: map[topology.LevelKey]topology.Level{
		{Tier: "1", Cluster: cluster(t, "c2")}: {Part: part},
	}})
	if err != nil {
		t.Fatal(err)
	}
	got, want := plan.Tiers[0].Portion*plan.Tiers[0].Candidates[1].Share, part*float64(b)/float64(a+b)
	if math.Abs(got-want) > epsilon {
		t.Fatalf("gets %v, and should %v", got, want)
	}
}

// TestDrainIsSaid: from its first moment on, while the copies still get all, until they get nothing.
func TestDrainIsSaid(t *testing.T) {
	service := &topology.Service{
		Name: name(t, "svc.ns"), Ports: []topology.Port{{Number: 80}}, Imported: true,
		Remotes: []topology.Remote{{Cluster: cluster(t, "c1"), Ports: []uint16{80}, Ready: 1}, {Cluster: cluster(t, "c2"), Ports: []uint16{80}, Ready: 1}},
	}
	s := topology.NewSnapshot(topology.SnapshotSpec{Self: topology.Self{Cluster: cluster(t, "c0")}, Services: []*topology.Service{service}})
	for _, part := range []float64{1, 0.4, 0} {
		x := topology.Explain(topology.Choose(s, topology.Query{Service: service.Name, Port: 80}, topology.Load{Levels: map[topology.LevelKey]topology.Level{
			{Cluster: cluster(t, "c1")}: {Part: part, Why: "since noon"},
		}}))
		for _, r := range x.Rows {
			said := strings.Join(append(r.Limits, r.Reason), "; ")
			if want := r.Cluster.String() == "c1"; strings.Contains(said, "drained: since noon") != want {
				t.Errorf("at %v, of %s: %q", part, r.Cluster, said)
			}
		}
	}
}
