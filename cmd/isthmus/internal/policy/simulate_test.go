package policy

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

func TestSimulate(t *testing.T) {
	open, err := json.Marshal(access.Policy{Name: "shop/open", Rules: []access.Rule{{Name: "all"}}})
	if err != nil {
		t.Fatal(err)
	}
	now := admin.Policies{
		Cluster: "us", TrustDomain: "us.example", Clusters: map[string]string{"us": "us.example", "eu": "eu.example"},
		Policies: []admin.Policy{{Kind: "AccessPolicy", Namespace: "shop", Name: "open", Access: open}},
		Workloads: []admin.PolicedWorkload{
			{
				ID: "shop/checkout-0", Namespace: "shop", Labels: map[string]string{"app": "checkout"}, Services: []string{"checkout"}, Enforced: []string{"sidecar/shop/checkout-0"},
				Access: []admin.AppliedPolicy{{Policy: "shop/open"}},
			},
			{
				ID: "shop/cart-0", Namespace: "shop", Labels: map[string]string{"app": "cart"}, Services: []string{"cart"}, Enforced: []string{"sidecar/shop/cart-0"},
				Access: []admin.AppliedPolicy{{Policy: "shop/open"}},
			},
		},
	}
	asked := func(caller, method, path string) admin.Decision {
		return admin.Decision{Caller: "spiffe://" + caller, Service: "checkout.shop", Port: 8080, Method: method, Path: path, Count: 10}
	}
	remembered := []admin.Decision{
		asked("eu.example/ns/shop/sa/web", "GET", "/cart"),
		asked("eu.example/ns/shop/sa/web", "GET", "/admin"),
		asked("ap.example/ns/shop/sa/web", "GET", "/cart"),
		asked("us.example/ns/office/sa/desk", "POST", "/refunds"),
		{Caller: "spiffe://eu.example/ns/shop/sa/web", Service: "checkout.shop", Port: 7000, Opaque: true, Count: 1},
		{Caller: "spiffe://eu.example/ns/shop/sa/web", Service: "other.shop", Method: "GET", Path: "/", Count: 1000},
	}
	run := func(proposed []string, removed ...string) string {
		t.Helper()
		policies, err := Read(proposed...)
		if err != nil {
			t.Fatal(err)
		}
		p, err := NewPlan(now, policies, removed)
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		for receiver, workloads := range p.Touched() {
			if receiver != "sidecar/shop/checkout-0" {
				if len(removed) == 0 {
					t.Errorf("%s is touched", receiver)
				}
				continue
			}
			for _, w := range workloads {
				changes, requests, err := p.Simulate(&w, remembered)
				if err != nil || requests != 41 {
					t.Errorf("%d requests, %v", requests, err)
				}
				for _, c := range changes {
					fmt.Fprintf(&out, "%s %s%s %v: %s %s/%s -> %s %s/%s (%s)\n", c.Asked.Caller, c.Asked.Method, c.Asked.Path, c.Asked.Opaque,
						c.Before.Decision, c.Before.Policy, c.Before.Rule, c.After.Decision, c.After.Policy, c.After.Rule, c.After.Reason)
				}
			}
		}
		return out.String()
	}
	// Beside the one that lets all in, it denies what has a header, of which nothing is known.
	if diff := cmp.Diff(`spiffe://eu.example/ns/shop/sa/web  true: allow shop/open/all -> deny shop/checkout/no-debug (denied_by_rule)
spiffe://eu.example/ns/shop/sa/web GET/cart false: allow shop/open/all -> depends shop/open/all (on headers or claims)
spiffe://eu.example/ns/shop/sa/web GET/admin false: allow shop/open/all -> depends shop/open/all (on headers or claims)
spiffe://ap.example/ns/shop/sa/web GET/cart false: allow shop/open/all -> depends shop/open/all (on headers or claims)
spiffe://us.example/ns/office/sa/desk POST/refunds false: allow shop/open/all -> depends shop/open/all (on headers or claims)
`, run([]string{"testdata/checkout.yaml"})); diff != "" {
		t.Errorf("beside (-want +got)\n%s", diff)
	}
	// In its place.
	if diff := cmp.Diff(`spiffe://eu.example/ns/shop/sa/web GET/admin false: allow shop/open/all -> deny shop/closed/ (no_rule_allows)
spiffe://ap.example/ns/shop/sa/web GET/cart false: allow shop/open/all -> deny shop/closed/ (no_rule_allows)
spiffe://us.example/ns/office/sa/desk POST/refunds false: allow shop/open/all -> deny shop/closed/ (no_rule_allows)
spiffe://eu.example/ns/shop/sa/web  true: allow shop/open/all -> deny shop/closed/ (no_rule_allows)
`, run([]string{"testdata/closed.yaml"}, "shop/open")); diff != "" {
		t.Errorf("in its place (-want +got)\n%s", diff)
	}
	// In audit mode nothing would change: it is tried as if it were enforced.
	enforced, failed := os.ReadFile("testdata/closed.yaml")
	if failed != nil {
		t.Fatal(failed)
	}
	audit := write(t, strings.Replace(string(enforced), "spec:\n", "spec:\n  mode: Audit\n", 1))
	if diff := cmp.Diff(run([]string{"testdata/closed.yaml"}, "shop/open"), run([]string{audit}, "shop/open")); diff != "" {
		t.Errorf("in audit mode (-enforced +audit)\n%s", diff)
	}
	proposed, failed := Read(audit)
	if failed != nil {
		t.Fatal(failed)
	}
	p, failed := NewPlan(now, proposed, nil)
	if failed != nil || !slices.Equal(p.AsEnforced(), []string{"shop/closed"}) {
		t.Errorf("what is taken as enforced isn't told: %v", failed)
	}
	if got := run(nil, "shop/open"); got != "" {
		t.Errorf("without any policy everybody may: %s", got)
	}
	if _, err := NewPlan(now, nil, []string{"shop/none"}); err == nil {
		t.Error("what is not there was taken out")
	}
}

