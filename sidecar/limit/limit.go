// Package limit finds out how many requests an application can take at a time, by how long it takes for them, so that what is too much is refused
// while there is time to go elsewhere, and what is taken is answered.
//
// It is the gradient algorithm of Netflix's concurrency-limits (github.com/Netflix/concurrency-limits, Gradient2Limit), with the shortest latency of
// the last half minute in place of a long mean, which drifts as long as an overload lasts, and with BBR's way to measure that anew (RFC draft
// ietf-ccwg-bbr, ProbeRTT). A pure state machine: time is an argument. Used by the sidecar's inbound side; safe for concurrent use.
package limit

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Always so many are taken at a time, and never more.
	least = 32
	most  = 10_000

	// window is how long latencies are gathered for one decision, of least samples.
	window     = 100 * time.Millisecond
	minSamples = 10
	maxSamples = 256
	// Overload is when the median latency is tolerance times the base, and more than slack above it, with more than least in flight. It has to last
	// for spell windows before there is a limit: a burst is none.
	tolerance = 3
	slack     = 20 * time.Millisecond
	spell     = 5
	// headroom is how many times the base an answer may take once there is a limit.
	headroom = 2
	// baseFor is how long the base holds; then the limit is halved for a moment to see whether it still does.
	baseFor = 30 * time.Second
	// The first limit is a trial: a part of what was in flight. If answers do not come sooner for it, their number is not why they are late (another
	// kind of request, something behind the application), and there is none; the next trial is later, and later.
	trialPart    = 0.7
	trialSooner  = 0.85
	firstRest    = 10 * time.Second
	longestRest  = 5 * time.Minute
	trialMedians = 2 // what was in line before has to be through
	// Callers that go away before they are answered tell only how long it takes at least. While most do, a trial halves the limit with each window, and
	// gives what the application goes on doing for nobody so long to be through. Who waited longer than longestWait waits for an event.
	trialGone   = 5 * time.Second
	longestWait = 10 * time.Second
	// easeAfter is how long a limit stands for which there is no evidence any more: too few answers, or none that say how long the application takes.
	easeAfter = 10 * time.Second
	// callerShare is how much of the limit one caller may have while others wait for room.
	callerShare = 0.8
)

// Limiter limits what one port of a service takes. The zero value takes all, until it has seen an overload.
type Limiter struct {
	inFlight atomic.Int64
	limit    atomic.Int64 // 0: none
	told     atomic.Int64 // what Changed said
	blank    atomic.Int64 // ended without evidence, since the limit was last decided on

	mu      sync.Mutex
	began   time.Time                 // guarded by mu; of the window
	samples [maxSamples]time.Duration // guarded by mu
	n       int                       // guarded by mu; samples, of which the last maxSamples are kept
	gone    int                       // guarded by mu; samples that are of callers that went away
	peak    int64                     // guarded by mu; most in flight in the window
	base    time.Duration             // guarded by mu; 0: none yet
	based   time.Time                 // guarded by mu; when the base was measured
	over    int                       // guarded by mu; windows in a row that were overloaded
	probing bool                      // guarded by mu; the next window measures the base
	trial   time.Time                 // guarded by mu; when the trial ends; zero: there is none
	left    bool                      // guarded by mu; it began while most callers went away
	before  time.Duration             // guarded by mu; the median before it
	rested  time.Time                 // guarded by mu; no trial before
	rest    time.Duration             // guarded by mu; after the last trial that was in vain
	eased   time.Time                 // guarded by mu; when the limit was last raised for want of evidence
}

// Caller is one caller's part. The zero value is in use.
type Caller struct{ inFlight atomic.Int64 }

// Limit returns how many are taken at a time; 0: all.
func (l *Limiter) Limit() int { return int(l.limit.Load()) }

// Changed returns the limit, and whether it is another than when it was last called.
func (l *Limiter) Changed() (n int, changed bool) {
	now := l.limit.Load()
	return int(now), l.told.Load() != now && l.told.Swap(now) != now
}

// Begin takes a request of a caller in; ok is false when there are too many. Otherwise End follows.
func (l *Limiter) Begin(c *Caller) (ok bool) {
	all, own := l.inFlight.Add(1), c.inFlight.Add(1)
	limit := l.limit.Load()
	if limit == 0 || all <= limit && float64(own) <= max(1, callerShare*float64(limit)) {
		return true
	}
	l.inFlight.Add(-1)
	c.inFlight.Add(-1)
	return false
}

