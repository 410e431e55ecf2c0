package session

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/sidecar/balance"
)

// How many sessions a pool keeps, and for how long.
const (
	maxToCluster  = 4 // each with a copy that the far gateway chose
	maxToEndpoint = 2
	// A pool has one session until it has carried so many requests: a service that is called once costs one.
	firstRequests = 8
	// A pool opens one more, up to its maximum, when each has so many requests in flight.
	busy = 16

	// Every peer allows so many streams at least, and HTTP/2 clients assume it until they are told.
	leastStreams = 100

	// How many sessions one request sees opened, and ended before it could use them.
	maxDials = 3

	maxAge       = 5 * time.Minute // ± a fifth; then renewed, so that new copies get their share
	idleTimeout  = 90 * time.Second
	expiryMargin = 1 * time.Minute // before an SVID that the session was opened with ends

	firstBackoff   = 100 * time.Millisecond // between dials that nobody waits for
	longestBackoff = 5 * time.Second
	// keptFor is how long a word to keep a session ready holds: several of those who say it, once a second.
	keptFor = 5 * time.Second
	// A session that is to be renewed, and whose successor is no better (no new SVID yet), is renewed again after this.
	renewEvery = 10 * time.Second
)

// ErrClosed is returned by a pool that was closed: its place is gone, or the sidecar ends.
var ErrClosed = errors.New("session: pool closed")

// Pool keeps the HTTP sessions to one Destination.
type Pool struct {
	set  *Set
	load atomic.Int64 // requests in flight, and those that wait for a session

	mu       sync.Mutex
	to       Destination   // guarded by mu; the latest word on it
	sessions []*Requests   // guarded by mu; those that are open
	dial     *dial         // guarded by mu; the one under way
	backoff  time.Duration // guarded by mu; after a dial that failed
	notUntil time.Time     // guarded by mu; no dial that nobody waits for
	requests int           // guarded by mu; carried so far
	used     time.Time     // guarded by mu
	kept     time.Time     // guarded by mu; when somebody last wanted a session kept ready
	closed   bool          // guarded by mu
}

type dial struct {
	done   chan struct{}
	err    error         // once done
	left   chan struct{} // guarded by the pool's mu; closed when who waits for it is to go elsewhere
	wanted bool          // guarded by the pool's mu; a request waits for it, or traffic asked for it: failing proves something
}

// InFlight returns how many requests the pool carries, those that wait for a session included.
func (p *Pool) InFlight() int64 { return p.load.Load() }

// Ready reports whether a session is open that can take a request now.
func (p *Pool) Ready() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.sessions, p.usable)
}

// ErrCalledOff is what Acquire returns when its caller has lost interest.
var ErrCalledOff = errors.New("session: called off")

// ErrLeft is what those hear who wait for a session to a place that is given up meanwhile.
var ErrLeft = errors.New("session: given up meanwhile")

// Acquire returns a session, opening one if there is none. The caller makes one RoundTrip on it. It waits until ctx ends or off is closed, which
// may be nil.
func (p *Pool) Acquire(ctx context.Context, off <-chan struct{}) (*Requests, error) {
	p.load.Add(1)
	defer p.load.Add(-1) // RoundTrip counts from then on
	for range maxDials {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, &Error{balance.Broken, ErrClosed}
		}
		if s := p.pick(); s != nil {
			p.grow()
			p.mu.Unlock()
			return s, nil
		}
		d := p.start(ctx)
		d.wanted = true
		left := d.left
		p.mu.Unlock()
		select {
		case <-d.done:
			if d.err != nil {
				return nil, d.err
			}
		case <-left:
			return nil, &Error{balance.Broken, ErrLeft}
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-off:
			return nil, ErrCalledOff
		}
	}
	return nil, &Error{balance.Broken, errors.New("sessions to it end as soon as they are open")}
}

// pick reserves a place on a session; nil when none has one. p.mu is held.
func (p *Pool) pick() *Requests {
	now := p.set.now()
	for {
		candidates := make([]*Requests, 0, maxToCluster)
		for _, s := range p.sessions {
			if p.usable(s) {
				candidates = append(candidates, s)
			}
		}
		if len(candidates) == 0 {
			return nil
		}
		i := balance.Pick(len(candidates),
			func(int) float64 { return 1 },
			func(i int) int64 { return candidates[i].inFlight.Load() },
			rand.Float64)
		s := candidates[i]
		if err := s.client.Reserve(); err != nil {
			if s.dead() || s.client.InFlight() < leastStreams {
				s.draining = true // it was told to take no more
				continue
			}
			// Every stream that the peer allows is in use: RoundTrip waits for one.
		}
		p.requests++
		s.used, p.used = now, now
		return s
	}
}

// usable reports whether s may take a request; p.mu is held.
func (p *Pool) usable(s *Requests) bool {
	return !s.draining && !s.dead() && slices.Contains(p.to.servers(), s.Peer.ID) && p.set.now().Before(s.Expires)
}

