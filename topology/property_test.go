package topology_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/topology"
)

const epsilon = 1e-9

func TestChooseProperties(t *testing.T) {
	properties := []struct {
		name  string
		check func(*rapid.T, world)
	}{
		{"shares and portions add to one", sharesAdd},
		{"every copy is in one place, with a reason", everyCopyOnce},
		{"an error means no tier, and no tier an error", errorMeansNothing},
		{"never is never", neverIsNever},
		{"same inputs, same plan, in whatever order", sameInputsSamePlan},
		{"suspicion loses nobody and keeps the order", suspicionKeepsAll},
		{"who suffers doesn't take from the healthy", healthyNeverLose},
		{"a change in one cluster moves no more than it must", movesNoMore},
		{"who is given more gets no less", raisedNeverLower},
		{"portions are what a simple reckoning says", portionsAreReckoned},
		{"a level is of what is there", levelOfOne},
		{"the explanation is the plan", explanationIsPlan},
	}
	for _, p := range properties {
		t.Run(p.name, rapid.MakeCheck(func(t *rapid.T) { p.check(t, drawWorld(t)) }))
		t.Run(p.name+", where all is in use", rapid.MakeCheck(func(t *rapid.T) { p.check(t, drawBusyWorld(t)) }))
	}
}

func sharesAdd(t *rapid.T, w world) {
	plan, _ := w.choose()
	portions := 0.0
	for _, tier := range plan.Tiers {
		sum := 0.0
		for _, c := range tier.Candidates {
			if c.Share < 0 || c.Share > 1+epsilon || c.Share == 0 && w.load.Levels == nil {
				t.Fatalf("share %v of %v", c.Share, c.Target)
			}
			sum += c.Share
		}
		if math.Abs(sum-1) > epsilon {
			t.Fatalf("tier %s adds to %v", tier.Name, sum)
		}
		portions += tier.Portion
	}
	if len(plan.Tiers) > 0 && math.Abs(portions-1) > epsilon {
		t.Fatalf("portions add to %v", portions)
	}
}

func everyCopyOnce(t *rapid.T, w world) {
	plan, _ := w.choose()
	seen := make(map[topology.Target]int)
	for _, tier := range plan.Tiers {
		for _, c := range tier.Candidates {
			seen[c.Target]++
			own := c.Cluster == w.self.Cluster
			if own != (c.Endpoint != nil) || own == (c.Remote != nil) || c.Target.Cluster != c.Cluster || c.Reason.Cause == "" {
				t.Fatalf("candidate %+v", c)
			}
		}
	}
	for _, e := range plan.Excluded {
		seen[e.Target]++
		if (e.Endpoint == nil) == (e.Remote == nil) || e.Reason.Cause == "" {
			t.Fatalf("exclusion %+v", e)
		}
	}
	all := w.targets()
	for _, target := range all {
		if seen[target] != 1 {
			t.Fatalf("%v is there %d times", target, seen[target])
		}
	}
	if len(seen) != len(all) {
		t.Fatalf("%d copies of %d", len(seen), len(all))
	}
}

func errorMeansNothing(t *rapid.T, w world) {
	plan, err := w.choose()
	if (err != nil) != (len(plan.Tiers) == 0) || err != nil && !errors.Is(err, topology.ErrNoCandidates) {
		t.Fatalf("%d tiers and %v", len(plan.Tiers), err)
	}
}

func neverIsNever(t *rapid.T, w world) {
	if w.service.Policy == nil {
		return
	}
	plan, _ := w.choose()
	for _, tier := range plan.Tiers {
		for _, c := range tier.Candidates {
			for _, never := range w.service.Policy.Never {
				if w.matches(never, c.Target) {
					t.Fatalf("%v is used, in spite of never %v", c.Target, never)
				}
			}
		}
	}
}

func sameInputsSamePlan(t *rapid.T, w world) {
	plan, err := w.choose()
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	shuffle := func(n int, swap func(i, j int)) { r.Shuffle(n, swap) }
	w.service.Endpoints = slices.Clone(w.service.Endpoints)
	shuffle(len(w.service.Endpoints), func(i, j int) {
		w.service.Endpoints[i], w.service.Endpoints[j] = w.service.Endpoints[j], w.service.Endpoints[i]
	})
	w.service.Remotes = slices.Clone(w.service.Remotes)
	shuffle(len(w.service.Remotes), func(i, j int) {
		w.service.Remotes[i], w.service.Remotes[j] = w.service.Remotes[j], w.service.Remotes[i]
	})
	shuffle(len(w.clusters), func(i, j int) { w.clusters[i], w.clusters[j] = w.clusters[j], w.clusters[i] })
	w.service.Ports = []topology.Port{w.service.Ports[1], w.service.Ports[0]}
	other, otherErr := w.choose()
	if diff := cmp.Diff(plan, other, equateComparable...); diff != "" {
		t.Fatal(diff)
	}
	if fmt.Sprint(err) != fmt.Sprint(otherErr) {
		t.Fatalf("%v, then %v", err, otherErr)
	}
}

