package gateway

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// An endpoint that could not be dialed ejectAfter times in a row is left out for a while: longer each time, never with more
// than half of its service's endpoints.
const (
	ejectAfter    = 2
	ejectionBase  = 5 * time.Second
	maxEjection   = time.Minute
	ejectedShares = 2 // at most one in so many
)

type endpointKey struct {
	service topology.ServiceName
	id      string
	address netip.AddrPort
}

func keyOf(s topology.ServiceName, e *topology.Endpoint) endpointKey {
	return endpointKey{s, e.ID, e.Address}
}

type endpointState struct {
	active    int // streams
	failures  int // dials in a row
	ejections int // in a row
	until     time.Time
}

// endpoints chooses copies of the own cluster's exports, by load and by what dialing them has shown. Safe for concurrent use.
type endpoints struct {
	mu     sync.Mutex
	states map[endpointKey]*endpointState // guarded by mu; without an entry: nothing is known against it, and it is idle
}

func newEndpoints() *endpoints { return &endpoints{states: make(map[endpointKey]*endpointState)} }

// portsFor returns the ports for datagrams, or else those that are reached over TCP.
func portsFor(tcp, udp []uint16, datagrams bool) []uint16 {
	if datagrams {
		return udp
	}
	return tcp
}

// eligible returns the endpoints of e that are ready and serve port, for datagrams or else over TCP.
func eligible(e *topology.Export, port uint16, datagrams bool) []*topology.Endpoint {
	var out []*topology.Endpoint
	for i := range e.Endpoints {
		if ep := &e.Endpoints[i]; ep.Ready && slices.Contains(portsFor(ep.Ports, ep.UDPPorts, datagrams), port) {
			out = append(out, ep)
		}
	}
	return out
}

// named returns the endpoints at which the one copy with that address is reached: its sidecar, or else whoever stands in for copies without
// one. None when it is no ready copy.
func named(e *topology.Export, port uint16, datagrams bool, host netip.Addr) []*topology.Endpoint {
	if !slices.Contains(e.Hosts, host) {
		return nil
	}
	var own, standIns []*topology.Endpoint
	for _, ep := range eligible(e, port, datagrams) {
		switch {
		case ep.StandIn:
			standIns = append(standIns, ep)
		case ep.Address.Addr() == host:
			own = append(own, ep)
		}
	}
	if len(own) > 0 {
		return own
	}
	return standIns
}

// take chooses one of the candidates and counts a stream in; call release when it ends. Nil when there is no candidate.
func (s *endpoints) take(service topology.ServiceName, candidates []*topology.Endpoint, now time.Time) *topology.Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	usable := make([]*topology.Endpoint, 0, len(candidates))
	for _, e := range candidates {
		if st := s.states[keyOf(service, e)]; st == nil || !now.Before(st.until) {
			usable = append(usable, e)
		}
	}
	if len(usable) == 0 {
		usable = candidates // all are suspect: so none is worse than the others
	}
	if len(usable) == 0 {
		return nil
	}
	chosen := draw(usable)
	if other := draw(usable); s.load(service, other) < s.load(service, chosen) {
		chosen = other
	}
	s.state(keyOf(service, chosen)).active++
	return chosen
}

// draw returns one at random, by weight.
func draw(from []*topology.Endpoint) *topology.Endpoint {
	var total uint32
	for _, e := range from {
		total += weight(e)
	}
	at := rand.Uint32N(total) //nolint:gosec // G404: spreading load needs no secret
	for _, e := range from {
		w := weight(e)
		if at < w {
			return e
		}
		at -= w
	}
	return from[len(from)-1]
}

// weight is how many copies are behind e, kept to a size that sums can't overflow.
func weight(e *topology.Endpoint) uint32 {
	return uint32(min(max(e.Capacity, 1), 1<<16))
}

// load is streams a copy. mu is held.
func (s *endpoints) load(service topology.ServiceName, e *topology.Endpoint) float64 {
	st := s.states[keyOf(service, e)]
	if st == nil {
		return 0
	}
	return float64(st.active) / float64(weight(e))
}

// state returns the key's state, made if need be. mu is held.
func (s *endpoints) state(k endpointKey) *endpointState {
	st := s.states[k]
	if st == nil {
		st = new(endpointState)
		s.states[k] = st
	}
	return st
}

// release counts a stream out.
func (s *endpoints) release(k endpointKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.states[k]; st != nil {
		st.active--
		s.drop(k, st)
	}
}

// reached forgets what there was against an endpoint.
func (s *endpoints) reached(k endpointKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.states[k]; st != nil {
		st.failures, st.ejections, st.until = 0, 0, time.Time{}
	}
}

// unreachable notes a failed dial; candidates are all that the service has. It reports whether the endpoint is left out now.
func (s *endpoints) unreachable(k endpointKey, candidates []*topology.Endpoint, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state(k)
	st.failures++
	if st.failures < ejectAfter || now.Before(st.until) {
		return false
	}
	out := 1
	for _, e := range candidates {
		if o := s.states[keyOf(k.service, e)]; o != nil && now.Before(o.until) {
			out++
		}
	}
	if out*ejectedShares > len(candidates) {
		return false
	}
	st.ejections++
	st.until = now.Add(min(time.Duration(st.ejections)*ejectionBase, maxEjection))
	return true
}

// forget drops what is known of endpoints that no export names any more.
func (s *endpoints) forget(snapshot *topology.Snapshot) {
	named := make(map[endpointKey]bool)
	for _, e := range snapshot.Exports() {
		for i := range e.Endpoints {
			named[keyOf(e.Name, &e.Endpoints[i])] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, st := range s.states {
		if !named[k] {
			st.failures, st.ejections, st.until = 0, 0, time.Time{}
			s.drop(k, st)
		}
	}
}

// drop removes a state that says nothing. mu is held.
func (s *endpoints) drop(k endpointKey, st *endpointState) {
	if st.active == 0 && st.failures == 0 && st.until.IsZero() {
		delete(s.states, k)
	}
}
