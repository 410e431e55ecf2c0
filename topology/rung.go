package topology

import (
	"fmt"
	"maps"
	"slices"
)

// rung is a tier on its way into a Plan: its copies, by what is thought of them now.
type rung struct {
	key    rankKey
	weight map[ClusterName]uint64 // by the policy's tier; nil: none has one
	// total counts copies, ready or not; those that the policy or the query excludes are not of the tier.
	total     map[ClusterName]uint64
	trusted   []spot
	drained   []spot // wholly: used when no other is left that is trusted
	suspected []spot // used when all else fails
}

// rungs ranks all copies that q may call, best tier first, and returns the others with the reason for each. A tier may be left with no copy
// that is ready.
func rungs(s *Snapshot, service *Service, q Query, load Load) ([]*rung, []Exclusion) {
	tiers := make(map[rankKey]*rung)
	var excluded []Exclusion
	for _, c := range spots(s, service, q) {
		why, out := forbid(s, service, q, &c)
		notReady := out && why.Cause == NotReady
		if !out || notReady {
			if noPlace, nowhere := order(s, service, &c); nowhere {
				if !notReady {
					why, out = noPlace, true
				}
			} else {
				tiers[c.key] = tiers[c.key].count(c.key, &c)
			}
		}
		if out {
			excluded = append(excluded, Exclusion{Target: c.Target, Endpoint: c.Endpoint, Remote: c.Remote, Reason: why})
			continue
		}
		tiers[c.key].place(s, c, load)
	}
	slices.SortFunc(excluded, func(a, b Exclusion) int { return a.Target.Compare(b.Target) })
	return slices.SortedFunc(maps.Values(tiers), func(a, b *rung) int { return a.key.compare(b.key) }), excluded
}

// order sets c's rank and the reason for that rank, or reports why it has none.
func order(s *Snapshot, service *Service, c *spot) (Reason, bool) {
	if service.Policy != nil {
		return byPolicy(s.self, service.Policy, c)
	}
	byDefault(s, c)
	return Reason{}, false
}

// count adds a copy, ready or not, to what the tier has; the first makes it.
func (r *rung) count(key rankKey, c *spot) *rung {
	if r == nil {
		r = &rung{key: key, total: make(map[ClusterName]uint64)}
		if key.weights {
			r.weight = make(map[ClusterName]uint64)
		}
	}
	r.total[c.Cluster] += c.total
	if key.weights {
		r.weight[c.Cluster] = c.weight
	}
	return r
}

// place puts a copy that may be used where it belongs now.
func (r *rung) place(s *Snapshot, c spot, load Load) {
	if reason, ok := suspect(s, &c, load); ok {
		c.Reason = reason
		r.suspected = append(r.suspected, c)
		return
	}
	if level := load.level(LevelKey{Cluster: c.Cluster}); level.Part <= 0 {
		c.Reason = Reason{Drained, level.Why}
		r.drained = append(r.drained, c)
		return
	}
	r.trusted = append(r.trusted, c)
}

// id names the tier for Levels.
func (r *rung) id() TierID { return r.key.id }

// tierNumber is the TierID of a policy's i-th tier.
func tierNumber(i int) TierID { return TierID(fmt.Sprint(i + 1)) }

// level returns how much k may get: all, unless the caller says otherwise.
func (l Load) level(k LevelKey) Level {
	if v, ok := l.Levels[k]; ok {
		return Level{min(max(v.Part, 0), 1), v.Why}
	}
	return Level{Part: 1}
}

// site is the copies of one cluster in a tier.
type site struct {
	cluster ClusterName
	weight  float64 // 1 without weights
	total   float64 // copies
	healthy float64 // trusted ones
	level   float64 // of what its health allows
}

// sites returns the clusters of the tier by name, so that sums come out the same everywhere.
func (r *rung) sites(load Load) []site {
	healthy := make(map[ClusterName]uint64, len(r.total))
	for i := range r.trusted {
		healthy[r.trusted[i].Cluster] += r.trusted[i].copies
	}
	out := make([]site, 0, len(r.total))
	for _, c := range slices.SortedFunc(maps.Keys(r.total), ClusterName.Compare) {
		v := site{cluster: c, weight: 1, total: float64(max(r.total[c], healthy[c])), healthy: float64(healthy[c])}
		if r.key.weights {
			v.weight = float64(r.weight[c])
		}
		v.level = load.level(LevelKey{Cluster: c}).Part * load.level(LevelKey{Tier: r.id(), Cluster: c}).Part
		out = append(out, v)
	}
	return out
}

func (v *site) health() float64 {
	if v.total == 0 {
		return 0
	}
	return v.healthy / v.total
}
