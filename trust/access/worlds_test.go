package access_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/trust/access"
)

func exact(s string) access.Pattern  { return access.Pattern{Text: s} }
func prefix(s string) access.Pattern { return access.Pattern{Text: s, Kind: access.Prefix} }
func suffix(s string) access.Pattern { return access.Pattern{Text: s, Kind: access.Suffix} }

func list[T any](e ...T) []T { return e }

var (
	domains    = list(spiffeid.RequireTrustDomainFromString("eu.test"), spiffeid.RequireTrustDomainFromString("ap.test"), spiffeid.RequireTrustDomainFromString("eu"))
	namespaces = list("shop", "pay", "sh", "ops")
	accounts   = func() (all []string) {
		for k := range 18 {
			all = append(all, fmt.Sprintf("sa-%d", k))
		}
		return append(all, "web", "we")
	}()
	services = list(uint16(8080), 8081, 8443, 80, 9000)
	issuerA  = access.Issuer{Name: "a", Issuer: "https://a.test", Audiences: list("x"), JWKS: "{}"}
	issuerB  = access.Issuer{Name: "b", Issuer: "https://b.test", Audiences: list("x"), JWKS: "{}"}
)

// callers are all identities of the small world: 20 in each namespace of each domain, and some that are no workloads.
func callers() (all []spiffeid.ID) {
	for _, td := range domains {
		for _, ns := range namespaces {
			for _, sa := range accounts {
				all = append(all, spiffeid.RequireFromSegments(td, "ns", ns, "sa", sa))
			}
		}
		all = append(all, spiffeid.RequireFromSegments(td, "isthmus", "gateway", "g1"), spiffeid.RequireFromSegments(td, "ns", "shop"), td.ID(),
			spiffeid.RequireFromSegments(td, "ns", "shop", "sa", "web", "x"))
	}
	return append(all, spiffeid.ID{})
}

// Every kind of each part of a rule.
var (
	sources = [][]access.Source{
		nil,
		{{}},
		{{Nobody: true}},
		{{Principals: list(prefix(""))}},
		{{Principals: list(exact("spiffe://eu.test/ns/shop/sa/web"))}},
		{{Principals: list(prefix("spiffe://eu.test/ns/sh"), prefix("spiffe://eu.test/ns/shop/"), exact("spiffe://ap.test/ns/pay/sa/sa-1"))}},
		{{Principals: list(suffix("/sa/web"), suffix("eb")), Domains: domains[:2]}},
		{{Domains: domains[:1]}},
		{{Domains: domains[1:], Namespaces: list("shop", "ops")}},
		{{Domains: domains[2:], ServiceAccounts: list("web", "sa-3")}},
		{{Domains: domains[:1], Namespaces: list("pay"), ServiceAccounts: list("sa-5")}, {Nobody: true}, {Domains: domains[1:2], Namespaces: list("shop"), ServiceAccounts: list("sa-5")}},
		{{Domains: domains[:1], Namespaces: list("")}},
	}
	operationKinds = [][]access.Operation{
		nil,
		{{}},
		{{Methods: list("GET", "HEAD")}},
		{{Paths: list(exact("/admin"), exact("/"))}},
		{{Paths: list(prefix("/admin/"), prefix("/a"), exact("/api/x/"))}},
		{{Paths: list(suffix(".php"), suffix("/x"))}},
		{{Paths: list(prefix(""))}},
		{{Paths: list(suffix("/"))}},
		{{Ports: list(services[0], services[2])}},
		{{Headers: list(access.Header{Name: "X-Tenant", Values: list(exact("acme"), prefix("a-"), suffix("-z"))})}},
		{{Headers: list(access.Header{Name: "x-tenant"}, access.Header{Name: "X-Debug", Absent: true})}},
		{{Methods: list("POST"), Paths: list(prefix("/api/")), Ports: list(services[0])}, {Ports: list(services[1])}, {Paths: list(exact("/admin")), Ports: list(services[0])}},
	}
	userKinds = [][]access.User{
		nil,
		{{}},
		{{Issuer: "b"}},
		{{Issuer: "a", Claims: list(access.Claim{Path: list("groups"), Values: list(exact("dev"), prefix("op"))})}},
		{{Claims: list(access.Claim{Path: list("realm", "role"), Values: list(exact("true"))}, access.Claim{Path: list("sub")})}, {Issuer: "b", Claims: list(access.Claim{Path: list("level"), Values: list(suffix("7"))})}},
	}
)

