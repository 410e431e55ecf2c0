package control

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/isthmus-mesh/isthmus/api/admin"
	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

// What is kept of what happened, at most.
const (
	maxEvents        = 8_192 // in all
	maxServiceEvents = 512   // of one service, and of the cluster as a whole
	maxCallerEvents  = 1_024 // that one program alone told, or that are of one cluster, of all services: past it, they drive out each other
	maxTellers       = 4_096 // programs of which it is remembered what they told; past it, who tells again may be heard twice
	maxEventCallers  = 8     // named in one event
	maxEventClusters = 64    // in its shares
	maxEventEvidence = 8
	maxEventText     = 256 // bytes
	// sameTurn is how far apart callers may tell the same, to have it told as one.
	sameTurn = 5 * time.Second
	// turnPast is how old a turn may be: told after control was away. What is older, or to come, is said to be of now.
	turnPast = 24 * time.Hour
)

// timeline is what happened to the calls of the own cluster's callers, and what control did itself. Safe for concurrent use.
type timeline struct {
	now     func() time.Time
	cluster string

	mu      sync.Mutex
	next    uint64                          // guarded by mu; ID
	all     []*happened                     // guarded by mu; by ID
	service map[string]int                  // guarded by mu: how many of each
	program map[string]int                  // guarded by mu: how many it alone told
	told    map[string]map[turnKey]struct{} // guarded by mu: by program, what of it is in all: a stream that begins anew tells again
	recent  map[string][]*happened          // guarded by mu: turns by service, of all, that others may still have told
	dirty   bool                            // guarded by mu; since it was written
}

// happened is one event, as it is kept.
type happened struct {
	admin.TimelineEvent

	by string // the program that told it first, or "cluster/NAME" of which it is; empty: control itself
}

// turnKey tells a program's turns apart.
type turnKey struct {
	service string
	port    uint16
	at      int64
}

func newTimeline(cluster string, now func() time.Time) *timeline {
	return &timeline{
		now: now, cluster: cluster, next: 1, service: make(map[string]int), program: make(map[string]int),
		told: make(map[string]map[turnKey]struct{}), recent: make(map[string][]*happened),
	}
}

// tell notes what control did itself.
func (t *timeline) tell(kind string, service topology.ServiceName, detail string) {
	t.saw("", kind, service, detail)
}

