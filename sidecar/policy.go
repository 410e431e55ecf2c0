package sidecar

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
	"github.com/isthmus-mesh/isthmus/trust/enduser"
	"github.com/isthmus-mesh/isthmus/trust/quota"
)

var (
	errRefused = errors.New("no access policy lets it")
	// errNoRules: what control told can't be made into rules. What can't be judged is refused.
	errNoRules = errors.New("the access policies that are for it can't be used")
)

// guards are what is served, with the compiled policies that are for it. Immutable: a request takes them once, so that what is served
// and who may have it are of one moment.
type guards struct {
	of *topology.Snapshot
	by map[topology.ServiceName]*guard // only services that policies are for
	// clusters are the peers, by their trust domains.
	clusters map[spiffeid.TrustDomain]topology.ClusterName
	believes bool // some ask for end users
}

// guard is the policies and quotas of one service.
type guard struct {
	inbound *topology.Inbound
	*rules
	quotas []*allotment
	// issuers are those whose end users policies ask for, then those that only quotas do; tokens finds them in a request's headers.
	issuers []access.Issuer
	tokens  atomic.Pointer[enduser.Group]
}

// rules are compiled policies; services for which the same are share them.
type rules struct {
	key string // all of what they were made from
	set *access.Set
	// foreign is for callers of trust domains that are no peer cluster's: only rules that name callers let them in.
	foreign *access.Set
	guarded bool  // there are policies; else only quotas
	err     error // they can't be compiled: the sets are nil, and refuse everything
}

// of returns the rules for a caller.
func (r *rules) of(isPeer bool) *access.Set {
	if isPeer {
		return r.set
	}
	return r.foreign
}

// keeper makes guards, once for each change.
type keeper struct {
	snapshots interface{ Load() *topology.Snapshot }
	users     *enduser.Verifier
	log       *slog.Logger
	now       func() time.Time

	last     atomic.Pointer[guards]
	mu       sync.Mutex                // held while guards are made
	limiters map[string]*quota.Limiter // guarded by mu; by the name of the quota and, in a node proxy, of the service
}

