package sidecar

import (
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// Opening a session to another cluster takes as long as a request there, and that is when every millisecond counts: when the cluster that
// answered so far has just fallen silent. So one is kept open to where requests would go next.
const (
	// standbyFor is how long after its last request a service keeps its standby session.
	standbyFor = 1 * time.Minute
	// maxStandby bounds the standby sessions; those have one that were called last.
	maxStandby = 64
)

func (r *resolver) keepStandby() {
	for _, p := range r.latest(standbyFor, maxStandby) {
		if c, ok := p.standby(); ok {
			c.pool.Keep()
		}
	}
}

// standby returns where requests would move to if the cluster that they go to was lost; ok is false when there is no such place, or when they go
// to several clusters already. One copy that was called by its name has no other place.
func (p *plan) standby() (found choice, ok bool) {
	if p.err != nil || !p.Query.Host.IsZero() || p.Tiers[0].LastResort {
		return choice{}, false
	}
	home := p.Tiers[max(0, slices.IndexFunc(p.Tiers, func(t topology.PlanTier) bool { return t.Portion > 0 }))].Candidates[0].Cluster
	for i := range p.Tiers {
		t := &p.Tiers[i]
		best := -1
		for j := range t.Candidates {
			switch c := &t.Candidates[j]; {
			case c.Cluster == home:
			case t.Portion > 0:
				return choice{}, false // it has traffic
			case best < 0 || c.Share > t.Candidates[best].Share:
				best = j
			}
		}
		if !ok && best >= 0 && !t.LastResort && !t.Drained {
			found, ok = choice{plan: p, candidate: &t.Candidates[best], pool: p.pools[i][best]}, true
		}
	}
	return found, ok
}
