package balance

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

var start = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func seeded() func() float64 { return rand.New(rand.NewPCG(1, 2)).Float64 }

func TestPickKeepsSharesWhenIdle(t *testing.T) {
	shares := []float64{.7, .2, .1}
	random := seeded()
	var got [3]float64
	const n = 100_000
	for range n {
		got[Pick(3, func(i int) float64 { return shares[i] }, func(int) int64 { return 0 }, random)]++
	}
	for i := range got {
		if math.Abs(got[i]/n-shares[i]) > .01 {
			t.Errorf("copy %d got %.3f, want %.3f", i, got[i]/n, shares[i])
		}
	}
}

// A copy that answers ten times slower than the other ends up with about a tenth of the requests, not half.
func TestPickAvoidsTheSlow(t *testing.T) {
	random := seeded()
	var inFlight, total [2]int64
	service := [2]float64{.1, .01} // probability that a request in flight ends in a step
	for range 20_000 {
		for i := range inFlight {
			for range inFlight[i] {
				if random() < service[i] {
					inFlight[i]--
				}
			}
		}
		if inFlight[0]+inFlight[1] < 20 {
			i := Pick(2, func(int) float64 { return .5 }, func(i int) int64 { return inFlight[i] }, random)
			inFlight[i]++
			total[i]++
		}
	}
	if slow := float64(total[1]) / float64(total[0]+total[1]); slow > .2 {
		t.Errorf("the slow copy got %.2f of the requests", slow)
	}
}

func TestPickEdges(t *testing.T) {
	zero := func(int) float64 { return 0 }
	none := func(int) int64 { return 0 }
	for _, u := range []float64{0, .5, math.Nextafter(1, 0)} {
		if i := Pick(1, zero, none, func() float64 { return u }); i != 0 {
			t.Errorf("of one: %d", i)
		}
		if i := Pick(3, zero, none, func() float64 { return u }); i < 0 || i > 2 {
			t.Errorf("without shares: %d", i)
		}
		if i := Pick(2, func(int) float64 { return .5 }, none, func() float64 { return u }); i < 0 || i > 1 {
			t.Errorf("of two: %d", i)
		}
	}
}

func TestBudget(t *testing.T) {
	t.Run("floor", func(t *testing.T) {
		var b Budget
		n := 0
		for b.Withdraw(start, CostSent) {
			n++
		}
		if n != budgetFloor*budgetBuckets {
			t.Errorf("%d retries without any request, want %d", n, budgetFloor*budgetBuckets)
		}
	})
	t.Run("ratio", func(t *testing.T) {
		var b Budget
		for i := range 10_000 {
			b.Request(start.Add(time.Duration(i) * time.Millisecond))
		}
		n := 0
		for b.Withdraw(start.Add(9999*time.Millisecond), CostSent) {
			n++
		}
		if n != 2000+100 {
			t.Errorf("%d retries for 10,000 requests, want 2,100", n)
		}
	})
	t.Run("unsent is cheap", func(t *testing.T) {
		var b Budget
		n := 0
		for b.Withdraw(start, CostUnsent) {
			n++
		}
		if n != 1000 {
			t.Errorf("%d retries, want 1,000", n)
		}
	})
	t.Run("the window moves", func(t *testing.T) {
		var b Budget
		for b.Withdraw(start, CostSent) {
		}
		if b.Withdraw(start.Add(9*time.Second), CostSent) {
			t.Error("allowed inside of the window")
		}
		if !b.Withdraw(start.Add(10*time.Second), CostSent) {
			t.Error("refused though the window has passed")
		}
		if !b.Withdraw(start.Add(time.Hour), CostSent) {
			t.Error("refused after an hour")
		}
		if !b.Withdraw(start.Add(-time.Hour), CostSent) { // a clock that steps back
			t.Error("refused because the clock stepped back")
		}
	})
}

