package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab"
)

// schedule says which kinds meet in which round. Each kind comes alone once and with each other kind once, in an order that the seed gives,
// and then again in another.
type schedule struct {
	kinds []kind
	seed  uint64
	deck  [][]int // one or two places in kinds
}

func newSchedule(seed uint64, runtime lab.Runtime) *schedule {
	return &schedule{kinds: known(runtime), seed: seed}
}

// round returns the kinds of a round. The same seed gives the same, whichever rounds are asked for.
func (s *schedule) round(i int) []kind {
	for len(s.deck) <= i {
		s.shuffle()
	}
	var out []kind
	for _, k := range s.deck[i] {
		out = append(out, s.kinds[k])
	}
	return out
}

func (s *schedule) shuffle() {
	var all [][]int
	for a := range s.kinds {
		all = append(all, []int{a})
		for b := range a {
			all = append(all, []int{a, b})
		}
	}
	luck := rand.New(rand.NewPCG(s.seed, uint64(len(s.deck)))) //nolint:gosec // G404: to be repeated, not to be secret
	luck.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	s.deck = append(s.deck, all...)
}

// draw returns the faults of a round, and for whom they are.
func (s *schedule) draw(i int) (scene, []fault) {
	luck := rand.New(rand.NewPCG(s.seed^0x9e3779b97f4a7c15, uint64(i))) //nolint:gosec // G404, G115: as above
	at := scene{luck: luck, victim: "us", other: "ap"}
	if luck.IntN(2) == 1 {
		at.victim, at.other = at.other, at.victim
	}
	at.which = fmt.Sprintf("gateway-%d", luck.IntN(2))
	at.lasts = least + time.Duration(luck.Int64N(int64(most-least)))
	var out []fault
	for _, k := range s.round(i) {
		f := k.draw(at)
		f.kind = k.name
		out = append(out, f)
	}
	return at, out
}

// Coverage says which kinds, and which pairs of kinds, a run has tried.
type Coverage struct {
	Kinds    int      `json:"kinds"`
	AllKinds int      `json:"all_kinds"`
	Pairs    int      `json:"pairs"`
	AllPairs int      `json:"all_pairs"`
	Missing  []string `json:"missing_kinds,omitempty"`
}

func cover(runtime lab.Runtime, rounds []Round) Coverage {
	all := known(runtime)
	c := Coverage{AllKinds: len(all), AllPairs: len(all) * (len(all) - 1) / 2}
	kinds, pairs := make(map[string]bool), make(map[[2]string]bool)
	for _, r := range rounds {
		var names []string
		for _, f := range r.Faults {
			kinds[f.Kind] = true
			names = append(names, f.Kind)
		}
		if slices.Sort(names); len(names) == 2 && names[0] != names[1] {
			pairs[[2]string(names)] = true
		}
	}
	c.Kinds, c.Pairs = len(kinds), len(pairs)
	for _, k := range all {
		if !kinds[k.name] {
			c.Missing = append(c.Missing, k.name)
		}
	}
	return c
}
