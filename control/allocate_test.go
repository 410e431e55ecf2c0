package control

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/topology"
)

var compareAddr = cmpopts.EquateComparable(netip.Addr{}, topology.ServiceName{})

func serviceNames(t interface{ Fatal(...any) }, n int) []topology.ServiceName {
	var out []topology.ServiceName
	for i := range n {
		s, err := topology.NewServiceName("shop", fmt.Sprintf("svc-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

func TestAllocateIsStable(t *testing.T) {
	cidr := netip.MustParsePrefix("241.0.0.0/8")
	names := serviceNames(t, 2000)
	first, none := allocate(nil, names, cidr, false, nil)
	if len(first) != len(names) || len(none) != 0 {
		t.Fatalf("%d of %d have an address, %d have none", len(first), len(names), len(none))
	}
	// A control that lost its state comes to the same answer, in whatever order it hears of them: but for collisions, the hash decides.
	again, _ := allocate(allocation{}, []topology.ServiceName{names[7]}, cidr, false, nil)
	if again[names[7]] != first[names[7]] {
		t.Errorf("%s: %s alone, %s among many", names[7], again[names[7]], first[names[7]])
	}
	// Others coming and going move nobody.
	less, _ := allocate(first, names[:1000], cidr, false, nil)
	more, _ := allocate(less, append(serviceNames(t, 4000)[3000:], names[:1000]...), cidr, false, nil)
	for _, s := range names[:1000] {
		if less[s] != first[s] || more[s] != first[s] {
			t.Fatalf("%s moved: %s, %s, %s", s, first[s], less[s], more[s])
		}
	}
	if len(less) != 1000 || len(more) != 2000 {
		t.Errorf("%d and %d addresses are held; want 1000 and 2000", len(less), len(more))
	}
	// While not every source has spoken, what is not wanted keeps its address.
	kept, _ := allocate(first, names[:1000], cidr, true, nil)
	if diff := cmp.Diff(first, kept, compareAddr); diff != "" {
		t.Errorf("an address was given back too early:\n%s", diff)
	}
}

func TestAllocateMovesWithTheRange(t *testing.T) {
	names := serviceNames(t, 10)
	a, _ := allocate(nil, names, netip.MustParsePrefix("241.0.0.0/8"), false, nil)
	v6 := netip.MustParsePrefix("fd00:1234::/64")
	b, none := allocate(a, names, v6, true, nil)
	if len(b) != 10 || len(none) != 0 {
		t.Fatalf("%d addresses, %d without", len(b), len(none))
	}
	for s, ip := range b {
		if !v6.Contains(ip) {
			t.Errorf("%s has %s, outside of %s", s, ip, v6)
		}
	}
}

func TestAllocateProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(24, 28).Draw(t, "bits")
		cidr := netip.PrefixFrom(netip.MustParseAddr("241.1.2.0"), bits).Masked()
		room := 1<<(32-bits) - 2
		all := serviceNames(t, 300)
		var held allocation
		for range rapid.IntRange(1, 5).Draw(t, "rounds") {
			wanted := rapid.SliceOfN(rapid.SampledFrom(all), 0, 300).Draw(t, "wanted")
			keep := rapid.Bool().Draw(t, "keep")
			next, none := allocate(held, wanted, cidr, keep, nil)
			taken := make(map[netip.Addr]topology.ServiceName)
			for s, ip := range next {
				if other, twice := taken[ip]; twice {
					t.Fatalf("%s and %s both have %s", s, other, ip)
				}
				taken[ip] = s
				if !cidr.Contains(ip) || ip == cidr.Addr() {
					t.Fatalf("%s has %s", s, ip)
				}
				if was, had := held[s]; had && was != ip {
					t.Fatalf("%s moved from %s to %s", s, was, ip)
				}
			}
			if len(none) > 0 && len(next) != room {
				t.Fatalf("%d got none although %d of %d are taken", len(none), len(next), room)
			}
			for _, s := range wanted {
				if _, ok := next[s]; !ok && len(next) != room {
					t.Fatalf("%s has none although %d of %d are taken", s, len(next), room)
				}
			}
			held = next
		}
	})
}

func TestAllocationOnDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.json")
	if a, h, err := readAllocation(path); err != nil || len(a)+len(h) != 0 {
		t.Fatalf("%v, %v; want an empty one", a, err)
	}
	want, _ := allocate(nil, serviceNames(t, 20), netip.MustParsePrefix("241.0.0.0/8"), false, nil)
	cluster, err := topology.ParseClusterName("us")
	if err != nil {
		t.Fatal(err)
	}
	var keys []hostKey
	for _, a := range []string{"10.2.0.7", "fd00::7", "::1"} {
		keys = append(keys, hostKey{serviceNames(t, 1)[0], topology.HostRef{Cluster: cluster, Address: netip.MustParseAddr(a)}})
	}
	wantHosts, _ := allocateHosts(nil, keys, netip.MustParsePrefix("241.0.0.0/8"), false, want)
	if err = writeAllocation(path, want, wantHosts); err != nil {
		t.Fatal(err)
	}
	got, hosts, err := readAllocation(path)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(wantHosts, hosts) {
		t.Errorf("hosts %v, want %v", hosts, wantHosts)
	}
	for _, a := range hosts {
		for s, b := range want {
			if a == b {
				t.Errorf("%s is that of %s, and of a copy", a, s)
			}
		}
	}
	if diff := cmp.Diff(want, got, compareAddr); diff != "" {
		t.Fatal(diff)
	}
	// A damaged file is no empty one: every service would get another address.
	if err := os.WriteFile(path, []byte(`{"svc-0.shop": "241`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readAllocation(path); err == nil {
		t.Fatal("a damaged file was taken")
	}
}
