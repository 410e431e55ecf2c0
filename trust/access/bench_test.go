package access_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust/access"
)

// shape is a way in which a policy of n rules may be written, and the request that its k-th rule is for.
type shape struct {
	name    string
	rule    func(k int) access.Rule
	request func(k int) access.Request
}

func id(k int) spiffeid.ID {
	return spiffeid.RequireFromSegments(domains[0], "ns", fmt.Sprintf("team-%d", k%50), "sa", fmt.Sprintf("service-%d", k))
}

func get(caller spiffeid.ID, path string) access.Request {
	return access.Request{Caller: caller, Port: 8080, HTTP: true, Method: "GET", Path: path, Header: http.Header{"Accept": {"*/*"}, "X-Tenant": {"acme"}}}
}

func path(k int) string { return fmt.Sprintf("/api/v1/resource-%d/items", k) }

var shapesOfPolicies = []shape{
	{"principals", func(k int) access.Rule {
		return access.Rule{From: list(access.Source{Principals: list(exact(id(k).String()))}), To: list(access.Operation{Methods: list("GET", "POST"), Paths: list(prefix("/api/")), Ports: list(services[0])})}
	}, func(k int) access.Request { return get(id(k), path(k)) }},
	{"prefixes", func(k int) access.Rule {
		return access.Rule{From: list(access.Source{Principals: list(prefix(id(k).String()))}), To: list(access.Operation{Methods: list("GET")})}
	}, func(k int) access.Request { return get(id(k), path(k)) }},
	{"namespaces", func(k int) access.Rule {
		return access.Rule{
			From: list(access.Source{Domains: domains[:1], Namespaces: list(fmt.Sprintf("team-%d", k%50)), ServiceAccounts: list(fmt.Sprintf("service-%d", k))}),
			To:   list(access.Operation{Methods: list("GET"), Ports: list(services[0])}),
		}
	}, func(k int) access.Request { return get(id(k), path(k)) }},
	{"paths", func(k int) access.Rule {
		return access.Rule{From: list(access.Source{Domains: domains[:1], Namespaces: list("team-1")}), To: list(access.Operation{Methods: list("GET"), Paths: list(prefix(path(k)))})}
	}, func(k int) access.Request { return get(id(1), path(k)) }},
	{"denies", func(k int) access.Rule { // a hundred Deny rules, then those of principals
		if k%10 == 5 {
			return access.Rule{Deny: true, To: list(access.Operation{Methods: list("DELETE"), Paths: list(prefix(fmt.Sprintf("/admin/%d/", k)))})}
		}
		return access.Rule{From: list(access.Source{Principals: list(exact(id(k).String()))}), To: list(access.Operation{Methods: list("GET"), Paths: list(prefix(path(k)))})}
	}, func(k int) access.Request { return get(id(k), path(k)) }},
	{"headers", func(k int) access.Rule { // the worst: each row is looked at, as nothing else tells them apart
		return access.Rule{To: list(access.Operation{Headers: list(access.Header{Name: "X-Tenant", Values: list(exact(fmt.Sprint("tenant-", k)))})})}
	}, func(k int) access.Request {
		r := get(id(k), path(k))
		r.Header = http.Header{"X-Tenant": {fmt.Sprint("tenant-", k)}}
		return r
	}},
}

func compiled(tb testing.TB, s shape, n int) *access.Set {
	tb.Helper()
	p := access.Policy{Name: "shop/policy"}
	for k := range n {
		r := s.rule(k)
		r.Name = fmt.Sprint("rule-", k)
		p.Rules = append(p.Rules, r)
	}
	set, err := access.Compile([][]access.Policy{{p}})
	if err != nil {
		tb.Fatal(err)
	}
	return set
}

func TestDecideAllocatesNothing(t *testing.T) {
	for _, s := range shapesOfPolicies {
		set := compiled(t, s, 1000)
		for _, k := range []int{0, 999, 70_007} {
			r := s.request(k)
			if got := set.Decide(&r); got.Allowed != (k < 1000) && s.name != "prefixes" {
				t.Errorf("%s: request %d: %+v", s.name, k, got)
			}
			if n := testing.AllocsPerRun(100, func() { set.Decide(&r) }); n > 0 {
				t.Errorf("%s: request %d: %v allocations", s.name, k, n)
			}
			if n := testing.AllocsPerRun(100, func() { set.Admits(r.Caller, r.Port) }); n > 0 {
				t.Errorf("%s: Admits: %v allocations", s.name, n)
			}
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, s := range shapesOfPolicies {
		for _, n := range []int{1, 10, 100, 1000} {
			set := compiled(b, s, n)
			for _, hit := range []struct {
				name string
				k    int
			}{{"first", 0}, {"last", n - 1}, {"none", 100_000}} {
				b.Run(fmt.Sprintf("%s/rules=%d/%s", s.name, n, hit.name), func(b *testing.B) {
					r := s.request(hit.k)
					b.ReportAllocs()
					for b.Loop() {
						set.Decide(&r)
					}
				})
			}
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, s := range shapesOfPolicies[:4] {
		b.Run(s.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				compiled(b, s, 1000)
			}
		})
	}
}
