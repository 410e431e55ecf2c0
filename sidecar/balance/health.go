package balance

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// When a copy is left alone, and for how long.
const (
	failuresToEject = 3
	firstEjection   = 1 * time.Second
	longestEjection = 30 * time.Second
	// A copy that stays well for this long after an ejection starts again with the shortest; one that flaps does not.
	forgiveAfter = 30 * time.Second
	// A probe whose outcome nobody reported does not keep the copy out for ever.
	probeLease = 10 * time.Second
)

// Verdict says how much one failure proves.
type Verdict uint8

const (
	// Broken is a failed connection, a reset, a lost session: three in a row eject.
	Broken Verdict = iota
	// Refused is somebody who knows saying no (no link, no copy, not exported): one ejects.
	Refused
	// Outlying is what compares badly with its peers (Outliers): it ejects.
	Outlying
)

// Health is what a caller's own requests have shown of the copies they went to: which are ejected now, on what evidence,
// and when one request may try them again. It never decides that nothing is left: that is for who reads it.
//
// A copy is well, then after failures in a row ejected for 1 s, doubling up to 30 s, then half open: one request is let
// through (Probe), and its outcome makes the copy well or ejects it anew. The zero value is in use.
type Health[K comparable] struct {
	// suspects counts the copies that are not simply well, so that the happy path takes no lock.
	suspects atomic.Int64
	ejected  atomic.Int64
	version  atomic.Uint64 // counts changes of evidence; written with mu held

	mu       sync.Mutex
	copies   map[K]*record // guarded by mu; only those with something to tell
	evidence map[K]string  // guarded by mu; replaced, never changed
}

type record struct {
	failures  int           // in a row
	ejected   bool          //
	until     time.Time     // of the ejection
	length    time.Duration // of the last ejection
	recovered time.Time     // when it was last found well after an ejection
	probing   time.Time     // when the probe in flight began; zero: none
}

// Failed records a failure of a request to k, with the evidence in words ("connection refused"). It reports whether that
// ejected k.
func (h *Health[K]) Failed(now time.Time, k K, v Verdict, evidence string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.copies[k]
	if r == nil {
		if h.copies == nil {
			h.copies = make(map[K]*record)
		}
		r = new(record)
		h.copies[k] = r
		h.suspects.Add(1)
	}
	r.failures++
	switch {
	case r.ejected && !r.probing.IsZero():
		// The probe's own outcome.
	case r.ejected && now.Before(r.until):
		return false // still out: requests of last resort prove nothing new
	case v == Broken && r.failures < failuresToEject && !r.ejected:
		return false
	}
	if !r.recovered.IsZero() && now.Sub(r.recovered) > forgiveAfter {
		r.length = 0
	}
	first := !r.ejected
	r.length = min(max(firstEjection, 2*r.length), longestEjection)
	r.until = now.Add(r.length)
	r.ejected, r.probing, r.recovered = true, time.Time{}, time.Time{}
	if first {
		h.ejected.Add(1)
	}
	h.tell(k, words(r.failures, v, evidence))
	return true
}

func words(failures int, v Verdict, evidence string) string {
	if v != Broken || failures == 1 {
		return evidence
	}
	return fmt.Sprintf("%d failures in a row, the last: %s", failures, evidence)
}

// Succeeded records that k answered a request. It reports whether that brought k back.
func (h *Health[K]) Succeeded(now time.Time, k K) bool {
	if h.suspects.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.copies[k]
	if r == nil {
		return false
	}
	r.failures = 0
	r.probing = time.Time{}
	if r.ejected {
		r.ejected, r.recovered = false, now
		h.ejected.Add(-1)
		h.tell(k, "")
		return true
	}
	if r.recovered.IsZero() || now.Sub(r.recovered) > forgiveAfter {
		delete(h.copies, k)
		h.suspects.Add(-1)
	}
	return false
}

// Probe reports whether k is ejected, its time is up, and no other request is trying it: the caller then sends it one
// request and reports the outcome. overdue asks for more than that: that the time has been up for so long.
func (h *Health[K]) Probe(now time.Time, k K, overdue time.Duration) bool {
	if h.ejected.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.copies[k]
	if r == nil || !r.ejected || now.Before(r.until.Add(overdue)) {
		return false
	}
	if !r.probing.IsZero() && now.Sub(r.probing) < probeLease {
		return false
	}
	r.probing = now
	return true
}

// Cancel gives back a probe that did not happen.
func (h *Health[K]) Cancel(k K) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.copies[k]; r != nil {
		r.probing = time.Time{}
	}
}

// Evidence returns why each ejected copy is, in words, and a number that changes when that does. The map is never changed
// afterwards; nil when nothing is ejected.
func (h *Health[K]) Evidence() (map[K]string, uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.evidence, h.version.Load()
}

// NextTry returns from when on a request may try k again; zero when k is not ejected.
func (h *Health[K]) NextTry(k K) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.copies[k]; r != nil && r.ejected {
		return r.until
	}
	return time.Time{}
}

// Version returns the number that Evidence returns, without a lock.
func (h *Health[K]) Version() uint64 { return h.version.Load() }

// Keep forgets the copies that keep refuses: those that are gone.
func (h *Health[K]) Keep(keep func(K) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, r := range h.copies {
		if keep(k) {
			continue
		}
		if r.ejected {
			h.ejected.Add(-1)
			h.tell(k, "")
		}
		delete(h.copies, k)
		h.suspects.Add(-1)
	}
}

// tell replaces the evidence; h.mu is held.
func (h *Health[K]) tell(k K, evidence string) {
	next := make(map[K]string, len(h.evidence)+1)
	maps.Copy(next, h.evidence)
	if evidence == "" {
		delete(next, k)
	} else {
		next[k] = evidence
	}
	if len(next) == 0 {
		next = nil
	}
	h.evidence = next
	h.version.Add(1)
}
