package control

import (
	"sync"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

// maxServedOfAll bounds what is kept of all programs together.
const maxServedOfAll = 100_000

// served is what the called programs of the own cluster told last of the work they have. Safe for concurrent use.
type served struct {
	now func() time.Time

	mu       sync.Mutex
	programs map[string]*servedBy // guarded by mu: by receiver
	kept     int                  // guarded by mu: services in them
}

// servedBy is what one program told.
type servedBy struct {
	session  *configstream.Session
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
}

func newServed(now func() time.Time) *served {
	return &served{now: now, programs: make(map[string]*servedBy)}
}

// report takes in what a program told. serves says whether it has anything to do with a service.
func (s *served) report(from *configstream.Session, r *configv1.Report, serves func(receiver string, service topology.ServiceName) bool) {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.programs[from.Receiver]
	switch {
	case p == nil:
		if len(r.GetServed()) == 0 {
			return
		}
		p = &servedBy{services: make(map[topology.ServiceName]load)}
		s.programs[from.Receiver] = p
	case p.session.Since.After(from.Since):
		return // another of its streams, which is about to end
	}
	if p.session != from { // it tells all of it anew
		s.kept -= len(p.services)
		clear(p.services)
	}
	p.session, p.at = from, now
	for _, m := range r.GetServed() {
		name, err := topology.ParseServiceName(m.GetService())
		if err != nil || !serves(from.Receiver, name) {
			continue
		}
		if _, known := p.services[name]; !known {
			if s.kept >= maxServedOfAll {
				continue
			}
			s.kept++
		}
		p.services[name] = load{
			receiver: from.Receiver, at: now, active: int(m.GetActive()), requests: m.GetRequests(), shed: m.GetShed(), limit: int(m.GetLimit()),
		}
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
