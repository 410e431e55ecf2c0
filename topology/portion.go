package topology

import (
	"fmt"
	"math"
	"slices"
)

// A tier that is offered requests takes the part that its health and its levels allow, and the rest goes on to the next:
//
//	part = min(most, level, healthy/(total·B))
//
// where B is the share of healthy copies below which the policy spills (without spill, the last term is 1 as long as a copy is left), level
// is that of the tier, and most the highest of its clusters' levels. A cluster whose level is below 1 counts as that part of its healthy
// copies. In a tier with weights each cluster spills for itself: healthy/(total·B), at most 1, of its weight.

// able is the part of what it is offered that the tier could take by the health of its copies alone.
func able(sites []site, weights bool, spill float64) float64 {
	return health(sites, weights, spill, false)
}

// part is what it takes, by its levels too.
func part(sites []site, weights bool, spill float64) float64 {
	most := 0.0
	for i := range sites {
		if sites[i].healthy > 0 {
			most = max(most, sites[i].level)
		}
	}
	return min(most, health(sites, weights, spill, true))
}

func health(sites []site, weights bool, spill float64, levels bool) float64 {
	has, all := 0.0, 0.0
	for i := range sites {
		v := &sites[i]
		level := 1.0
		if levels {
			level = v.level
		}
		switch {
		case weights:
			has += v.weight * v.full(spill) * level
			all += v.weight
		default:
			has += v.healthy * level
			all += v.total
		}
	}
	switch {
	case has == 0:
		return 0
	case spill == 0:
		return 1
	case weights:
		return min(has/all, 1)
	default:
		return min(has/(all*spill), 1)
	}
}

// full is the part of its weight that a cluster is worth.
func (v *site) full(spill float64) float64 {
	switch {
	case v.healthy == 0:
		return 0
	case spill == 0:
		return 1
	default:
		return min(v.health()/spill, 1)
	}
}

