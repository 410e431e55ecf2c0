package federation

import "time"

// Freshness says how old a peer's last word is, and so how far it goes.
type Freshness string

// The states, in the order in which they come.
const (
	Waiting Freshness = "Waiting" // nothing has been accepted yet
	Fresh   Freshness = "Fresh"
	Stale   Freshness = "Stale"   // still in use; say so
	Frozen  Freshness = "Frozen"  // still in use; no new trust anchors and no new exports are taken from it
	Expired Freshness = "Expired" // no new connections to it or from it
)

// Thresholds are the ages at which a peer's word becomes Stale, Frozen and Expired. Zero fields take the defaults.
type Thresholds struct {
	Stale   time.Duration // default 60 s
	Frozen  time.Duration // default 1 h
	Expired time.Duration // default 24 h
}

// The default thresholds.
const (
	DefaultStale   = 60 * time.Second
	DefaultFrozen  = time.Hour
	DefaultExpired = 24 * time.Hour
)

func (t Thresholds) withDefaults() Thresholds {
	if t.Stale == 0 {
		t.Stale = DefaultStale
	}
	if t.Frozen == 0 {
		t.Frozen = DefaultFrozen
	}
	if t.Expired == 0 {
		t.Expired = DefaultExpired
	}
	return t
}

// At returns how fresh, at now, a word is that was issued then and holds until notAfter (zero: no end but the thresholds).
// It is a pure function; a word from the future is Fresh.
func (t Thresholds) At(issued, notAfter, now time.Time) Freshness {
	t = t.withDefaults()
	age := now.Sub(issued)
	switch {
	case age >= t.Expired, !notAfter.IsZero() && !now.Before(notAfter):
		return Expired
	case age >= t.Frozen:
		return Frozen
	case age >= t.Stale:
		return Stale
	}
	return Fresh
}

// next returns when At will say something else than it does at now; zero when never.
func (t Thresholds) next(issued, notAfter, now time.Time) time.Time {
	t = t.withDefaults()
	if t.At(issued, notAfter, now) == Expired {
		return time.Time{}
	}
	var first time.Time
	for _, at := range []time.Time{issued.Add(t.Stale), issued.Add(t.Frozen), issued.Add(t.Expired), notAfter} {
		if at.After(now) && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}
