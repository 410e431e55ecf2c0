package sidecar

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/sidecar/host"
	"github.com/isthmus-mesh/isthmus/sidecar/session"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	// subscribeTimeout bounds what the first request to a service waits for control.
	subscribeTimeout = 1 * time.Second
	// askAgain is how long a name that control could not be asked about is left alone.
	askAgain = 1 * time.Second
	// maxAsked bounds the names that are remembered as asked for: an application that makes names up must not grow us. Past it,
	// those that do not exist are forgotten. Services that exist are as many as control's client holds.
	maxAsked = 4096
	// maxPlans bounds the plans that are kept.
	maxPlans = 4096
)

// plan is a topology.Plan of one snapshot and one state of health, and the pools that it leads to.
type plan struct {
	topology.Plan
	err      error
	snapshot *topology.Snapshot
	service  *topology.Service
	version  uint64
	moves    *moves    // nil: there is no such service
	moved    uint64    // version of moves
	until    time.Time // by when places have moved; zero: none does
	failback topology.Failback
	trials   []trial
	pools    [][]*session.Pool // as Plan.Tiers and their Candidates
	usage    *usage            // nil when there is nowhere to go
	tallies  [][]*tally        // likewise
	scores   [][]*balance.Score
}

// resolver turns names into plans: it subscribes to what is asked for, and keeps a plan as long as it holds.
type resolver struct {
	snapshots *live.Value[*topology.Snapshot]
	subscribe func(context.Context, topology.ServiceName) error
	resolve   func(context.Context, netip.Addr) (topology.ServiceName, bool, error) // may be nil
	health    *balance.Health[topology.Target]
	pace      *balance.Pace[topology.Target]
	outliers  *balance.Outliers[topology.Target]
	sessions  *session.Set
	tallies   *tallies
	turns     turns
	now       func() time.Time
	asking    sync.WaitGroup // subscriptions that no request waits for

	mu     sync.RWMutex
	ended  bool                            // guarded by mu; nothing is added to asking any more
	plans  map[topology.Query]*plan        // guarded by mu
	asked  map[topology.ServiceName]answer // guarded by mu
	moving map[topology.Query]*moves       // guarded by mu
	used   map[topology.Query]*usage       // guarded by mu; by whom a standby session may be wanted
	// strangers are addresses that no service had when control was asked, and when that was.
	strangers map[netip.Addr]time.Time // guarded by mu
}

// answer is how it stands with asking control for a service.
type answer struct {
	known  bool      // it was told: whatever happens to the service, we hear of it
	failed bool      // it could not be asked
	at     time.Time // when
}

func newResolver(c Config, h *balance.Health[topology.Target], pace *balance.Pace[topology.Target], s *session.Set, counts *tallies) *resolver {
	return &resolver{
		snapshots: c.Snapshots, subscribe: c.Subscribe, resolve: c.Resolve, strangers: make(map[netip.Addr]time.Time), health: h, pace: pace, sessions: s, tallies: counts, now: c.Now,
		plans: make(map[topology.Query]*plan), asked: make(map[topology.ServiceName]answer),
		used: make(map[topology.Query]*usage), moving: make(map[topology.Query]*moves), outliers: new(balance.Outliers[topology.Target]),
	}
}

// lookup returns a service for DNS, having subscribed to it; nil when it does not exist, or nothing is known yet (known is false).
func (r *resolver) lookup(ctx context.Context, name topology.ServiceName) (service *topology.Service, known bool) {
	snapshot, err := r.snapshot(ctx, name)
	if err != nil {
		return nil, false
	}
	service = snapshot.Service(name)
	if service != nil {
		return service, true
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return nil, r.asked[name].known
}

// snapshot returns the present snapshot, having subscribed to the service. The error is a *Failure.
func (r *resolver) snapshot(ctx context.Context, name topology.ServiceName) (*topology.Snapshot, error) {
	s := r.snapshots.Load()
	if s == nil {
		return nil, fail(http.StatusServiceUnavailable, CodeNotReady, "this sidecar has no configuration yet: control has not been reached since it was first started")
	}
	present := s.Service(name) != nil
	if r.settled(name, present) {
		return s, nil
	}
	ask := func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, subscribeTimeout)
		defer cancel()
		err := r.subscribe(ctx, name)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.asked[name] = answer{known: err == nil, failed: err != nil, at: r.now()}
	}
	if present {
		// Known from before: good enough for this request.
		r.later(func() { ask(context.WithoutCancel(ctx)) })
		return s, nil
	}
	ask(ctx)
	return r.snapshots.Load(), nil
}

// later runs f, unless the resolver has ended.
func (r *resolver) later(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.asking.Go(f)
	}
}

// end waits for what later began.
func (r *resolver) end() {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.asking.Wait()
}

// settled reports whether there is no need to ask for name now. A name that does not exist is asked for again after a while:
// control's client may have given up its place to another.
func (r *resolver) settled(name topology.ServiceName, present bool) bool {
	r.mu.RLock()
	a := r.asked[name]
	r.mu.RUnlock()
	if a.known && present {
		return true
	}
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	a, seen := r.asked[name]
	lately := seen && now.Sub(a.at) < askAgain
	if a.known && present || lately && (present || a.known || a.failed) {
		return true
	}
	if !seen && len(r.asked) >= maxAsked {
		r.forgetAbsent()
	}
	if present {
		r.asked[name] = answer{at: now} // one asks for all; the others need not wait
	}
	return false
}

// forgetAbsent forgets what was asked for and does not exist: it costs no more than asking again. Called with mu held.
func (r *resolver) forgetAbsent() {
	snapshot := r.snapshots.Load() // nothing is asked for before there is one
	maps.DeleteFunc(r.asked, func(name topology.ServiceName, _ answer) bool { return snapshot.Service(name) == nil })
}