// TestSupposing: what isn't known is never told as certain.
func TestSupposing(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("eu.example")
	caller := spiffeid.RequireFromPath(td, "/ns/shop/sa/web")
	header := []access.Operation{{Headers: []access.Header{{Name: "X-A"}}}}
	for name, c := range map[string]struct {
		rules []access.Rule
		want  string
	}{
		"allowed with a header":                     {[]access.Rule{{Name: "r", To: header}}, depends},
		"allowed with a header, or without":         {[]access.Rule{{Name: "r", To: header}, {Name: "s"}}, allow},
		"denied with a header":                      {[]access.Rule{{Name: "r", Deny: true, To: header}, {Name: "s"}}, depends},
		"denied, and allowed with a header":         {[]access.Rule{{Name: "r", Deny: true}, {Name: "s", To: header}}, deny},
		"allowed on another path with a header":     {[]access.Rule{{Name: "r", To: []access.Operation{{Paths: []access.Pattern{{Text: "/b"}}, Headers: header[0].Headers}}}}, deny},
		"allowed for an end user":                   {[]access.Rule{{Name: "r", Users: []access.User{{}}}}, depends},
		"denied for an end user, and never allowed": {[]access.Rule{{Name: "r", Deny: true, Users: []access.User{{}}}}, deny},
		"allowed here, or elsewhere with a header":  {[]access.Rule{{Name: "r", To: []access.Operation{{Paths: []access.Pattern{{Text: "/a"}}}, header[0]}}}, allow},
	} {
		d, err := newDecider([]access.Policy{{Name: "p", Rules: c.rules, Issuers: []access.Issuer{{Name: "i", Issuer: "i"}}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := d.decide(&admin.Decision{Caller: caller.String(), Method: "GET", Path: "/a"}); got.Decision != c.want {
			t.Errorf("%s: %+v, want %s", name, got, c.want)
		}
	}
}
