package sidecar

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/access"
	"github.com/isthmus-mesh/isthmus/trust/enduser"
	"github.com/isthmus-mesh/isthmus/trust/quota"
)

// police puts policies in force for what a server serves.
func (s *side) police(sets ...[]access.Policy) {
	last := s.snapshots.Load()
	spec := topology.SnapshotSpec{Self: last.Self(), Clusters: last.Clusters()}
	for _, in := range last.Inbounds() {
		policed := *in
		policed.Access = sets
		spec.Inbounds = append(spec.Inbounds, &policed)
	}
	s.snapshots.Store(topology.NewSnapshot(spec))
}

// allow is a rule for callers of a domain with that service account.
func allow(name string, td spiffeid.TrustDomain, account string) access.Rule {
	return access.Rule{Name: name, From: []access.Source{{Domains: []spiffeid.TrustDomain{td}, Namespaces: []string{"shop"}, ServiceAccounts: []string{account}}}}
}

func exact(texts ...string) []access.Pattern {
	var out []access.Pattern
	for _, t := range texts {
		out = append(out, access.Pattern{Text: t})
	}
	return out
}

// TestPolicyDecides: a caller that no rule lets in gets 403 and no more; the operator's log, metrics and trace name policy, rule and reason.
func TestPolicyDecides(t *testing.T) {
	w := newWorld(t)
	var reached atomic.Int64
	_, here := serveApp(t, func(w http.ResponseWriter, _ *http.Request) { reached.Add(1); _, _ = io.WriteString(w, "eu") })
	near := w.server(eu, "checkout", topology.HTTP, here)
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
	cart := allow("cart", eu, "web")
	cart.To = []access.Operation{{Methods: []string{"GET"}, Paths: []access.Pattern{{Text: "/cart/", Kind: access.Prefix}}}}
	near.police([]access.Policy{
		{Name: "shop/checkout", Rules: []access.Rule{cart, {Name: "no-debug", Deny: true, To: []access.Operation{{Headers: []access.Header{{Name: "X-Debug"}}}}}}},
		{Name: "shop/watch", Audit: true, Rules: []access.Rule{allow("admins", eu, "admin")}},
	})
	client := c.client()
	ask := func(path string, header ...string) (heard, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.TrimSuffix(checkoutURL, "/")+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Add(header[i], header[i+1])
		}
		return do(t, client, req)
	}
	if resp, body := ask("/cart/1"); resp.StatusCode != http.StatusOK || body != "eu" {
		t.Fatalf("what a rule allows: %d %q", resp.StatusCode, body)
	}
	for _, refused := range []struct {
		path, rule, reason string
		header             []string
	}{
		{"/admin", "", "no_rule_allows", nil},
		{"/cart/%2e%2e/admin", "cart", "ambiguous_path", nil},
		{"/cart/1", "no-debug", "denied_by_rule", []string{"x-debug", "1"}},
	} {
		before := reached.Load()
		resp, body := ask(refused.path, refused.header...)
		if resp.StatusCode != http.StatusForbidden || resp.Header.Get(headerError) != string(CodeNotAllowed) {
			t.Errorf("%s: %s %q %q", refused.path, resp.Status, resp.Header.Get(headerError), body)
		}
		for _, secret := range []string{"shop/checkout", "shop/watch", "cart", "no-debug", refused.reason} {
			if strings.Contains(body+fmt.Sprint(resp.Header), secret) {
				t.Errorf("%s: the caller hears of %q: %q %v", refused.path, secret, body, resp.Header)
			}
		}
		if reached.Load() != before {
			t.Errorf("%s reached the application", refused.path)
		}
		waitFor(t, "the log names "+refused.reason, func() bool {
			return strings.Contains(near.logs.String(), fmt.Sprintf("policy=shop/checkout rule=%s reason=%s", strings.ReplaceAll(fmt.Sprintf("%q", refused.rule), `"`+refused.rule+`"`, orQuotes(refused.rule)), refused.reason))
		})
	}
	if n := near.counter("isthmus_sidecar_policy_decisions_total", "policy=shop/checkout", "rule=no-debug", "decision=deny"); n != 1 {
		t.Errorf("%v refusals by no-debug", n)
	}
	if n := near.counter("isthmus_sidecar_policy_decisions_total", "policy=shop/checkout", "rule=cart", "decision=allow"); n != 1 {
		t.Errorf("%v let through by cart", n)
	}
	if n := near.counter("isthmus_sidecar_policy_decisions_total", "policy=shop/watch", "decision=audit-deny"); n != 4 {
		t.Errorf("%v would have been refused by shop/watch, want all 4", n)
	}
	if logs := near.logs.String(); !strings.Contains(logs, `msg="policy decided" decision=deny caller=`) || !strings.Contains(logs, " method=GET path=/admin policy=shop/checkout") {
		t.Errorf("the warning does not say what was asked for: %s", logs)
	}
	found := false
	for _, s := range near.spans.Ended() {
		for _, a := range s.Attributes() {
			found = found || a.Key == "isthmus.rule" && a.Value.AsString() == "no-debug"
		}
	}
	if !found {
		t.Error("no span names the rule")
	}
	// One that Connection names does not reach the application, so it is not there for a policy either.
	if resp, _ := ask("/cart/1", "X-Debug", "1", "Connection", "X-Debug"); resp.StatusCode != http.StatusOK {
		t.Errorf("a header that ends at the sidecar counted: %s", resp.Status)
	}
}

