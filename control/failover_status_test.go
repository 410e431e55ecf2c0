package control_test

import (
	"fmt"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/isthmus-mesh/isthmus/control"
)

// TestRefusedPolicyStatus: a FailoverPolicy that is not understood says so itself, in the order of names, with the version that was looked at.
func TestRefusedPolicyStatus(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/build/two-clusters.txtar")
	if err != nil {
		t.Fatal(err)
	}
	scene := readScene(t, archive)
	in := &scene.Objects.Policies[0]
	meta := func(name string) control.Meta {
		return control.Meta{Kind: "FailoverPolicy", Namespace: in.Namespace, Name: name}
	}
	scene.Objects.Refused = []control.RefusedPolicy{{Meta: meta("a-first"), Generation: 7, Reason: "no tiers"}, {Meta: meta(in.Name), Generation: 9, Reason: "a typo"}}
	scene.Objects.Problems = []control.Problem{{Object: in.Object(), Reason: "a typo"}}
	got := map[string]string{}
	last := ""
	statuses := build(t, scene).Failover
	for i := range statuses {
		s := &statuses[i]
		if s.Name < last {
			t.Errorf("%s after %s", s.Name, last)
		}
		last = s.Name
		c := s.Conditions[0]
		got[s.Name] = fmt.Sprintf("%d %s=%s %s: %s", s.Generation, c.Type, c.Status, c.Reason, c.Message)
	}
	for name, want := range map[string]string{
		"a-first": "7 Active=False Invalid: no version of it is known that is understood: no tiers",
		in.Name:   "9 Active=False Invalid: an earlier version is in force: a typo",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
}
