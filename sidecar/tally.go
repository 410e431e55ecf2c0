package sidecar

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

// tallyKey is what requests are counted by.
type tallyKey struct {
	service topology.ServiceName
	cluster topology.ClusterName // that answered; zero: none did
}

// compare orders keys by service, then by cluster.
func (k tallyKey) compare(other tallyKey) int {
	if c := k.service.Compare(other.service); c != 0 {
		return c
	}
	return k.cluster.Compare(other.cluster)
}

// tally counts the own application's requests to a service that one cluster answered, since the start. A plan holds those that it leads to: counting
// takes no lock and looks nothing up.
type tally struct {
	requests, failed, retried, hedged atomic.Uint64
	latency                           [configstream.LatencyBuckets]atomic.Uint64

	told uint64 // requests that control was told of; owned by tallies.report
}

// ended counts a request, or a connection, that has ended. took is how long it was until the answer's header; 0: there was none.
func (t *tally) ended(took time.Duration, failed bool, retries int, hedged bool) {
	if took > 0 {
		t.latency[configstream.LatencyBucket(took)].Add(1)
	}
	if failed {
		t.failed.Add(1)
	}
	if retries > 0 {
		t.retried.Add(uint64(retries))
	}
	if hedged {
		t.hedged.Add(1)
	}
	t.requests.Add(1) // last: what report sees of the others is never less
}

// message returns the counts as they go to control.
func (t *tally) message(k tallyKey) *configv1.Traffic {
	m := &configv1.Traffic{
		Service: k.service.String(), Cluster: k.cluster.String(),
		Requests: t.requests.Load(), Failed: t.failed.Load(), Retried: t.retried.Load(), Hedged: t.hedged.Load(),
	}
	last := 0
	buckets := make([]uint64, len(t.latency))
	for i := range t.latency {
		if buckets[i] = t.latency[i].Load(); buckets[i] > 0 {
			last = i + 1
		}
	}
	m.Latency = buckets[:last]
	return m
}

// tallies are all that a sidecar counts by. Safe for concurrent use; report by one goroutine at a time.
type tallies struct {
	mu sync.RWMutex
	by map[tallyKey]*tally // guarded by mu
	// rest is for what comes past the bound. Nobody is told of it.
	rest tally
}

// of returns the tally of a service and the cluster that answers.
func (t *tallies) of(service topology.ServiceName, cluster topology.ClusterName) *tally {
	key := tallyKey{service, cluster}
	t.mu.RLock()
	known := t.by[key]
	t.mu.RUnlock()
	if known != nil {
		return known
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if known = t.by[key]; known != nil {
		return known
	}
	if len(t.by) >= configstream.MaxTraffic {
		return &t.rest
	}
	if t.by == nil {
		t.by = make(map[tallyKey]*tally)
	}
	known = new(tally)
	t.by[key] = known
	return known
}

// report returns what has changed since it was last called, or all, ordered.
func (t *tallies) report(all bool) []*configv1.Traffic {
	t.mu.RLock()
	by := make(map[tallyKey]*tally)
	for k, c := range t.by {
		if n := c.requests.Load(); n > 0 && (all || n != c.told) {
			by[k] = c
		}
	}
	t.mu.RUnlock()
	out := make([]*configv1.Traffic, 0, len(by))
	for _, k := range slices.SortedFunc(maps.Keys(by), tallyKey.compare) {
		m := by[k].message(k)
		by[k].told = m.GetRequests()
		out = append(out, m)
	}
	return out
}

// Account returns what control is to know of what the sidecar carries, as configstream.Client.Account wants it; nil: there is nothing new.
func (s *Sidecar) Account(all bool) *configv1.Report {
	r := &configv1.Report{
		Traffic: s.outbound.tallies.report(all), Served: s.inbound.services.report(all, s.config.Now()), Turns: s.outbound.resolver.turns.report(all, s.config.Now()),
	}
	if len(r.GetTraffic())+len(r.GetServed())+len(r.GetTurns()) == 0 && !all {
		return nil
	}
	return r
}