func orQuotes(s string) string {
	if s == "" {
		return `""`
	}
	return s
}

// TestPolicyOfOpaqueBytes: the session is all there is to decide about.
func TestPolicyOfOpaqueBytes(t *testing.T) {
	w := newWorld(t)
	ln := listenTCP(t)
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	near := w.server(eu, "checkout", topology.TCP, addrOf(ln))
	direct := listenTCP(t)
	w.caller(view{protocol: topology.TCP, endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, func(c *Config) {
		c.Listeners = []LocalListener{{Service: checkout, Port: 80, Listener: direct}}
	})
	echo := func() (net.Conn, error) {
		c, err := net.Dial("tcp", direct.Addr().String())
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err = io.WriteString(c, "x"); err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		return c, err
	}
	near.police([]access.Policy{{Name: "shop/p", Rules: []access.Rule{allow("web", eu, "web")}}})
	open, err := echo()
	if err != nil {
		t.Fatalf("an allowed connection: %v", err)
	}
	// A rule that needs to see requests never lets bytes through; and what is open ends.
	get := allow("web", eu, "web")
	get.To = []access.Operation{{Methods: []string{"GET"}}}
	near.police([]access.Policy{{Name: "shop/p", Rules: []access.Rule{get}}})
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("an open connection outlived what allowed it")
	}
	if _, err := echo(); err == nil {
		t.Error("a rule about methods let bytes through")
	}
	if n := near.counter("isthmus_sidecar_policy_decisions_total", "policy=shop/p", "decision=deny"); n == 0 {
		t.Error("the refusal is not counted")
	}
}

// TestOpaqueRefusalIsFinal: whoever may not call one copy is not led to another, and the copy is not held to be broken.
func TestOpaqueRefusalIsFinal(t *testing.T) {
	w := newWorld(t)
	near := w.server(eu, "checkout", topology.TCP, tcpApp(t, whole))
	far := w.server(us, "checkout", topology.TCP, tcpApp(t, whole))
	w.gateway("gateway-0", to(far))
	direct := listenTCP(t)
	c := w.caller(view{protocol: topology.TCP, endpoints: []topology.Endpoint{near.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, far)}}, func(c *Config) {
		c.Listeners = []LocalListener{{Service: checkout, Port: 80, Listener: direct}}
	})
	connect := func() (net.Conn, error) { return c.through(t.Context(), "", "checkout.shop.svc.clusterset.local:80") }
	near.police([]access.Policy{{Name: "shop/p", Rules: []access.Rule{allow("admin", eu, "admin")}}})
	for range 5 {
		if _, err := connect(); err == nil || !strings.Contains(err.Error(), "403") || !strings.Contains(err.Error(), string(CodeNotAllowed)) {
			t.Fatalf("CONNECT: %v", err)
		}
		conn, err := net.Dial("tcp", direct.Addr().String())
		if err != nil {
			continue // it is reset before it was open for us
		}
		if got, end := io.ReadAll(conn); end == nil || len(got) != 0 {
			t.Errorf("a refused connection ended in order: %q", got)
		}
		_ = conn.Close()
	}
	if n := c.counter("isthmus_ejections_total"); n != 0 {
		t.Errorf("%v ejections", n)
	}
	if strings.Contains(c.logs.String(), errAppDown.Error()) {
		t.Errorf("false words: %s", c.logs)
	}
	near.police([]access.Policy{{Name: "shop/p", Rules: []access.Rule{allow("web", eu, "web")}}})
	near.limit(topology.Quota{Name: "shop/q/one", Per: topology.PerService, Limit: quota.Limit{Name: "one", Rate: 1.0 / 3600, Burst: 1, Window: time.Hour}})
	conn, err := connect()
	if err != nil {
		t.Fatalf("once it may: %v", err)
	}
	_ = conn.Close()
	if _, err = connect(); err == nil || !strings.Contains(err.Error(), "429") || !strings.Contains(err.Error(), string(CodeTooMany)) {
		t.Errorf("CONNECT above a quota: %v", err)
	}
	if got := far.Decisions().Decisions; len(got) != 0 {
		t.Errorf("another copy was asked: %+v", got)
	}
}