// Ease raises a limit for which there has been no evidence for a while, or takes it away, and reports whether it did. There is little to do: it is over.
// Or requests come and go that say nothing of how the application is (answers of 500 and above, uploads), and would be held to it for ever. Where
// nothing is answered at all, it stays. Call it when something was refused, and now and then.
func (l *Limiter) Ease(now time.Time) bool {
	if l.limit.Load() == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := l.limit.Load()
	if limit == 0 || now.Sub(l.began) < easeAfter || now.Sub(l.eased) < easeAfter {
		return false
	}
	next := 2 * limit
	switch {
	case l.inFlight.Load() < limit/2 || next > most:
		next = 0
	case l.blank.Load() < limit:
		return false
	}
	l.eased, l.trial = now, time.Time{}
	l.blank.Store(0)
	l.limit.Store(next)
	return true
}

// End takes it out again. took is how long the application took; 0 when that says nothing of how it is: it wasn't asked, or what it does takes as long
// as it takes (streams, upgrades).
func (l *Limiter) End(now time.Time, c *Caller, took time.Duration) {
	peak := l.inFlight.Add(-1) + 1
	c.inFlight.Add(-1)
	if took <= 0 {
		if l.limit.Load() != 0 {
			l.blank.Add(1)
		}
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sample(now, took, peak)
}

// Gone takes it out because its caller did not wait for the answer any longer, after so long. Were that no evidence, an application that answers nobody
// in time would seem idle.
func (l *Limiter) Gone(now time.Time, c *Caller, waited time.Duration) {
	peak := l.inFlight.Add(-1) + 1
	c.inFlight.Add(-1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.base == 0 || l.probing || waited > longestWait || !l.late(waited) {
		return // it might have been answered as fast as ever
	}
	l.gone++
	l.sample(now, waited, peak)
}

// sample takes in how long a request took; l.mu is held.
func (l *Limiter) sample(now time.Time, took time.Duration, peak int64) {
	if l.began.IsZero() {
		l.began = now
	}
	l.samples[l.n%maxSamples] = took
	l.n++
	l.peak = max(l.peak, peak)
	if now.Sub(l.began) >= window && l.n >= minSamples {
		l.decide(now)
		l.began, l.n, l.peak, l.gone = now, 0, 0, 0
		l.blank.Store(0)
	}
}

// late is whether an answer that took so long is one of an overload; l.mu is held.
func (l *Limiter) late(took time.Duration) bool {
	return took > tolerance*l.base && took > l.base+slack
}

// decide ends a window; l.mu is held.
func (l *Limiter) decide(now time.Time) {
	taken := l.samples[:min(l.n, maxSamples)]
	slices.Sort(taken)
	median := taken[len(taken)/2]
	limit := l.limit.Load()
	switch {
	case l.base == 0 || median < l.base || l.probing:
		l.base, l.based, l.probing = median, now, false
	case limit == 0 && l.peak <= least:
		l.base += (median - l.base) / 8 // what it takes now, with little to do, is how it is
		l.based = now
	}
	overloaded := l.peak > least && l.late(median)
	mostGone := l.gone > l.n/2
	if limit == 0 {
		if !overloaded {
			l.over = 0
			return
		}
		if l.over++; l.over < spell || now.Before(l.rested) {
			return
		}
		// By Little's law, what is in line now takes so long: more than what has come through by now, while the line grows.
		line := time.Duration(float64(l.peak) * float64(now.Sub(l.began)) / float64(l.n))
		l.over, l.before = 0, max(median, line)
		l.trial = now.Add(trialMedians*l.before + window)
		if l.left = mostGone; l.left {
			l.trial = now.Add(trialGone)
		}
		l.limit.Store(max(int64(trialPart*float64(min(l.peak, most))), least))
		return
	}
	if !l.trial.IsZero() {
		goesOn, sooner := now.Before(l.trial), float64(median) <= trialSooner*float64(l.before)
		if l.left {
			goesOn, sooner = goesOn && mostGone, !mostGone
		}
		if goesOn {
			if l.left {
				l.limit.Store(max(limit/2, least))
			}
			return
		}
		l.trial = time.Time{}
		if !sooner {
			l.rest = min(max(firstRest, 2*l.rest), longestRest)
			l.rested = now.Add(l.rest)
			if !l.left {
				l.base, l.based = median, now
			}
			l.limit.Store(0)
			return
		}
		l.rest = 0
	}
	gradient := min(max(headroom*float64(l.base)/float64(median), 0.5), 1)
	room := math.Sqrt(float64(limit))
	next := float64(limit)
	switch {
	case now.Sub(l.based) > baseFor && l.peak >= limit/2:
		l.probing, next = true, float64(limit)/2
	case gradient < 1 && l.peak > least:
		next = float64(limit)*gradient + room
		next = min(next, float64(limit)) // it never grows while answers are late
	default:
		next += room
	}
	if next > most || l.peak < limit/4 && next > float64(8*least) {
		l.limit.Store(0) // it is over
		return
	}
	l.limit.Store(int64(max(next, least)))
}
