package access_test

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust/access"
)

func TestDecide(t *testing.T) {
	web := spiffeid.RequireFromString("spiffe://eu.test/ns/shop/sa/web")
	set, err := access.Compile([][]access.Policy{{{
		Name: "shop/checkout",
		Rules: []access.Rule{
			{Name: "web", From: []access.Source{{Principals: []access.Pattern{{Text: web.String()}}}}, To: []access.Operation{{Paths: []access.Pattern{{Text: "/api/", Kind: access.Prefix}}}}},
			{Name: "no-admin", Deny: true, To: []access.Operation{{Paths: []access.Pattern{{Text: "/api/admin", Kind: access.Prefix}}}}},
		},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		caller, path string
		allowed      bool
		reason       access.Reason
		rule         string
	}{
		{web.String(), "/api/x", true, access.AllowedByRule, "web"},
		{web.String(), "/api/ADMIN", false, access.DeniedByRule, "no-admin"},
		{web.String(), "/api//admin", false, access.DeniedByRule, "no-admin"},
		{web.String(), "/api/..;/x", false, access.AmbiguousPath, "web"},
		{web.String(), "/api/%zz", false, access.BadPath, "no-admin"},
		{"spiffe://ap.test/ns/shop/sa/web", "/api/x", false, access.NoRuleAllows, ""},
	} {
		d := set.Decide(&access.Request{Caller: spiffeid.RequireFromString(c.caller), HTTP: true, Method: "GET", Path: c.path, Port: 8080})
		if d.Allowed != c.allowed || d.Reason != c.reason || d.Rule != c.rule || d.Policy != "shop/checkout" {
			t.Errorf("%s %s: %+v, want %v by %q (%s)", c.caller, c.path, d, c.allowed, c.rule, c.reason)
		}
	}
}
