package sidecar

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/topology"
)

// moves is how far the places of one query are on their way back, by its policy's failback, or out, by their owners' drains. It outlives plans and
// snapshots.
type moves struct {
	recovery balance.Recovery[topology.LevelKey]
	leaving  balance.Leaving[topology.ClusterName]
	// version counts what makes a plan out of date before its time.
	version atomic.Uint64

	mu       sync.Mutex        // held from looking at the world to taking it in: nobody may take in an older one after a newer
	tiers    []topology.Tier   // guarded by mu; what recovery's keys are numbers of
	failback topology.Failback // guarded by mu
}

// load is what Choose is to know, and until when, and what waits to be tried. m.mu is held.
func (m *moves) load(now time.Time, s *topology.Snapshot, q topology.Query, suspected map[topology.Target]string) (topology.Load, time.Time, map[topology.LevelKey]bool) {
	load := topology.Load{Suspected: suspected}
	service := s.Service(q.Service)
	if service == nil || !q.Host.IsZero() {
		return load, time.Time{}, nil
	}
	set := func(k topology.LevelKey, l topology.Level) {
		if load.Levels == nil {
			load.Levels = make(map[topology.LevelKey]topology.Level)
		}
		load.Levels[k] = l
	}
	drains := drainsOf(s.Self().Cluster, service)
	leaving, until := m.leaving.Observe(now, drains)
	for c, part := range leaving {
		set(topology.LevelKey{Cluster: c}, topology.Level{Part: part, Why: leavingWords(drains[c], part)})
	}
	m.follow(service.Policy)
	if m.failback.IsZero() {
		return load, until, nil
	}
	held, again := m.recovery.Observe(now, topology.Able(s, q, load), m.failback.After, m.failback.Ramp)
	var trials map[topology.LevelKey]bool
	for k, r := range held {
		set(k, topology.Level{Part: r.Level, Why: risingWords(r)})
		switch {
		case r.Level > 0:
		case q.Datagrams: // nobody answers those to us: that its owner says it is well has to do
			m.recovery.Proved(now, k, m.failback.After)
		default:
			if trials == nil {
				trials = make(map[topology.LevelKey]bool)
			}
			trials[k] = true
		}
	}
	if until.IsZero() || !again.IsZero() && again.Before(until) {
		until = again
	}
	return load, until, trials
}

// follow starts anew when the policy's tiers are others: places have other names, and where they stand is what was asked for.
func (m *moves) follow(p *topology.Policy) {
	var tiers []topology.Tier
	m.failback = topology.Failback{}
	if p != nil {
		tiers, m.failback = p.Tiers, p.Failback
	}
	if m.failback.IsZero() || !reflect.DeepEqual(tiers, m.tiers) {
		m.recovery.Forget()
	}
	m.tiers = tiers
}

func drainsOf(self topology.ClusterName, service *topology.Service) map[topology.ClusterName]balance.Drain {
	var out map[topology.ClusterName]balance.Drain
	add := func(c topology.ClusterName, d *topology.Drain) {
		if d == nil {
			return
		}
		if out == nil {
			out = make(map[topology.ClusterName]balance.Drain)
		}
		out[c] = balance.Drain{Began: d.Began, Over: d.Over}
	}
	add(self, service.Drain)
	for i := range service.Remotes {
		add(service.Remotes[i].Cluster, service.Remotes[i].Drain)
	}
	return out
}

func leavingWords(d balance.Drain, part float64) string {
	since := "since " + d.Began.UTC().Format(time.RFC3339)
	if part <= 0 {
		return since
	}
	return fmt.Sprintf("%s, at %s", since, percent(part))
}

func risingWords(r balance.Rise) string {
	switch at := "at " + percent(r.Level); {
	case r.Held > 0 && r.Unproven:
		return fmt.Sprintf("%s, more in %s if it stays well and answers", at, seconds(r.Held))
	case r.Held > 0:
		return fmt.Sprintf("%s, more in %s if it stays well", at, seconds(r.Held))
	case r.Unproven:
		return at + ", more when it has answered a request that tries it"
	default:
		return fmt.Sprintf("%s, all of it in %s", at, seconds(r.Left))
	}
}

func percent(part float64) string { return fmt.Sprintf("%d %%", int(math.Round(100*part))) }

// seconds rounds up: what is yet to come is never in 0s.
func seconds(d time.Duration) time.Duration {
	if rest := d % time.Second; rest > 0 {
		d += time.Second - rest
	}
	return d
}

