package topology_test

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/topology"
)

// world is what the properties draw: few clusters, regions, zones and labels, so that they meet.
type world struct {
	self     topology.Self
	service  topology.Service
	clusters []topology.Cluster
	query    topology.Query
	load     topology.Load
}

func (w world) snapshot() *topology.Snapshot {
	service := w.service
	spec := topology.SnapshotSpec{Self: w.self, Services: []*topology.Service{&service}}
	for _, c := range w.clusters {
		spec.Clusters = append(spec.Clusters, &c)
	}
	return topology.NewSnapshot(spec)
}

func (w world) choose() (topology.Plan, error) { return topology.Choose(w.snapshot(), w.query, w.load) }

// targets returns all copies.
func (w world) targets() []topology.Target {
	var out []topology.Target
	for _, e := range w.service.Endpoints {
		out = append(out, topology.Target{Service: w.service.Name, Port: w.query.Port, Cluster: w.self.Cluster, Endpoint: e.ID})
	}
	for _, r := range w.service.Remotes {
		out = append(out, topology.Target{Service: w.service.Name, Port: w.query.Port, Cluster: r.Cluster})
	}
	return out
}

// without returns the world less one copy.
func (w world) without(t topology.Target) world {
	w.service.Endpoints = slices.DeleteFunc(slices.Clone(w.service.Endpoints), func(e topology.Endpoint) bool { return e.ID == t.Endpoint && t.Cluster == w.self.Cluster })
	w.service.Remotes = slices.DeleteFunc(slices.Clone(w.service.Remotes), func(r topology.Remote) bool { return r.Cluster == t.Cluster })
	return w
}

var (
	drawRegion = rapid.SampledFrom([]string{"", "europe", "america"})
	drawZone   = rapid.SampledFrom([]string{"", "z1", "z2"})
	drawLabels = rapid.SampledFrom([]map[string]string{nil, {"tier": "prod"}, {"tier": "test"}, {"tier": "prod", "jurisdiction": "other"}})
	drawPorts  = rapid.SampledFrom([][]uint16{{80}, {80}, {80, 81}, {81}, nil})
)

func drawWorld(t *rapid.T) world {
	w := world{
		self: topology.Self{Cluster: cluster(t, "c0"), Locality: topology.Locality{Region: drawRegion.Draw(t, "region"), Zone: drawZone.Draw(t, "zone")}},
		service: topology.Service{
			Name:     name(t, "svc.ns"),
			Ports:    []topology.Port{{Number: 80, Protocol: topology.HTTP}, {Number: 81, Protocol: topology.TCP}},
			Imported: true,
			Exported: rapid.IntRange(0, 3).Draw(t, "exported") > 0,
		},
		load: topology.Load{Suspected: make(map[topology.Target]string)},
	}
	w.query = topology.Query{Service: w.service.Name, Port: 80, Scope: rapid.SampledFrom([]topology.Scope{topology.ClusterSet, topology.ClusterSet, topology.ClusterLocal}).Draw(t, "scope")}
	for i := range rapid.IntRange(0, 4).Draw(t, "endpoints") {
		w.service.Endpoints = append(w.service.Endpoints, topology.Endpoint{
			ID:       fmt.Sprintf("e%d", i),
			Address:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 15008),
			Locality: topology.Locality{Region: rapid.SampledFrom([]string{"", "", "europe", "america"}).Draw(t, "region"), Zone: drawZone.Draw(t, "zone")},
			Labels:   drawLabels.Draw(t, "labels"),
			Ports:    drawPorts.Draw(t, "ports"),
			Ready:    rapid.IntRange(0, 3).Draw(t, "ready") > 0,
			Capacity: rapid.IntRange(0, 5).Draw(t, "capacity"),
			Total:    rapid.IntRange(0, 8).Draw(t, "total"),
		})
	}
	for i := range rapid.IntRange(0, 5).Draw(t, "remotes") {
		c := cluster(t, fmt.Sprintf("c%d", i+1))
		w.service.Remotes = append(w.service.Remotes, topology.Remote{
			Cluster: c,
			Ports:   drawPorts.Draw(t, "ports"),
			Ready:   rapid.IntRange(0, 5).Draw(t, "ready"),
			Total:   rapid.IntRange(0, 8).Draw(t, "total"),
			Labels:  drawLabels.Draw(t, "labels"),
			Stale:   rapid.Bool().Draw(t, "stale"),
		})
		if rapid.IntRange(0, 4).Draw(t, "known") > 0 {
			w.clusters = append(w.clusters, topology.Cluster{
				Name:   c,
				Region: drawRegion.Draw(t, "region"),
				Link:   rapid.SampledFrom([]topology.LinkState{topology.LinkUnknown, topology.LinkUp, topology.LinkDown}).Draw(t, "link"),
				RTT:    time.Duration(rapid.IntRange(0, 200_000).Draw(t, "rtt")) * time.Microsecond,
			})
		}
	}
	if rapid.Bool().Draw(t, "policy") {
		w.service.Policy = drawPolicy(t)
	}
	if rapid.Bool().Draw(t, "levels") {
		w.load.Levels = drawLevels(t)
	}
	for _, target := range w.targets() {
		if rapid.IntRange(0, 2).Draw(t, "ejected") == 0 {
			w.load.Suspected[target] = "evidence"
		}
	}
	return w
}

