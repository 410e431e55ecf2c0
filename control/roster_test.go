package control

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestRosterOnDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "roster.json")
	if r, err := readRoster(path); err != nil || len(r.Gateways)+len(r.Nodes) != 0 {
		t.Fatalf("%+v, %v; want an empty one", r, err)
	}
	ends := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := &roster{
		Gateways: map[string]rosterGateway{
			"gateway-0": {Address: "10.0.0.1:7443", QUIC: "192.0.2.1:7443", Zone: "a", Draining: true, SVIDEnds: ends},
			"gateway-1": {SVIDEnds: ends},
		},
		Nodes: map[string]rosterNode{"node-0": {Inbound: netip.MustParseAddrPort("[::1]:9443"), SVIDEnds: ends}, "node-1": {SVIDEnds: ends}},
	}
	if err := writeRoster(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := readRoster(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Fatal(diff)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readRoster(path); err == nil {
		t.Fatal("a damaged file was taken for an empty one")
	}
}

func TestRosterForgetsNobodyTooEarly(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := &roster{Gateways: map[string]rosterGateway{
		"a-gone": {SVIDEnds: now.Add(-25 * time.Hour)},
		"b-gone": {SVIDEnds: now.Add(-25 * time.Hour)},
		"c-away": {SVIDEnds: now.Add(-23 * time.Hour)},
		"d-here": {SVIDEnds: now.Add(-25 * time.Hour)},
	}}
	names := func(r *roster) []string {
		var out []string
		for _, id := range []string{"a-gone", "b-gone", "c-away", "d-here"} {
			if _, ok := r.Gateways[id]; ok {
				out = append(out, id)
			}
		}
		return out
	}
	got := names(r.pruned(nil, map[string]bool{"d-here": true}, nodeNames{}, now))
	if diff := cmp.Diff([]string{"c-away", "d-here"}, got); diff != "" {
		t.Error(diff)
	}
	// All silent for a week: that control heard nothing is no reason to tell the peers that there is no way in.
	if got := names(r.pruned(nil, nil, nodeNames{}, now.Add(7*24*time.Hour))); len(got) != 4 {
		t.Errorf("%v are left; want all", got)
	}
	if len(r.Gateways) != 4 {
		t.Error("the roster itself was changed")
	}
}
