package balance

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const (
	after = 30 * time.Second
	ramp  = time.Minute
)

// lane follows one place in virtual time, asking only when told to or when something changed, as the resolver does.
type lane struct {
	recovery Recovery[string]
	now      time.Time
	able     float64
	again    time.Time
	held     map[string]Rise
	asked    int
}

func newLane(able float64) *lane {
	l := &lane{now: start, able: able}
	l.ask()
	return l
}

func (l *lane) ask() {
	l.asked++
	able := map[string]float64{"other": 1}
	if l.able > 0 {
		able["home"] = l.able
	}
	l.held, l.again = l.recovery.Observe(l.now, able, after, ramp)
}

func (l *lane) set(able float64) {
	l.able = able
	l.ask()
}

func (l *lane) pass(d time.Duration) {
	for end := l.now.Add(d); l.now.Before(end); {
		if l.again.IsZero() || l.again.After(end) {
			l.now = end
			return
		}
		l.now = l.again
		l.ask()
	}
}

func (l *lane) level() float64 {
	if r, ok := l.held["home"]; ok {
		return r.Level
	}
	return l.able
}

func TestRecoveryFirstSight(t *testing.T) {
	l := newLane(1)
	if l.level() != 1 || !l.again.IsZero() {
		t.Errorf("at first sight it gets %v, and is asked about again at %v", l.level(), l.again)
	}
	l.pass(time.Hour)
	if l.asked != 1 {
		t.Errorf("asked %d times though nothing happened", l.asked)
	}
}

// TestRecoveryFollowsTheRamp: nothing for as long as it has to be well, then the ramp, within 5 %; then quiet.
func TestRecoveryFollowsTheRamp(t *testing.T) {
	l := newLane(1)
	l.set(0)
	l.pass(10 * time.Second)
	l.set(1)
	back := l.now
	l.recovery.Proved(l.now, "home", after)
	steps := 0
	for before := -1.0; l.now.Before(back.Add(2 * time.Minute)); {
		l.pass(100 * time.Millisecond)
		want := min(1, max(0, float64(l.now.Sub(back)-after)/float64(ramp)))
		if math.Abs(l.level()-want) > .05 {
			t.Fatalf("%v after it was back it gets %.3f, want %.3f", l.now.Sub(back), l.level(), want)
		}
		if l.level() != before {
			steps, before = steps+1, l.level()
		}
	}
	if l.level() != 1 || !l.again.IsZero() || steps < 40 || steps > 60 {
		t.Errorf("it gets %v, after %d steps, and is asked about again at %v", l.level(), steps, l.again)
	}
}

// TestRecoveryFlapping: up for a second and down for a second, ten minutes long, moves requests once: away. With answers to its trials or without.
func TestRecoveryFlapping(t *testing.T) {
	for _, proves := range []bool{false, true} {
		l := newLane(1)
		moves, before := 0, l.level()
		for range 600 {
			for _, able := range []float64{0, 1} {
				l.set(able)
				if proves && able > 0 {
					l.recovery.Proved(l.now, "home", after)
				}
				l.pass(500 * time.Millisecond)
				if l.level() != before {
					moves, before = moves+1, l.level()
				}
			}
		}
		if moves != 1 || l.level() != 0 {
			t.Errorf("proves %t: moved %d times, and gets %v in the end", proves, moves, l.level())
		}
	}
}

// TestRecoverySwitches: whatever it does, between two times that it begins to get more again after it lost some lies the wait.
func TestRecoverySwitches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLane(rapid.SampledFrom([]float64{0, .5, 1}).Draw(t, "first"))
		var rose, lost time.Time
		before := l.level()
		for range 200 {
			if rapid.IntRange(0, 3).Draw(t, "changes") == 0 {
				l.set(rapid.SampledFrom([]float64{0, .3, 1}).Draw(t, "able"))
			}
			switch rapid.IntRange(0, 3).Draw(t, "sign") {
			case 0:
				l.recovery.Setback(l.now, "home")
			case 1, 2:
				l.recovery.Proved(l.now, "home", after)
			}
			l.pass(time.Duration(rapid.IntRange(0, 20_000).Draw(t, "for")) * time.Millisecond)
			switch level := l.level(); {
			case level < before:
				lost = l.now
			case level > before:
				if lost.After(rose) && !rose.IsZero() && l.now.Sub(rose) < after {
					t.Fatalf("rose at %v and, after a fall, at %v", rose, l.now)
				}
				if !lost.IsZero() && lost.After(rose) {
					rose = l.now
				}
			}
			before = l.level()
			if before > l.able+1e-9 {
				t.Fatalf("gets %v and could take %v", before, l.able)
			}
		}
	})
}

