package sidecar

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/sidecar/session"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	// maxAttempts bounds how often one request (or one opaque connection) is tried.
	maxAttempts = 5
	// A copy that was tried already gets a moment before it is tried again: this, doubling.
	firstPause = 25 * time.Millisecond
	// A request that can't be repeated serves as a probe of an ejected copy only when nothing better has come for so long.
	probeOverdue = 5 * time.Second
)

// selection chooses the copies that one request tries, one after the other. It belongs to one goroutine.
type selection struct {
	plan   *plan
	health *balance.Health[topology.Target]
	now    func() time.Time
	u      float64 // where in the plan's portions the request begins
	// repeatable: failing costs nothing, so the request may probe a copy that is ejected.
	repeatable bool

	tried []attempt
}

// attempt is one copy that was tried, and why that was no success.
type attempt struct {
	target topology.Target
	words  string
}

func newSelection(p *plan, h *balance.Health[topology.Target], now func() time.Time, repeatable bool) *selection {
	return &selection{plan: p, health: h, now: now, u: rand.Float64(), repeatable: repeatable} //nolint:gosec // G404: it spreads load, it guards nothing
}

// choice is a copy to try now.
type choice struct {
	plan      *plan
	candidate *topology.Candidate
	pool      *session.Pool
	tally     *tally // of its cluster
	score     *balance.Score
	probe     bool // the copy is ejected, and this request finds out whether it still has to be
	anew      bool // likewise, or its place waits for a first answer (failback): it gets nothing else, and its silence until now proves nothing
}

// next returns the copy to try now: one that is due for a probe, else the best that was not tried yet, else the one that was
// tried the least. A plan has a candidate, so there always is one.
func (s *selection) next() choice {
	if len(s.tried) == 0 {
		if c, ok := s.due(); ok {
			return c
		}
	}
	var ejected map[topology.Target]string
	if s.health.Version() != s.plan.version { // somebody was, since the plan was made
		ejected, _ = s.health.Evidence()
	}
	for rounds := range maxAttempts + 1 {
		for _, mindful := range [...]bool{true, false} {
			for tier := range s.plan.Walk(s.u) {
				if c, ok := s.among(tier, rounds, mindful && !tier.LastResort, ejected); ok {
					return c
				}
			}
		}
	}
	return s.at(0, 0) // not reached: some candidate was tried at most maxAttempts times
}

func (s *selection) due() (choice, bool) {
	overdue := probeOverdue
	if s.repeatable {
		overdue = 0
	}
	if len(s.plan.trials) > 0 {
		if i, j, ok := s.plan.try(s.now(), overdue); ok {
			c := s.at(i, j)
			c.anew = true
			return c, true
		}
	}
	for i := range s.plan.Tiers {
		if !s.plan.Tiers[i].LastResort {
			continue
		}
		for j := range s.plan.Tiers[i].Candidates {
			if s.health.Probe(s.now(), s.plan.Tiers[i].Candidates[j].Target, overdue) {
				c := s.at(i, j)
				c.probe, c.anew = true, true
				return c, true
			}
		}
	}
	return choice{}, false
}

// among picks one of the tier's candidates that were tried so often; mindful leaves out those that were ejected.
func (s *selection) among(tier *topology.PlanTier, times int, mindful bool, ejected map[topology.Target]string) (choice, bool) {
	fit := make([]int, 0, 8)
	for j := range tier.Candidates {
		t := tier.Candidates[j].Target
		if _, out := ejected[t]; mindful && out || s.times(t) != times {
			continue
		}
		fit = append(fit, j)
	}
	if len(fit) == 0 {
		return choice{}, false
	}
	i := s.index(tier)
	j := fit[balance.Pick(len(fit),
		func(k int) float64 { return tier.Candidates[fit[k]].Share },
		func(k int) int64 { return s.plan.pools[i][fit[k]].InFlight() },
		rand.Float64)]
	return s.at(i, j), true
}

func (s *selection) index(tier *topology.PlanTier) int {
	for i := range s.plan.Tiers {
		if &s.plan.Tiers[i] == tier {
			return i
		}
	}
	return 0
}

func (s *selection) at(i, j int) choice {
	return choice{plan: s.plan, candidate: &s.plan.Tiers[i].Candidates[j], pool: s.plan.pools[i][j], tally: s.plan.tallies[i][j], score: s.plan.scores[i][j]}
}

func (s *selection) times(t topology.Target) int {
	n := 0
	for _, a := range s.tried {
		if a.target == t {
			n++
		}
	}
	return n
}

// elsewhere reports whether another cluster is left to try, were c no success.
func (s *selection) elsewhere(c choice) bool {
	after := *s
	after.tried = append(slices.Clip(s.tried), attempt{target: c.candidate.Target})
	next := after.next().candidate
	return next.Cluster != c.candidate.Cluster && s.times(next.Target) == 0
}

// failed notes that trying c was no success.
func (s *selection) failed(c choice, words string) {
	s.tried = append(s.tried, attempt{c.candidate.Target, words})
}

// pause waits before c is tried, if it was tried before: what failed a moment ago likely still does.
func (s *selection) pause(ctx context.Context, c choice) error {
	n := s.times(c.candidate.Target)
	if n == 0 {
		return nil
	}
	pause := firstPause << (n - 1)
	timer := time.NewTimer(pause/2 + rand.N(pause)) //nolint:gosec // G404: it spreads load, it guards nothing
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// words tells what was tried, in order; what went the same way several times is told once.
func (s *selection) words() string {
	var told []attempt
	times := make(map[attempt]int)
	for _, a := range s.tried {
		if times[a]++; times[a] == 1 {
			told = append(told, a)
		}
	}
	var out strings.Builder
	for i, a := range told {
		if i > 0 {
			out.WriteString("; ")
		}
		out.WriteString(place(a.target) + ": " + a.words)
		if n := times[a]; n > 1 {
			fmt.Fprintf(&out, " (%d times)", n)
		}
	}
	return out.String()
}

// place names a target for people: "eu/checkout-0", or "us" for another cluster.
func place(t topology.Target) string {
	if t.Endpoint == "" {
		return t.Cluster.String()
	}
	return t.Cluster.String() + "/" + t.Endpoint
}
