package gateway

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Suspicion grows with silence, and what was longer before raises less of it.
func TestAccrual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a, patient accrual
		ms := rapid.Int64Range(0, 2000)
		for _, s := range rapid.SliceOfN(ms, fewSilences, 3*maxSilences).Draw(t, "silences") {
			a.add(time.Duration(s) * time.Millisecond)
			patient.add(time.Duration(s)*time.Millisecond + time.Second)
		}
		x, y := ms.Draw(t, "x"), ms.Draw(t, "y")
		x, y = min(x, y), max(x, y)
		at := func(a *accrual, ms int64) float64 {
			return a.phi(time.Duration(ms)*time.Millisecond, 100*time.Millisecond)
		}
		if less, more := at(&a, x), at(&a, y); less > more+1e-9 || less < 0 || more > maxPhi {
			t.Errorf("suspicion %g after %d ms, %g after %d ms", less, x, more, y)
		}
		if at(&patient, y) > at(&a, y)+1e-9 {
			t.Errorf("after %d ms: %g where silences are a second longer, %g where they aren't", y, at(&patient, y), at(&a, y))
		}
	})
}

func TestAccrualForgets(t *testing.T) {
	var a accrual
	for range 10 {
		a.add(5 * time.Second)
	}
	for range maxSilences {
		a.add(100 * time.Millisecond)
	}
	if phi := a.phi(400*time.Millisecond, time.Hour); phi < deadPhi {
		t.Errorf("%g after 400 ms on a link that has been on time for long", phi)
	}
}

// probed is a link as its prober sees it, in virtual time: each probe's reply comes a round trip later, in order; what is lost comes after
// another round trip and a quarter, as it does over QUIC (which then sends two packets, RFC 9002 section 6.2.4), and holds up what was sent
// after it.
type probed struct {
	rtt, jitter time.Duration
	loss        float64
	r           *rand.Rand
	replies     []probing
}

func (l *probed) send(seq uint64, now time.Time) {
	at := now.Add(l.rtt + time.Duration(l.r.Float64()*float64(l.jitter)))
	lost := l.loss
	for wait := l.rtt + l.rtt/4 + 25*time.Millisecond; l.r.Float64() < lost; wait *= 2 {
		at, lost = at.Add(wait), l.loss*l.loss
	}
	if n := len(l.replies); n > 0 && l.replies[n-1].at.After(at) {
		at = l.replies[n-1].at
	}
	l.replies = append(l.replies, probing{seq, at})
}

// run lets p probe until end, or its verdict. From cut on nothing passes. It returns when p was suspect first after cut, and when dead.
func (l *probed) run(p *pulse, start, cut, end time.Time) (suspect, dead time.Time) {
	tick := start
	for now := start; now.Before(end); now = now.Add(time.Millisecond) {
		for len(l.replies) > 0 && !l.replies[0].at.After(now) {
			if reply := l.replies[0]; reply.at.Before(cut) {
				p.hear(reply.at)
				p.reply(reply.seq, reply.at)
			}
			l.replies = slices.Delete(l.replies, 0, 1)
		}
		if !now.Before(tick) {
			tick = tick.Add(p.interval)
			if seq := p.tick(now, false); seq > 0 && now.Before(cut) {
				l.send(seq, now)
			}
		}
		if suspect.IsZero() && !now.Before(cut) && p.suspect(now) {
			suspect = now
		}
		if p.dead(now) {
			return suspect, now
		}
	}
	return suspect, time.Time{}
}

// At 80 ms a black hole is found within 500 ms, whenever it opens, and is suspected long before.
func TestBlackHoleIsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		rtt := time.Duration(rapid.IntRange(0, 80).Draw(t, "rtt")) * time.Millisecond
		cut := time.Duration(rapid.IntRange(2000, 2500).Draw(t, "cut")) * time.Millisecond
		l := &probed{rtt: rtt, jitter: rtt / 10, r: rand.New(rand.NewPCG(seed, 1))}
		start := time.Unix(0, 0)
		p := newPulse(defaultProbeInterval, defaultDeadAfter, start)
		suspect, dead := l.run(p, start, start.Add(cut), start.Add(time.Minute))
		if took := dead.Sub(start.Add(cut)); dead.IsZero() || took > 500*time.Millisecond || took < 200*time.Millisecond {
			t.Errorf("found after %s at %s", took, rtt)
		}
		if took := suspect.Sub(start.Add(cut)); suspect.IsZero() || took > 200*time.Millisecond {
			t.Errorf("suspected after %s at %s", took, rtt)
		}
	})
}

// Loss and jitter don't kill.
func TestBadLinkLives(t *testing.T) {
	start := time.Unix(0, 0)
	for _, l := range []*probed{
		{rtt: 80 * time.Millisecond, loss: 0.01},
		{rtt: 20 * time.Millisecond, loss: 0.03},
		{rtt: 80 * time.Millisecond, jitter: 400 * time.Millisecond},
		{rtt: 300 * time.Millisecond, jitter: 100 * time.Millisecond, loss: 0.01},
	} {
		for seed := range uint64(20) {
			l.r, l.replies = rand.New(rand.NewPCG(seed, 2)), nil
			p := newPulse(defaultProbeInterval, defaultDeadAfter, start)
			never := start.Add(time.Hour)
			if _, dead := l.run(p, start, never, start.Add(time.Minute)); !dead.IsZero() {
				t.Errorf("rtt %s, jitter %s, loss %g, seed %d: dead after %s", l.rtt, l.jitter, l.loss, seed, dead.Sub(start))
			}
		}
	}
}
