package balance

import (
	"sync"
	"time"
)

// The retry budget's numbers.
const (
	budgetRatio   = 0.2         // of the window's requests
	budgetFloor   = 10          // retries a second that are always allowed
	budgetBuckets = 10          // of a second each: the window
	bucketLength  = time.Second //
	_             = budgetBuckets * bucketLength
)

// What a retry costs of the budget.
const (
	// CostSent is for a retry of a request that may have reached the application: it doubles that work.
	CostSent = 1
	// CostUnsent is for a retry of a request that reached nobody: it costs the mesh a little and the application nothing.
	CostUnsent = 0.1
)

// Budget keeps retries from making an outage worse: over a window of 10 s they may cost 20 % of the requests, and 10 a
// second besides. The zero value is a full budget.
type Budget struct {
	mu      sync.Mutex
	buckets [budgetBuckets]bucket // guarded by mu; ring by second
	last    int64                 // guarded by mu; the newest second in the ring
}

type bucket struct {
	requests float64
	spent    float64
}

// Request counts a request that is not a retry.
func (b *Budget) Request(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now).requests++
}

// Withdraw takes a retry's cost, or reports false when the budget is used up.
func (b *Budget) Withdraw(now time.Time, cost float64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	current := b.advance(now)
	var requests, spent float64
	for _, k := range b.buckets {
		requests += k.requests
		spent += k.spent
	}
	const epsilon = 1e-9 // tenths do not add up exactly
	if spent+cost > budgetRatio*requests+budgetFloor*budgetBuckets+epsilon {
		return false
	}
	current.spent += cost
	return true
}

// advance empties the buckets that time has passed over, and returns the present one. A clock that steps back stays in the newest.
func (b *Budget) advance(now time.Time) *bucket {
	second := now.UnixNano() / int64(bucketLength)
	if second > b.last {
		for s := max(b.last+1, second-budgetBuckets+1); s <= second; s++ {
			b.buckets[index(s)] = bucket{}
		}
		b.last = second
	}
	return &b.buckets[index(b.last)]
}

func index(second int64) int {
	return int(((second % budgetBuckets) + budgetBuckets) % budgetBuckets)
}
