package traffic

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// maxFailures is how many failures a Tally keeps word for word.
const maxFailures = 20

// maxSamples is how many durations a Tally keeps for its quantiles; of more, it keeps the latest.
const maxSamples = 100_000

// Tally counts answers. The zero Tally is empty and ready. Safe for concurrent use.
type Tally struct {
	mu       sync.Mutex // guards all below
	counts   Counts
	took     []time.Duration
	next     int // in took, once it is full
	failures []Answer
}

// Counts is what a Tally holds.
type Counts struct {
	Total     int
	Failed    int
	ByCluster map[string]int // answers that did not fail
	Slowest   time.Duration
}

// Add counts one answer; it is a sink for Load.Run.
func (t *Tally) Add(a Answer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts.Total++
	t.counts.Slowest = max(t.counts.Slowest, a.Took)
	if len(t.took) < maxSamples {
		t.took = append(t.took, a.Took)
	} else {
		t.took[t.next] = a.Took
		t.next = (t.next + 1) % maxSamples
	}
	if a.Failed() {
		t.counts.Failed++
		if len(t.failures) < maxFailures {
			t.failures = append(t.failures, a)
		}
		return
	}
	if t.counts.ByCluster == nil {
		t.counts.ByCluster = map[string]int{}
	}
	t.counts.ByCluster[a.Cluster]++
}

// Counts returns a copy of the counts.
func (t *Tally) Counts() Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.counts
	c.ByCluster = maps.Clone(c.ByCluster)
	return c
}

// Failures returns the first failures, at most 20.
func (t *Tally) Failures() []Answer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.failures)
}

// Quantile returns how long a request took that is slower than the share q, from 0 to 1, of all.
func (t *Tally) Quantile(q float64) time.Duration {
	t.mu.Lock()
	sorted := slices.Sorted(slices.Values(t.took))
	t.mu.Unlock()
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
