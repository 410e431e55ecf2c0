package sidecar

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	// leastTurn is the change of a cluster's share that is worth telling.
	leastTurn = 0.01
	// turnEvery is how often a service's requests may turn, as it is told: while something ramps, its steps are told together.
	turnEvery = time.Second
	// maxEvidence bounds what one turn gives as its reasons.
	maxEvidence = 8
)

// turns notes how requests are shared between clusters, and when and why that changes. Safe for concurrent use.
type turns struct {
	mu    sync.Mutex
	by    map[topology.Query]*course // guarded by mu
	queue []*configv1.Turn           // guarded by mu; not told yet, at most configstream.MaxTurns
	sent  []*configv1.Turn           // guarded by mu; told last
}

// course is where the requests of one query go.
type course struct {
	told, now stance
	at        time.Time // when now came to differ from told
	last      time.Time // when the last turn was noted
}

// stance is what one plan comes to.
type stance struct {
	shares map[topology.ClusterName]float64
	places map[topology.Target]topology.Reason
	limits []topology.Reason
	policy string
}

// note takes in a plan that was made. The first one of a query is no turn.
func (t *turns) note(p *topology.Plan, now time.Time) {
	if !p.Query.Host.IsZero() {
		return // a copy that was named
	}
	next := stanceOf(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.by[p.Query]
	if c == nil {
		if t.by == nil {
			t.by = make(map[topology.Query]*course)
		}
		if len(t.by) >= maxPlans {
			clear(t.by)
		}
		t.by[p.Query] = &course{told: next, now: next}
		return
	}
	wasSame := c.told.like(&c.now)
	if c.now = next; c.told.like(&next) {
		return
	}
	if wasSame {
		c.at = now
	}
	if now.Sub(c.last) >= turnEvery {
		t.turn(p.Query, c, now)
	}
}

// turn puts the difference between what was told and what is into the queue. Called with mu held.
func (t *turns) turn(q topology.Query, c *course, now time.Time) {
	m := &configv1.Turn{
		Service: q.Service.String(), Port: uint32(q.Port), AtMillis: c.at.UnixMilli(),
		Before: c.told.message(), After: c.now.message(), Evidence: evidence(&c.told, &c.now),
	}
	c.told, c.last = c.now, now
	if len(t.queue) >= configstream.MaxTurns {
		t.queue = slices.Delete(t.queue, 0, 1) // control is away: the latest are of more use
	}
	t.queue = append(t.queue, m)
}

// report returns the turns that control was not told of; with all, also those that were told last, which may not have arrived.
func (t *turns) report(all bool, now time.Time) []*configv1.Turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	for q, c := range t.by {
		if now.Sub(c.last) >= turnEvery && !c.told.like(&c.now) {
			t.turn(q, c, now)
		}
	}
	out := t.queue
	if all {
		out = slices.Concat(t.sent, t.queue)
		out = out[max(0, len(out)-configstream.MaxTurns):]
	}
	t.queue = nil
	if len(out) > 0 {
		t.sent = out
	}
	return out
}

// stanceOf adds up what each cluster gets.
func stanceOf(p *topology.Plan) stance {
	s := stance{shares: make(map[topology.ClusterName]float64), places: make(map[topology.Target]topology.Reason), policy: p.Policy}
	for i := range p.Tiers {
		tier := &p.Tiers[i]
		s.limits = append(s.limits, tier.Limits...)
		for j := range tier.Candidates {
			c := &tier.Candidates[j]
			if share := tier.Portion * c.Share; share > 0 {
				s.shares[c.Cluster] += share
			}
			s.places[c.Target] = c.Reason
			s.limits = append(s.limits, c.Limits...)
		}
	}
	for i := range p.Excluded {
		s.places[p.Excluded[i].Target] = p.Excluded[i].Reason
	}
	return s
}

// like reports whether two stances share requests alike.
func (s *stance) like(o *stance) bool {
	for c, share := range s.shares {
		if math.Abs(share-o.shares[c]) >= leastTurn {
			return false
		}
	}
	for c, share := range o.shares {
		if _, both := s.shares[c]; !both && share >= leastTurn {
			return false
		}
	}
	return true
}

func (s *stance) message() []*configv1.ClusterShare {
	var out []*configv1.ClusterShare
	for _, c := range slices.SortedFunc(maps.Keys(s.shares), topology.ClusterName.Compare) {
		out = append(out, &configv1.ClusterShare{Cluster: c.String(), Share: s.shares[c]})
	}
	return out
}

// The causes that only a turn has.
const (
	causeGone   = "gone"   // a copy is no longer told of
	causePolicy = "policy" // another policy is in force
)

// evidence says of what changed why it is where it is now: of copies whose reason is another one, and of what bounds a share; where there is
// neither, of the clusters that get more or less.
func evidence(before, after *stance) []*configv1.Evidence {
	var out []*configv1.Evidence
	add := func(t topology.Target, cause topology.Cause, detail string) {
		if len(out) < maxEvidence {
			out = append(out, &configv1.Evidence{Cluster: t.Cluster.String(), Endpoint: t.Endpoint, Cause: string(cause), Detail: detail})
		}
	}
	if before.policy != after.policy {
		add(topology.Target{}, causePolicy, cmp.Or(after.policy, "none"))
	}
	targets := slices.SortedFunc(maps.Keys(after.places), topology.Target.Compare)
	for _, t := range targets {
		if was, known := before.places[t]; !known || was.Cause != after.places[t].Cause {
			add(t, after.places[t].Cause, after.places[t].Detail)
		}
	}
	for _, t := range slices.SortedFunc(maps.Keys(before.places), topology.Target.Compare) {
		if _, there := after.places[t]; !there {
			add(t, causeGone, "")
		}
	}
	for _, l := range after.limits {
		if !slices.Contains(before.limits, l) {
			add(topology.Target{}, l.Cause, l.Detail)
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, t := range targets {
		if math.Abs(before.shares[t.Cluster]-after.shares[t.Cluster]) >= leastTurn {
			add(t, after.places[t].Cause, after.places[t].Detail)
		}
	}
	return out
}
