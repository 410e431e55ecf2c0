package control_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

// TestNotUnderstoodWins: what can't be read may have denied what another policy allows.
func TestNotUnderstoodWins(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/build/access.txtar")
	if err != nil {
		t.Fatal(err)
	}
	scene := readScene(t, archive)
	scene.Objects.Access = []control.AccessPolicy{
		{Meta: control.Meta{Kind: "AccessPolicy", Namespace: "shop", Name: "anybody"}, Rules: []control.AccessRule{{Name: "all"}}},
		{Meta: control.Meta{Kind: "AccessPolicy", Namespace: "shop", Name: "slip"}, Closed: true},
	}
	told, err := control.Policies(scene)
	if err != nil {
		t.Fatal(err)
	}
	var policies []access.Policy
	for _, p := range told.Policies {
		if p.Kind != "AccessPolicy" {
			continue
		}
		var policy access.Policy
		if err = json.Unmarshal(p.Access, &policy); err != nil {
			t.Fatal(err)
		}
		policies = append(policies, policy)
	}
	set, err := access.Compile([][]access.Policy{policies})
	if err != nil {
		t.Fatal(err)
	}
	caller := spiffeid.RequireFromString("spiffe://us.example/ns/shop/sa/web")
	want := access.Verdict{Reason: access.DeniedByRule, Policy: "shop/slip", Rule: control.RuleNotUnderstood}
	for _, http := range []bool{true, false} {
		if got := set.Decide(&access.Request{Caller: caller, Port: 8080, HTTP: http, Method: "GET", Path: "/"}).Verdict; got != want {
			t.Errorf("http %v: %+v, want %+v", http, got, want)
		}
	}
	if set.Admits(caller, 8080) {
		t.Error("a session is let in")
	}
	if p := control.Perhaps(policies[1]); len(p.Rules) != 1 {
		t.Errorf("where it may be for a workload it refuses nothing: %+v", p)
	}
}

// TestPoliciesTold: who asks hears of each copy what is for it, who enforces that, and of policies what sidecars have.
func TestPoliciesTold(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/build/access.txtar")
	if err != nil {
		t.Fatal(err)
	}
	told, err := control.Policies(readScene(t, archive))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"eu": "eu.example", "us": "us.example"}, told.Clusters); diff != "" {
		t.Error(diff)
	}
	workloads := make(map[string]admin.PolicedWorkload)
	for _, w := range told.Workloads {
		workloads[w.ID] = w
	}
	applied := func(names ...string) []admin.AppliedPolicy {
		out := []admin.AppliedPolicy{}
		for _, n := range names {
			out = append(out, admin.AppliedPolicy{Policy: n})
		}
		return out
	}
	if diff := cmp.Diff(admin.PolicedWorkload{
		ID: "shop/checkout-0", Namespace: "shop", Labels: map[string]string{"app": "checkout", "tier": "backend"},
		Services: []string{"backdoor", "checkout", "round"}, Enforced: []string{"sidecar/shop/checkout-0", "node/node-0"},
		Access: applied("shop/by-label", "shop/by-service", "shop/watch"), Quotas: applied("shop/fair"),
	}, workloads["shop/checkout-0"]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	bare := workloads["Address shop/10.1.0.7"]
	if len(bare.Access) != 3 || bare.Access[1] != (admin.AppliedPolicy{Policy: "shop/perhaps", Perhaps: true}) {
		t.Errorf("%+v", bare)
	}
	if open := workloads["empty/open-0"]; len(open.Access)+len(open.Quotas) != 0 {
		t.Errorf("%+v", open)
	}
	var policy access.Policy
	if err := json.Unmarshal(told.Policies[1].Access, &policy); err != nil || policy.Name != "shop/by-label" || len(policy.Rules[0].From[0].Domains) != 2 {
		t.Errorf("%+v, %v", policy, err)
	}
}