func user(claims map[string]access.Value) access.Token {
	return access.Token{State: access.TokenValid, User: &access.EndUser{Claims: claims}}
}

func word(kind access.ValueKind, text string) access.Value {
	return access.Value{Kind: kind, Text: text}
}

// shapes are what may be asked of a service.
var shapes = list(
	access.Request{},
	access.Request{HTTP: true, Method: "GET", Path: "/", Header: http.Header{}},
	access.Request{HTTP: true, Method: "get", Path: "/admin/?x", Header: http.Header{"X-Tenant": {"b", "a-1"}}, Tokens: list(access.Token{State: access.TokenInvalid})},
	access.Request{HTTP: true, Method: "POST", Path: "/API/x", Header: http.Header{"X-Tenant": {"acme"}, "X-Debug": {""}}, Tokens: list(access.Token{}, user(map[string]access.Value{
		"level": word(access.Literal, "17"), "sub": word(access.Text, ""),
	}))},
	access.Request{HTTP: true, Method: "HEAD", Path: "/api//x.php", Header: http.Header{"X-Tenant": {"-z"}}, Tokens: list(user(map[string]access.Value{
		"groups": {Kind: access.List, List: list(word(access.Null, ""), word(access.Text, "ops"))}, "sub": word(access.Text, "ada"),
		"realm": {Kind: access.Object, Object: map[string]access.Value{"role": word(access.Literal, "true")}},
	}))},
	access.Request{HTTP: true, Method: "GET", Path: "/admin/..;/x", Header: http.Header{"X-Tenant": {""}}},
	access.Request{HTTP: true, Method: "POST", Path: "/api/%c0%af", Tokens: list(user(map[string]access.Value{"groups": word(access.Text, "dev"), "sub": {Kind: access.List}}), access.Token{State: access.TokenInvalid})},
	access.Request{HTTP: true, Method: "OPTIONS", Path: "*", Header: http.Header{"X-Tenant": make([]string, access.MaxHeaderValues+1)}},
)

// small is a compiled world, and what it was made of.
type small struct {
	sets [][]access.Policy
	set  *access.Set
}

func world(tb interface {
	Helper()
	Fatalf(string, ...any)
}, sets ...[]access.Policy,
) small {
	tb.Helper()
	set, err := access.Compile(sets)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return small{sets, set}
}

// check asks both.
func (w small) check(tb interface {
	Helper()
	Fatalf(string, ...any)
}, r *access.Request,
) {
	tb.Helper()
	got := w.set.Decide(r)
	enforced, audited := oracle(w.sets, r, w.set.Issuers())
	if got.Verdict != enforced || got.Audit != audited {
		tb.Fatalf("%+v\nof %v, port %d, HTTP %v, %s %q, %v, %+v:\n%+v\nand by the oracle\n%+v, audit %+v", w.sets, r.Caller, r.Port, r.HTTP, r.Method, r.Path, r.Header, r.Tokens, got, enforced, audited)
	}
	for _, port := range list(r.Port, 0) {
		admitted := w.set.Admits(r.Caller, port)
		if got.Allowed && !admitted || admitted != admits(w.sets, r, port) {
			tb.Fatalf("%+v\nof %v, port %d: %+v, admitted: %v", w.sets, r.Caller, port, got, admitted)
		}
	}
}

// admits tells whether there is some Allow rule for the caller and the port (0: any), and no Deny rule that asks for nothing else.
func admits(sets [][]access.Policy, r *access.Request, port uint16) bool {
	for _, set := range sets {
		policies, allowed := 0, false
		for _, p := range set {
			if p.Audit {
				continue
			}
			policies++
			for _, rule := range p.Rules {
				if !anyOf(rule.From, func(s access.Source) bool { return calls(s, r) }) {
					continue
				}
				if !rule.Deny && anyOf(rule.To, func(o access.Operation) bool { return port == 0 || len(o.Ports) == 0 || slices.Contains(o.Ports, port) }) {
					allowed = true
				}
				if rule.Deny && len(rule.Users) == 0 && anyOf(rule.To, func(o access.Operation) bool {
					return len(o.Methods)+len(o.Paths)+len(o.Headers) == 0 && (len(o.Ports) == 0 || slices.Contains(o.Ports, port))
				}) {
					return false
				}
			}
		}
		if policies > 0 && (!allowed || r.Caller.IsZero()) {
			return false
		}
	}
	return true
}