// TestRecoveryPartial: what is half down and whole again keeps what it has while it waits.
func TestRecoveryPartial(t *testing.T) {
	l := newLane(1)
	l.set(.4)
	l.pass(time.Minute)
	l.set(1)
	if l.level() != .4 {
		t.Errorf("gets %v while it waits", l.level())
	}
	l.pass(after + ramp/2)
	if math.Abs(l.level()-.7) > .05 { // it has requests, and need not be tried
		t.Errorf("gets %v at half its ramp", l.level())
	}
	l.set(.5)
	if l.level() != .5 || !l.again.IsZero() {
		t.Errorf("gets %v when it falls on its way", l.level())
	}
}

// TestRecoveryTrials: a place that gets nothing is tried once a second; it must have answered, and one failure starts the wait anew.
func TestRecoveryTrials(t *testing.T) {
	l := newLane(1)
	l.set(0)
	l.set(1)
	trials := 0
	for range 100 {
		if l.recovery.Trial(l.now, "home", 0) {
			trials++
		}
		if l.recovery.Trial(l.now, "other", 0) {
			t.Fatal("tries what has requests")
		}
		l.pass(100 * time.Millisecond)
	}
	if trials != 10 {
		t.Errorf("%d trials in ten seconds", trials)
	}
	l.pass(time.Hour)
	if r := l.held["home"]; r.Level != 0 || !r.Unproven || r.Held != 0 {
		t.Errorf("never answered, and %+v", r)
	}
	if !l.recovery.Proved(l.now, "home", after) || l.recovery.Proved(l.now, "home", after) {
		t.Error("it proves itself once")
	}
	l.ask()
	l.pass(ramp / 2)
	if math.Abs(l.level()-.5) > .05 {
		t.Errorf("the wait was over when it answered, and half a ramp later it gets %v", l.level())
	}
	l.recovery.Setback(l.now, "home") // it has requests: what fails is for its health to judge
	l.pass(ramp)
	if l.level() != 1 {
		t.Errorf("gets %v", l.level())
	}
	l.set(0)
	l.set(1)
	l.recovery.Proved(l.now, "home", after)
	l.pass(after - time.Second)
	l.recovery.Setback(l.now, "home")
	l.recovery.Proved(l.now, "home", after)
	l.ask()
	l.pass(after - time.Second)
	if l.level() != 0 {
		t.Errorf("failed on trial, and gets %v before the wait is over again", l.level())
	}
}

// TestRecoveryForgets: what is gone and comes again comes from nothing, and only Forget makes it the first.
func TestRecoveryForgets(t *testing.T) {
	var r Recovery[string]
	r.Observe(start, map[string]float64{"a": 1}, after, ramp)
	r.Observe(start, nil, after, ramp)
	if len(r.places) != 0 {
		t.Errorf("%d places are kept", len(r.places))
	}
	if held, _ := r.Observe(start, map[string]float64{"a": 1}, after, ramp); held["a"].Level != 0 || len(held) != 1 {
		t.Errorf("held %v", held)
	}
	r.Forget()
	if held, _ := r.Observe(start, map[string]float64{"a": 1}, after, ramp); len(held) != 0 {
		t.Errorf("held %v", held)
	}
}

func TestRecoveryWithoutWait(t *testing.T) {
	var r Recovery[string]
	r.Observe(start, nil, 0, ramp)
	if held, _ := r.Observe(start, map[string]float64{"a": 1}, 0, ramp); held["a"].Level != 0 || held["a"].Left != ramp {
		t.Errorf("held %v", held)
	}
	if held, again := r.Observe(start.Add(ramp/4), map[string]float64{"a": 1}, 0, ramp); held["a"].Level != .25 || again.IsZero() {
		t.Errorf("held %v until %v", held, again)
	}
	var at Recovery[string]
	at.Observe(start, nil, 0, 0)
	if held, again := at.Observe(start, map[string]float64{"a": 1}, 0, 0); len(held) != 0 || !again.IsZero() {
		t.Errorf("held %v until %v", held, again)
	}
}

func TestLeaving(t *testing.T) {
	var l Leaving[string]
	drained := map[string]Drain{"a": {Began: start, Over: 10 * time.Second}}
	if levels, again := l.Observe(start, drained); levels["a"] != 0 || !again.IsZero() {
		t.Errorf("who comes later gets %v, until %v", levels, again)
	}
	if levels, _ := l.Observe(start, nil); len(levels) != 0 {
		t.Errorf("undrained: %v", levels)
	}
	now := start.Add(time.Hour) // clocks of others say nothing
	for i, want := range []float64{1, .9, .8, .5, .5, 0} {
		at := []time.Duration{0, 1, 2, 5, 5, 10}[i] * time.Second
		levels, again := l.Observe(now.Add(at), drained)
		if math.Abs(levels["a"]-want) > 1e-9 || again.IsZero() != (want == 0) {
			t.Errorf("after %v: %v until %v", at, levels, again)
		}
	}
	again := map[string]Drain{"a": {Began: start.Add(time.Second), Over: 10 * time.Second}}
	if levels, _ := l.Observe(now.Add(time.Minute), again); levels["a"] != 1 {
		t.Errorf("another drain: %v", levels)
	}
}