// TestRefusalsAreTold: a policy that is put in force after its audit has its first refusal in the log, and a query never is.
func TestRefusalsAreTold(t *testing.T) {
	var logs strings.Builder
	at := time.Unix(1_700_000_000, 0)
	r := refusals{log: slog.New(slog.NewTextHandler(&logs, nil)), now: func() time.Time { return at }}
	a := &arrival{peer: trust.Peer{ID: must(trust.WorkloadID(eu, "shop", "web"))}, service: checkout}
	q := &access.Request{HTTP: true, Method: "GET", Path: "/cart?card=4111"}
	v := access.Verdict{Reason: access.NoRuleAllows, Policy: "shop/p"}
	for _, decision := range []string{decisionAudit, decisionAudit, decisionDeny, decisionDeny} {
		r.tell(t.Context(), a, q, v, decision)
	}
	got := logs.String()
	if strings.Count(got, "decision="+decisionAudit) != 1 || strings.Count(got, "decision="+decisionDeny) != 1 {
		t.Errorf("want each decision once:\n%s", got)
	}
	if strings.Contains(got, "4111") || !strings.Contains(got, "method=GET path=/cart policy=shop/p") {
		t.Errorf("what was asked for:\n%s", got)
	}
}

// TestPolicyReload: at any time either the old policies decide or the new ones, never neither, while requests run.
func TestPolicyReload(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
	// Both refuse /secret, each by its own rule, and both allow the rest.
	version := func(n int) []access.Policy {
		return []access.Policy{{Name: fmt.Sprintf("shop/v%d", n), Rules: []access.Rule{
			allow("web", eu, "web"),
			{Name: "secret", Deny: true, To: []access.Operation{{Paths: exact("/secret")}}},
		}}}
	}
	near.police(version(0))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var asked atomic.Int64
	for range 4 {
		client := c.client()
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if resp, body := get(t, client, checkoutURL+"secret"); resp.StatusCode != http.StatusForbidden {
					t.Errorf("/secret: %s %q", resp.Status, body)
					return
				}
				if resp, body := get(t, client, checkoutURL+"cart"); resp.StatusCode != http.StatusOK {
					t.Errorf("/cart: %s %q", resp.Status, body)
					return
				}
				asked.Add(1)
			}
		})
	}
	for n := 1; n <= 100 || asked.Load() < 200 && !t.Failed(); n++ {
		near.police(version(n))
	}
	close(stop)
	wg.Wait()
}

// TestPolicyThatCantBeUsed: what can't be judged is refused.
func TestPolicyThatCantBeUsed(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
	near.police([]access.Policy{{Name: "shop/p", Rules: []access.Rule{{Name: "r", To: []access.Operation{{Paths: exact("//")}}}}}})
	if resp, body := get(t, c.client(), checkoutURL); resp.StatusCode != http.StatusForbidden {
		t.Errorf("%s %q", resp.Status, body)
	}
	waitFor(t, "the log says why", func() bool { return strings.Contains(near.logs.String(), "policies can't be used") })
}