func TestHealthEjects(t *testing.T) {
	var h Health[string]
	now := start
	for range 2 {
		if h.Failed(now, "a", Broken, "reset") {
			t.Fatal("ejected before three failures")
		}
	}
	h.Succeeded(now, "a")
	h.Failed(now, "a", Broken, "reset")
	if h.Failed(now, "a", Broken, "reset") {
		t.Fatal("a success does not break the row")
	}
	if !h.Failed(now, "a", Broken, "reset") {
		t.Fatal("three in a row do not eject")
	}
	if e, _ := h.Evidence(); e["a"] != "3 failures in a row, the last: reset" {
		t.Errorf("evidence %q", e)
	}
	if !h.Failed(now, "b", Refused, "no link") {
		t.Fatal("a refusal does not eject")
	}
	if e, _ := h.Evidence(); len(e) != 2 || e["b"] != "no link" {
		t.Errorf("evidence %q", e)
	}
	if next := h.NextTry("a"); !next.Equal(now.Add(firstEjection)) {
		t.Errorf("a is tried again at %s", next)
	}
	h.Succeeded(now, "a")
	if next := h.NextTry("a"); !next.IsZero() || !h.NextTry("nobody").IsZero() {
		t.Errorf("a is well, and tried again at %s", next)
	}
}

func TestHealthHalfOpen(t *testing.T) {
	var h Health[string]
	now := start
	h.Failed(now, "a", Refused, "down")
	for _, length := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		length *= time.Second
		if h.Probe(now.Add(length-1), "a", 0) {
			t.Fatalf("let through before %s were up", length)
		}
		now = now.Add(length)
		if h.Probe(now, "a", time.Second) {
			t.Error("let through though it is not overdue")
		}
		if !h.Probe(now, "a", 0) {
			t.Fatalf("not let through after %s", length)
		}
		if h.Probe(now, "a", 0) {
			t.Error("two probes at a time")
		}
		if !h.Failed(now, "a", Broken, "still down") {
			t.Error("a failed probe does not eject")
		}
	}
	now = now.Add(longestEjection)
	version := h.Version()
	if !h.Probe(now, "a", 0) || !h.Succeeded(now, "a") {
		t.Fatal("a probe that succeeds does not bring it back")
	}
	if e, v := h.Evidence(); len(e) != 0 || v == version {
		t.Errorf("evidence %q, version %d then %d", e, version, v)
	}
	// It flaps: the next ejection is as long as the last.
	h.Failed(now, "a", Refused, "down again")
	if h.Probe(now.Add(29*time.Second), "a", 0) || !h.Probe(now.Add(30*time.Second), "a", 0) {
		t.Error("a copy that flaps starts again with the shortest ejection")
	}
	// Well for long: forgiven.
	now = now.Add(30 * time.Second)
	h.Succeeded(now, "a")
	now = now.Add(forgiveAfter + time.Second)
	h.Failed(now, "a", Refused, "down once more")
	if !h.Probe(now.Add(time.Second), "a", 0) {
		t.Error("a copy that was well for long is not forgiven")
	}
}

func TestHealthProbesThatComeToNothing(t *testing.T) {
	var h Health[string]
	h.Failed(start, "a", Refused, "down")
	now := start.Add(time.Second)
	if !h.Probe(now, "a", 0) {
		t.Fatal("no probe")
	}
	h.Cancel("a")
	if !h.Probe(now, "a", 0) {
		t.Error("a probe that was given back keeps others out")
	}
	if h.Probe(now.Add(probeLease-1), "a", 0) || !h.Probe(now.Add(probeLease), "a", 0) {
		t.Error("a probe that nobody reports keeps others out for ever, or not at all")
	}
}

// Requests of last resort that fail while a copy is ejected do not lengthen that.
func TestHealthFailuresWhileEjected(t *testing.T) {
	var h Health[string]
	h.Failed(start, "a", Refused, "down")
	for range 100 {
		if h.Failed(start.Add(time.Millisecond), "a", Broken, "down") {
			t.Fatal("ejected while ejected")
		}
	}
	if !h.Probe(start.Add(time.Second), "a", 0) {
		t.Error("failures while ejected lengthened it")
	}
}

func TestHealthForgets(t *testing.T) {
	var h Health[string]
	h.Failed(start, "a", Refused, "down")
	h.Failed(start, "b", Refused, "down")
	h.Failed(start, "c", Broken, "reset")
	h.Keep(func(k string) bool { return k == "b" })
	if e, _ := h.Evidence(); len(e) != 1 || e["b"] == "" {
		t.Errorf("evidence %q", e)
	}
	h.Succeeded(start, "b")
	h.Succeeded(start.Add(time.Hour), "b")
	if len(h.copies) != 0 || h.suspects.Load() != 0 || h.ejected.Load() != 0 {
		t.Errorf("%d copies are kept, %d suspects, %d ejected", len(h.copies), h.suspects.Load(), h.ejected.Load())
	}
}

func BenchmarkHealthSucceeded(b *testing.B) {
	var h Health[string]
	for b.Loop() {
		h.Succeeded(start, "a")
	}
}
