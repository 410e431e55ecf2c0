package balance

import (
	"sync"
	"sync/atomic"
	"time"
)

// Pace is how fast copies answer, as a caller's own requests have shown. It says when an answer is overdue, and since when nothing came at
// all: a slow answer is the copy's affair, but a copy (or the way to it) that falls silent may be gone. The zero value is in use.
type Pace[K comparable] struct {
	mu     sync.RWMutex
	copies map[K]*pace // guarded by mu
}

// pace is one copy's. Times are smoothed as round trips are in RFC 6298.
type pace struct {
	heard atomic.Int64 // Unix nanoseconds

	mu      sync.Mutex
	mean    time.Duration // guarded by mu; 0: nothing was measured
	spread  time.Duration // guarded by mu; mean deviation
	waiting waits         // guarded by mu; for an answer, the longest first
	late    waits         // guarded by mu; those whose answer is overdue
	looking bool          // guarded by mu; somebody will look
	overdue int           // guarded by mu; answers that became overdue since the copy was last heard
	since   time.Time     // guarded by mu; when the first of those began to wait
}

const (
	// leastPatience is for copies that answer at once: below it, a busy machine looks like a silent one.
	leastPatience = 30 * time.Millisecond
	// leastSilence is how long a copy has to be silent, at least, for that to count against it. Requests go elsewhere long before (they are tried
	// beside it), but a machine that has no time for a moment isn't gone, and to leave it moves all its load.
	leastSilence = 150 * time.Millisecond
	// firstPatience is for a copy that has not answered yet.
	firstPatience = 250 * time.Millisecond
	// mostPatience bounds what a copy that is slow now and then may get.
	mostPatience = 2 * time.Second
)

func (p *Pace[K]) of(k K) *pace {
	p.mu.RLock()
	c := p.copies[k]
	p.mu.RUnlock()
	if c != nil {
		return c
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c = p.copies[k]; c == nil {
		if p.copies == nil {
			p.copies = make(map[K]*pace)
		}
		c = new(pace)
		p.copies[k] = c
	}
	return c
}

// Alive records that something came from k, whatever it was. It takes no time that is worth measuring.
func (p *Pace[K]) Alive(now time.Time, k K) { p.of(k).heard.Store(now.UnixNano()) }

// Heard records that k answered a request after took.
func (p *Pace[K]) Heard(now time.Time, k K, took time.Duration) {
	c := p.of(k)
	c.heard.Store(now.UnixNano())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.overdue = 0
	took = max(took, 1)
	if c.mean == 0 {
		c.mean, c.spread = took, took/2
		return
	}
	c.spread += ((c.mean - took).Abs() - c.spread) / 4
	c.mean += (took - c.mean) / 8
}

// Mean is how long an answer of k takes; 0: none has come.
func (p *Pace[K]) Mean(k K) time.Duration {
	c := p.of(k)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mean
}

// Unheard reports whether nothing came from k since then.
func (p *Pace[K]) Unheard(k K, since time.Time) bool { return p.of(k).heard.Load() < since.UnixNano() }

// Patience is how long an answer of k may take before it is overdue.
func (p *Pace[K]) Patience(k K) time.Duration {
	c := p.of(k)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.patience()
}

// patience is the mean and four times the spread, but at least twice and at most three times the mean: a packet that was lost takes a round trip
// more, and a few of them must not make blind for a copy that is gone. c.mu is held.
func (c *pace) patience() time.Duration {
	if c.mean == 0 {
		return firstPatience
	}
	return min(max(min(c.mean+4*c.spread, 3*c.mean), 2*c.mean, leastPatience), mostPatience)
}

// quiet is how long nothing at all has to have come from the copy before an answer that is overdue means anything: what it answers to others
// comes about as late. c.mu is held.
func (c *pace) quiet() time.Duration {
	return min(max(c.mean, leastPatience), mostPatience)
}

// Silent reports whether nothing came from k since then, and that for longer than its answers take and for long enough to count against it.
func (p *Pace[K]) Silent(now time.Time, k K, since time.Time) bool {
	c := p.of(k)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard.Load() <= since.UnixNano() && now.Sub(since) >= max(c.patience(), leastSilence)
}

// Keep forgets the copies that keep refuses: those that are gone.
func (p *Pace[K]) Keep(keep func(K) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range p.copies {
		if !keep(k) {
			delete(p.copies, k)
		}
	}
}

// The budget of hedges: a share of the requests, and a few that are always allowed.
const (
	hedgeRatio = 0.05
	hedgeBurst = 10
)

// Hedges keeps second tries beside slow ones from becoming load of their own: one for twenty requests, and ten at once. The zero value is a
// full budget.
type Hedges struct {
	mu    sync.Mutex
	spent float64 // guarded by mu; of hedgeBurst
}

// Request counts a request.
func (h *Hedges) Request() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.spent = max(0, h.spent-hedgeRatio)
}

// Withdraw takes one, or reports false when there is none left.
func (h *Hedges) Withdraw() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.spent+1 > hedgeBurst {
		return false
	}
	h.spent++
	return true
}