// saw notes what control saw of somebody: who comes and goes all the time drives out what is of it, and nothing else.
func (t *timeline) saw(of, kind string, service topology.ServiceName, detail string) {
	name := ""
	if !service.IsZero() {
		name = service.String()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add(&happened{TimelineEvent: admin.TimelineEvent{At: t.now(), Kind: kind, Service: name, Detail: printable(detail)}, by: of})
}

// report takes in the turns that a program told. holds says whether it uses a service: of others it has nothing to say.
func (t *timeline) report(s *configstream.Session, r *configv1.Report, holds func(topology.ServiceName) bool) {
	for _, m := range r.GetTurns() {
		name, err := topology.ParseServiceName(m.GetService())
		if err != nil || m.GetPort() == 0 || m.GetPort() > math.MaxUint16 || !holds(name) {
			continue
		}
		t.turn(s.Receiver, name.String(), m)
	}
}

// turn takes in one of a program's turns.
func (t *timeline) turn(by, service string, m *configv1.Turn) {
	e := admin.TimelineEvent{
		Kind: admin.EventTurn, Service: service, Port: uint16(m.GetPort()), Callers: []string{by}, Count: 1, //nolint:gosec // checked
		Before: sharesOf(m.GetBefore()), After: sharesOf(m.GetAfter()),
	}
	for _, v := range m.GetEvidence()[:min(len(m.GetEvidence()), maxEventEvidence)] {
		e.Evidence = append(e.Evidence, admin.TimelineEvidence{
			Cluster: printable(v.GetCluster()), Endpoint: printable(v.GetEndpoint()), Cause: printable(v.GetCause()), Detail: printable(v.GetDetail()),
		})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if e.At = time.UnixMilli(m.GetAtMillis()); e.At.After(now) || now.Sub(e.At) > turnPast {
		e.At = now
	}
	key := turnKey{service, e.Port, m.GetAtMillis()}
	if _, known := t.told[by][key]; known {
		return
	}
	if t.told[by] == nil {
		if len(t.told) >= maxTellers { // those who only ever joined others are in no event that could be dropped
			clear(t.told)
		}
		t.told[by] = make(map[turnKey]struct{})
	}
	if len(t.told[by]) >= configstream.MaxTurns { // as many as a program tells again
		clear(t.told[by])
	}
	t.told[by][key] = struct{}{}
	t.recent[service] = slices.DeleteFunc(t.recent[service], func(o *happened) bool { return e.At.Sub(o.At) > sameTurn })
	for _, o := range t.recent[service] {
		if o.Port == e.Port && o.At.Sub(e.At).Abs() <= sameTurn && maps.Equal(o.Before, e.Before) && maps.Equal(o.After, e.After) && !slices.Contains(o.Callers, by) {
			if o.Count++; len(o.Callers) < maxEventCallers {
				o.Callers = append(o.Callers, by)
			}
			for _, v := range e.Evidence {
				if len(o.Evidence) < maxEventEvidence && !slices.Contains(o.Evidence, v) {
					o.Evidence = append(o.Evidence, v)
				}
			}
			t.dirty = true
			return
		}
	}
	h := &happened{TimelineEvent: e, by: by}
	t.add(h)
	t.recent[service] = append(t.recent[service], h)
}

// add keeps an event, and drops what is past the bounds: of a program that tells more than its part its own oldest, then the service's, then the
// oldest of all. Called with mu held.
func (t *timeline) add(h *happened) {
	h.ID, h.Cluster = t.next, t.cluster
	t.next++
	t.dirty = true
	t.all = append(t.all, h)
	t.service[h.Service]++
	if h.by != "" {
		t.program[h.by]++
	}
	switch {
	case h.by != "" && t.program[h.by] > maxCallerEvents:
		t.drop(func(o *happened) bool { return o.by == h.by })
	case t.service[h.Service] > maxServiceEvents:
		loudest := t.loudest(h.Service)
		t.drop(func(o *happened) bool { return o.Service == h.Service && o.by == loudest })
	case len(t.all) > maxEvents:
		most := ""
		for by, n := range t.program {
			if n > t.program[most] {
				most = by
			}
		}
		t.drop(func(o *happened) bool { return o.by == most || t.program[most] <= maxEvents/64 })
	}
}

// loudest returns who told most of what is kept of a service: nobody drives out what others told. Called with mu held.
func (t *timeline) loudest(service string) (most string) {
	counts := make(map[string]int)
	for _, o := range t.all {
		if o.Service == service {
			if counts[o.by]++; counts[o.by] > counts[most] {
				most = o.by
			}
		}
	}
	return most
}

// drop takes out the oldest event that is one of those. Called with mu held.
func (t *timeline) drop(which func(*happened) bool) {
	i := slices.IndexFunc(t.all, which)
	if i < 0 {
		return
	}
	o := t.all[i]
	t.all = slices.Delete(t.all, i, i+1)
	if j := slices.Index(t.recent[o.Service], o); j >= 0 { // its time is its program's to choose: that it is past says nothing
		t.recent[o.Service] = slices.Delete(t.recent[o.Service], j, j+1)
	}
	if t.service[o.Service]--; t.service[o.Service] == 0 {
		delete(t.service, o.Service)
		delete(t.recent, o.Service)
	}
	if o.by == "" {
		return
	}
	if t.program[o.by]--; t.program[o.by] == 0 {
		delete(t.program, o.by)
		delete(t.told, o.by)
	}
}

// of returns what happened to a service since then, and to the cluster as a whole, oldest first.
func (t *timeline) of(service string, since time.Time) []admin.TimelineEvent {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []admin.TimelineEvent{}
	for _, h := range t.all {
		if (h.Service == service || h.Service == "") && !h.At.Before(since) {
			e := h.TimelineEvent
			e.Callers, e.Evidence = slices.Clone(e.Callers), slices.Clone(e.Evidence)
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b admin.TimelineEvent) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID)) })
	return out
}

// sharesOf reads shares, to the percent; what makes no sense is left out.
func sharesOf(in []*configv1.ClusterShare) map[string]float64 {
	out := make(map[string]float64)
	for _, s := range in[:min(len(in), maxEventClusters)] {
		c, err := topology.ParseClusterName(s.GetCluster())
		if share := s.GetShare(); err == nil && share >= 0.005 && share <= 1 {
			out[c.String()] = math.Round(100*share) / 100
		}
	}
	return out
}

// printable bounds foreign text that is shown, and takes out what a terminal would heed.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
	for len(s) > maxEventText {
		r := []rune(s)
		s = string(r[:len(r)*maxEventText/len(s)])
	}
	return s
}