// portions divides all requests among the tiers, by what of what they are offered they take: what none takes is spread over all in
// proportion. If none takes anything, what they could take by health alone decides.
func portions(takes, ables []float64) []float64 {
	out, sum := pour(takes)
	if sum == 0 {
		out, sum = pour(ables)
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}

func pour(takes []float64) (out []float64, sum float64) {
	left := 1.0
	for _, t := range takes {
		taken := left * t
		out = append(out, taken)
		sum += taken
		left -= taken
	}
	if left == 0 { // all was taken: rounding is no reason to stretch it
		sum = 1
	}
	return out, sum
}

// arrange makes tiers of rungs: what is trusted first, then what is drained, then what is only suspected; each by rank.
func arrange(ranked []*rung, policy *Policy, load Load) []PlanTier {
	spill := 0.0
	if policy != nil {
		spill = float64(policy.Spill.BelowHealthyPercent) / 100
	}
	var trusted, drained, suspected []PlanTier
	var takes, ables []float64
	for _, r := range ranked {
		if len(r.trusted) > 0 {
			sites := r.sites(load)
			takes = append(takes, min(part(sites, r.key.weights, spill), load.level(LevelKey{Tier: r.id()}).Part))
			ables = append(ables, able(sites, r.key.weights, spill))
			t := PlanTier{ID: r.id(), Name: r.key.name, Candidates: share(r.trusted, sites, r.key.weights, spill, load, r.id())}
			t.Limits = tierLimits(r, sites, spill, load)
			trusted = append(trusted, t)
		}
		for _, rest := range []struct {
			spots []spot
			to    *[]PlanTier
			last  bool
		}{{r.drained, &drained, false}, {r.suspected, &suspected, true}} {
			if len(rest.spots) > 0 {
				*rest.to = append(*rest.to, PlanTier{ID: r.id(), Name: r.key.name, LastResort: rest.last, Drained: !rest.last, Candidates: equally(rest.spots, r.key.weights)})
			}
		}
	}
	for i, p := range portions(takes, ables) {
		trusted[i].Portion = p
		if i > 0 && p > 0 {
			trusted[i].Limits = append(trusted[i].Limits, Reason{Cause: Overflow})
		}
	}
	out := slices.Concat(trusted, drained, suspected)
	if len(trusted) == 0 && len(out) > 0 {
		out[0].Portion = 1
	}
	return out
}

// tierLimits says why the tier as a whole gets less than it could.
func tierLimits(r *rung, sites []site, spill float64, load Load) []Reason {
	var out []Reason
	if a := able(sites, r.key.weights, spill); a < 1 && !r.key.weights {
		healthy, total := 0.0, 0.0
		for i := range sites {
			healthy += sites[i].healthy
			total += sites[i].total
		}
		out = append(out, spillReason(healthy/total, spill))
	}
	if level := load.level(LevelKey{Tier: r.id()}); level.Part < 1 {
		out = append(out, Reason{Recovery, level.Why})
	}
	return out
}

func spillReason(health, spill float64) Reason {
	return Reason{Spilling, fmt.Sprintf("%d %% healthy, below %d %%", int(math.Floor(100*health+epsilon)), int(math.Round(100*spill)))}
}

// epsilon is below what anybody would call a percentage.
const epsilon = 1e-9

// share divides a tier: with weights by cluster, without by what is healthy; within a cluster by ready copies. A cluster whose level is below that
// of the others gets that part of its share, and they the rest; if none has any, levels say nothing.
func share(spots []spot, sites []site, weights bool, spill float64, load Load, id TierID) []Candidate {
	slices.SortFunc(spots, func(a, b spot) int { return a.Target.Compare(b.Target) })
	full := make([]float64, len(sites)) // what each would get at level 1
	most, all := 0.0, 0.0
	for i := range sites {
		v := &sites[i]
		if full[i] = v.healthy; weights {
			full[i] = v.weight * v.full(spill)
		}
		all += full[i]
		if v.healthy > 0 {
			most = max(most, v.level)
		}
	}
	gets, sum := make([]float64, len(sites)), 0.0
	for i := range sites {
		gets[i] = rise(full[i]/all, sites[i].level, most)
		sum += gets[i]
	}
	out := make([]Candidate, len(spots))
	for i, c := range spots {
		out[i] = c.Candidate
		j := slices.IndexFunc(sites, func(v site) bool { return v.cluster == c.Cluster })
		v := &sites[j]
		out[i].Share = gets[j] / sum * (float64(c.copies) / v.healthy)
		if weights && spill > 0 && v.full(spill) < 1 {
			out[i].Limits = append(out[i].Limits, spillReason(v.health(), spill))
		}
		if level := load.level(LevelKey{Tier: id, Cluster: c.Cluster}); level.Part < 1 {
			out[i].Limits = append(out[i].Limits, Reason{Recovery, level.Why})
		}
		if level := load.level(LevelKey{Cluster: c.Cluster}); level.Part < 1 || level.Why != "" { // also when it has only begun
			out[i].Limits = append(out[i].Limits, Reason{Drained, level.Why})
		}
	}
	return out
}

// rise is what of the share s a cluster counts for, so that the share that it then gets is level·s, if all others are at the highest
// level.
func rise(s, level, most float64) float64 {
	if most == 0 || level >= most {
		return s
	}
	l := level / most
	return s * l * (1 - s) / (1 - l*s)
}

// equally divides copies that are not trusted: there, levels count for nothing.
func equally(spots []spot, weights bool) []Candidate {
	slices.SortFunc(spots, func(a, b spot) int { return a.Target.Compare(b.Target) })
	var all, weight uint64
	inCluster := make(map[ClusterName]uint64)
	for _, c := range spots {
		if inCluster[c.Cluster] == 0 {
			weight += c.weight
		}
		inCluster[c.Cluster] += c.copies
		all += c.copies
	}
	out := make([]Candidate, len(spots))
	for i, c := range spots {
		out[i] = c.Candidate
		if weights {
			out[i].Share = float64(c.weight) / float64(weight) * (float64(c.copies) / float64(inCluster[c.Cluster]))
		} else {
			out[i].Share = float64(c.copies) / float64(all)
		}
	}
	return out
}

// Able says what of what it is offered each place could take by its health alone, from 0 to 1: each tier of q's order (LevelKey with a Tier) and
// each cluster in it. Places that it doesn't tell of could take nothing. Who keeps Levels watches it; of load only what is suspected, and what is
// drained, counts.
func Able(s *Snapshot, q Query, load Load) map[LevelKey]float64 {
	service := s.Service(q.Service)
	if service == nil || !q.Host.IsZero() {
		return nil
	}
	spill := 0.0
	if service.Policy != nil {
		spill = float64(service.Policy.Spill.BelowHealthyPercent) / 100
	}
	out := make(map[LevelKey]float64)
	ranked, _ := rungs(s, service, q, load)
	for _, r := range ranked {
		sites := r.sites(load)
		if a := able(sites, r.key.weights, spill); a > 0 {
			out[LevelKey{Tier: r.id()}] = a
		}
		for i := range sites {
			if sites[i].healthy > 0 {
				out[LevelKey{Tier: r.id(), Cluster: sites[i].cluster}] = 1
			}
		}
	}
	return out
}
