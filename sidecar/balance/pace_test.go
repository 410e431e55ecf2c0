package balance

import (
	"testing"
	"time"
)

func TestPatience(t *testing.T) {
	var p Pace[string]
	if got := p.Patience("new"); got != firstPatience {
		t.Errorf("a copy that nobody knows gets %s", got)
	}
	for range 100 {
		p.Heard(start, "far", 80*time.Millisecond)
		p.Heard(start, "near", 200*time.Microsecond)
		p.Heard(start, "slow", 10*time.Second)
	}
	for i := range 100 {
		p.Heard(start, "moody", time.Duration(20+80*(i%2))*time.Millisecond)
	}
	for k, bounds := range map[string][2]time.Duration{
		"far":   {160 * time.Millisecond, 170 * time.Millisecond},
		"near":  {leastPatience, leastPatience},
		"slow":  {mostPatience, mostPatience},
		"moody": {170 * time.Millisecond, 300 * time.Millisecond},
	} {
		if got := p.Patience(k); got < bounds[0] || got > bounds[1] {
			t.Errorf("%s gets %s, want %s to %s", k, got, bounds[0], bounds[1])
		}
	}
}

func TestSilent(t *testing.T) {
	var p Pace[string]
	if !p.Silent(start.Add(firstPatience), "a", start) || p.Silent(start.Add(firstPatience-1), "a", start) {
		t.Error("of a copy that nobody knows")
	}
	p.Heard(start.Add(time.Second), "a", time.Millisecond)
	if p.Silent(start.Add(time.Hour), "a", start) {
		t.Error("it was heard")
	}
	if since := start.Add(time.Second); p.Silent(since.Add(leastSilence-1), "a", since) || !p.Silent(since.Add(leastSilence), "a", since) {
		t.Error("heard after a second")
	}
	p.Keep(func(k string) bool { return k != "a" })
	if !p.Silent(start.Add(time.Second), "a", start) {
		t.Error("remembered, though it is gone")
	}
}

// TestHedges: what is silent for good costs a few at once, and then one in twenty.
func TestHedges(t *testing.T) {
	var h Hedges
	spent := 0
	for range 1000 {
		h.Request()
		if h.Withdraw() {
			spent++
		}
	}
	if spent < 50+hedgeBurst-2 || spent > 50+hedgeBurst {
		t.Errorf("%d of 1,000 were hedged, want %d", spent, 50+hedgeBurst)
	}
	for range 1000 {
		h.Request()
	}
	for i := range hedgeBurst + 1 {
		if got := h.Withdraw(); got != (i < hedgeBurst) {
			t.Errorf("after a calm time, hedge %d: %t", i+1, got)
		}
	}
}
