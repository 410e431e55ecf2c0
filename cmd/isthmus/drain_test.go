package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

func drainsOf(safe bool) admin.Drains {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	d := admin.Drains{
		Cluster: "us", Now: began.Add(12 * time.Second), Drains: []admin.Drain{{Began: began, Over: 10 * time.Second}}, Safe: safe, Untouched: []string{"local.shop"},
		Services: []admin.DrainedService{{
			Service: "checkout.shop", Began: began, Over: 10 * time.Second, Copies: 2, Active: 3, Rate: 1.25, Safe: safe, Why: "3 open",
			Callers:   []admin.DrainCaller{{Cluster: "eu", Active: 3, Rate: 1.25}},
			Elsewhere: []admin.DrainElsewhere{{Cluster: "eu", Ready: 4}, {Cluster: "ap", Problem: "no link to it"}},
		}},
	}
	if safe {
		s := &d.Services[0]
		s.Active, s.Rate, s.Callers, s.Why = 0, 0, nil, "safe: nothing has come in for 10s"
	}
	return d
}

func TestDrain(t *testing.T) {
	alone(t)
	us := healthy
	us.Cluster = "us"
	open := control(t, map[string]any{"/v1/status": us, "/v1/exports": []admin.Export{}, "/v1/drains": drainsOf(false)})
	quiet := control(t, map[string]any{"/v1/status": us, "/v1/exports": []admin.Export{}, "/v1/drains": drainsOf(true)})

	out, chatter, code := isthmus(t, "drain", "us", "--control", open)
	want := `CLUSTER   DRAINED         SINCE   OVER   OPEN   REQUESTS/S   FROM   ELSEWHERE                          SAFE
us        checkout.shop   12s     10s    3      1.2          eu     eu (4 ready), ap (no link to it)   3 open

Not exported, so not touched: local.shop
`
	if d := cmp.Diff(want, out); d != "" || code != exitOK || !strings.Contains(chatter, "cluster us is drained, over 10s. Undo it with: isthmus undrain us\n") {
		t.Errorf("exit %d, %s, output (-want +got):\n%s", code, chatter, d)
	}
	// The command that undoes it can be pasted as it stands.
	if _, chatter, _ = isthmus(t, "drain", "shop/checkout", "--control", open); !strings.Contains(chatter, "Undo it with: isthmus undrain checkout.shop --cluster us\n") {
		t.Error(chatter)
	}
	if out, _, code = isthmus(t, "status", "--control", open); code != exitOK || !strings.Contains(out, "us        checkout.shop   12s") {
		t.Errorf("exit %d: %s", code, out)
	}
	// It waits until it is safe, and says what comes in until then.
	if out, chatter, code = isthmus(t, "drain", "shop/checkout", "--wait", "--control", quiet); code != exitOK || !strings.Contains(out, "safe: nothing has come in") {
		t.Errorf("exit %d: %s %s", code, out, chatter)
	}
	if out, chatter, code = isthmus(t, "drain", "us", "--wait", "--timeout", "1s", "--control", open); code != exitTimeout ||
		!strings.Contains(chatter, "checkout.shop: 3 open (from eu 3 open, 1.2/s)") || !strings.Contains(chatter, "it stays drained") {
		t.Errorf("exit %d: %s %s", code, out, chatter)
	}
	if out, chatter, code = isthmus(t, "undrain", "us", "-o", "json", "--control", quiet); code != exitOK || !strings.Contains(out, `"safe": true`) {
		t.Errorf("exit %d: %s %s", code, out, chatter)
	}
}

func TestDrainRefuses(t *testing.T) {
	alone(t)
	us := healthy
	us.Cluster = "us"
	c := control(t, map[string]any{"/v1/status": us})
	for args, want := range map[string]int{
		"":                               exitUsage,
		"us eu":                          exitUsage,
		"eu":                             exitUsage,
		"us --cluster eu":                exitUsage,
		"a/b/c":                          exitUsage,
		"shop/":                          exitUsage,
		"us --over 1.5s":                 exitUsage,
		"us --over -1s":                  exitUsage,
		"us --wait --dry-run":            exitUsage,
		"shop/checkout --cluster=":       exitUsage,
		"shop/checkout":                  exitFinding, // this control knows no drains
		"checkout.shop.svc.cluster.test": exitUsage,
	} {
		if out, chatter, code := isthmus(t, append([]string{"drain", "--control", c}, strings.Fields(args)...)...); code != want || out != "" {
			t.Errorf("drain %s: exit %d, want %d: %s%s", args, code, want, out, chatter)
		}
	}
}

func TestParseService(t *testing.T) {
	for _, s := range []string{"shop/checkout", "checkout.shop", "checkout.shop.svc.clusterset.local", "checkout.shop.svc.cluster.local."} {
		if n, err := parseService(s); err != nil || n.String() != "checkout.shop" {
			t.Errorf("%s: %v, %v", s, n, err)
		}
	}
}