// suspicionKeepsAll compares with a world in which nobody is suspected or drained.
func suspicionKeepsAll(t *rapid.T, w world) {
	plan, _ := w.choose()
	calm := w
	calm.load = topology.Load{}
	calm.clusters = slices.Clone(w.clusters)
	for i := range calm.clusters {
		calm.clusters[i].Link = topology.LinkUp
	}
	reference, _ := calm.choose()
	rank := make(map[topology.Target]int)
	for i, tier := range reference.Tiers {
		for _, c := range tier.Candidates {
			rank[c.Target] = i
		}
	}
	last, worst := -1, 0
	for _, tier := range plan.Tiers {
		standing := 0
		switch {
		case tier.LastResort:
			standing = 2
		case tier.Drained:
			standing = 1
		}
		if standing < worst {
			t.Fatalf("tier %s stands behind one that is worse", tier.Name)
		}
		if standing > worst {
			last, worst = -1, standing
		}
		here := rank[tier.Candidates[0].Target]
		if here <= last {
			t.Fatalf("tier %s stands behind one that it was before", tier.Name)
		}
		last = here
		for _, c := range tier.Candidates {
			if r, ok := rank[c.Target]; !ok || r != here {
				t.Fatalf("%v is in tier %d, among those of %d", c.Target, r, here)
			}
			delete(rank, c.Target)
			if _, ejected := w.load.Suspected[c.Target]; ejected && !tier.LastResort {
				t.Fatalf("%v is ejected, and trusted", c.Target)
			}
			level, drains := w.load.Levels[topology.LevelKey{Cluster: c.Cluster}]
			if drained := drains && level.Part == 0; standing < 2 && drained != tier.Drained {
				t.Fatalf("%v: drained %t, and in tier %+v", c.Target, drained, tier)
			}
		}
	}
	if len(rank) > 0 {
		t.Fatalf("suspicion lost %v", rank)
	}
}

// healthyNeverLose: when a copy falls ill, no healthy one gets less. When one that is ill goes away, none gets less either, but that a tier that
// spills is now healthier as a whole: it takes back from the tiers behind it, and, where each cluster has its weight, from those it had lent to.
// So then only its own cluster's copies there, and without weights all of its tier's, are sure of what they have.
func healthyNeverLose(t *rapid.T, w world) {
	w.load.Levels = nil
	plan, _ := w.choose()
	before, healthy := traffic(plan), trusted(plan)
	for _, sufferer := range w.targets() {
		if healthy[sufferer] {
			ill := w
			ill.load.Suspected = maps.Clone(w.load.Suspected)
			ill.load.Suspected[sufferer] = "evidence"
			after, _ := ill.choose()
			nobodyLoses(t, before, traffic(after), healthy, sufferer)
			continue
		}
		after, _ := w.without(sufferer).choose()
		sure := healthy
		if p := w.service.Policy; p != nil && p.Spill.BelowHealthyPercent > 0 {
			sure = make(map[topology.Target]bool)
			for target, well := range healthy {
				i := w.tier(sufferer)
				same := i >= 0 && i == w.tier(target)
				sure[target] = well && same && (len(p.Tiers[i].Weights) == 0 || target.Cluster == sufferer.Cluster)
			}
		}
		nobodyLoses(t, before, traffic(after), sure, sufferer)
	}
}

func nobodyLoses(t *rapid.T, before, after map[topology.Target]float64, healthy map[topology.Target]bool, but topology.Target) {
	for target, share := range before {
		if healthy[target] && target != but && after[target] < share-epsilon {
			t.Fatalf("%v suffers, and %v goes from %v to %v", but, target, share, after[target])
		}
	}
}

