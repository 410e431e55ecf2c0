package configstream

import (
	"fmt"
	"testing"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
)

func thousand(b *testing.B, n int) []*configv1.Resource {
	b.Helper()
	var out []*configv1.Resource
	for i := range 1000 {
		out = append(out, EncodeService(service(b, fmt.Sprintf("s%d.shop", i), n)))
	}
	return out
}

// BenchmarkNewWorld is what a change costs control, once: 1,000 services.
func BenchmarkNewWorld(b *testing.B) {
	resources := thousand(b, 1)
	for b.Loop() {
		NewWorld(resources)
	}
}

// BenchmarkDifference is what a change costs control for each program: 1,000 services of which it uses 20, one changed.
func BenchmarkDifference(b *testing.B) {
	resources := thousand(b, 1)
	worlds := []*World{NewWorld(resources), NewWorld(append(resources[1:], EncodeService(service(b, "s0.shop", 2))))}
	h := new(configv1.Hello)
	for i := range 20 {
		h.Services = append(h.Services, fmt.Sprintf("s%d.shop", i))
	}
	v, err := newView(h, "node/n", everything)
	if err != nil {
		b.Fatal(err)
	}
	v.difference(worlds[0])
	for i := 1; b.Loop(); i++ {
		if c := v.difference(worlds[i%2]); len(c.upsert) != 1 {
			b.Fatalf("%d resources, want 1", len(c.upsert))
		}
	}
}