// TestForeignDomain: a caller of a trust domain that is no peer's gets what a rule allows it by name, and what everybody may it may not.
func TestForeignDomain(t *testing.T) {
	foreign := spiffeid.RequireTrustDomainFromString("elsewhere.test")
	stranger := must(trust.WorkloadID(foreign, "shop", "web"))
	for _, c := range []struct {
		name string
		sets [][]access.Policy
		want bool
	}{
		{"no policy", nil, false},
		{"everybody", [][]access.Policy{{{Name: "p", Rules: []access.Rule{{Name: "all"}}}}}, false},
		{"audit", [][]access.Policy{{{Name: "p", Audit: true, Rules: []access.Rule{allow("named", foreign, "web")}}}}, false},
		{"by name", [][]access.Policy{{{Name: "p", Rules: []access.Rule{allow("named", foreign, "web")}}}}, true},
		{"by name, in one of two sets", [][]access.Policy{{{Name: "p", Rules: []access.Rule{allow("named", foreign, "web")}}}, {}}, false},
		{"another", [][]access.Policy{{{Name: "p", Rules: []access.Rule{allow("named", foreign, "admin")}}}}, false},
		{"by name, and denied", [][]access.Policy{{{Name: "p", Rules: []access.Rule{allow("named", foreign, "web"), {Name: "none", Deny: true}}}}}, false},
	} {
		k := &keeper{log: discard, users: enduser.New(enduser.Config{}), now: time.Now, snapshots: live.NewValue(topology.NewSnapshot(topology.SnapshotSpec{
			Self:     topology.Self{Cluster: cluster("eu"), Domain: eu},
			Inbounds: []*topology.Inbound{{Name: checkout, Exported: true, Access: c.sets, Ports: []topology.InboundPort{{Number: 80, Protocol: topology.HTTP}}}},
		}))}
		err := k.present().open(&arrival{peer: trust.Peer{ID: stranger}, service: checkout, port: 80})
		if (err == nil) != c.want {
			t.Errorf("%s: %v, want it let in: %v", c.name, err, c.want)
		}
	}
}

// TestForeignIdentities: in a trust domain that is no cluster's, any identity may be a caller's; in a cluster's, a workload's or a node proxy's.
func TestForeignIdentities(t *testing.T) {
	k := &keeper{log: discard, users: enduser.New(enduser.Config{}), now: time.Now, snapshots: live.NewValue(topology.NewSnapshot(topology.SnapshotSpec{
		Self: topology.Self{Cluster: cluster("eu"), Domain: eu}, Clusters: []*topology.Cluster{{Name: cluster("us"), Domain: us}},
	}))}
	for id, want := range map[string]bool{
		"spiffe://elsewhere.test/backend":             true,
		"spiffe://elsewhere.test/ns/shop/sa/web":      true,
		"spiffe://elsewhere.test/isthmus/gateway/g-0": false,
		"spiffe://elsewhere.test/isthmus":             false,
		"spiffe://us.test/backend":                    false,
		"spiffe://us.test/ns/shop/sa/web":             true,
		"spiffe://eu.test/isthmus/gateway/g-0":        false,
	} {
		if err := mayOpen(k.present(), trust.Peer{ID: spiffeid.RequireFromString(id)}); (err == nil) != want {
			t.Errorf("%s: %v, want it let in: %v", id, err, want)
		}
	}
	if err := mayOpen(nil, trust.Peer{ID: spiffeid.RequireFromString("spiffe://elsewhere.test/backend")}); err == nil {
		t.Error("nothing is known yet, and somebody is let in")
	}
}

// TestCompiledOnce: what has not changed is not compiled anew, and services with the same policies share what is.
func TestCompiledOnce(t *testing.T) {
	other := must(topology.NewServiceName("shop", "other"))
	policies := func(name string) [][]access.Policy {
		return [][]access.Policy{{{Name: name, Rules: []access.Rule{allow("web", eu, "web")}}}}
	}
	snapshot := func(in ...*topology.Inbound) *topology.Snapshot {
		return topology.NewSnapshot(topology.SnapshotSpec{Self: topology.Self{Cluster: cluster("eu"), Domain: eu}, Inbounds: in})
	}
	value := live.NewValue(snapshot(&topology.Inbound{Name: checkout, Access: policies("a")}, &topology.Inbound{Name: other, Access: policies("a")}))
	k := &keeper{log: discard, users: enduser.New(enduser.Config{}), now: time.Now, snapshots: value}
	first := k.present()
	if first.guard(checkout).rules != first.guard(other).rules {
		t.Error("the same policies were compiled twice")
	}
	value.Store(snapshot(&topology.Inbound{Name: checkout, Access: policies("a"), Exported: true}, &topology.Inbound{Name: other, Access: policies("b")}))
	second := k.present()
	if second.guard(checkout).rules != first.guard(checkout).rules {
		t.Error("a change of something else had policies compiled anew")
	}
	if second.guard(other).rules == first.guard(other).rules {
		t.Error("a change of policies had no effect")
	}
}