// TestFilter: it is for what a Deny rule would match.
func TestFilter(t *testing.T) {
	matched, asked := 0, 0
	for _, from := range sources {
		for _, to := range operationKinds {
			f, err := access.CompileFilter(from, to)
			if err != nil {
				t.Fatal(err)
			}
			for k, caller := range callers() {
				for n := range shapes {
					r := shapes[n]
					r.Caller, r.Port = caller, services[k%len(services)]
					path, form := plainPath(r.Path)
					want := anyOf(from, func(s access.Source) bool { return calls(s, &r) }) && anyOf(to, func(o access.Operation) bool { return does(o, &r, path, form, true) })
					if got := f.Matches(&r); got != want {
						t.Fatalf("%+v, %+v: of %v, %s %q: %v, want %v", from, to, caller, r.Method, r.Path, got, want)
					}
					asked++
					if want {
						matched++
					}
				}
			}
		}
	}
	if matched == 0 || matched == asked {
		t.Errorf("%d of %d matched: nothing was tested", matched, asked)
	}
	r := get(id(1), "/a")
	f, err := access.CompileFilter(nil, list(access.Operation{Paths: list(prefix("/a"))}))
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { f.Matches(&r) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestWhatIsNotCompiled: what can't be meant, and what is above a limit, is refused, and says where it is.
func TestWhatIsNotCompiled(t *testing.T) {
	rule := func(r access.Rule) []access.Policy {
		r.Name = "the-rule"
		return list(access.Policy{Name: "ns/the-policy", Rules: list(r), Issuers: list(issuerA)})
	}
	from := func(s access.Source) []access.Policy { return rule(access.Rule{From: list(s)}) }
	to := func(o access.Operation) []access.Policy { return rule(access.Rule{To: list(o)}) }
	users := func(u access.User) []access.Policy { return rule(access.Rule{Users: list(u)}) }
	many := func(n int, pattern func(k int) access.Pattern) (all []access.Pattern) {
		for k := range n {
			all = append(all, pattern(k))
		}
		return all
	}
	long := strings.Repeat("x", access.MaxPatternSize+1)
	var pairs access.Rule
	for k := range 200 {
		pairs.From = append(pairs.From, access.Source{Domains: domains[:1], Namespaces: list(fmt.Sprint(k)), ServiceAccounts: list(fmt.Sprint(k))})
		pairs.To = append(pairs.To, access.Operation{Methods: list(fmt.Sprint("M", k)), Ports: list(uint16(k))})
	}
	for name, policies := range map[string][]access.Policy{
		"an unsound ID":                from(access.Source{Principals: list(exact("spiffe://eu.test//x"))}),
		"half a trust domain":          from(access.Source{Principals: list(prefix("spiffe://eu"))}),
		"no SPIFFE ID":                 from(access.Source{Principals: list(prefix("https://eu.test/"))}),
		"an unsound trust domain":      from(access.Source{Principals: list(prefix("spiffe://EU.test/"))}),
		"a suffix of any domain":       from(access.Source{Principals: list(suffix("/sa/web"))}),
		"a namespace of any domain":    from(access.Source{Namespaces: list("shop")}),
		"an account of any domain":     from(access.Source{ServiceAccounts: list("web")}),
		"no kind of pattern":           from(access.Source{Domains: domains, Principals: list(access.Pattern{Kind: 3})}),
		"a long pattern":               to(access.Operation{Headers: list(access.Header{Name: "X", Values: list(exact(long))})}),
		"no method":                    to(access.Operation{Methods: list("")}),
		"a long method":                to(access.Operation{Methods: list(strings.Repeat("M", 65))}),
		"a path that is none":          to(access.Operation{Paths: list(exact("admin"))}),
		"no path":                      to(access.Operation{Paths: list(exact(""))}),
		"a path with dots":             to(access.Operation{Paths: list(prefix("/a/../b"))}),
		"a path with parameters":       to(access.Operation{Paths: list(suffix(";x"))}),
		"a path with a query":          to(access.Operation{Paths: list(exact("/a?b"))}),
		"a path that may be shorter":   to(access.Operation{Paths: list(exact("/%61"))}),
		"a suffix that may be shorter": to(access.Operation{Paths: list(suffix("%61"))}),
		"a URL":                        to(access.Operation{Paths: list(prefix("http://h/a"))}),
		"no header":                    to(access.Operation{Headers: list(access.Header{})}),
		"the host":                     to(access.Operation{Headers: list(access.Header{Name: "host"})}),
		"an absent header with values": to(access.Operation{Headers: list(access.Header{Name: "X", Absent: true, Values: list(exact("x"))})}),
		"an issuer that is none":       users(access.User{Issuer: "other"}),
		"a claim without a name":       users(access.User{Claims: list(access.Claim{})}),
		"a claim too deep":             users(access.User{Claims: list(access.Claim{Path: make([]string, access.MaxClaimDepth+1)})}),
		"users, and no issuers":        list(access.Policy{Name: "ns/the-policy", Rules: list(access.Rule{Name: "the-rule", Users: list(access.User{})})}),
		"an issuer without a name":     list(access.Policy{Name: "ns/the-policy", Issuers: list(access.Issuer{})}),
		"issuers of one name":          list(access.Policy{Name: "ns/the-policy", Issuers: list(issuerA, issuerA)}),
		"too many rules":               list(access.Policy{Name: "ns/the-policy", Rules: make([]access.Rule, access.MaxRules+1)}),
		"too many patterns":            to(access.Operation{Paths: many(access.MaxPatterns+1, func(k int) access.Pattern { return exact(fmt.Sprint("/", k)) })}),
		"too many patterns of headers": to(access.Operation{Headers: list(access.Header{Name: "X", Values: many(access.MaxSlowPatterns+1, func(k int) access.Pattern { return exact(fmt.Sprint(k)) })})}),
		"too many pairs":               rule(pairs),
	} {
		_, err := access.Compile(list(policies))
		if err == nil || !strings.Contains(err.Error(), "ns/the-policy") || len(policies[0].Rules) == 1 && !strings.Contains(err.Error(), "the-rule") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := access.Compile(list(make([]access.Policy, access.MaxPolicies+1))); err == nil {
		t.Error("too many policies are compiled")
	}
	var issuers []access.Policy
	for k := range access.MaxIssuers + 1 {
		issuers = append(issuers, access.Policy{Issuers: list(access.Issuer{Name: "x", Issuer: fmt.Sprint(k)})})
	}
	if _, err := access.Compile(list(issuers)); err == nil {
		t.Error("too many issuers are compiled")
	}
	// Nobody decides before anything is compiled.
	r := get(id(1), "/")
	if d := (*access.Set)(nil).Decide(&r); d.Allowed || d.Reason != access.NotReady || (*access.Set)(nil).Admits(id(1), 1) {
		t.Errorf("without a set: %+v", d)
	}
}

// TestIssuers: each once, whatever it is called, and however its audiences are ordered.
func TestIssuers(t *testing.T) {
	again := issuerB
	again.Name, again.Audiences = "c", list("y", "x", "y")
	same := issuerB
	same.Audiences = list("x", "y")
	w := world(t, list(access.Policy{Issuers: list(issuerA, same)}), list(access.Policy{Audit: true, Issuers: list(again, issuerB)}))
	if got := w.set.Issuers(); len(got) != 3 || got[0].Issuer != issuerA.Issuer || got[0].Name != "" || !slices.Equal(got[1].Audiences, list("x", "y")) || got[2].Issuer != issuerB.Issuer {
		t.Errorf("%+v", got)
	}
}

// TestReasonsHaveWords: of their own.
func TestReasonsHaveWords(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range access.Reasons() {
		if word := r.String(); word == "" || seen[word] || strings.ContainsFunc(word, func(c rune) bool { return c != '_' && (c < 'a' || c > 'z') }) {
			t.Errorf("reason %d: %q", r, word)
		}
		seen[r.String()] = true
	}
	if got := access.Reason(200).String(); got != "reason_200" {
		t.Error(got)
	}
}

// TestSmallWorlds asks every caller's every kind of request of every service, of a world with every kind of rule.
func TestSmallWorlds(t *testing.T) {
	all := callers()
	asked := atomic.Int64{}
	var wait sync.WaitGroup
	for _, from := range sources {
		wait.Go(func() {
			for _, to := range operationKinds {
				for _, users := range userKinds {
					for _, deny := range list(false, true) {
						rule := access.Rule{Name: "rule", Deny: deny, From: from, To: to, Users: users}
						policy := access.Policy{Name: "ns/policy", Rules: list(rule), Issuers: list(issuerA, issuerB)}
						if deny { // all others are let through, so that what it does not match is seen
							policy.Rules = append(policy.Rules, access.Rule{Name: "others"})
						}
						w := world(t, list(policy))
						for k, caller := range all {
							if testing.Short() && k%17 != 0 {
								continue
							}
							for _, port := range services {
								for n := range shapes {
									r := shapes[n]
									r.Caller, r.Port = caller, port
									w.check(t, &r)
									asked.Add(1)
								}
							}
						}
					}
				}
			}
		})
	}
	wait.Wait()
	t.Logf("%d requests", asked.Load())
}

// TestPairs: two rules of every kind, in one policy, in two, in two sets, one in audit mode.
func TestPairs(t *testing.T) {
	all := callers()
	asked := 0
	for k := range 20_000 {
		if testing.Short() && k%20 != 0 {
			continue
		}
		// Digits of a number that visits all combinations in a scattered order.
		n := k * 7919
		digit := func(base int) int { d := n % base; n /= base; return d }
		rule := func(name string) access.Rule {
			return access.Rule{
				Name: name, Deny: digit(2) == 1, From: sources[digit(len(sources))], To: operationKinds[digit(len(operationKinds))], Users: userKinds[digit(len(userKinds))],
			}
		}
		one := access.Policy{Name: "ns/one", Rules: list(rule("r1")), Issuers: list(issuerA, issuerB)}
		two := access.Policy{Name: "ns/two", Rules: list(rule("r2")), Issuers: list(issuerB, issuerA)}
		var w small
		switch k % 4 {
		case 0:
			two.Rules, two.Issuers = append(list(one.Rules[0]), two.Rules...), one.Issuers
			w = world(t, list(two))
		case 1:
			w = world(t, list(one, two))
		case 2:
			w = world(t, list(one), list(two))
		case 3:
			one.Audit = true
			w = world(t, list(one, two), nil)
		}
		for m := range 60 {
			r := shapes[(k+m)%len(shapes)]
			r.Caller, r.Port = all[(k*31+m*17)%len(all)], services[m%len(services)]
			w.check(t, &r)
			asked++
		}
	}
	t.Logf("%d requests", asked)
}

// Pieces of texts that often match each other.
func text(t *rapid.T, pieces ...string) string {
	s := ""
	for range rapid.IntRange(1, 4).Draw(t, "pieces") {
		s += rapid.SampledFrom(pieces).Draw(t, "piece")
	}
	return s
}

func pattern(t *rapid.T, text string) access.Pattern {
	cut := rapid.IntRange(0, len(text)).Draw(t, "cut")
	switch rapid.IntRange(0, 2).Draw(t, "kind") {
	case 0:
		return exact(text)
	case 1:
		return prefix(text[:cut])
	default:
		return suffix(text[cut:])
	}
}

func identity(t *rapid.T) spiffeid.ID {
	if rapid.IntRange(0, 9).Draw(t, "other") == 0 {
		return spiffeid.RequireFromSegments(rapid.SampledFrom(domains).Draw(t, "domain"), list(text(t, "ns", "sa", "shop"), text(t, "a", "ns"))...)
	}
	return spiffeid.RequireFromSegments(rapid.SampledFrom(domains).Draw(t, "domain"), "ns", text(t, "sh", "op", "s"), "sa", text(t, "we", "b", "w"))
}

func drawRule(t *rapid.T, name string) access.Rule {
	r := access.Rule{Name: name, Deny: rapid.IntRange(0, 3).Draw(t, "deny") == 0}
	some := func(what string) int { return max(0, rapid.IntRange(-2, 3).Draw(t, what)) }
	for range some("sources") {
		s := access.Source{Nobody: rapid.IntRange(0, 9).Draw(t, "nobody") == 0}
		for range some("principals") {
			id := identity(t).String()
			p := pattern(t, id)
			if p.Kind == access.Prefix && len(p.Text) < len("spiffe://eu.test/") {
				p.Text = ""
			}
			s.Principals = append(s.Principals, p)
		}
		for range rapid.IntRange(1, 2).Draw(t, "domains") {
			s.Domains = append(s.Domains, rapid.SampledFrom(domains).Draw(t, "domain"))
		}
		for range some("namespaces") {
			s.Namespaces = append(s.Namespaces, text(t, "sh", "op", "s"))
		}
		for range some("accounts") {
			s.ServiceAccounts = append(s.ServiceAccounts, text(t, "we", "b", "w"))
		}
		r.From = append(r.From, s)
	}
	for range some("operations") {
		o := access.Operation{}
		for range some("methods") {
			o.Methods = append(o.Methods, rapid.SampledFrom(list("GET", "POST", "get", "PURGE")).Draw(t, "method"))
		}
		for range some("paths") {
			p := pattern(t, "/"+rapid.SampledFrom(list("a", "b")).Draw(t, "piece")+text(t, "a", "b", "A", "/c", "-"))
			if p.Kind != access.Suffix && p.Text == "" {
				p = prefix("/")
			}
			o.Paths = append(o.Paths, p)
		}
		for range some("ports") {
			o.Ports = append(o.Ports, rapid.SampledFrom(services).Draw(t, "port"))
		}
		for range some("headers") / 2 {
			h := access.Header{Name: rapid.SampledFrom(list("X-A", "x-b")).Draw(t, "header"), Absent: rapid.Bool().Draw(t, "absent")}
			if !h.Absent && rapid.Bool().Draw(t, "values") {
				h.Values = list(pattern(t, text(t, "v", "w")))
			}
			o.Headers = append(o.Headers, h)
		}
		r.To = append(r.To, o)
	}
	for range some("users") / 2 {
		u := access.User{Issuer: rapid.SampledFrom(list("", "a", "b")).Draw(t, "issuer")}
		if rapid.Bool().Draw(t, "claims") {
			u.Claims = list(access.Claim{Path: list("groups"), Values: list(pattern(t, text(t, "x", "y")))})
		}
		r.Users = append(r.Users, u)
	}
	return r
}

func drawSets(t *rapid.T, rules int) (sets [][]access.Policy) {
	for range rapid.IntRange(0, 3).Draw(t, "sets") {
		var set []access.Policy
		for k := range rapid.IntRange(0, 4).Draw(t, "policies") {
			p := access.Policy{Name: fmt.Sprint("ns/p", k), Audit: rapid.IntRange(0, 3).Draw(t, "audit") == 0, Issuers: list(issuerA, issuerB)}
			for n := range rapid.IntRange(0, rules).Draw(t, "rules") {
				p.Rules = append(p.Rules, drawRule(t, fmt.Sprint("r", n)))
			}
			set = append(set, p)
		}
		sets = append(sets, set)
	}
	return sets
}

func drawRequest(t *rapid.T) *access.Request {
	r := &access.Request{
		Caller: identity(t), Port: rapid.SampledFrom(services).Draw(t, "port"), HTTP: rapid.IntRange(0, 9).Draw(t, "http") > 0,
		Method: rapid.SampledFrom(list("GET", "POST", "get", "Post", "PURGE", "")).Draw(t, "method"),
		Path:   rapid.SampledFrom(list("/", "/", "/", "", "http://h/")).Draw(t, "form") + text(t, "a", "b", "A", "/c", "-", "/", "%61", "?", "%2e", "%20"),
		Header: http.Header{},
	}
	for range rapid.SampledFrom(list(0, 1, 2, access.MaxHeaderValues, 2*access.MaxHeaderValues+1)).Draw(t, "headers") {
		r.Header.Add(rapid.SampledFrom(list("X-A", "X-B")).Draw(t, "header"), text(t, "v", "w"))
	}
	for range rapid.IntRange(0, 2).Draw(t, "tokens") {
		token := access.Token{State: rapid.SampledFrom(list(access.TokenAbsent, access.TokenInvalid, access.TokenValid)).Draw(t, "state")}
		if token.State == access.TokenValid {
			token = user(map[string]access.Value{"groups": {Kind: access.List, List: list(word(access.Text, text(t, "x", "y")), word(access.Literal, "7"))}})
		}
		r.Tokens = append(r.Tokens, token)
	}
	return r
}

// TestRandomWorlds: with more rules, and such as nobody thought of.
func TestRandomWorlds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := world(t, drawSets(t, 12)...)
		for range 100 {
			w.check(t, drawRequest(t))
		}
	})
}

