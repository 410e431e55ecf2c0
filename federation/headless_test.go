package federation

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestCondensePodCIDRs(t *testing.T) {
	parse := func(in ...string) (out []netip.Prefix) {
		for _, s := range in {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for title, c := range map[string]struct{ in, want []netip.Prefix }{
		"none":        {nil, nil},
		"neighbours":  {parse("10.1.1.0/24", "10.1.0.0/24", "10.1.3.0/24", "10.1.2.0/24"), parse("10.1.0.0/22")},
		"not halves":  {parse("10.1.1.0/24", "10.1.2.0/24"), parse("10.1.1.0/24", "10.1.2.0/24")},
		"inside":      {parse("10.1.1.0/24", "10.1.0.0/16", "10.1.1.0/24"), parse("10.1.0.0/16")},
		"not masked":  {parse("10.1.1.7/24"), parse("10.1.1.0/24")},
		"of families": {parse("fd00::/64", "10.1.0.0/24", "fd00:0:0:1::/64"), parse("10.1.0.0/24", "fd00::/63")},
	} {
		if diff := cmp.Diff(fmt.Sprint(c.want), fmt.Sprint(CondensePodCIDRs(c.in))); diff != "" {
			t.Errorf("%s (-want +got)\n%s", title, diff)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		var in []netip.Prefix
		for range rapid.IntRange(0, 300).Draw(t, "nodes") {
			b := rapid.SliceOfN(rapid.Byte(), 2, 2).Draw(t, "node")
			in = append(in, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, b[0], b[1], 0}), 24))
		}
		out := CondensePodCIDRs(in)
		if len(out) > maxPodCIDRs {
			t.Fatalf("%d prefixes", len(out))
		}
		for i, p := range out {
			if p != p.Masked() || i > 0 && (out[i-1].Overlaps(p) || out[i-1].Compare(p) > 0) {
				t.Fatalf("%v", out)
			}
		}
		for _, p := range in {
			held := false
			for _, o := range out {
				held = held || o.Contains(p.Addr()) && o.Bits() <= p.Bits()
			}
			if !held {
				t.Fatalf("%s is in none of %v", p, out)
			}
		}
	})
}
