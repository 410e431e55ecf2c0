package chaos

import (
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/lab"
)

// TestFaultsSpare: whatever is drawn, the cluster that is not the victim, and a gateway of the caller's, stay whole; and the same seed draws the
// same.
func TestFaultsSpare(t *testing.T) {
	for _, victim := range []string{"us", "ap"} {
		spared := map[string]string{"us": "ap", "ap": "us"}[victim]
		drawn := make(map[string]int)
		for seed := range uint64(200) {
			draw := func() []fault {
				r := &run{Config: Config{Lab: lab.Options{Runtime: lab.Netns}}, luck: rand.New(rand.NewPCG(seed, 0))}
				return r.choose(victim, 2)
			}
			chosen := draw()
			words := func(all []fault) (out []string) {
				for _, f := range all {
					out = append(out, f.what)
				}
				return out
			}
			if !slices.Equal(words(chosen), words(draw())) {
				t.Fatalf("seed %d draws %v, then %v", seed, words(chosen), words(draw()))
			}
			gateways := make(map[string]bool)
			for _, f := range chosen {
				drawn[f.kind]++
				if regexp.MustCompile(`\b`+spared+`\b`).MatchString(f.what) && f.kind != "kill other's control" {
					t.Errorf("victim %s: %s", victim, f.what)
				}
				if _, g, ok := strings.Cut(f.what, home+"/gateway"); ok {
					gateways[g] = true
				}
			}
			if len(gateways) > 1 {
				t.Errorf("both gateways of the caller: %v", words(chosen))
			}
		}
		if len(drawn) < 17 {
			t.Errorf("only these were drawn: %v", drawn)
		}
	}
}

func TestSelfPair(t *testing.T) {
	names := []string{"eu", "us", "ap"}
	for words, want := range map[string]bool{"us-us=down": true, "us-eu=down": false, "ap-ap=down": true} {
		if selfPair(words, names) != want {
			t.Errorf("%s: %t", words, !want)
		}
	}
	links, err := allPairs(must(lab.Sample(3)), normalWAN)
	if err != nil || len(links) != 6 {
		t.Errorf("%v, %v", links, err)
	}
}

func must(s lab.Spec, err error) lab.Spec {
	if err != nil {
		panic(err)
	}
	return s
}
