package control

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

// maxServedOfAll bounds what is kept of all programs together.
const maxServedOfAll = 100_000

// maxOverloads bounds what is shown of overloads.
const maxOverloads = 100

// maxServedCallers bounds the clusters that are kept of one service and program.
const maxServedCallers = 64

// served is what the called programs of the own cluster told last of the work they have. Safe for concurrent use.
type served struct {
	now     func() time.Time
	limited func(receiver string, service topology.ServiceName, limit int) // a program takes so many requests at a time from now on; 0: all, again

	mu       sync.Mutex
	programs map[string]*servedBy // guarded by mu: by receiver
	kept     int                  // guarded by mu: services in them
}

// servedBy is what one program told.
type servedBy struct {
	session  *configstream.Session
	first    time.Time // when it told first, on this stream: what it had to do before is not known
	at       time.Time // when it told last; what has not changed since is not told again
	services map[topology.ServiceName]load
}

// load is what one called program has to do for a service.
type load struct {
	receiver string // "sidecar/shop/checkout-0"
	at       time.Time
	active   int    // requests and connections that are open
	requests uint64 // begun since the program started
	shed     uint64 // refused because there were too many
	limit    int    // requests at a time; 0: none

	refused time.Time // when it was last told that one was refused; zero: none was, on this stream
	last    time.Time // when something came in, or was open, last; zero: not on this stream
	begun   uint64    // requests in the last second that was told of
	callers map[topology.ClusterName]callerLoad
}

// callerLoad is what comes from one cluster.
type callerLoad struct {
	at       time.Time
	active   int
	requests uint64
	begun    uint64
}

// perSecond is how many requests begin each second now.
func perSecond(begun uint64, at, now time.Time) float64 {
	if now.Sub(at) > 2*time.Second { // it would have told
		return 0
	}
	return float64(begun)
}

func newServed(now func() time.Time, limited func(receiver string, service topology.ServiceName, limit int)) *served {
	return &served{now: now, limited: limited, programs: make(map[string]*servedBy)}
}

// report takes in what a program told. serves says whether it has anything to do with a service.
func (s *served) report(from *configstream.Session, r *configv1.Report, serves func(receiver string, service topology.ServiceName) bool) {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.programs[from.Receiver]
	switch {
	case p == nil:
		p = &servedBy{services: make(map[topology.ServiceName]load)}
		s.programs[from.Receiver] = p
	case p.session.Since.After(from.Since):
		return // another of its streams, which is about to end
	}
	if p.session != from { // it tells all of it anew
		s.kept -= len(p.services)
		clear(p.services)
		p.first = now
	}
	p.session, p.at = from, now
	for _, m := range r.GetServed() {
		name, err := topology.ParseServiceName(m.GetService())
		if err != nil || !serves(from.Receiver, name) {
			continue
		}
		before, known := p.services[name]
		if !known {
			if s.kept >= maxServedOfAll {
				continue
			}
			s.kept++
		}
		next := load{
			receiver: from.Receiver, at: now, active: int(m.GetActive()), requests: m.GetRequests(), shed: m.GetShed(), limit: int(m.GetLimit()),
			last: before.last, refused: before.refused, callers: before.callers,
		}
		if known && next.shed > before.shed {
			next.refused = now
		}
		if (next.limit > 0) != (before.limit > 0) {
			s.limited(from.Receiver, name, next.limit)
		}
		if known || p.first.Before(now) {
			next.begun = m.GetRequests() - min(before.requests, m.GetRequests())
		}
		if next.begun > 0 || next.active > 0 || before.active > 0 {
			next.last = now
		}
		s.callersOf(&next, m.GetCallers(), next.begun > 0)
		p.services[name] = next
	}
}

// callersOf takes in what comes from where; growth tells whether what was told before is known.
func (s *served) callersOf(l *load, told []*configv1.ServedCaller, growth bool) {
	for _, c := range told {
		name, err := topology.ParseClusterName(c.GetCluster())
		if err != nil && c.GetCluster() != "" {
			continue
		}
		if _, known := l.callers[name]; !known && len(l.callers) >= maxServedCallers {
			continue
		}
		if l.callers == nil {
			l.callers = make(map[topology.ClusterName]callerLoad)
		}
		next := callerLoad{at: l.at, active: int(c.GetActive()), requests: c.GetRequests()}
		if growth {
			next.begun = next.requests - min(l.callers[name].requests, next.requests)
		}
		l.callers[name] = next
	}
}

// forget drops what a program told whose stream has ended: nobody knows what it does now.
func (s *served) forget(of *configstream.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.programs[of.Receiver]; p != nil && p.session == of {
		s.kept -= len(p.services)
		delete(s.programs, of.Receiver)
	}
}

// of returns what the connected programs told last of a service; those that have nothing to do with it, or were never called, are not in it.
func (s *served) of(service topology.ServiceName) []load {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []load
	for _, p := range s.programs {
		if l, ok := p.services[service]; ok {
			out = append(out, l)
		}
	}
	return out
}

// shedFor is how long it is shown that a program refused requests.
const shedFor = time.Minute

// overloads returns the programs that refused requests lately because they had too much to do, ordered by service and program.
func (s *served) overloads() []admin.Overload {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	var out []admin.Overload
	for _, p := range s.programs {
		for name, l := range p.services {
			if !l.refused.IsZero() && now.Sub(l.refused) < shedFor {
				out = append(out, admin.Overload{Service: name.String(), Program: l.receiver, Limit: l.limit, Shed: l.shed, Last: l.refused})
			}
		}
	}
	slices.SortFunc(out, func(a, b admin.Overload) int {
		return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Program, b.Program))
	})
	return out[:min(len(out), maxOverloads)]
}

// told says from when on it is known what a program has to do, and what it told of a service last; ok is false when nothing is known.
func (s *served) told(receiver string, service topology.ServiceName) (since time.Time, last load, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.programs[receiver]
	if p == nil {
		return time.Time{}, load{}, false
	}
	last = p.services[service]
	last.callers = maps.Clone(last.callers)
	return p.first, last, true
}
