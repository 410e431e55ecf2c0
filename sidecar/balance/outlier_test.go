package balance

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// crew is copies beside each other, and what comes of requests to them.
type crew struct {
	o     Outliers[string]
	peers []Peer[string]
	now   time.Time
}

func newCrew(names ...string) *crew {
	c := &crew{now: start}
	for _, n := range names {
		c.peers = append(c.peers, Peer[string]{Key: n, Tier: "home", Capacity: 1, Place: "eu"})
	}
	return c
}

func (c *crew) requests(k string, answered, failed int, took time.Duration) {
	s := c.o.Score(k)
	for range answered {
		s.Answered(took)
	}
	for range failed {
		s.Failed()
	}
}

// judge lets a second pass.
func (c *crew) judge() string {
	c.now = c.now.Add(time.Second)
	var words []string
	for _, o := range c.o.Judge(c.now, c.peers) {
		words = append(words, o.Key+": "+o.Evidence)
		for i := range c.peers {
			c.peers[i].Out = c.peers[i].Out || c.peers[i].Key == o.Key
		}
	}
	return strings.Join(words, "; ")
}

func TestOutlierFails(t *testing.T) {
	t.Run("evidence", func(t *testing.T) {
		c := newCrew("a", "b", "c")
		c.requests("a", 2, 38, time.Millisecond)
		c.requests("b", 100, 0, time.Millisecond)
		c.requests("c", 98, 2, time.Millisecond)
		if got := c.judge(); got != "a: 2 of 40 answered, peers 99 %" {
			t.Errorf("got %q", got)
		}
	})
	for name, n := range map[string][4]int{ // answered and failed, of a and of its peer
		"too few":              {5, 14, 100, 0},
		"too few to compare":   {2, 38, 19, 0},
		"all fail alike":       {20, 20, 22, 18},
		"bad luck":             {27, 3, 100, 0},
		"better than its peer": {38, 2, 2, 38},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCrew("a", "b")
			c.requests("a", n[0], n[1], time.Millisecond)
			c.requests("b", n[2], n[3], time.Millisecond)
			if got := c.judge(); strings.Contains(got, "a: ") {
				t.Errorf("got %q", got)
			}
		})
	}
	t.Run("long ago", func(t *testing.T) {
		c := newCrew("a", "b")
		c.requests("a", 0, 40, time.Millisecond)
		c.judge()
		c.now = c.now.Add(outlierWindow * time.Second)
		c.requests("b", 40, 0, time.Millisecond)
		if got := c.judge(); got != "" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("it begins anew", func(t *testing.T) {
		c := newCrew("a", "b")
		c.requests("a", 0, 40, time.Millisecond)
		c.requests("b", 40, 0, time.Millisecond)
		if got := c.judge(); got == "" {
			t.Fatal("not ejected")
		}
		c.peers[0].Out = false // a probe brought it back
		if got := c.judge(); got != "" {
			t.Errorf("ejected again for the same requests: %q", got)
		}
	})
}

func TestOutlierLags(t *testing.T) {
	c := newCrew("a", "b", "c")
	for second := 1; ; second++ {
		c.requests("a", 10, 0, 800*time.Millisecond)
		c.requests("b", 50, 0, 11*time.Millisecond)
		c.requests("c", 50, 0, 9*time.Millisecond)
		if got := c.judge(); got != "" {
			if second < 5 || second > 8 || !strings.HasPrefix(got, "a: p50 874 ms, peers 9.") {
				t.Errorf("after %d s: %q", second, got)
			}
			break
		}
		if second > 20 {
			t.Fatal("never ejected")
		}
	}
	for name, slow := range map[string]func(*crew, int){
		"not long":     func(c *crew, s int) { c.requests("a", 50, 0, time.Duration(1+99*(s/6%2))*10*time.Millisecond) },
		"not by much":  func(c *crew, _ int) { c.requests("a", 50, 0, 30*time.Millisecond) },
		"by little":    func(c *crew, _ int) { c.requests("a", 50, 0, 18*time.Millisecond) },
		"seldom asked": func(c *crew, _ int) { c.requests("a", 2, 0, 5*time.Second) },
		"far away":     func(c *crew, _ int) { c.peers[0].Place = "us"; c.requests("a", 50, 0, 80*time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCrew("a", "b")
			for s := range 8 {
				slow(c, s)
				c.requests("b", 50, 0, 10*time.Millisecond)
				if got := c.judge(); got != "" {
					t.Fatalf("after %d s: %q", s+1, got)
				}
			}
		})
	}
}

func TestLatencySteps(t *testing.T) {
	for _, d := range []time.Duration{0, shortestStep, time.Millisecond, 12 * time.Millisecond, 840 * time.Millisecond, 30 * time.Second} {
		if got := stepLength(latencyStep(d)); got < d || float64(got) > 1.5*float64(max(d, shortestStep)) {
			t.Errorf("%s is counted as %s", d, got)
		}
	}
	if latencyStep(time.Hour) != latencySteps-1 {
		t.Error("an hour has no step")
	}
}

// TestOutlierBounds: whatever the figures are, one copy at least stays, no tier loses more than half of its capacity for them, nobody is ejected
// on the word of few requests, nor for being as good as the others.
func TestOutlierBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCrew()
		n := rapid.IntRange(1, 8).Draw(t, "copies")
		alike := rapid.Bool().Draw(t, "alike")
		for i := range n {
			c.peers = append(c.peers, Peer[string]{
				Key: fmt.Sprint(i), Tier: rapid.SampledFrom([]string{"home", "away"}).Draw(t, "tier"), Place: "eu",
				Capacity: float64(rapid.IntRange(1, 5).Draw(t, "capacity")), Out: rapid.IntRange(0, 4).Draw(t, "out") == 0,
			})
		}
		for range rapid.IntRange(1, 12).Draw(t, "seconds") {
			volume := make(map[string]int)
			for _, p := range c.peers {
				answered, failed, took := rapid.IntRange(0, 60).Draw(t, "answered"), rapid.IntRange(0, 60).Draw(t, "failed"), rapid.IntRange(1, 2000).Draw(t, "ms")
				if alike {
					failed, took = answered/3, 10
				}
				c.requests(p.Key, answered, failed, time.Duration(took)*time.Millisecond)
				volume[p.Key] += answered + failed
			}
			before := append([]Peer[string](nil), c.peers...)
			got := c.judge()
			if alike && got != "" {
				t.Fatalf("as good as the others, and ejected: %s", got)
			}
			trusted := 0
			total, out, outBefore := make(map[string]float64), make(map[string]float64), make(map[string]float64)
			for i, p := range c.peers {
				total[p.Tier] += p.Capacity
				if p.Out {
					out[p.Tier] += p.Capacity
				} else {
					trusted++
				}
				if before[i].Out {
					outBefore[p.Tier] += p.Capacity
				}
			}
			for tier := range total {
				if out[tier] > outBefore[tier] && out[tier] > outlierShare*total[tier] {
					t.Fatalf("%v of %v of tier %s are out: %s", out[tier], total[tier], tier, got)
				}
			}
			if got != "" && trusted == 0 {
				t.Fatalf("nobody is left: %s", got)
			}
			if len(before) == 1 && got != "" {
				t.Fatalf("alone, and ejected: %s", got)
			}
		}
	})
}

func BenchmarkScore(b *testing.B) {
	var o Outliers[string]
	s := o.Score("a")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s.Answered(12 * time.Millisecond)
		}
	})
}