// due reports whether s is to be replaced: it is old, an SVID that it was opened with ends soon, or it crosses a gateway that drains.
func (r *Requests) due(now time.Time, draining map[string]struct{}) bool {
	return now.Sub(r.opened) >= maxAge+r.jitter || !now.Before(r.Expires.Add(-expiryMargin)) ||
		slices.ContainsFunc(r.Path, func(hop string) bool { _, leaves := draining[hop]; return leaves })
}

// grow opens another session when there is reason to; p.mu is held.
func (p *Pool) grow() {
	want, limit := 1, maxToEndpoint
	if p.to.Remote != nil {
		limit = maxToCluster
		if p.requests >= firstRequests {
			want = min(max(2, p.to.Remote.Ready), limit)
		}
	}
	usable, inFlight := 0, int64(0)
	for _, s := range p.sessions {
		if p.usable(s) {
			usable++
			inFlight += s.inFlight.Load()
		}
	}
	if inFlight >= int64(busy*usable) {
		want = min(max(want, usable+1), limit)
	}
	if usable < want && p.dial == nil && !p.set.now().Before(p.notUntil) {
		p.start(context.Background()).wanted = true
	}
}

// Keep keeps one session open that no request needs now, so that one that comes need not wait for its handshakes. It holds for a few seconds: who
// wants that says so again, once a second. That no session can be opened proves nothing against the place, as long as nobody waits for it.
func (p *Pool) Keep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.set.now()
	p.kept = now
	if !p.closed && p.dial == nil && !now.Before(p.notUntil) && !slices.ContainsFunc(p.sessions, p.usable) {
		p.start(context.Background())
	}
}

// start dials unless a dial is under way already; p.mu is held. ctx says which request it is for; its end does not end the dial.
func (p *Pool) start(ctx context.Context) *dial {
	if p.dial != nil {
		return p.dial
	}
	d := &dial{done: make(chan struct{}), left: make(chan struct{})}
	p.dial = d
	to := p.to
	p.set.dials.Go(func() {
		defer close(d.done)
		s, err := p.set.open(context.WithoutCancel(ctx), to)
		p.set.config.Opened(to, err, p.opened(d, s, err))
	})
	return d
}

// opened takes in the outcome of a dial, and reports whether anybody wanted it but Keep.
func (p *Pool) opened(d *dial, s *Requests, err error) (wanted bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dial = nil
	now := p.set.now()
	if err != nil {
		d.err = err
		p.backoff = min(max(firstBackoff, 2*p.backoff), longestBackoff)
		p.notUntil = now.Add(p.backoff)
		return d.wanted
	}
	p.backoff = 0
	if p.closed {
		d.err = &Error{balance.Broken, ErrClosed}
		p.set.dials.Go(s.Close)
		return d.wanted
	}
	s.pool = p
	p.sessions = append(p.sessions, s)
	return d.wanted
}

// leave sends those elsewhere that wait for a session. The dial goes on: who comes later may wait for it again.
func (p *Pool) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dial != nil {
		close(p.dial.left)
		p.dial.left = make(chan struct{})
	}
}

// Condemn takes a session out of use: what it leads to answers for nobody. Its requests in flight go on.
func (p *Pool) Condemn(s *Requests) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.draining = true
}

// tend drops what is dead, renews what is due and closes what is idle; draining are the gateways that want to be left. It reports
// whether the pool itself can go.
func (p *Pool) tend(draining map[string]struct{}) (unused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.set.now()
	fresh := 0
	for _, s := range p.sessions {
		if p.usable(s) && !s.due(now, draining) {
			fresh++
		}
	}
	renew, kept, idle := false, now.Sub(p.kept) < keptFor, idleTimeout
	if drained(p.set.config.Dialer.Snapshots.Load(), p.to) {
		kept, idle = false, drainedIdle
	}
	p.sessions = slices.DeleteFunc(p.sessions, func(s *Requests) bool {
		switch {
		case s.dead():
			return true
		case !p.usable(s):
			s.draining = true
		case s.due(now, draining):
			s.draining = fresh > 0
			renew = fresh == 0
		}
		if s.inFlight.Load() > 0 || s.client.InFlight() > 0 || !s.draining && now.Sub(s.used) < idle {
			return false
		}
		if kept && !s.draining {
			kept = false // this one
			return false
		}
		p.set.dials.Go(s.Close)
		return true
	})
	if renew && p.dial == nil && !now.Before(p.notUntil) {
		p.notUntil = now.Add(renewEvery)
		p.start(context.Background()).wanted = now.Sub(p.used) < idleTimeout
	}
	return len(p.sessions) == 0 && p.dial == nil && p.load.Load() == 0 && now.Sub(p.used) >= idleTimeout && now.Sub(p.kept) >= keptFor
}

// retire closes the pool: at once, or as soon as its requests have ended.
func (p *Pool) retire(atOnce bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, s := range p.sessions {
		s.draining = true
		if atOnce || s.inFlight.Load() == 0 {
			p.set.dials.Go(s.Close) // can take a while when the peer is stuck
		}
	}
}
