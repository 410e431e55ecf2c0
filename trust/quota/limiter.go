package quota

import (
	"cmp"
	"container/list"
	"crypto/sha256"
	"encoding/base64"
	"math"
	"slices"
	"sync"
	"time"
)

// Key is whose requests are counted together: a caller (its SPIFFE ID), an end user (issuer and subject), or everybody (the zero Key).
type Key struct{ A, B string }

// bucketName is the key on the wire: of one length, and saying nothing about the user.
func (k Key) bucketName() string {
	sum := sha256.Sum256([]byte(k.A + "\x00" + k.B))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// Limiter holds one Limit, for the copy of the workload that it stands before. It is safe for concurrent use.
//
// A key whose bucket is not full is never forgotten, however many come: forgetting it would fill it. Where MaxKeys are told apart and
// none of those that have been quiet for longest can be forgotten, new keys have one bucket together, until one can. So no crowd of keys lets any key pass
// more than the limit, and the memory is bounded; the price is that newcomers of that moment hinder each other.
type Limiter struct {
	// mu guards what is below.
	mu       sync.Mutex
	limit    Limit
	capacity float64
	buckets  map[Key]*bucket
	named    map[string]*bucket // of a shared limit, by their names on the wire
	quiet    *list.List         // of *bucket: the one that was asked last is in front
	crowd    *bucket            // of all keys that found no place
	heard    time.Time          // until when control is taken to be there
	asked    time.Time          // when demands were collected last
}

// bucket is that of one key.
type bucket struct {
	key     Key
	name    string
	tokens  float64
	at      time.Time // of the tokens
	share   float64   // leased rate, of a shared limit
	until   time.Time // when the lease ends
	demand  int       // requests since the last collection
	element *list.Element
}

// NewLimiter makes a Limiter with no keys.
func NewLimiter(limit Limit) (*Limiter, error) {
	limit, err := limit.valid()
	if err != nil {
		return nil, err
	}
	return &Limiter{
		limit: limit, capacity: limit.capacity(), buckets: map[Key]*bucket{}, named: map[string]*bucket{}, quiet: list.New(),
	}, nil
}

// Limit is the limit in force, with its defaults.
func (l *Limiter) Limit() Limit {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.limit
}

// Update puts another limit in force. What was used stays used: a changed policy fills no bucket.
func (l *Limiter) Update(limit Limit, now time.Time) error {
	limit, err := limit.valid()
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.all() {
		l.refill(b, now)
		if limit.Rate != l.limit.Rate || limit.Shared != l.limit.Shared {
			b.share, b.until = 0, time.Time{} // of another rate
		}
		b.tokens = min(b.tokens, limit.capacity())
	}
	if limit.Rate != l.limit.Rate || limit.Shared != l.limit.Shared {
		l.heard = time.Time{}
	}
	if limit.Shared != l.limit.Shared {
		clear(l.named)
		for _, b := range l.buckets {
			b.name = ""
			if limit.Shared {
				l.name(b)
			}
		}
	}
	l.limit, l.capacity = limit, limit.capacity()
	return nil
}

// all returns every bucket, that of the crowd too.
func (l *Limiter) all() []*bucket {
	all := make([]*bucket, 0, len(l.buckets)+1)
	for _, b := range l.buckets {
		all = append(all, b)
	}
	if l.crowd != nil {
		all = append(all, l.crowd)
	}
	return all
}

// Take counts one request of key. It allocates only for a key that it does not know.
func (l *Limiter) Take(key Key, now time.Time) Decision {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[key]
	if b == nil {
		b = l.add(key, now)
	}
	if b.element != nil {
		l.quiet.MoveToFront(b.element)
	}
	rate := l.refill(b, now)
	b.demand++
	if b.tokens < 1 {
		return Decision{Reset: wait(1-b.tokens, rate)}
	}
	b.tokens--
	d := Decision{Allowed: true, Remaining: int(b.tokens)}
	if missing := l.capacity - b.tokens; d.Remaining > 0 {
		d.Reset = wait(missing, rate)
	} else {
		d.Reset = wait(1-b.tokens, rate)
	}
	return d
}

// GiveBack undoes a Take that let a request of key through, which something else stopped. What was asked stays told to control.
func (l *Limiter) GiveBack(key Key, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[key]
	if b == nil {
		b = l.crowd
	}
	if b == nil {
		return // it was full, and is forgotten
	}
	l.refill(b, now)
	b.tokens = min(l.capacity, b.tokens+1)
}

// wait is how long a number of tokens takes.
func wait(tokens, rate float64) time.Duration {
	seconds := tokens / rate
	if !(seconds < MaxWindow.Seconds()) { // a share may be nothing
		return MaxWindow
	}
	return time.Duration(math.Ceil(seconds * float64(time.Second)))
}

// refill brings a bucket up to now, and returns its rate.
func (l *Limiter) refill(b *bucket, now time.Time) float64 {
	rate := l.rate(b, now)
	if passed := now.Sub(b.at); passed > 0 {
		b.tokens = min(l.capacity, b.tokens+l.filled(b, now))
		b.at = now
	}
	return rate
}

// filled is what came into a bucket since b.at: a lease may have ended meanwhile.
func (l *Limiter) filled(b *bucket, now time.Time) float64 {
	tokens, at := 0.0, b.at
	for _, turn := range [...]time.Time{b.until, l.heard} {
		if turn.After(at) && turn.Before(now) {
			tokens += l.rate(b, at) * turn.Sub(at).Seconds()
			at = turn
		}
	}
	return tokens + l.rate(b, at)*now.Sub(at).Seconds()
}

// rate is what a bucket is filled with at a moment: its lease; else little while control is there and says nothing of it, and an even share
// when it is away.
func (l *Limiter) rate(b *bucket, at time.Time) float64 {
	switch {
	case !l.limit.Shared || b == l.crowd:
		return l.limit.even()
	case at.Before(b.until):
		return b.share
	case at.Before(l.heard):
		return l.limit.floor()
	default:
		return l.limit.even()
	}
}

// evictions is how many buckets are looked at for one that may go.
const evictions = 4

// add makes the bucket of a key that is new, or returns that of the crowd.
func (l *Limiter) add(key Key, now time.Time) *bucket {
	for at, tries := l.quiet.Back(), 0; len(l.buckets) >= l.limit.MaxKeys; tries++ {
		if at == nil || tries == evictions {
			if l.crowd == nil {
				l.crowd = &bucket{tokens: l.capacity, at: now}
			}
			return l.crowd
		}
		b, before := at.Value.(*bucket), at.Prev()
		if l.refill(b, now); b.tokens >= l.capacity {
			l.quiet.Remove(at)
			delete(l.buckets, b.key)
			delete(l.named, b.name)
		}
		at = before
	}
	b := &bucket{key: key, tokens: l.capacity, at: now}
	if l.crowd != nil {
		// The key may have been one of them: what they have used it may have used.
		if l.refill(l.crowd, now); l.crowd.tokens < l.capacity {
			b.tokens = l.crowd.tokens
		} else {
			l.crowd = nil
		}
	}
	b.element = l.quiet.PushFront(b)
	l.buckets[key] = b
	if l.limit.Shared {
		l.name(b)
	}
	return b
}

func (l *Limiter) name(b *bucket) {
	b.name = b.key.bucketName()
	l.named[b.name] = b
}

// Demand is what was asked of one bucket of a shared limit: requests a second, those refused too.
type Demand struct {
	Bucket string
	Rate   float64
}

// Share is what may be let through of one bucket, in requests a second.
type Share struct {
	Bucket string
	Rate   float64
}

// MaxDemands is how many buckets of one limit are leased to one copy: those that are asked most.
const MaxDemands = 1000

// Demands collects what was asked since the last call, and what is missing in buckets: so one that was emptied fills, though nobody asks any
// more. Control is asked with it every third of a lease, even if there is none: who says nothing is taken to be cut off, and an even share is
// kept for it.
func (l *Limiter) Demands(now time.Time) []Demand {
	l.mu.Lock()
	defer l.mu.Unlock()
	passed := now.Sub(l.asked).Seconds()
	if l.asked.IsZero() || passed <= 0 {
		passed = 1
	}
	l.asked = now
	var demands []Demand
	for _, b := range l.named {
		l.refill(b, now)
		missing := l.capacity - b.tokens
		if b.demand == 0 && missing <= 0 {
			continue
		}
		demands = append(demands, Demand{b.name, float64(b.demand)/passed + missing/DefaultTTL.Seconds()})
		b.demand = 0
	}
	slices.SortFunc(demands, func(a, b Demand) int { return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(a.Bucket, b.Bucket)) })
	return demands[:min(len(demands), MaxDemands)]
}

// Apply puts leases in force. They last for ttl from the moment at which they were asked for, not from that of the answer: control must not
// take them for ended before they are. An answer without shares says that control is there. What can't be meant is left out.
func (l *Limiter) Apply(shares []Share, ttl time.Duration, asked, now time.Time) {
	if ttl <= 0 || ttl > MaxTTL {
		return
	}
	until := asked.Add(ttl)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.limit.Shared || !until.After(now) {
		return
	}
	if !l.heard.After(now) {
		for _, b := range l.named {
			l.refill(b, now) // control was away until now
		}
	}
	if until.After(l.heard) {
		l.heard = until
	}
	for _, s := range shares[:min(len(shares), MaxDemands)] {
		b := l.named[s.Bucket]
		if b == nil || !(s.Rate >= 0) || s.Rate > l.limit.Rate*(1+epsilon) || !until.After(b.until) {
			continue
		}
		l.refill(b, now) // at the rate of before
		b.share, b.until = s.Rate, until
	}
}

// epsilon is how far sums of shares may be off by the arithmetic of floating point.
const epsilon = 1e-9

// MaxTTL is how long a lease may last.
const MaxTTL = time.Minute
