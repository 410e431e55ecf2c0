package sidecar

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
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
	// standbyEvery is how often they are looked after.
	standbyEvery = 1 * time.Second
)

// usage is when a destination was last called.
type usage struct{ second atomic.Int64 } // Unix

// mark notes a request. It writes once a second, so that callers on several cores do not contend.
func (u *usage) mark(now time.Time) {
	if s := now.Unix(); u.second.Load() != s {
		u.second.Store(s)
	}
}

// usageOf returns the usage of q, which may be new. Called with r.mu held.
func (r *resolver) usageOf(q topology.Query) *usage {
	u := r.used[q]
	if u == nil {
		if len(r.used) >= maxPlans {
			clear(r.used)
		}
		u = new(usage)
		r.used[q] = u
	}
	return u
}

// standBy keeps standby sessions until ctx ends.
func (r *resolver) standBy(ctx context.Context) {
	ticker := time.NewTicker(standbyEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.keepStandby()
		case <-ctx.Done():
			return
		}
	}
}

func (r *resolver) keepStandby() {
	snapshot := r.snapshots.Load()
	if snapshot == nil {
		return
	}
	version := r.health.Version()
	for _, q := range r.usedLately(r.now().Add(-standbyFor)) {
		r.mu.RLock()
		p := r.plans[q]
		r.mu.RUnlock()
		if p == nil || p.snapshot != snapshot || p.version != version {
			p = r.choose(snapshot, q)
		}
		if c, ok := p.standby(); ok {
			c.pool.Keep()
		}
	}
}

// usedLately returns the destinations that were called since then, the latest first, at most maxStandby; the others are forgotten.
func (r *resolver) usedLately(since time.Time) []topology.Query {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := make(map[topology.Query]int64, len(r.used))
	maps.DeleteFunc(r.used, func(q topology.Query, u *usage) bool {
		last[q] = u.second.Load()
		if last[q] >= since.Unix() {
			return false
		}
		delete(last, q)
		// A plan that is kept goes on marking the one that it knows.
		return r.plans[q] == nil
	})
	latest := slices.SortedFunc(maps.Keys(last), func(a, b topology.Query) int { return int(last[b] - last[a]) })
	return latest[:min(len(latest), maxStandby)]
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
			found, ok = choice{candidate: &t.Candidates[best], pool: p.pools[i][best]}, true
		}
	}
	return found, ok
}
