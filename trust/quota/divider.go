package quota

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// Limits of what a Divider keeps.
const (
	MaxBuckets    = 100_000 // in all limits together; above it, each may have MaxDemands
	MaxBucketName = 64      // bytes
)

// DefaultTTL is how long a lease lasts.
const DefaultTTL = 3 * time.Second

// Divider divides shared limits among copies: control's side. It is safe for concurrent use, and starts with nothing known.
//
// What it has leased out, and what it keeps for copies that have no lease, is never more than the rate: of a copy that has spoken within
// the last TTL it keeps a tenth of an even share, of one that has not a whole one, as that is what they fall back to. A share that is taken from a copy
// goes to another when its lease has ended, because the answer that took it may be lost.
//
// A question costs about 0.1 µs for each bucket that it names and each copy that shares that: 100 copies that each ask for 1,000 take a core.
//
// What may pass beyond rate×time + burst: each time a copy is cut off (it asks no more, or hears no answers) while others hold leases,
// an even share from when its lease has ended until theirs have, which is 2×TTL at most after control has last heard of it; each time a copy starts anew, its part of
// the burst; and one request a copy, where there are more of them than the burst.
type Divider struct {
	ttl     time.Duration
	started time.Time
	// mu guards what is below.
	mu      sync.Mutex
	limits  map[string]*divided
	buckets int
	swept   time.Time
}

// divided is one limit.
type divided struct {
	limit   Limit
	began   time.Time            // with this rate
	seen    map[string]*presence // by copy
	buckets map[string][]*lease
}

// presence is when a copy was answered: for the first time since it was last silent, and for the last.
type presence struct{ since, last time.Time }

// lives tells whether the copy hears what it is told: it has asked again after an answer.
func (p *presence) lives(now time.Time, ttl time.Duration) bool {
	return now.Sub(p.last) < ttl && p.last.After(p.since)
}

// lease is what one copy has of one bucket.
type lease struct {
	who    *presence
	demand float64
	until  time.Time // of the demand
	grants []grant   // that may still be in force
}

type grant struct {
	rate  float64
	until time.Time
}

// NewDivider makes a Divider without limits. In its first ttl (0: DefaultTTL) it gives no leases: there may be some that it knows nothing of.
func NewDivider(ttl time.Duration, now time.Time) *Divider {
	if ttl <= 0 || ttl > MaxTTL {
		ttl = DefaultTTL
	}
	return &Divider{ttl: ttl, started: now, limits: map[string]*divided{}}
}

// Configure says which shared limits there are, by the name that Lease has for them, and forgets all others.
func (d *Divider) Configure(limits map[string]Limit, now time.Time) error {
	next := make(map[string]*divided, len(limits))
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, given := range limits {
		limit, err := given.valid()
		if err != nil {
			return err
		}
		if had := d.limits[name]; had != nil && had.limit.Rate == limit.Rate {
			had.limit = limit
			next[name] = had
			continue
		}
		// Leases of another rate may still be held, and are more than this one has: it gives none before they have ended.
		next[name] = &divided{limit: limit, seen: map[string]*presence{}, buckets: map[string][]*lease{}}
		if d.limits[name] != nil {
			next[name].began = now
		}
	}
	d.limits, d.buckets = next, 0
	for _, l := range next {
		d.buckets += len(l.buckets)
	}
	return nil
}

// Lease answers one copy: what it may let through of the buckets that it names, for ttl. No answer (false): there is none yet, and the copy
// goes on with what it has. It must ask for each of its shared limits, with no demands too, as Limiter.Demands says.
func (d *Divider) Lease(name, replica string, demands []Demand, now time.Time) (shares []Share, ttl time.Duration, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.limits[name]
	if l == nil || !l.limit.Shared || replica == "" {
		return nil, 0, false
	}
	if _, known := l.seen[replica]; !known && len(l.seen) >= 2*MaxReplicas {
		return nil, 0, false
	}
	if now.Sub(d.started) < d.ttl || now.Sub(l.began) < d.ttl {
		return nil, 0, false
	}
	p := l.seen[replica]
	if p == nil {
		p = &presence{}
		l.seen[replica] = p
	}
	if p.last.IsZero() || now.Sub(p.last) >= d.ttl {
		p.since = now
	}
	p.last = now
	others := l.others(p, now, d.ttl)
	for _, demand := range demands[:min(len(demands), MaxDemands)] {
		if !(demand.Rate >= 0) || len(demand.Bucket) > MaxBucketName {
			continue
		}
		b, known := l.buckets[demand.Bucket]
		if !known {
			if !d.room(l) && (!d.sweep(now) || !d.room(l)) {
				continue
			}
			d.buckets++
		}
		b, rate := l.grant(b, p, others, min(demand.Rate, MaxRate), now, d.ttl)
		l.buckets[demand.Bucket] = b
		shares = append(shares, Share{demand.Bucket, rate})
	}
	return shares, d.ttl, true
}

