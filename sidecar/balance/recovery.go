package balance

import (
	"sync"
	"time"
)

const (
	// rampSteps is in how many steps a ramp is climbed, and leastStep the shortest of them.
	rampSteps = 50
	leastStep = 100 * time.Millisecond
	// trialEvery is how often a request tries a place that gets none while it has yet to prove itself.
	trialEvery = time.Second
)

// Recovery says how much of what they could take places get that were down, or half down: what they lose they lose at once, what they could
// take again they get when they have been able to for a while without a break, and then over a ramp. So one that flaps faster than that gets
// nothing back, and one that recovers isn't trampled.
//
// A place that gets nothing gives no sign of life either. Requests try it meanwhile, one a second (Trial): it has to have answered one (Proved)
// before its ramp begins, and one that fails starts the wait again (Setback).
//
// The places of the first Observe get all that they can take: there is nothing that they could be coming back from. Later ones come from
// nothing. The zero value is in use.
type Recovery[K comparable] struct {
	mu     sync.Mutex
	begun  bool          // guarded by mu
	places map[K]*rising // guarded by mu; those that can take anything
}

// rising is one place's way back.
type rising struct {
	level float64   // from 0 to 1
	able  float64   // at least level
	since time.Time // it has been able to take more; zero: it gets all that it can
	from  float64   // the level then
	// proven: it answered, or it has requests anyway.
	proven bool
	trial  time.Time // the last
}

// Rise is how far a place is.
type Rise struct {
	Level float64       // of what it could take, from 0 to 1
	Held  time.Duration // until it gets more, if it stays well; 0: it does now
	Left  time.Duration // until it gets all
	// Unproven: none of its requests has been answered since it is back, and that is what it waits for, too.
	Unproven bool
}

// Observe takes in how much of what it is offered each place could take now, from 0 to 1; one that isn't told of could take nothing. It returns
// those that get less than that, and when to ask again though nothing has changed; zero: no need.
func (r *Recovery[K]) Observe(now time.Time, able map[K]float64, after, ramp time.Duration) (held map[K]Rise, again time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.places {
		if able[k] <= 0 {
			delete(r.places, k)
		}
	}
	for k, a := range able {
		if a <= 0 {
			continue
		}
		p := r.places[k]
		if p == nil {
			if r.places == nil {
				r.places = make(map[K]*rising)
			}
			p = new(rising)
			if !r.begun {
				p.level = a
			}
			r.places[k] = p
		}
		p.observe(now, a, after, ramp)
		if p.since.IsZero() {
			continue
		}
		if held == nil {
			held = make(map[K]Rise)
		}
		held[k] = p.rise(now, after, ramp)
		if next := p.next(now, after, ramp); !next.IsZero() && (again.IsZero() || next.Before(again)) {
			again = next
		}
	}
	r.begun = true
	return held, again
}

// observe moves the level to now, and then takes in what the place is able to now.
func (p *rising) observe(now time.Time, able float64, after, ramp time.Duration) {
	p.climb(now, after, ramp)
	p.able = able
	switch {
	case able <= p.level:
		p.level, p.since = able, time.Time{}
	case p.since.IsZero():
		p.since, p.from, p.proven, p.trial = now, p.level, p.level > 0, time.Time{}
		p.climb(now, after, ramp)
	}
	if p.level >= able {
		p.since = time.Time{}
	}
}

// climb sets the level to what it is at now.
func (p *rising) climb(now time.Time, after, ramp time.Duration) {
	if p.since.IsZero() || !p.proven && after > 0 {
		return
	}
	climbed := now.Sub(p.since.Add(after))
	switch {
	case climbed < 0:
	case climbed >= ramp:
		p.level = p.able
	default:
		p.level = max(p.level, min(p.able, p.from+(1-p.from)*float64(climbed)/float64(ramp)))
	}
}

func (p *rising) rise(now time.Time, after, ramp time.Duration) Rise {
	out := Rise{Level: p.level, Held: max(p.since.Add(after).Sub(now), 0), Unproven: !p.proven && after > 0}
	top := time.Duration(float64(ramp) * (p.able - p.from) / (1 - p.from))
	if out.Left = max(p.since.Add(after).Add(top).Sub(now), 0); out.Unproven && out.Held == 0 {
		out.Left = top
	}
	return out
}

// next is when the level will have changed; zero: not before it has proved itself.
func (p *rising) next(now time.Time, after, ramp time.Duration) time.Time {
	if begin := p.since.Add(after); now.Before(begin) {
		return begin
	}
	if !p.proven && after > 0 {
		return time.Time{}
	}
	return now.Add(max(ramp/rampSteps, leastStep))
}

// Trial reports whether a request is to try k now: it gets none, and none has tried it for a second. overdue asks for more than that.
func (r *Recovery[K]) Trial(now time.Time, k K, overdue time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.places[k]
	if p == nil || p.since.IsZero() || p.from > 0 || p.level > 0 || now.Sub(p.trial) < trialEvery+overdue {
		return false
	}
	p.trial = now
	return true
}

// Proved records that k answered a request. It reports whether that is what it was waiting for.
func (r *Recovery[K]) Proved(now time.Time, k K, after time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.places[k]
	if p == nil || p.since.IsZero() || p.proven {
		return false
	}
	p.proven = true
	if begin := now.Add(-after); begin.After(p.since) { // the ramp begins with the proof, if the wait was over
		p.since = begin
	}
	return true
}

// Setback records that k failed a request. One that waits then waits anew; one that has requests is left to what becomes of them.
func (r *Recovery[K]) Setback(now time.Time, k K) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.places[k]; p != nil && !p.since.IsZero() && p.level == 0 {
		p.since, p.proven = now, false
	}
}

// Forget is for when what places are called has changed: the next Observe is the first.
func (r *Recovery[K]) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun, r.places = false, nil
}

// Leaving says how much places still get that are drained: as much as they can when a caller first hears of it, and less evenly, down to
// nothing. The zero value is in use.
type Leaving[K comparable] struct {
	mu     sync.Mutex
	begun  bool             // guarded by mu
	places map[K]*departure // guarded by mu
}

type departure struct {
	drain Drain
	heard time.Time // by this clock; zero: before there was anybody to hear
}

// Drain is one drain of a place.
type Drain struct {
	Began time.Time // by whose clock ever: it tells one drain from the next
	Over  time.Duration
}

// Observe takes in which places are drained. It returns what each still gets, from 0 to 1, and when to ask again though nothing has changed; zero:
// no need. Who asks for the first time sends nothing to what is drained already.
func (l *Leaving[K]) Observe(now time.Time, drains map[K]Drain) (levels map[K]float64, again time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, d := range l.places {
		if is, ok := drains[k]; !ok || !is.Began.Equal(d.drain.Began) {
			delete(l.places, k)
		}
	}
	for k, d := range drains {
		p := l.places[k]
		if p == nil {
			if l.places == nil {
				l.places = make(map[K]*departure)
			}
			p = new(departure)
			if l.begun {
				p.heard = now
			}
			l.places[k] = p
		}
		p.drain = d
		if levels == nil {
			levels = make(map[K]float64, len(drains))
		}
		levels[k] = 0
		if gone := now.Sub(p.heard); !p.heard.IsZero() && gone < d.Over {
			levels[k] = min(1, 1-float64(gone)/float64(d.Over))
			next := now.Add(min(max(d.Over/rampSteps, leastStep), d.Over-gone))
			if again.IsZero() || next.Before(again) {
				again = next
			}
		}
	}
	l.begun = true
	return levels, again
}