// present returns the guards of the present configuration; nil when there is none. It compiles what is new, unless follow has already.
func (k *keeper) present() *guards {
	now, last := k.snapshots.Load(), k.last.Load()
	switch {
	case now == nil:
		return nil
	case last != nil && last.of == now:
		return last
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	// Another may have made them meanwhile, and the configuration may have moved on.
	if now, last = k.snapshots.Load(), k.last.Load(); last == nil || last.of != now {
		last = k.make(now, last)
		k.last.Store(last)
	}
	return last
}

// make compiles what last does not have.
func (k *keeper) make(s *topology.Snapshot, last *guards) *guards {
	out := &guards{of: s, clusters: make(map[spiffeid.TrustDomain]topology.ClusterName)}
	for _, c := range s.Clusters() {
		out.clusters[c.Domain] = c.Name
	}
	known := make(map[string]*rules)
	before := func(topology.ServiceName) *guard { return nil }
	if last != nil {
		before = last.guard
		for _, g := range last.by {
			known[g.key] = g.rules
		}
	}
	used := make(map[string]*quota.Limiter)
	for _, in := range s.Inbounds() {
		if len(in.Access)+len(in.Quotas) == 0 {
			continue
		}
		if out.by == nil {
			out.by = make(map[topology.ServiceName]*guard)
		}
		g := before(in.Name)
		if g == nil || g.inbound != in {
			g = &guard{inbound: in, rules: k.rules(in, known)}
			k.allot(g, s.Self().Namespace == "")
			if g.err != nil {
				k.log.Error("policies can't be used: everything is refused", "service", in.Name.String(), "error", g.err)
			}
		}
		for _, a := range g.quotas {
			used[a.key] = a.limiter
		}
		out.by[in.Name] = g
	}
	k.limiters = used
	k.believe(out, last)
	return out
}

// rules compiles the access policies of a service, unless the same are known.
func (k *keeper) rules(in *topology.Inbound, known map[string]*rules) *rules {
	key := keyOf(in)
	if r := known[key]; r != nil && key != "" {
		return r
	}
	r := compile(key, in)
	known[key] = r
	return r
}

// believe has the tokens of all issuers verified that guards ask for.
func (k *keeper) believe(now, last *guards) {
	var asking []*guard
	var issuers [][]access.Issuer
	for _, service := range slices.SortedFunc(maps.Keys(now.by), topology.ServiceName.Compare) {
		if g := now.by[service]; len(g.issuers) > 0 {
			asking, issuers = append(asking, g), append(issuers, g.issuers)
		}
	}
	if len(asking) == 0 && (last == nil || !last.believes) {
		return
	}
	now.believes = len(asking) > 0
	for i, group := range k.users.Use(issuers...) {
		asking[i].tokens.Store(group)
	}
}

// keyOf is the same for the same policies alone.
func keyOf(in *topology.Inbound) string {
	b, err := json.Marshal(in.Access)
	if err != nil {
		return "" // nothing is the same as it
	}
	sum := sha256.Sum256(b) // of what may be a megabyte
	return string(sum[:])
}

func compile(key string, in *topology.Inbound) *rules {
	r := &rules{key: key, guarded: len(in.Access) > 0}
	if !r.guarded {
		return r
	}
	set, err := access.Compile(in.Access)
	if err != nil {
		r.err = err
		return r
	}
	foreign, err := access.Compile(onlyNamed(in.Access))
	if err != nil {
		r.err = err
		return r
	}
	r.set, r.foreign = set, foreign
	return r
}

// onlyNamed leaves of policies what lets in callers that a rule names: whom everybody is meant to include, nobody thought of.
func onlyNamed(sets [][]access.Policy) [][]access.Policy {
	out := make([][]access.Policy, 0, len(sets))
	for _, set := range sets {
		var policies []access.Policy
		enforced := false
		for _, p := range set {
			enforced = enforced || !p.Audit
			p.Rules = slices.DeleteFunc(slices.Clone(p.Rules), func(r access.Rule) bool { return !r.Deny && len(r.From) == 0 })
			policies = append(policies, p)
		}
		if !enforced {
			policies = append(policies, access.Policy{}) // it has no rule that allows
		}
		out = append(out, policies)
	}
	return out
}

// guard returns the policies of a service; nil when there are none.
func (g *guards) guard(service topology.ServiceName) *guard {
	if g == nil {
		return nil
	}
	return g.by[service]
}

// portsOf returns where the applications behind a port listen, each number once. It allocates only where they differ.
func portsOf(to *topology.InboundPort) (first uint16, others []uint16) {
	for i, t := range to.Targets {
		switch {
		case i == 0:
			first = t.Port()
		case t.Port() != first && !slices.Contains(others, t.Port()):
			others = append(others, t.Port())
		}
	}
	return first, others
}

// decide asks the policies. Which of several applications will take the request isn't known yet: all of their ports must be allowed.
func (g *guard) decide(q *access.Request, to *topology.InboundPort, isPeer bool) access.Decision {
	if !g.guarded && g.err == nil {
		return unguarded(isPeer)
	}
	set := g.of(isPeer)
	first, others := portsOf(to)
	q.Port = first
	d := set.Decide(q)
	for _, port := range others {
		q.Port = port
		o := set.Decide(q)
		if d.Allowed && !o.Allowed {
			d.Verdict = o.Verdict
		}
		if d.Audit.Allowed && !o.Audit.Allowed {
			d.Audit = o.Audit
		}
	}
	return d
}

// admits says whether there is anything that a caller may do on a session to that port.
func (g *guard) admits(caller spiffeid.ID, to *topology.InboundPort, isPeer bool) bool {
	if !g.guarded {
		return g.err == nil && isPeer
	}
	set := g.of(isPeer)
	first, others := portsOf(to)
	return set.Admits(caller, first) || slices.ContainsFunc(others, func(p uint16) bool { return set.Admits(caller, p) })
}

// verdictOf decides about a request, for the guards that it was routed by.
func (in *Inbound) verdictOf(r *http.Request, v *visit) access.Decision {
	peer := v.guards.isPeer(v.peer.ID)
	g := v.guards.guard(v.service)
	q := &v.request
	*q = access.Request{Caller: v.peer.ID, HTTP: true, Method: r.Method, Path: r.RequestURI, Header: r.Header}
	if g == nil {
		return unguarded(peer)
	}
	dropNamed(r.Header)
	dropAliases(r.Header, g)
	// Who is refused whatever he asks has no signatures verified for it.
	if len(g.issuers) > 0 && g.admits(v.peer.ID, v.to, peer) {
		q.Tokens = g.tokens.Load().Tokens(r.Context(), r.Header, q.Tokens)
	}
	if !g.guarded && g.err == nil {
		return unguarded(peer)
	}
	return g.decide(q, v.to, peer)
}

// unguarded is the decision where there are no policies: a caller of a trust domain that is no peer's needs one that names it.
func unguarded(isPeer bool) access.Decision {
	d := access.Decision{Verdict: access.Verdict{Allowed: true, Reason: access.NoPolicy}, Audit: access.Verdict{Allowed: true, Reason: access.NoPolicy}}
	if !isPeer {
		d.Verdict = access.Verdict{Reason: access.NoRuleAllows}
	}
	return d
}

// isPeer reports whether a caller is of the own cluster or of a peer's.
func (g *guards) isPeer(caller spiffeid.ID) bool {
	if caller.TrustDomain() == g.of.Self().Domain {
		return true
	}
	_, ok := g.clusters[caller.TrustDomain()]
	return ok
}

// dropNamed removes the headers that Connection names: the application does not get them, so a policy must not see them either.
func dropNamed(h http.Header) {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			switch name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name)); name {
			case "", "Upgrade", "Te", "Connection", "Keep-Alive", "Trailer", "Transfer-Encoding":
			default:
				if !isOwn(name) {
					delete(h, name)
				}
			}
		}
	}
}

