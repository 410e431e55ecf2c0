package sidecar

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// tendEvery is how often what the application called lately is looked after.
const tendEvery = 1 * time.Second

// tend looks after what the application called lately, until ctx ends: that copies which do worse than their peers are left alone, that there is a
// session to where requests would go next, and that streams leave copies which are drained.
func (o *Outbound) tend(ctx context.Context) {
	ticker := time.NewTicker(tendEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			o.ejectOutliers()
			o.resolver.keepStandby()
			o.endDrained()
		case <-ctx.Done():
			return
		}
	}
}

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

// latest returns the plans of what was called within the given time, the latest first, at most so many. What wasn't called for a minute is forgotten.
func (r *resolver) latest(within time.Duration, most int) []*plan {
	snapshot := r.snapshots.Load()
	if snapshot == nil {
		return nil
	}
	version := r.health.Version()
	queries := r.usedLately(r.now().Add(-within))
	plans := make([]*plan, 0, min(len(queries), most))
	for _, q := range queries[:cap(plans)] {
		r.mu.RLock()
		p := r.plans[q]
		r.mu.RUnlock()
		if p == nil || p.snapshot != snapshot || p.version != version {
			p = r.choose(snapshot, q)
		}
		if p.err == nil {
			plans = append(plans, p)
		}
	}
	return plans
}

// usedLately returns the destinations that were called since then, the latest first.
func (r *resolver) usedLately(since time.Time) []topology.Query {
	forget := r.now().Add(-standbyFor).Unix()
	r.mu.Lock()
	defer r.mu.Unlock()
	last := make(map[topology.Query]int64, len(r.used))
	maps.DeleteFunc(r.used, func(q topology.Query, u *usage) bool {
		at := u.second.Load()
		if at >= since.Unix() {
			last[q] = at
		}
		return at < forget && r.plans[q] == nil // a plan that is kept goes on marking the one that it knows
	})
	return slices.SortedFunc(maps.Keys(last), func(a, b topology.Query) int { return int(last[b] - last[a]) })
}
