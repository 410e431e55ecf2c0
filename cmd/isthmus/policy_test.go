package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

// policed is a control with policies for one workload.
func policed(t *testing.T) string {
	t.Helper()
	encode := func(p access.Policy) json.RawMessage {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	web := access.Rule{
		Name:  "web",
		From:  []access.Source{{Principals: []access.Pattern{{Text: "spiffe://eu.example/ns/shop/", Kind: access.Prefix}}, ServiceAccounts: []string{"web"}}},
		To:    []access.Operation{{Methods: []string{"GET"}, Paths: []access.Pattern{{Text: "/cart"}}, Headers: []access.Header{{Name: "X-A", Absent: true}}}},
		Users: []access.User{{Issuer: "corp", Claims: []access.Claim{{Path: []string{"acr", "level"}, Values: []access.Pattern{{Text: "2"}}}}}},
	}
	return control(t, map[string]any{
		"/v1/status": admin.Status{Cluster: "us"},
		"/v1/policies": admin.Policies{
			Cluster: "us", TrustDomain: "us.example", Clusters: map[string]string{"us": "us.example"},
			Policies: []admin.Policy{
				{Kind: "AccessPolicy", Namespace: "shop", Name: "checkout", Access: encode(access.Policy{Name: "shop/checkout", Rules: []access.Rule{web}})},
				{Kind: "AccessPolicy", Namespace: "shop", Name: "close", Access: encode(access.Policy{Name: "shop/close"})},
			},
			Workloads: []admin.PolicedWorkload{{
				ID: "shop/checkout-0", Namespace: "shop", Services: []string{"checkout"}, Enforced: []string{"sidecar/shop/checkout-0"},
				Access: []admin.AppliedPolicy{{Policy: "shop/checkout"}, {Policy: "shop/close"}},
			}},
		},
	})
}

// TestPolicyEffective: a policy without rules, which closes, is named like any other.
func TestPolicyEffective(t *testing.T) {
	socket := policed(t)
	out, chatter, code := isthmus(t, "policy", "effective", "us/checkout-0", "--control", socket)
	if code != 0 || !strings.Contains(out, "shop/close") || !strings.Contains(out, "what no rule allows is refused") {
		t.Errorf("exit %d: %s%s", code, out, chatter)
	}
}

// TestPolicyEffectiveForPrograms: what is printed has names that stay, and patterns as manifests spell them.
func TestPolicyEffectiveForPrograms(t *testing.T) {
	socket := policed(t)
	out, chatter, code := isthmus(t, "policy", "effective", "us/checkout-0", "--control", socket, "-o", "json")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, chatter)
	}
	var got struct {
		Policies []any `json:"policies"`
		Rules    []any `json:"rules"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	want := []any{map[string]any{
		"policy": "shop/checkout", "rule": "web", "action": "allow", "audit": false,
		"from": []any{map[string]any{"principals": []any{"spiffe://eu.example/ns/shop/*"}, "service_accounts": []any{"web"}}},
		"to": []any{map[string]any{
			"methods": []any{"GET"}, "paths": []any{"/cart"}, "headers": []any{map[string]any{"name": "X-A", "absent": true}},
		}},
		"end_users": []any{map[string]any{"issuer": "corp", "claims": []any{map[string]any{"path": []any{"acr", "level"}, "values": []any{"2"}}}}},
	}}
	if diff := cmp.Diff(want, got.Rules); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if len(got.Policies) != 2 {
		t.Errorf("policies: %v", got.Policies)
	}
}