// large is a policy of n rules, of which a request matches few, and the request that the k-th is for.
func large(n, denies int) (access.Policy, func(k int) *access.Request) {
	p := access.Policy{Name: "ns/large", Issuers: list(issuerA, issuerB)}
	id := func(k int) spiffeid.ID {
		return spiffeid.RequireFromSegments(domains[k%2], "ns", fmt.Sprint("n-", k%97), "sa", fmt.Sprint("s-", k))
	}
	for k := range n {
		ns, sa, td := fmt.Sprint("n-", k%97), fmt.Sprint("s-", k), id(k).TrustDomain()
		from := list(
			access.Source{Principals: list(exact(id(k).String()))},
			access.Source{Principals: list(prefix(id(k).String()[:len(id(k).String())-1]))},
			access.Source{Domains: list(td), Principals: list(suffix("/" + sa))},
			access.Source{Domains: list(td), Namespaces: list(ns)},
			access.Source{Domains: domains[:2], Namespaces: list(ns), ServiceAccounts: list(sa, "web")},
		)[k%5]
		to := list(
			access.Operation{Paths: list(prefix(fmt.Sprintf("/api/%d/", k)))},
			access.Operation{Methods: list("GET", "POST"), Paths: list(exact(fmt.Sprintf("/api/%d/x.php", k)))},
			access.Operation{Ports: list(services[k%5]), Paths: list(suffix(fmt.Sprintf("%d/x.php", k%100)))},
			access.Operation{Paths: list(prefix(fmt.Sprintf("/api/%d", k)), exact("/"))},
		)[k/5%4]
		p.Rules = append(p.Rules, access.Rule{Name: fmt.Sprint("r-", k), Deny: k < denies, From: list(from), To: list(to)})
	}
	return p, func(k int) *access.Request {
		return &access.Request{Caller: id(k), Port: services[k%5], HTTP: true, Method: "GET", Path: fmt.Sprintf("/api/%d/x.php", k), Header: http.Header{}}
	}
}

