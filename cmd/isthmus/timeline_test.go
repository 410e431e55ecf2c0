package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// What several controls tell is merged by time.
func TestTimeline(t *testing.T) {
	alone(t)
	at := time.Date(2026, 1, 1, 6, 1, 2, 345_000_000, time.Local) //nolint:gosmopolitan // it is shown in local time
	us := healthy
	us.Cluster = "us"
	a := control(t, map[string]any{"/v1/status": healthy, "/v1/timeline": admin.Timeline{Events: []admin.TimelineEvent{
		{
			ID: 1, At: at, Cluster: "eu", Kind: admin.EventTurn, Service: "checkout.shop", Port: 80, Callers: []string{"sidecar/shop/web"}, Count: 4,
			Before: map[string]float64{"eu": 1}, After: map[string]float64{"eu": 0.3, "us": 0.7},
			Evidence: []admin.TimelineEvidence{{Cluster: "eu", Endpoint: "checkout-0", Cause: "ejected", Detail: "3 resets in a row"}, {Cause: "spill", Detail: "30 % healthy"}, {Cause: "spill", Detail: "30 % healthy"}, {Cluster: "ap", Cause: "gone"}},
		},
		{ID: 2, At: at.Add(2 * time.Second), Cluster: "eu", Kind: admin.EventTurn, Service: "checkout.shop", Callers: []string{"sidecar/shop/web"}, Count: 1, Before: map[string]float64{"us": 1}},
	}}})
	b := control(t, map[string]any{"/v1/status": us, "/v1/timeline": admin.Timeline{Events: []admin.TimelineEvent{
		{ID: 1, At: at.Add(time.Second), Cluster: "us", Kind: admin.EventDrain, Detail: "us is drained, over 10s, by an operator"},
	}}})
	out, chatter, code := isthmus(t, "timeline", "shop/checkout", "--control", a, "--control", b)
	want := `TIME           TOLD IN   WHO                   WHAT                   WHY
06:01:02.345   eu        shop/web and 3 more   eu 100% → us 70%, eu 30%   eu/checkout-0 ejected: 3 resets in a row; spill: 30 % healthy; ap gone
06:01:03.345   us        control               drain                      us is drained, over 10s, by an operator
06:01:04.345   eu        shop/web              us 100% → nowhere          -
`
	if d := cmp.Diff(strings.Fields(want), strings.Fields(out)); d != "" || code != exitOK {
		t.Errorf("exit %d, %s, output (-want +got):\n%s\n%s", code, chatter, d, out)
	}
	if out, _, code = isthmus(t, "timeline", "shop/checkout", "-o", "json", "--control", b); code != exitOK || !strings.Contains(out, `"kind": "drain"`) {
		t.Errorf("exit %d: %s", code, out)
	}
	nobody := t.TempDir() + "/none"
	if out, _, code = isthmus(t, "timeline", "shop/checkout", "--control", b, "--control", nobody); code != exitUnreachable || !strings.Contains(out, "by an operator") {
		t.Errorf("one is away: exit %d: %s", code, out)
	}
	for args, want := range map[string]int{
		"": exitUsage, "checkout": exitUsage, "shop/checkout --since 0s": exitUsage, "shop/checkout -f -o yaml": exitUsage, "shop/checkout --control " + nobody: exitUnreachable,
	} {
		if _, _, code := isthmus(t, append([]string{"timeline"}, strings.Fields(args)...)...); code != want && args != "" {
			t.Errorf("timeline %s: exit %d, want %d", args, code, want)
		}
	}
}

// Of a service that nobody knows there is nothing to tell: it was likely meant otherwise.
func TestUnknownService(t *testing.T) {
	alone(t)
	links := admin.Timeline{Events: []admin.TimelineEvent{{ID: 1, At: time.Now(), Cluster: "eu", Kind: admin.EventLink, Detail: "the link to us is up"}}}
	known := map[string]any{
		"/v1/status": healthy, "/v1/timeline": links, "/v1/services": []admin.Service{{Name: "checkout", Namespace: "shop"}}, "/v1/imports": []admin.Import{},
	}
	c := control(t, known)
	nobody := t.TempDir() + "/none"
	for args, want := range map[string]struct {
		code int
		said string
	}{
		"timeline shop/checkout --control " + c:                             {exitOK, ""},
		"timeline shop/chekcout --control " + c:                             {exitUsage, "did you mean shop/checkout?"},
		"timeline chekcout.shop --follow --control " + c:                    {exitUsage, "did you mean checkout.shop?"},
		"timeline other.things -o json --control " + c:                      {exitUsage, "there are: checkout.shop"},
		"timeline chekcout.shop --control " + c + " --control " + nobody:    {exitUnreachable, "no cluster that answers has or imports"},
		"drain chekcout.shop --control " + c:                                {exitUsage, "did you mean checkout.shop?"},
		"drain checkout.shop --control " + c:                                {exitFinding, "there is no /v1/drains"},
		"undrain shop/chekcout --cluster eu --control " + c:                 {exitUsage, "eu has no service shop/chekcout; did you mean shop/checkout?"},
		"drill failover shop/chekcout --cluster eu --control " + drilled(t): {exitUsage, "did you mean shop/checkout?"},
		"drill failovr shop/checkout --control " + c:                        {exitUsage, "did you mean failover?"},
	} {
		if out, said, code := isthmus(t, strings.Fields(args)...); code != want.code || !strings.Contains(said, want.said) {
			t.Errorf("%s: exit %d, want %d: %s%s", args, code, want.code, out, said)
		}
	}
}

// drilled is a control that has no drill on, and begins none.
func drilled(t *testing.T) string {
	t.Helper()
	return control(t, map[string]any{
		"/v1/status": healthy, "GET /v1/drills": []admin.Drill{}, "/v1/drills": &admin.Error{Status: 404, Message: "nothing to make look dead"}, "/v1/services": []admin.Service{{Name: "checkout", Namespace: "shop"}}, "/v1/imports": []admin.Import{},
	})
}