// plan returns where requests of that query go. The error is a *Failure.
func (r *resolver) plan(ctx context.Context, q topology.Query) (*plan, error) {
	snapshot, err := r.snapshot(ctx, q.Service)
	if err != nil {
		return nil, err
	}
	version := r.health.Version()
	r.mu.RLock()
	p := r.plans[q]
	r.mu.RUnlock()
	if p == nil || p.snapshot != snapshot || p.version != version || p.stale(r.now) {
		p = r.choose(snapshot, q)
	}
	if p.err != nil {
		return nil, r.failure(p)
	}
	return p, nil
}

// holds reports whether a plan says what one that is made now would say.
func (r *resolver) holds(p *plan) bool {
	return p != nil && p.snapshot == r.snapshots.Load() && p.version == r.health.Version() && !p.stale(r.now)
}

func (r *resolver) choose(snapshot *topology.Snapshot, q topology.Query) *plan {
	w := r.outlook(snapshot, q)
	p := &plan{
		snapshot: w.snapshot, service: w.snapshot.Service(q.Service), version: w.version, moves: w.moves, moved: w.moved, until: w.until, failback: w.failback,
	}
	p.Plan, p.err = topology.Choose(w.snapshot, q, w.load)
	p.trials = trialsOf(&p.Plan, w.waiting)
	p.pools, p.tallies = make([][]*session.Pool, len(p.Tiers)), make([][]*tally, len(p.Tiers))
	p.scores = make([][]*balance.Score, len(p.Tiers))
	for i, tier := range p.Tiers {
		p.pools[i], p.tallies[i] = make([]*session.Pool, len(tier.Candidates)), make([]*tally, len(tier.Candidates))
		p.scores[i] = make([]*balance.Score, len(tier.Candidates))
		for j := range tier.Candidates {
			p.pools[i][j] = r.sessions.Pool(destination(q, &tier.Candidates[j]))
			p.scores[i][j] = r.outliers.Score(tier.Candidates[j].Target)
			p.tallies[i][j] = r.tallies.of(q.Service, tier.Candidates[j].Cluster)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.plans) >= maxPlans {
		clear(r.plans)
	}
	if p.service != nil { // names that do not exist are not worth keeping
		r.turns.note(&p.Plan, r.now())
		r.plans[q] = p
	}
	if p.err == nil {
		p.usage = r.usageOf(q)
	}
	return p
}

func destination(q topology.Query, c *topology.Candidate) session.Destination {
	return session.Destination{Service: q.Service, Port: q.Port, Cluster: c.Cluster, Endpoint: c.Endpoint, Remote: c.Remote, Host: c.Host, Datagrams: q.Datagrams}
}

// failure says in an answer's words why there is nowhere to go.
func (r *resolver) failure(p *plan) *Failure {
	q := p.Query
	name := host.String(q)
	switch {
	case errors.Is(p.err, topology.ErrUnknownService):
		r.mu.RLock()
		a := r.asked[q.Service]
		r.mu.RUnlock()
		if !a.known {
			return fail(http.StatusBadGateway, CodeUnknown, "no service is known by the name %s, and control could not be asked", name)
		}
		return fail(http.StatusBadGateway, CodeUnknown, "no service is known by the name %s; is it exported, and does the exporting cluster list this one in its audience?", name)
	case errors.Is(p.err, topology.ErrUnknownPort):
		return fail(http.StatusBadGateway, CodeUnknownPort, "%s has no port %d; it has %s", name, q.Port, ports(p.service))
	case errors.Is(p.err, topology.ErrNotImported):
		return fail(http.StatusBadGateway, CodeNotImported, "no cluster exports %s to this one (a ServiceExport in its own cluster does that); copies of the own cluster answer to %s",
			name, host.String(topology.Query{Service: q.Service, Scope: topology.ClusterLocal}))
	default:
		return &Failure{Status: http.StatusServiceUnavailable, Code: CodeNoCopy, Text: p.err.Error(), Err: p.err}
	}
}

// keep forgets what the present snapshot no longer speaks of.
func (r *resolver) keep(s *topology.Snapshot) {
	present := func(t topology.Target) bool {
		service := s.Service(t.Service)
		if service == nil {
			return false
		}
		if a, err := netip.ParseAddr(t.Endpoint); err == nil && t.Cluster != s.Self().Cluster {
			return service.Host(topology.HostRef{Cluster: t.Cluster, Address: a}) != nil
		}
		if t.Endpoint == "" {
			for i := range service.Remotes {
				if service.Remotes[i].Cluster == t.Cluster {
					return true
				}
			}
			return false
		}
		for i := range service.Endpoints {
			if service.Endpoints[i].ID == t.Endpoint {
				return true
			}
		}
		return false
	}
	r.health.Keep(present)
	r.pace.Keep(present)
	r.outliers.Keep(present)
	r.mu.Lock()
	defer r.mu.Unlock()
	for q, p := range r.plans {
		if p.snapshot != s {
			delete(r.plans, q)
		}
	}
	for q := range r.moving {
		if s.Service(q.Service) == nil {
			delete(r.moving, q)
		}
	}
}

// ports lists a service's ports in words.
func ports(s *topology.Service) string {
	if s == nil || len(s.Ports) == 0 {
		return "none"
	}
	words := make([]string, len(s.Ports))
	for i, p := range s.Ports {
		words[i] = strconv.Itoa(int(p.Number)) + "/" + string(p.Protocol)
	}
	return strings.Join(words, ", ")
}