var discard = slog.New(slog.DiscardHandler)

// TestDecisionsAreRemembered: what was asked is, once each, with what was said last; nothing secret; and no more than fits.
func TestDecisionsAreRemembered(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
	for range 3 {
		get(t, c.client(), checkoutURL+"cart?card=4111")
	}
	near.police([]access.Policy{{Name: "shop/p", Rules: []access.Rule{allow("admin", eu, "admin")}}})
	get(t, c.client(), checkoutURL+"cart?card=4242")
	all := near.Decisions()
	if len(all.Decisions) != 1 {
		t.Fatalf("%+v", all)
	}
	d := all.Decisions[0]
	// Four at least: a session that ends with the policy may have its request tried again.
	if d.Caller != c.id.String() || d.Path != "/cart" || d.Method != http.MethodGet || d.Count < 4 || d.Allowed || d.Policy != "shop/p" || d.Reason != "no_rule_allows" || d.Port != here.Port() {
		t.Errorf("%+v", d)
	}

	at := time.Unix(1_700_000_000, 0)
	many := newDecisions(func() time.Time { return at })
	for i := range 3 * maxDecisions {
		if i%maxNewDecisions == 0 {
			at = at.Add(time.Second)
		}
		many.note(kindOf{path: fmt.Sprint("/", i)}, &access.Decision{})
	}
	if got := many.all(); len(got.Decisions) != maxDecisions || got.Dropped != 2*maxDecisions {
		t.Errorf("%d are remembered, %d dropped", len(got.Decisions), got.Dropped)
	}
	flood := newDecisions(func() time.Time { return at })
	for i := range 10 * maxNewDecisions {
		flood.note(kindOf{path: fmt.Sprint("/", i, "?", strings.Repeat("x", 9999))}, &access.Decision{})
	}
	long := newDecisions(func() time.Time { return at })
	long.note(kindOf{method: strings.Repeat("M", 60_000), path: strings.Repeat("/p", 30_000)}, &access.Decision{})
	if got := long.all().Decisions[0]; len(got.Method) > maxDecisionMethod || len(got.Path) > maxDecisionPath {
		t.Errorf("a method of %d bytes and a path of %d are kept", len(got.Method), len(got.Path))
	}
	if got := flood.all(); len(got.Decisions) != maxNewDecisions {
		t.Errorf("%d new ones in a moment", len(got.Decisions))
	}
	k := kindOf{caller: "c", method: "GET", path: "/0?x"}
	if n := testing.AllocsPerRun(100, func() { flood.note(k, &access.Decision{}) }); n > 0 {
		t.Errorf("%v allocations for what is known", n)
	}
}

// TestHeadersByAnotherName: what an application may take for a header that a rule asks for does not reach it; what it can't does.
func TestHeadersByAnotherName(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, func(w http.ResponseWriter, r *http.Request) {
		var names []string
		for name := range r.Header {
			if strings.HasPrefix(name, "X") {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		_, _ = fmt.Fprint(w, names)
	})
	near := w.server(eu, "checkout", topology.HTTP, here)
	near.police([]access.Policy{{Name: "shop/p", Rules: []access.Rule{
		allow("web", eu, "web"), {Name: "no-debug", Deny: true, To: []access.Operation{{Headers: []access.Header{{Name: "X-Debug"}}}}},
	}}})
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
	for _, x := range []struct {
		header string
		status int
		body   string
	}{
		{"X-Debug", http.StatusForbidden, ""},
		{"X_debug", http.StatusOK, "[]"},
		{"X.DEBUG", http.StatusOK, "[]"},
		{"X_other", http.StatusOK, "[X_other]"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, checkoutURL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header[x.header] = []string{"1"}
		if resp, body := do(t, c.client(), req); resp.StatusCode != x.status || x.body != "" && body != x.body {
			t.Errorf("%s: %s %q, want %d %q", x.header, resp.Status, body, x.status, x.body)
		}
	}
}