// movesNoMore changes the health of one cluster. With spill, it is one that is in one tier: what is in several may gain in one what it loses in
// another, and then so do those between.
func movesNoMore(t *rapid.T, w world) {
	w.load.Levels = nil
	plan, _ := w.choose()
	before := byCluster(traffic(plan))
	spills := w.service.Policy != nil && w.service.Policy.Spill.BelowHealthyPercent > 0
	changed := rapid.SampledFrom([]string{"c0", "c1", "c2"}).Draw(t, "changed cluster")
	if spills && changed == "c0" {
		return
	}
	next := w
	next.service.Endpoints = slices.Clone(w.service.Endpoints)
	next.service.Remotes = slices.Clone(w.service.Remotes)
	next.load.Suspected = maps.Clone(w.load.Suspected)
	if changed == "c0" {
		for i := range next.service.Endpoints {
			next.service.Endpoints[i].Ready = rapid.Bool().Draw(t, "ready")
			next.service.Endpoints[i].Capacity = rapid.IntRange(1, 5).Draw(t, "capacity")
		}
	}
	for i := range next.service.Remotes {
		if r := &next.service.Remotes[i]; r.Cluster.String() == changed {
			r.Total = max(r.Total, r.Ready)
			most := 9
			if spills {
				most = r.Total
			}
			r.Ready = rapid.IntRange(0, most).Draw(t, "ready")
			if rapid.Bool().Draw(t, "eject") {
				next.load.Suspected[topology.Target{Service: w.service.Name, Port: w.query.Port, Cluster: r.Cluster}] = "evidence"
			}
		}
	}
	plan, _ = next.choose()
	after := byCluster(traffic(plan))
	// All others gain, or all others lose: nothing moves between two clusters that didn't change.
	gain, loss := false, false
	for _, c := range slices.Concat(slices.Collect(maps.Keys(before)), slices.Collect(maps.Keys(after))) {
		if c.String() == changed {
			continue
		}
		gain = gain || after[c] > before[c]+epsilon
		loss = loss || after[c] < before[c]-epsilon
	}
	if gain && loss {
		t.Fatalf("a change in %s moved %v to %v", changed, before, after)
	}
}

// raisedNeverLower raises one level: neither what it is of nor, within its tier, the cluster gets less.
func raisedNeverLower(t *rapid.T, w world) {
	key := drawLevelKey(t)
	level, ok := w.load.Levels[key]
	if !ok {
		level.Part = rapid.SampledFrom([]float64{0, 0.01, 0.35}).Draw(t, "before")
	}
	low, high := w, w
	low.load.Levels, high.load.Levels = maps.Clone(w.load.Levels), maps.Clone(w.load.Levels)
	if low.load.Levels == nil {
		low.load.Levels, high.load.Levels = map[topology.LevelKey]topology.Level{}, map[topology.LevelKey]topology.Level{}
	}
	low.load.Levels[key] = level
	high.load.Levels[key] = topology.Level{Part: level.Part + (1-level.Part)*rapid.SampledFrom([]float64{0, 0.1, 0.5, 1}).Draw(t, "of the rest")}
	before, _ := low.choose()
	after, _ := high.choose()
	ofTier := func(p topology.Plan) (tier, cluster float64) {
		for _, pt := range p.Tiers {
			for _, c := range pt.Candidates {
				if key.Tier != "" && w.tierID(c.Target) == key.Tier {
					tier += pt.Portion * c.Share
					if c.Cluster == key.Cluster {
						cluster += pt.Portion * c.Share
					}
				}
				if key.Tier == "" && c.Cluster == key.Cluster && c.Cluster != w.self.Cluster { // who is in several tiers may fall in one
					cluster += pt.Portion * c.Share
				}
			}
		}
		return tier, cluster
	}
	tier, cluster := ofTier(before)
	tierAfter, clusterAfter := ofTier(after)
	if tierAfter < tier-epsilon || clusterAfter < cluster-epsilon {
		t.Fatalf("%+v from %v to %v: the tier's traffic goes from %v to %v, the cluster's in it from %v to %v",
			key, level.Part, high.load.Levels[key].Part, tier, tierAfter, cluster, clusterAfter)
	}
}

func byCluster(shares map[topology.Target]float64) map[topology.ClusterName]float64 {
	out := make(map[topology.ClusterName]float64)
	for target, share := range shares {
		out[target.Cluster] += share
	}
	return out
}

func explanationIsPlan(t *rapid.T, w world) {
	plan, err := w.choose()
	x := topology.Explain(plan, err)
	shares := traffic(plan)
	for _, r := range x.Rows {
		target := topology.Target{Service: x.Service, Port: x.Port, Cluster: r.Cluster, Endpoint: r.Endpoint}
		if share, ok := shares[target]; ok != (r.Rank > 0) || r.Traffic != share || (r.State == topology.Excluded) == ok {
			t.Fatalf("row %+v, share %v", r, share)
		}
		if (r.State == topology.Active || r.State == topology.LastResort && r.Rank == 1) != (r.Traffic > 0) {
			t.Fatalf("row %+v", r)
		}
	}
	if len(x.Rows) != len(w.targets()) || (x.Error != nil) != (err != nil) {
		t.Fatalf("%d rows, %v", len(x.Rows), x.Error)
	}
	b, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	var back topology.Explanation
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(x, back, equateComparable...); diff != "" {
		t.Fatal(diff)
	}
}
