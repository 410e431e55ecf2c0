package configstream

import (
	"math"
	"math/bits"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// accountEvery is how often a program gives account of what it carries.
const accountEvery = time.Second

// What one Report may tell of, at most.
const (
	MaxTraffic = 2_048 // pairs of service and answering cluster
	MaxServed  = 1_024 // services, of a called program
	MaxTurns   = 256   // decisions
	// MaxServedCallers bounds the clusters that call what is served, over all services.
	MaxServedCallers = 4_096
)

// Account gives control, once a second, what tell returns; nil: there is nothing new. all asks for everything and not only for what has changed:
// it is the first of a stream, and what was told on another may not have arrived. It is called by one goroutine at a time, and not before the
// program said hello. Call Account before Run. What Report was given is told beside it.
func (c *Client) Account(tell func(all bool) *configv1.Report) { c.account = tell }

// LatencyBuckets is how many buckets Traffic.latency has. The last has no end.
const LatencyBuckets = 32

// LatencyEnd returns where a bucket ends: 2^(i/2) milliseconds.
func LatencyEnd(i int) time.Duration { return latencyEnds[i] }

var latencyEnds = func() (ends [LatencyBuckets]time.Duration) {
	for i := range ends {
		ends[i] = time.Duration(math.Exp2(float64(i)/2) * float64(time.Millisecond))
	}
	return ends
}()

// LatencyBucket returns the bucket that d falls into.
func LatencyBucket(d time.Duration) int {
	if d <= time.Millisecond {
		return 0
	}
	i := 2 * (bits.Len64(uint64(d/time.Millisecond)) - 1) // its end is at most d
	for i < LatencyBuckets-1 && d > LatencyEnd(i) {
		i++
	}
	return min(i, LatencyBuckets-1)
}

// Holds reports whether the client is subscribed to a service.
func (s *Session) Holds(name topology.ServiceName) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.services[name]
	return ok
}
