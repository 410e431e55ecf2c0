package sidecar

import (
	"cmp"
	"container/list"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

const (
	// maxDecisions is how many kinds of request are remembered; the one that was asked for longest ago makes room.
	maxDecisions = 2_048
	// maxNewDecisions is how many new kinds a second are taken note of: whoever asks for ever new paths must not cost the sidecar its time.
	maxNewDecisions = 200
	maxDecisionPath = 512 // bytes; longer ones are cut
	// maxDecisionMethod is the same for methods: a caller may make up any token for one, as long as all of its headers may be.
	maxDecisionMethod = 64
)

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

// shortened is a request target or a method without a query, which may hold secrets, and not longer than anybody wants to keep.
func shortened(text string) string {
	if i := strings.IndexAny(text, "?#"); i >= 0 {
		text = text[:i]
	}
	return text[:min(len(text), maxDecisionPath)]
}

// note takes note of a decision.
func (d *decisions) note(k kindOf, what *access.Decision) {
	k.path = shortened(k.path)
	if len(k.method) > maxDecisionMethod {
		k.method = k.method[:maxDecisionMethod]
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
func (d *decisions) all() admin.Decisions {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := admin.Decisions{Since: d.since, Dropped: d.dropped, Decisions: []admin.Decision{}}
	for at := d.recent.Front(); at != nil; at = at.Next() {
		e := at.Value.(*decided) //nolint:forcetypeassert // as above
		x := admin.Decision{
			Caller: e.kind.caller, Service: e.kind.service.String(), Port: e.kind.port, Opaque: e.kind.opaque,
			Method: e.kind.method, Path: e.kind.path, User: e.kind.user,
			Allowed: e.last.Allowed, Policy: e.last.Policy, Rule: e.last.Rule, Reason: e.last.Reason.String(),
			Count: e.count, First: e.first, Last: e.seen,
		}
		if !e.last.Audit.Allowed {
			x.Audit = &admin.AuditDecision{Policy: e.last.Audit.Policy, Rule: e.last.Audit.Rule, Reason: e.last.Audit.Reason.String()}
		}
		out.Decisions = append(out.Decisions, x)
	}
	slices.SortFunc(out.Decisions, func(a, b admin.Decision) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Caller, b.Caller), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Method, b.Method), cmp.Compare(a.Port, b.Port))
	})
	return out
}

// Decisions returns what was asked of the workload, and what the policies said.
func (s *Sidecar) Decisions() admin.Decisions { return s.inbound.decisions.all() }