// others counts the copies but one that live, and forgets those that are long gone.
func (l *divided) others(one *presence, now time.Time, ttl time.Duration) (live int) {
	for name, p := range l.seen {
		switch {
		case now.Sub(p.last) > 2*ttl:
			delete(l.seen, name)
		case p != one && p.lives(now, ttl):
			live++
		}
	}
	return live
}

// grant leases one bucket to one copy, where so many others live, and returns the bucket without the leases that have ended.
func (l *divided) grant(b []*lease, one *presence, live int, demand float64, now time.Time, ttl time.Duration) ([]*lease, float64) {
	k := slices.IndexFunc(b, func(at *lease) bool { return at.who == one })
	if k < 0 {
		k = len(b)
		b = append(b, &lease{who: one})
	}
	mine := b[k]
	mine.demand, mine.until = demand, now.Add(ttl)

	silent := max(0, l.limit.Replicas-1-live)
	held := 0.0 // by others, with what is kept for them
	asking, idle, holders := make([]float64, 0, len(b)), live, 0
	left := b[:0]
	for _, at := range b {
		at.grants = slices.DeleteFunc(at.grants, func(g grant) bool { return !g.until.After(now) })
		hold := 0.0
		for _, g := range at.grants {
			hold = max(hold, g.rate)
		}
		asks := at.until.After(now)
		switch {
		case at == mine:
		case at.who.lives(now, ttl):
			holders++
			held += max(hold, l.limit.floor())
			if asks {
				idle--
			}
		case asks || len(at.grants) > 0: // cut off, or not known to hear
			held += max(hold, l.limit.even())
			silent--
			asks = false
		default:
			continue
		}
		left = append(left, at)
		if asks {
			asking = append(asking, l.wants(at))
		}
	}
	clear(b[len(left):])
	kept := float64(max(0, silent)) * l.limit.even()
	held += kept + float64(max(0, live-holders))*l.limit.floor()
	// Those that live and ask nothing keep their little; the rest is divided.
	target := fair(asking, l.wants(mine), max(0, l.limit.Rate-kept-float64(idle)*l.limit.floor()))
	share := max(l.limit.floor(), min(target, l.limit.Rate-held))
	mine.add(grant{share, now.Add(ttl)})
	return left, share
}

// wants is what a copy is to have if all can: a quarter more than it was asked, so that it may grow.
func (l *divided) wants(at *lease) float64 { return max(at.demand*headroom, l.limit.floor()) }

const headroom = 1.25

// maxGrants bounds what is remembered of a copy that asks without end.
const maxGrants = 8

// add remembers a grant, and no earlier one that is not more.
func (l *lease) add(g grant) {
	l.grants = slices.DeleteFunc(l.grants, func(o grant) bool { return o.rate <= g.rate })
	if len(l.grants) >= maxGrants {
		l.grants[1].rate = max(l.grants[0].rate, l.grants[1].rate) // rates fall, ends rise: the greater of both
		l.grants = slices.Delete(l.grants, 0, 1)
	}
	l.grants = append(l.grants, g)
}

// fair is what one of some demands gets of a rate: nobody gets more while another has less than it asked for and less than he (max-min);
// what is left then goes to all alike.
func fair(demands []float64, one, rate float64) float64 {
	level, met := 0.0, -1
	for {
		// Who asks for less than the others could have gets it, and leaves more to them.
		sum, n := 0.0, 0
		for _, d := range demands {
			if d <= level {
				sum += d
				n++
			}
		}
		switch {
		case n == len(demands):
			return one + max(0, rate-sum)/float64(n)
		case n == met:
			return min(one, level)
		}
		level, met = max(0, rate-sum)/float64(len(demands)-n), n
	}
}

// room tells whether a limit may have another bucket. Each may have MaxDemands, however many others have.
func (d *Divider) room(l *divided) bool { return d.buckets < MaxBuckets || len(l.buckets) < MaxDemands }

// sweep makes room, not more often than leases end, and tells whether there is some.
func (d *Divider) sweep(now time.Time) bool {
	if now.Sub(d.swept) < d.ttl {
		return false
	}
	d.swept, d.buckets = now, 0
	for _, l := range d.limits {
		maps.DeleteFunc(l.buckets, func(_ string, b []*lease) bool {
			return !slices.ContainsFunc(b, func(at *lease) bool {
				return at.until.After(now) || slices.ContainsFunc(at.grants, func(g grant) bool { return g.until.After(now) })
			})
		})
		d.buckets += len(l.buckets)
	}
	return d.buckets < MaxBuckets
}