// trial is copies that get no requests until one was seen to be answered.
type trial struct {
	tier       int
	candidates []int
	keys       []topology.LevelKey // that an answer proves; the first says when it is due
}

// trialsOf finds the copies of p that wait to be tried.
func trialsOf(p *topology.Plan, waiting map[topology.LevelKey]bool) []trial {
	if len(waiting) == 0 {
		return nil
	}
	var out []trial
	for i := range p.Tiers {
		t := &p.Tiers[i]
		if t.LastResort || t.Drained {
			continue
		}
		at := make(map[topology.ClusterName]int)
		for j := range t.Candidates {
			c := t.Candidates[j].Cluster
			n, seen := at[c]
			if !seen {
				var keys []topology.LevelKey
				for _, k := range [...]topology.LevelKey{{Tier: t.ID, Cluster: c}, {Tier: t.ID}} {
					if waiting[k] {
						keys = append(keys, k)
					}
				}
				if len(keys) == 0 {
					continue
				}
				n = len(out)
				at[c] = n
				out = append(out, trial{tier: i, keys: keys})
			}
			out[n].candidates = append(out[n].candidates, j)
		}
	}
	return out
}

// try returns a copy that is to be tried by a request now.
func (p *plan) try(now time.Time, overdue time.Duration) (i, j int, ok bool) {
	for _, t := range p.trials {
		if p.moves.recovery.Trial(now, t.keys[0], overdue) {
			return t.tier, t.candidates[rand.IntN(len(t.candidates))], true //nolint:gosec // G404: it spreads load, it guards nothing
		}
	}
	return 0, 0, false
}

// proved takes in that a copy answered. Nothing waits for that most of the time.
func (p *plan) proved(now time.Time, target topology.Target) {
	for _, t := range p.trials {
		if !p.holds(t, target) {
			continue
		}
		for _, k := range t.keys {
			if p.moves.recovery.Proved(now, k, p.failback.After) {
				p.moves.version.Add(1)
			}
		}
	}
}

func (p *plan) holds(t trial, target topology.Target) bool {
	for _, j := range t.candidates {
		if p.Tiers[t.tier].Candidates[j].Target == target {
			return true
		}
	}
	return false
}

// setback takes in that a copy failed a request.
func (r *resolver) setback(target topology.Target) {
	for _, scope := range [...]topology.Scope{topology.ClusterSet, topology.ClusterLocal} {
		r.mu.RLock()
		p := r.plans[topology.Query{Service: target.Service, Port: target.Port, Scope: scope, Datagrams: target.Datagrams}]
		r.mu.RUnlock()
		if p == nil {
			continue
		}
		for _, t := range p.trials {
			if p.holds(t, target) {
				for _, k := range t.keys {
					p.moves.recovery.Setback(r.now(), k)
				}
				p.moves.version.Add(1)
			}
		}
	}
}

// movesOf returns how the places of a query move; nil when the service doesn't exist.
func (r *resolver) movesOf(s *topology.Snapshot, q topology.Query) *moves {
	if s.Service(q.Service) == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.moving[q]
	if m == nil {
		if len(r.moving) >= maxPlans {
			clear(r.moving)
		}
		m = new(moves)
		r.moving[q] = m
	}
	return m
}

// outlook is what a plan is made of, and what is to be known of it: the newest of all, whichever the caller has.
type outlook struct {
	snapshot *topology.Snapshot
	version  uint64 // of the evidence
	load     topology.Load
	until    time.Time
	moves    *moves
	moved    uint64
	waiting  map[topology.LevelKey]bool
	failback topology.Failback
}

func (r *resolver) outlook(s *topology.Snapshot, q topology.Query) outlook {
	m := r.movesOf(s, q)
	if m == nil {
		suspected, version := r.health.Evidence()
		return outlook{snapshot: s, version: version, load: topology.Load{Suspected: suspected}}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if newer := r.snapshots.Load(); newer != nil {
		s = newer
	}
	moved := m.version.Load()
	suspected, version := r.health.Evidence()
	load, until, waiting := m.load(r.now(), s, q, suspected)
	return outlook{snapshot: s, version: version, load: load, until: until, moves: m, moved: moved, waiting: waiting, failback: m.failback}
}

// stale reports whether places have moved, or were to, since p was made.
func (p *plan) stale(now func() time.Time) bool {
	return p.moves != nil && (p.moves.version.Load() != p.moved || !p.until.IsZero() && !now().Before(p.until))
}
