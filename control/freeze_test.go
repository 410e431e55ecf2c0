package control

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

func TestNothingNewFromAFrozenWord(t *testing.T) {
	us, err := topology.ParseClusterName("us")
	if err != nil {
		t.Fatal(err)
	}
	names := serviceNames(t, 2)
	domain := spiffeid.RequireTrustDomainFromString("us.example")
	view := func(seq uint64, f federation.Freshness, exports ...topology.ServiceName) []*federation.View {
		v := &federation.View{Cluster: us, Domain: domain, Epoch: 1, Seq: seq, Freshness: f}
		for _, e := range exports {
			v.Exports = append(v.Exports, federation.Export{Name: e})
		}
		return []*federation.View{v}
	}
	held := frozen{}
	for i, step := range []struct {
		views []*federation.View
		want  int
	}{
		{view(1, federation.Frozen, names[0]), 1}, // after a start: what was in force before
		{view(2, federation.Fresh, names[0]), 1},
		{view(2, federation.Stale, names[0]), 1},
		{view(2, federation.Frozen, names[0]), 1},
		{view(3, federation.Frozen, names...), 1}, // its last part came an hour late
		{view(3, federation.Frozen, names...), 1},
		{view(4, federation.Fresh, names...), 2},
		{view(4, federation.Frozen), 0}, // can't be: the same number, other exports; not ours to judge
		{nil, 0},
		{view(5, federation.Frozen, names...), 2}, // pinned anew
	} {
		var out []*federation.View
		out, held = held.apply(step.views)
		got := 0
		if len(out) == 1 {
			got = len(out[0].Exports)
			if out[0].Freshness != step.views[0].Freshness {
				t.Errorf("step %d: its freshness was changed", i)
			}
		}
		if got != step.want || len(out) != len(step.views) {
			t.Errorf("step %d: %d exports of %d views, want %d", i, got, len(out), step.want)
		}
	}
}
