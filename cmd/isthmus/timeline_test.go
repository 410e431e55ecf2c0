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
			Evidence: []admin.TimelineEvidence{{Cluster: "eu", Endpoint: "checkout-0", Cause: "ejected", Detail: "3 resets in a row"}, {Cause: "spill", Detail: "30 % healthy"}, {Cluster: "ap", Cause: "gone"}},
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
