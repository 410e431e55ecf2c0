package sidecar

import (
	"cmp"
	"container/list"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

const (
	// maxDecisions is how many kinds of request are remembered; the one that was asked for longest ago makes room.
	maxDecisions = 2_048
	// maxNewDecisions is how many new kinds a second are taken note of: whoever asks for ever new paths must not cost the sidecar its time.
	maxNewDecisions = 200
	maxDecisionPath = 512 // bytes; longer ones are cut
)

// Decision is what was asked of the workload, and what policies said of it last. Requests that differ in nothing of it are one. Of headers,
// queries, bodies and tokens it holds nothing.
type Decision struct {
	Caller  string               `json:"caller"` // SPIFFE ID
	Service topology.ServiceName `json:"service"`
	Port    uint16               `json:"port"`   // where the application listens
	Opaque  bool                 `json:"opaque"` // a connection whose bytes nobody reads
	Method  string               `json:"method,omitempty"`
	Path    string               `json:"path,omitempty"` // without the query
	// User tells that there was a good token of an end user.
	User bool `json:"user"`

	Allowed bool           `json:"allowed"`
	Policy  string         `json:"policy,omitempty"`
	Rule    string         `json:"rule,omitempty"`
	Reason  string         `json:"reason"`
	Audit   *AuditDecision `json:"audit,omitempty"` // policies in audit mode would have refused it

	Count uint64    `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// AuditDecision is who would have refused.
type AuditDecision struct {
	Policy string `json:"policy"`
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason"`
}

// Decisions are those that are remembered.
type Decisions struct {
	Since     time.Time  `json:"since"`   // of the sidecar's start
	Dropped   uint64     `json:"dropped"` // kinds of request that found no place, or had to make some
	Decisions []Decision `json:"decisions"`
}

// kindOf is what tells one kind of request from another.
type kindOf struct {
	caller, method, path string
	service              topology.ServiceName
	port                 uint16
	opaque, user         bool
}

// decisions remembers what was asked and decided. A kind that is known costs no allocation.
type decisions struct {
	now func() time.Time

	mu      sync.Mutex
	since   time.Time                // guarded by mu
	known   map[kindOf]*list.Element // guarded by mu
	recent  list.List                // guarded by mu: of *decided; the one that was asked for last is in front
	second  time.Time                // guarded by mu: in which fresh were taken
	fresh   int                      // guarded by mu
	dropped uint64                   // guarded by mu
}

type decided struct {
	kind        kindOf
	last        access.Decision
	count       uint64
	first, seen time.Time
}

func newDecisions(now func() time.Time) *decisions {
	return &decisions{now: now, since: now(), known: make(map[kindOf]*list.Element)}
}

// note takes note of a decision.
func (d *decisions) note(k kindOf, what *access.Decision) {
	if i := strings.IndexAny(k.path, "?#"); i >= 0 {
		k.path = k.path[:i]
	}
	if len(k.path) > maxDecisionPath {
		k.path = k.path[:maxDecisionPath]
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	if at := d.known[k]; at != nil {
		e := at.Value.(*decided) //nolint:forcetypeassert // there is nothing else in it
		e.last, e.seen = *what, now
		e.count++
		d.recent.MoveToFront(at)
		return
	}
	if now.Sub(d.second) >= time.Second {
		d.second, d.fresh = now, 0
	}
	if d.fresh++; d.fresh > maxNewDecisions {
		d.dropped++
		return
	}
	if len(d.known) >= maxDecisions {
		oldest := d.recent.Back()
		delete(d.known, oldest.Value.(*decided).kind) //nolint:forcetypeassert // as above
		d.recent.Remove(oldest)
		d.dropped++
	}
	k.method, k.path = strings.Clone(k.method), strings.Clone(k.path) // they are part of what came, and all of that would be kept
	d.known[k] = d.recent.PushFront(&decided{kind: k, last: *what, count: 1, first: now, seen: now})
}

// all returns what is remembered, ordered by service, caller, path and method.
func (d *decisions) all() Decisions {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := Decisions{Since: d.since, Dropped: d.dropped, Decisions: []Decision{}}
	for at := d.recent.Front(); at != nil; at = at.Next() {
		e := at.Value.(*decided) //nolint:forcetypeassert // as above
		x := Decision{
			Caller: e.kind.caller, Service: e.kind.service, Port: e.kind.port, Opaque: e.kind.opaque,
			Method: e.kind.method, Path: e.kind.path, User: e.kind.user,
			Allowed: e.last.Allowed, Policy: e.last.Policy, Rule: e.last.Rule, Reason: e.last.Reason.String(),
			Count: e.count, First: e.first, Last: e.seen,
		}
		if !e.last.Audit.Allowed {
			x.Audit = &AuditDecision{e.last.Audit.Policy, e.last.Audit.Rule, e.last.Audit.Reason.String()}
		}
		out.Decisions = append(out.Decisions, x)
	}
	slices.SortFunc(out.Decisions, func(a, b Decision) int {
		return cmp.Or(a.Service.Compare(b.Service), cmp.Compare(a.Caller, b.Caller), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Method, b.Method), cmp.Compare(a.Port, b.Port))
	})
	return out
}

// Decisions returns what was asked of the workload, and what the policies said.
func (s *Sidecar) Decisions() Decisions { return s.inbound.decisions.all() }