// dropAliases removes the headers that CGI-like interfaces can't tell from one that policies ask for, as X_User from X-User: they make one
// character of all that is neither letter nor digit.
func dropAliases(h http.Header, g *guard) {
	for name := range h {
		if !strings.ContainsFunc(name, isOdd) {
			continue
		}
		like := textproto.CanonicalMIMEHeaderKey(strings.Map(func(r rune) rune {
			if isOdd(r) {
				return '-'
			}
			return r
		}, name))
		if g.set.Asks(like) || slices.ContainsFunc(g.issuers, func(i access.Issuer) bool { return i.Header == like }) {
			delete(h, name)
		}
	}
}

// isOdd tells of a character that names of headers seldom have.
func isOdd(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
}

// refusal is what the caller hears of a decision: that, and nothing else. What its end user lacks it may know (RFC 6750, section 3).
func refusal(v *visit, d access.Decision) *Failure {
	f := &Failure{
		Status: http.StatusForbidden, Code: CodeNotAllowed, Text: v.peer.ID.String() + " may not call this",
		Err: fmt.Errorf("%w: %s", errRefused, d.Reason),
	}
	switch d.Reason { //nolint:exhaustive // of all others the caller hears nothing
	case access.UserMissing:
		f.Status, f.Code, f.Text = http.StatusUnauthorized, CodeNoUser, "an end user's token is needed"
		f.Header = http.Header{"Www-Authenticate": {"Bearer"}}
	case access.UserInvalid:
		f.Status, f.Code, f.Text = http.StatusUnauthorized, CodeNoUser, "the end user's token is no good"
		f.Header = http.Header{"Www-Authenticate": {`Bearer error="invalid_token"`}}
	}
	return f
}

// The words for a decision, in metrics and logs.
const (
	decisionAllow = "allow"
	decisionDeny  = "deny"
	decisionAudit = "audit-deny" // it would have been refused by policies in audit mode
)

