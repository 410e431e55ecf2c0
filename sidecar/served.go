package sidecar

import (
	"sync"
	"sync/atomic"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

// served is what the own application has to do for one service that it serves. Each inner session holds the one that it is for.
type served struct {
	service  topology.ServiceName
	active   atomic.Int64  // requests and opaque connections that are open
	requests atomic.Uint64 // begun, since the start

	told struct { // what control was told; owned by services.report
		active   int64
		requests uint64
	}
}

// begin counts a request, or an opaque connection, in. Call what it returns when that has ended.
func (s *served) begin() {
	s.active.Add(1)
	s.requests.Add(1)
}

// end counts it out.
func (s *served) end() { s.active.Add(-1) }

// services are all that is served here, and has been called. Safe for concurrent use; report by one goroutine at a time.
type services struct {
	mu sync.RWMutex
	by map[topology.ServiceName]*served // guarded by mu; as many as the configuration has at most, which is bounded
}

// of returns that of a service.
func (s *services) of(name topology.ServiceName) *served {
	s.mu.RLock()
	known := s.by[name]
	s.mu.RUnlock()
	if known != nil {
		return known
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known = s.by[name]; known == nil {
		if s.by == nil {
			s.by = make(map[topology.ServiceName]*served)
		}
		known = &served{service: name}
		s.by[name] = known
	}
	return known
}

// report returns what has changed since it was last called, or all; what is too much for one report comes with the next.
func (s *services) report(all bool) []*configv1.Served {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*configv1.Served
	for _, v := range s.by {
		active, requests := max(v.active.Load(), 0), v.requests.Load()
		if all {
			v.told.active, v.told.requests = 0, 0
		}
		if active == v.told.active && requests == v.told.requests || len(out) >= configstream.MaxServed {
			continue
		}
		v.told.active, v.told.requests = active, requests
		out = append(out, &configv1.Served{Service: v.service.String(), Active: uint32(min(active, 1<<31)), Requests: requests})
	}
	return out
}