// TestLargeWorlds: with so many rows that there are several tables; Deny rules before, at and behind where a table ends.
func TestLargeWorlds(t *testing.T) {
	for _, denies := range list(0, 1, 64, 4095, 4096, 4097, 8192) {
		if testing.Short() && denies != 4097 {
			continue
		}
		p, request := large(access.MaxRules, denies)
		w := world(t, list(p))
		allowed, denied := 0, 0
		for _, k := range list(0, 1, 62, 63, 64, 65, 127, 1000, 4094, 4095, 4096, 4097, 4159, 4160, 6000, 8190, 8191, 9000) {
			r := request(k)
			w.check(t, r)
			if d := w.set.Decide(r); d.Allowed {
				allowed++
			} else if d.Reason == access.DeniedByRule {
				denied++
			}
			// The same of somebody else, of another port, without HTTP.
			other := *r
			other.Caller = request(k + 1).Caller
			w.check(t, &other)
			other = *r
			other.Port++
			w.check(t, &other)
			other = *r
			other.HTTP = false
			w.check(t, &other)
		}
		if allowed+denied < 15 {
			t.Errorf("%d Deny rules: only %d requests are allowed and %d denied by a rule", denies, allowed, denied)
		}
	}
}

// TestReload asks while sets are replaced: each answer is that of the old or of the new.
func TestReload(t *testing.T) {
	web := spiffeid.RequireFromString("spiffe://eu.test/ns/shop/sa/web")
	request := access.Request{Caller: web, HTTP: true, Method: "GET", Path: "/a", Header: http.Header{}}
	worlds := list(
		world(t, list(access.Policy{Name: "ns/old", Rules: list(access.Rule{Name: "allow", From: list(access.Source{Principals: list(exact(web.String()))})})})),
		world(t, list(access.Policy{Name: "ns/new", Rules: list(access.Rule{Name: "deny", Deny: true, To: list(access.Operation{Paths: list(prefix("/a"))})})})),
	)
	want := list(worlds[0].set.Decide(&request), worlds[1].set.Decide(&request))
	if want[0] == want[1] {
		t.Fatal("both say the same")
	}
	var current atomic.Pointer[access.Set]
	current.Store(worlds[0].set)
	stop := make(chan struct{})
	var wait sync.WaitGroup
	var seen [2]atomic.Int64
	for range 4 {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r := request
				switch got := current.Load().Decide(&r); got {
				case want[0]:
					seen[0].Add(1)
				case want[1]:
					seen[1].Add(1)
				default:
					t.Errorf("neither: %+v", got)
					return
				}
			}
		})
	}
	for k := range 2000 {
		// Compiled anew each time: nothing is shared with what others ask.
		current.Store(world(t, worlds[k%2].sets...).set)
	}
	for k := 0; seen[0].Load() == 0 || seen[1].Load() == 0; k++ {
		current.Store(worlds[k%2].set)
	}
	close(stop)
	wait.Wait()
}
