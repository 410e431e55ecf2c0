package quota

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// Limits of what a Divider keeps.
const (
	MaxBuckets    = 100_000 // in all limits together
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
}

// divided is one limit.
type divided struct {
	limit   Limit
	seen    map[string]presence // by copy
	buckets map[string]map[string]*lease
}

// presence is when a copy was answered: for the first time since it was last silent, and for the last.
type presence struct{ since, last time.Time }

// lives tells whether the copy hears what it is told: it has asked again after an answer.
func (p presence) lives(now time.Time, ttl time.Duration) bool {
	return now.Sub(p.last) < ttl && p.last.After(p.since)
}

// lease is what one copy has of one bucket.
type lease struct {
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
		next[name] = &divided{limit: limit, seen: map[string]presence{}, buckets: map[string]map[string]*lease{}}
		if d.limits[name] != nil {
			d.started = now
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
	if now.Sub(d.started) < d.ttl {
		return nil, 0, false
	}
	p := l.seen[replica]
	if p.last.IsZero() || now.Sub(p.last) >= d.ttl {
		p.since = now
	}
	p.last = now
	l.seen[replica] = p
	others := l.others(replica, now, d.ttl)
	for _, demand := range demands[:min(len(demands), MaxDemands)] {
		if !(demand.Rate >= 0) || len(demand.Bucket) > MaxBucketName {
			continue
		}
		b := l.buckets[demand.Bucket]
		if b == nil {
			if d.buckets >= MaxBuckets && !d.sweep(now) {
				continue
			}
			b = map[string]*lease{}
			l.buckets[demand.Bucket] = b
			d.buckets++
		}
		shares = append(shares, Share{demand.Bucket, l.grant(b, replica, others, min(demand.Rate, MaxRate), now, d.ttl)})
	}
	return shares, d.ttl, true
}

// others counts the copies but one that live, and forgets those that are long gone.
func (l *divided) others(replica string, now time.Time, ttl time.Duration) (live int) {
	for name, p := range l.seen {
		switch {
		case now.Sub(p.last) > 2*ttl:
			delete(l.seen, name)
		case name != replica && p.lives(now, ttl):
			live++
		}
	}
	return live
}

// grant leases one bucket to one copy, where so many others live.
func (l *divided) grant(b map[string]*lease, replica string, live int, demand float64, now time.Time, ttl time.Duration) float64 {
	if b[replica] == nil {
		b[replica] = &lease{}
	}
	b[replica].demand, b[replica].until = demand, now.Add(ttl)

	silent := max(0, l.limit.Replicas-1-live)
	held := 0.0 // by others, with what is kept for them
	var wanted []float64
	mine, idle, holders := 0, live, 0
	for name, at := range b {
		at.grants = slices.DeleteFunc(at.grants, func(g grant) bool { return !g.until.After(now) })
		hold := 0.0
		for _, g := range at.grants {
			hold = max(hold, g.rate)
		}
		asks := at.until.After(now)
		lives := l.seen[name].lives(now, ttl)
		switch {
		case name == replica:
			mine = len(wanted)
		case lives:
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
			delete(b, name)
		}
		if asks {
			// A quarter more than was asked, so that it may grow.
			wanted = append(wanted, max(at.demand*headroom, l.limit.floor()))
		}
	}
	kept := float64(max(0, silent)) * l.limit.even()
	held += kept + float64(max(0, live-holders))*l.limit.floor()
	// Those that live and ask nothing keep their little; the rest is divided.
	target := fair(wanted, max(0, l.limit.Rate-kept-float64(idle)*l.limit.floor()))[mine]
	share := max(l.limit.floor(), min(target, l.limit.Rate-held))
	b[replica].add(grant{share, now.Add(ttl)})
	return share
}

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

const headroom = 1.25

// fair divides a rate among demands: nobody gets more while another has less than it asked for and less than he (max-min); what is
// left then goes to all alike.
func fair(demands []float64, rate float64) []float64 {
	shares := make([]float64, len(demands))
	order := make([]int, len(demands))
	for k := range order {
		order[k] = k
	}
	slices.SortFunc(order, func(a, b int) int {
		switch {
		case demands[a] < demands[b]:
			return -1
		case demands[a] > demands[b]:
			return 1
		default:
			return a - b
		}
	})
	left := rate
	for k, at := range order {
		shares[at] = min(demands[at], left/float64(len(order)-k))
		left -= shares[at]
	}
	for k := range shares {
		shares[k] += left / float64(len(shares))
	}
	return shares
}

// sweep makes room, and tells whether there is some.
func (d *Divider) sweep(now time.Time) bool {
	d.buckets = 0
	for _, l := range d.limits {
		maps.DeleteFunc(l.buckets, func(_ string, b map[string]*lease) bool {
			maps.DeleteFunc(b, func(_ string, at *lease) bool {
				return !at.until.After(now) && !slices.ContainsFunc(at.grants, func(g grant) bool { return g.until.After(now) })
			})
			return len(b) == 0
		})
		d.buckets += len(l.buckets)
	}
	return d.buckets < MaxBuckets
}
