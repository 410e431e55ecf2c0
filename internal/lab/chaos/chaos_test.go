package chaos

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/lab"
)

// TestFaultsSpare: whatever is drawn, the cluster that is not the victim, and a gateway of the caller's, stay whole; and the same seed draws the
// same, whichever rounds are asked for.
func TestFaultsSpare(t *testing.T) {
	for seed := range uint64(20) {
		s := newSchedule(seed, lab.Netns)
		for i := range 700 {
			at, faults := s.draw(i)
			gateways := make(map[string]bool)
			for _, f := range faults {
				stays := []string{"kill other's control", "pause control", "restart control", "rotate trust", "change failover"}
				if regexp.MustCompile(`\b`+at.other+`\b`).MatchString(f.what) && !slices.Contains(stays, f.kind) {
					t.Errorf("victim %s: %s", at.victim, f.what)
				}
				if _, g, ok := strings.Cut(f.what, home+"/gateway"); ok {
					gateways[g[:2]] = true
				}
			}
			if len(gateways) > 1 {
				t.Errorf("both gateways of the caller: %v", words(faults))
			}
		}
	}
	a, b := newSchedule(3, lab.Netns), newSchedule(3, lab.Netns)
	for _, i := range []int{900, 5, 0} {
		_, one := a.draw(i)
		_, two := b.draw(i)
		if !slices.Equal(words(one), words(two)) {
			t.Errorf("round %d: %v, then %v", i, words(one), words(two))
		}
	}
}

func words(all []fault) (out []string) {
	for _, f := range all {
		out = append(out, f.what)
	}
	return out
}

// TestCoverage: a run of a thousand faults has each kind alone and each pair of kinds.
func TestCoverage(t *testing.T) {
	for _, runtime := range []lab.Runtime{lab.Local, lab.Netns} {
		s := newSchedule(1, runtime)
		var rounds []Round
		n := 0
		for i := 0; n < 1000; i++ {
			_, faults := s.draw(i)
			var r Round
			for _, f := range faults {
				r.Faults = append(r.Faults, Fault{Kind: f.kind})
				n++
			}
			rounds = append(rounds, r)
		}
		c := cover(runtime, rounds)
		if c.Kinds != c.AllKinds || len(c.Missing) > 0 || runtime == lab.Local && c.Pairs != c.AllPairs {
			t.Errorf("%s: %+v", runtime, c)
		}
		t.Logf("%s: %d faults in %d rounds: %+v", runtime, n, len(rounds), c)
		if c := cover(runtime, rounds[:3]); c.Kinds == c.AllKinds || len(c.Missing) == 0 {
			t.Errorf("three rounds cover everything: %+v", c)
		}
	}
}

// TestWorsened: what two faults make of one link is both.
func TestWorsened(t *testing.T) {
	spec, err := lab.Sample(3)
	if err != nil {
		t.Fatal(err)
	}
	links, err := allPairs(spec, normalWAN)
	if err != nil || len(links) != 6 {
		t.Fatalf("%v, %v", links, err)
	}
	var faults []fault
	for _, k := range kinds {
		if k.name == "loss" || k.name == "delay" {
			faults = append(faults, k.draw(scene{victim: "us", other: "ap"}))
		}
	}
	got, err := worsened(links, faults)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range got {
		want := normalWAN
		if d.From != "ap" && d.To != "ap" {
			want = "150ms~1ms,15%"
		}
		if d.Link != want {
			t.Errorf("%s>%s is %s, want %s", d.From, d.To, d.Link, want)
		}
	}
}
