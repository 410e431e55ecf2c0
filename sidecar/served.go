package sidecar

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/sidecar/limit"
	"github.com/isthmus-mesh/isthmus/topology"
)

// served is what the own application has to do for one service that it serves. Each inner session holds the one that it is for.
type served struct {
	service topology.ServiceName
	busy

	shed atomic.Uint64 // refused because there were too many

	told struct { // what control was told beside busy's; owned by services.report
		shed  uint64
		limit uint32
	}

	mu sync.Mutex
	// limiters are those of its ports.
	limiters map[uint16]*limit.Limiter      // guarded by mu
	by       map[topology.ClusterName]*busy // guarded by mu; by calling cluster, as many as the configuration has, and the zero one for who is of none
}

// busy counts requests and opaque connections.
type busy struct {
	active   atomic.Int64  // that are open
	requests atomic.Uint64 // begun, since the start

	told struct { // what control was told; owned by services.report
		active   int64
		requests uint64
	}
}

// begin counts a request, or an opaque connection, in: it is one of from's.
func (s *served) begin(from *busy) {
	s.active.Add(1)
	s.requests.Add(1)
	from.active.Add(1)
	from.requests.Add(1)
}

// end counts it out.
func (s *served) end(from *busy) {
	s.active.Add(-1)
	from.active.Add(-1)
}

// limiter returns that of a port.
func (s *served) limiter(port uint16) *limit.Limiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.limiters[port]
	if l == nil {
		if s.limiters == nil {
			s.limiters = make(map[uint16]*limit.Limiter)
		}
		l = new(limit.Limiter)
		s.limiters[port] = l
	}
	return l
}

// limit returns how many requests are taken at a time, by the port that takes the fewest; 0: all. It eases those that nothing speaks for any more.
func (s *served) limit(now time.Time) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	least := 0
	for _, l := range s.limiters {
		l.Ease(now)
		if n := l.Limit(); n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	return count32(int64(least))
}

// from returns what comes from one cluster.
func (s *served) from(cluster topology.ClusterName) *busy {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.by[cluster]
	if w == nil {
		if s.by == nil {
			s.by = make(map[topology.ClusterName]*busy)
		}
		w = new(busy)
		s.by[cluster] = w
	}
	return w
}

// now returns the present counts, and whether control knows them.
func (w *busy) now() (active int64, requests uint64, known bool) {
	active, requests = max(w.active.Load(), 0), w.requests.Load()
	return active, requests, active == w.told.active && requests == w.told.requests
}

// clusterOf returns the cluster of a trust domain; zero: it is none's.
func (g *guards) clusterOf(td spiffeid.TrustDomain) topology.ClusterName {
	switch {
	case g == nil:
		return topology.ClusterName{}
	case td == g.of.Self().Domain:
		return g.of.Self().Cluster
	}
	return g.clusters[td]
}

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
func (s *services) report(all bool, now time.Time) []*configv1.Served {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*configv1.Served
	callers := 0
	for _, v := range s.by {
		if all {
			v.forgetTold()
		}
		active, requests, known := v.now()
		shed, limit := v.shed.Load(), v.limit(now)
		if known && shed == v.told.shed && limit == v.told.limit || len(out) >= configstream.MaxServed {
			continue
		}
		m := &configv1.Served{Service: v.service.String(), Active: count32(active), Requests: requests, Shed: shed, Limit: limit}
		if m.Callers = v.reportCallers(configstream.MaxServedCallers - callers); m.Callers == nil && callers > 0 {
			continue // no room for them: it comes next time, as a whole
		}
		callers += len(m.GetCallers())
		v.busy.told.active, v.busy.told.requests = active, requests
		v.told.shed, v.told.limit = shed, limit
		out = append(out, m)
	}
	return out
}

// forgetTold has all of it told again.
func (s *served) forgetTold() {
	s.busy.told.active, s.busy.told.requests = 0, 0
	s.told.shed, s.told.limit = 0, 0
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.by {
		w.told.active, w.told.requests = 0, 0
	}
}

// reportCallers returns what has changed by calling cluster; nil when it would be more than that.
func (s *served) reportCallers(atMost int) []*configv1.ServedCaller {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.by) > atMost {
		return nil
	}
	out := make([]*configv1.ServedCaller, 0, len(s.by))
	for cluster, w := range s.by {
		active, requests, known := w.now()
		if known {
			continue
		}
		w.told.active, w.told.requests = active, requests
		out = append(out, &configv1.ServedCaller{Cluster: cluster.String(), Active: count32(active), Requests: requests})
	}
	return out
}

// count32 clamps a count into what the wire carries.
func count32(n int64) uint32 { return uint32(min(max(n, 0), 1<<31)) }