// decided counts, notes and tells what the policies said of a request, or of an opaque connection when it opens.
func (in *Inbound) decided(ctx context.Context, a *arrival, to *topology.InboundPort, q *access.Request, d *access.Decision) {
	port, _ := portsOf(to)
	in.decisions.note(kindOf{
		caller: a.peer.ID.String(), method: q.Method, path: q.Path, service: a.service, port: port, opaque: !q.HTTP,
		user: slices.ContainsFunc(q.Tokens, func(t access.Token) bool { return t.State == access.TokenValid }),
	}, d)
	if d.Reason == access.NoPolicy && d.Audit.Reason == access.NoPolicy {
		return
	}
	if d.Reason != access.NoPolicy {
		word := decisionAllow
		if !d.Allowed {
			word = decisionDeny
		}
		in.metrics.policyDecision(d.Policy, d.Rule, word)
	}
	if !d.Audit.Allowed {
		in.metrics.policyDecision(d.Audit.Policy, d.Audit.Rule, decisionAudit)
	}
	switch {
	case !d.Allowed:
		in.refusals.tell(ctx, a, q, d.Verdict, decisionDeny)
	case !d.Audit.Allowed:
		in.refusals.tell(ctx, a, q, d.Audit, decisionAudit)
	}
}

// How often the log tells of refusals at level WARN: of the same caller, rule and decision once in refusalsEvery, of all together refusalsMost
// times a second. The access log (log.requests) has each.
const (
	refusalsEvery = 10 * time.Second
	refusalsMost  = 10
	maxRefusals   = 1_000 // callers and rules that are told apart
)

// refusals tells the log of refusals, and of how many it did not tell.
type refusals struct {
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex
	told   map[[4]string]time.Time // guarded by mu: caller, policy, rule and decision: the first refusal is told, however lately it was told that there would be one
	second time.Time               // guarded by mu: in which spent were told
	spent  int                     // guarded by mu
	untold int                     // guarded by mu
}

// due says whether the log may be told now, and of how many refusals it was not.
func (r *refusals) due(caller, policy, rule, decision string) (untold int, ok bool) {
	key := [4]string{caller, policy, rule, decision}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if now.Sub(r.second) >= time.Second {
		r.second, r.spent = now, 0
	}
	last, known := r.told[key]
	if known && now.Sub(last) < refusalsEvery || r.spent >= refusalsMost {
		r.untold++
		return 0, false
	}
	if len(r.told) >= maxRefusals || r.told == nil {
		r.told = make(map[[4]string]time.Time)
	}
	r.told[key] = now
	r.spent++
	untold, r.untold = r.untold, 0
	return untold, true
}

func (r *refusals) tell(ctx context.Context, a *arrival, q *access.Request, v access.Verdict, decision string) {
	if untold, ok := r.due(a.peer.ID.String(), v.Policy, v.Rule, decision); ok {
		r.log.LogAttrs(ctx, slog.LevelWarn, "policy decided",
			slog.String("decision", decision),
			slog.String("caller", a.peer.ID.String()), slog.String("service", a.service.String()), slog.Int("port", int(a.port)),
			slog.String("method", shortened(q.Method)), slog.String("path", shortened(q.Path)),
			slog.String("policy", v.Policy), slog.String("rule", v.Rule), slog.String("reason", v.Reason.String()), slog.Int("not_told", untold))
	}
}

// policyAttrs are what the access log says of a decision.
func policyAttrs(d *access.Decision) []slog.Attr {
	var out []slog.Attr
	if d.Reason != access.NoPolicy && d.Reason != access.NotReady {
		out = append(out, slog.String("policy", d.Policy), slog.String("rule", d.Rule), slog.String("reason", d.Reason.String()))
	}
	if !d.Audit.Allowed && d.Audit.Reason != access.NotReady {
		out = append(out, slog.String("audit_policy", d.Audit.Policy), slog.String("audit_rule", d.Audit.Rule), slog.String("audit_reason", d.Audit.Reason.String()))
	}
	return out
}
