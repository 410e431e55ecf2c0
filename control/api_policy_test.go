package control_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

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
	bare := workloads["10.1.0.7"]
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
