package gateway

import (
	"sync"
	"time"
)

// pulse judges by what a control stream brings whether its connection lives: by the suspicion that silence raises (accrual), with a floor
// below which nobody is dead. It holds no timer: whoever owns the connection asks. Safe for concurrent use.
type pulse struct {
	interval, deadAfter time.Duration
	idleEvery           int // idleEvery, or less

	mu     sync.Mutex
	heard  time.Time          // guarded by mu: when the peer last said anything
	asked  time.Time          // guarded by mu: when we first asked it something since then; zero = we have not
	ticked time.Time          // guarded by mu: when we last looked
	held   time.Duration      // guarded by mu: how long we were held up ourselves since then
	seq    uint64             // guarded by mu: of the last probe
	rest   int                // guarded by mu: ticks since then
	sent   [maxProbes]probing // guarded by mu: by seq
	past   accrual            // guarded by mu: silences that ended
	srtt   time.Duration      // guarded by mu: smoothed round trip (RFC 6298); 0 = none measured
	rttvar time.Duration      // guarded by mu
}

type probing struct {
	seq uint64
	at  time.Time
}

const (
	// maxProbes is how many unanswered probes are remembered; the reply to an older one measures nothing.
	maxProbes = 64
	// suspectPhi and deadPhi are the suspicions at which others are preferred, and at which a connection is given up: one silence in a
	// hundred, and one in a hundred million, lasts as long.
	suspectPhi = 2
	deadPhi    = 8
	// deadTrips is how many round trips a connection is given in any case, and two probes more: what is lost on the way takes as many to be sent
	// again.
	deadTrips = 3
	// maxSilence is dead, whatever there was before.
	maxSilence = idleTimeout
	// idleEvery is how many intervals lie between two probes on a link without streams: nothing waits on it. No more than idlePause, or a
	// connection would end because nothing is said on it.
	idleEvery = 5
	idlePause = idleTimeout / 3
	// MaxProbeInterval is the longest interval between probes. Longer, and a peer would take us for dead (vigil) before one is late.
	MaxProbeInterval = time.Second
	// minPatience is what a far gateway is given to reach an endpoint, on top of the round trip.
	minPatience = 10 * time.Millisecond
)

func newPulse(interval, deadAfter time.Duration, now time.Time) *pulse {
	return &pulse{
		interval: interval, deadAfter: deadAfter, heard: now, ticked: now, rest: idleEvery,
		idleEvery: min(max(int(idlePause/interval), 1), idleEvery),
	}
}

// tick is called once an interval and returns the number of the probe to send; 0 = none is due. When the call comes late, so did
// our reading of what the peer sent, and that much silence isn't the peer's. A peer that owes us an answer is asked each time.
func (p *pulse) tick(now time.Time, idle bool) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held += p.late(now)
	p.ticked = now
	p.rest++
	if idle && p.asked.IsZero() && p.rest < p.idleEvery {
		return 0
	}
	p.rest = 0
	if p.asked.IsZero() {
		p.asked, p.held = now, 0
	}
	p.seq++
	p.sent[p.seq%maxProbes] = probing{p.seq, now}
	return p.seq
}

// hear notes that the peer said something.
func (p *pulse) hear(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.asked.IsZero() {
		p.past.add(p.silence(now))
	}
	p.heard, p.asked, p.held = now, time.Time{}, 0
}

// reply notes the reply to a probe.
func (p *pulse) reply(seq uint64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := &p.sent[seq%maxProbes]
	if seq == 0 || was.seq != seq {
		return // too old, twice, or never asked
	}
	rtt := max(now.Sub(was.at), time.Nanosecond)
	*was = probing{}
	if p.srtt == 0 {
		p.srtt, p.rttvar = rtt, rtt/2
		return
	}
	p.rttvar += ((p.srtt - rtt).Abs() - p.rttvar) / 4
	p.srtt += (rtt - p.srtt) / 8
}

// silence is how long the peer has said nothing though it had reason to, as far as that is the peer's: since it was last heard, but
// no longer than an interval before we asked. mu is held.
func (p *pulse) silence(now time.Time) time.Duration {
	if p.asked.IsZero() {
		return 0
	}
	since := p.asked.Add(-p.interval)
	if p.heard.After(since) {
		since = p.heard
	}
	return now.Sub(since) - p.held - p.late(now)
}

// late is by how much the next tick is overdue. mu is held.
func (p *pulse) late(now time.Time) time.Duration {
	if late := now.Sub(p.ticked) - p.interval; late > p.interval/2 {
		return late
	}
	return 0
}

// floor is the silence that nobody is dead below. mu is held.
func (p *pulse) floor() time.Duration {
	floor := max(p.deadAfter, deadTrips*p.srtt+2*p.interval)
	if p.past.n < fewSilences {
		floor *= 2 // the link isn't known yet
	}
	return min(floor, maxSilence)
}

// phi is the suspicion that a silence raises. mu is held.
func (p *pulse) phi(silence time.Duration) float64 { return p.past.phi(silence, p.interval) }

// dead reports whether the connection is to be given up. Replies come once an interval at least however long they travel, once we ask.
func (p *pulse) dead(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	silence := p.silence(now)
	return silence >= maxSilence || silence >= p.floor() && p.phi(silence) >= deadPhi
}

// next returns how long to wait before dead can be another than it is.
func (p *pulse) next(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(p.floor()-p.silence(now), p.interval/4)
}

// suspect reports whether the next word is overdue: others are to be preferred.
func (p *pulse) suspect(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.phi(p.silence(now)) >= suspectPhi
}

// patience is how long an answer may take before another way is tried beside.
func (p *pulse) patience() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.srtt + max(4*p.rttvar, minPatience)
}

// rtt returns the smoothed round trip; 0 = none measured.
func (p *pulse) rtt() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.srtt
}

// jitter returns the smoothed deviation of the round trip.
func (p *pulse) jitter() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rttvar
}