// drawBusyWorld draws one in which most copies may be called, in several tiers, with spill and levels.
func drawBusyWorld(t *rapid.T) world {
	w := world{
		self: topology.Self{Cluster: cluster(t, "c0"), Locality: topology.Locality{Region: "europe"}},
		service: topology.Service{
			Name: name(t, "svc.ns"), Ports: []topology.Port{{Number: 80, Protocol: topology.HTTP}, {Number: 81, Protocol: topology.TCP}},
			Imported: true, Exported: true,
			Policy: &topology.Policy{Name: "ns/p", Spill: topology.Spill{BelowHealthyPercent: rapid.SampledFrom([]int{0, 50, 70, 100}).Draw(t, "spill")}},
		},
		load: topology.Load{Suspected: make(map[topology.Target]string)},
	}
	w.query = topology.Query{Service: w.service.Name, Port: 80}
	for i := range rapid.IntRange(0, 4).Draw(t, "endpoints") {
		w.service.Endpoints = append(w.service.Endpoints, topology.Endpoint{
			ID: fmt.Sprintf("e%d", i), Ports: []uint16{80}, Ready: rapid.IntRange(0, 3).Draw(t, "ready") > 0, Labels: drawLabels.Draw(t, "labels"),
			Capacity: rapid.IntRange(1, 3).Draw(t, "capacity"), Total: rapid.IntRange(0, 4).Draw(t, "total"),
		})
	}
	for i := range rapid.IntRange(1, 4).Draw(t, "remotes") {
		c := cluster(t, fmt.Sprintf("c%d", i+1))
		w.service.Remotes = append(w.service.Remotes, topology.Remote{
			Cluster: c, Ports: []uint16{80}, Ready: rapid.IntRange(0, 5).Draw(t, "ready"), Total: rapid.IntRange(0, 8).Draw(t, "total"),
			Labels: drawLabels.Draw(t, "labels"),
		})
		w.clusters = append(w.clusters, topology.Cluster{Name: c, Region: rapid.SampledFrom([]string{"europe", "america"}).Draw(t, "region")})
	}
	for range rapid.IntRange(1, 4).Draw(t, "tiers") {
		w.service.Policy.Tiers = append(w.service.Policy.Tiers, topology.Tier{
			Match: rapid.SampledFrom([]topology.Selector{
				{Cluster: topology.Same}, {Region: topology.Same}, {Region: "america"}, {Cluster: "c1"}, {Cluster: "c2"}, {Labels: map[string]string{"tier": "prod"}}, {},
			}).Draw(t, "match"),
			Weights: rapid.SampledFrom([]map[string]uint32{nil, nil, {"c0": 70, "c1": 30, "c2": 50}}).Draw(t, "weights"),
		})
	}
	for _, target := range w.targets() {
		if rapid.IntRange(0, 7).Draw(t, "ejected") == 0 {
			w.load.Suspected[target] = "evidence"
		}
	}
	if rapid.Bool().Draw(t, "levels") {
		w.load.Levels = drawLevels(t)
	}
	return w
}

func drawLevels(t *rapid.T) map[topology.LevelKey]topology.Level {
	out := make(map[topology.LevelKey]topology.Level)
	for range rapid.IntRange(1, 5).Draw(t, "levels") {
		out[drawLevelKey(t)] = topology.Level{Part: rapid.SampledFrom([]float64{0, 0, 0.01, 0.35, 0.8, 1}).Draw(t, "part"), Why: "for a reason"}
	}
	return out
}

func drawLevelKey(t *rapid.T) topology.LevelKey {
	k := topology.LevelKey{Tier: rapid.SampledFrom([]topology.TierID{"", "1", "1", "1", "2", "2", "3", "zone", "other/c1"}).Draw(t, "of")}
	if k.Tier == "" || rapid.Bool().Draw(t, "of a cluster") {
		k.Cluster = cluster(t, rapid.SampledFrom([]string{"c0", "c1", "c2"}).Draw(t, "of"))
	}
	return k
}

func drawPolicy(t *rapid.T) *topology.Policy {
	selector := rapid.Custom(func(t *rapid.T) topology.Selector {
		return topology.Selector{
			Cluster: rapid.SampledFrom([]string{"", "", "", topology.Same, "c0", "c1", "c2"}).Draw(t, "cluster"),
			Region:  rapid.SampledFrom([]string{"", "", topology.Same, "europe", "america"}).Draw(t, "region"),
			Zone:    rapid.SampledFrom([]string{"", "", "", topology.Same, "z1"}).Draw(t, "zone"),
			Labels:  rapid.SampledFrom([]map[string]string{nil, nil, {"tier": "prod"}, {"jurisdiction": "other"}}).Draw(t, "labels"),
		}
	})
	p := &topology.Policy{Name: "ns/policy"}
	for range rapid.IntRange(1, 4).Draw(t, "tiers") {
		p.Tiers = append(p.Tiers, topology.Tier{
			Name:    rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "tier"),
			Match:   selector.Draw(t, "match"),
			Weights: rapid.SampledFrom([]map[string]uint32{nil, nil, {"c0": 70, "c1": 30}, {"c0": 1, "c1": 0, "c2": math.MaxUint32}}).Draw(t, "weights"),
		})
	}
	p.Spill.BelowHealthyPercent = rapid.SampledFrom([]int{0, 0, 1, 50, 70, 100}).Draw(t, "spill")
	p.Never = rapid.SliceOfN(selector, 0, 2).Draw(t, "never")
	return p
}

// traffic is each candidate's part of all requests, as long as none fails.
func traffic(p topology.Plan) map[topology.Target]float64 {
	out := make(map[topology.Target]float64)
	for _, tier := range p.Tiers {
		for _, c := range tier.Candidates {
			out[c.Target] = tier.Portion * c.Share
		}
	}
	return out
}

// trusted are the candidates outside of last-resort tiers.
func trusted(p topology.Plan) map[topology.Target]bool {
	out := make(map[topology.Target]bool)
	for _, tier := range p.Tiers {
		for _, c := range tier.Candidates {
			out[c.Target] = !tier.LastResort
		}
	}
	return out
}
