package access_test

import (
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/trust/access"
)

// The oracle says what becomes of a request, in the words of the specification and with no regard to cost. It shares nothing with the engine
// but the types: where both agree on millions of requests, either both are right or two readings of the specification are wrong alike.

// oracle decides by sets of policies; issuers tells which token of the request is of which issuer.
func oracle(sets [][]access.Policy, r *access.Request, issuers []access.Issuer) (enforced, audited access.Verdict) {
	enforced = access.Verdict{Allowed: true, Reason: access.NoPolicy}
	audited = enforced
	for _, set := range sets {
		for audit, into := range map[bool]*access.Verdict{false: &enforced, true: &audited} {
			v := one(slices.DeleteFunc(slices.Clone(set), func(p access.Policy) bool { return p.Audit != audit }), r, issuers)
			// Every set must let through: the first that refuses is told, or else the first rule that allows.
			if into.Allowed && (!v.Allowed || into.Reason == access.NoPolicy) {
				*into = v
			}
		}
	}
	return enforced, audited
}

// one decides by policies that are all reckoned together.
func one(policies []access.Policy, r *access.Request, issuers []access.Issuer) access.Verdict {
	type match struct {
		policy access.Policy
		rule   access.Rule
	}
	var deny, allow, all []match
	for _, p := range policies {
		for _, r := range p.Rules {
			all = append(all, match{p, r})
		}
	}
	allow = slices.DeleteFunc(slices.Clone(all), func(m match) bool { return m.rule.Deny })
	deny = slices.DeleteFunc(slices.Clone(all), func(m match) bool { return !m.rule.Deny })
	withPaths := func(m match) bool {
		return slices.ContainsFunc(m.rule.To, func(o access.Operation) bool { return len(o.Paths) > 0 })
	}
	path, form := plainPath(r.Path)
	switch {
	case len(policies) == 0: // no enforcing policy: allowed
		return access.Verdict{Allowed: true, Reason: access.NoPolicy}
	case r.Caller.IsZero():
		return access.Verdict{Reason: access.NoCaller, Policy: policies[0].Name}
	}
	if r.HTTP && form == access.PathAmbiguous { // refused outright where any rule has paths
		if k := slices.IndexFunc(all, withPaths); k >= 0 {
			return access.Verdict{Reason: access.AmbiguousPath, Policy: all[k].policy.Name, Rule: all[k].rule.Name}
		}
	}
	for _, m := range deny { // any matching deny: refused
		if !anyOf(m.rule.From, func(s access.Source) bool { return calls(s, r) }) {
			continue
		}
		user := asks(m.policy, m.rule, r, issuers)
		if r.HTTP && user != access.AllowedByRule && user != access.UserInvalid {
			continue
		}
		if !anyOf(m.rule.To, func(o access.Operation) bool { return does(o, r, path, form, true) }) {
			continue
		}
		v := access.Verdict{Reason: access.DeniedByRule, Policy: m.policy.Name, Rule: m.rule.Name}
		if r.HTTP && form != access.PathNormal && withPaths(m) {
			v.Reason = access.BadPath
		}
		if r.HTTP && user == access.UserInvalid {
			v.Reason = access.UserInvalid
		}
		return v
	}
	refused := access.Verdict{Reason: access.NoRuleAllows, Policy: policies[0].Name}
	if r.HTTP && form == access.PathBad && slices.ContainsFunc(allow, withPaths) {
		refused.Reason = access.BadPath
	}
	var missed *access.Verdict
	for _, m := range allow { // else any matching allow: allowed
		if !anyOf(m.rule.From, func(s access.Source) bool { return calls(s, r) }) ||
			!anyOf(m.rule.To, func(o access.Operation) bool { return does(o, r, path, form, false) }) {
			continue
		}
		switch user := asks(m.policy, m.rule, r, issuers); {
		case user == access.AllowedByRule:
			return access.Verdict{Allowed: true, Reason: user, Policy: m.policy.Name, Rule: m.rule.Name}
		case r.HTTP && missed == nil: // all but the end user is right
			missed = &access.Verdict{Reason: user, Policy: m.policy.Name, Rule: m.rule.Name}
		}
	}
	if missed != nil {
		return *missed
	}
	return refused // else refused
}

// anyOf is what a list says: one of its entries matches, or it has none.
func anyOf[T any](list []T, matches func(T) bool) bool {
	return len(list) == 0 || slices.ContainsFunc(list, matches)
}

func is(p access.Pattern, text string) bool {
	return p.Kind == access.Exact && p.Text == text || p.Kind == access.Prefix && strings.HasPrefix(text, p.Text) || p.Kind == access.Suffix && strings.HasSuffix(text, p.Text)
}

// calls: all fields that are set must match the caller.
func calls(s access.Source, r *access.Request) bool {
	id := strings.Split(r.Caller.String(), "/") // spiffe://domain/ns/namespace/sa/account
	workload := len(id) == 7 && id[3] == "ns" && id[5] == "sa"
	named := func(names []string, k int) bool { return len(names) == 0 || workload && slices.Contains(names, id[k]) }
	return !s.Nobody && anyOf(s.Principals, func(p access.Pattern) bool { return is(p, r.Caller.String()) }) &&
		(len(s.Domains) == 0 || slices.Contains(s.Domains, r.Caller.TrustDomain())) && named(s.Namespaces, 4) && named(s.ServiceAccounts, 6)
}

// does: all fields that are set must match what is asked. Of opaque TCP nothing but the port is known: a Deny rule takes the rest for
// matching, an Allow rule for not.
func does(o access.Operation, r *access.Request, path string, form access.PathForm, deny bool) bool {
	switch {
	case len(o.Ports) > 0 && !slices.Contains(o.Ports, r.Port):
		return false
	case !r.HTTP:
		return deny || len(o.Methods) == 0 && len(o.Paths) == 0 && len(o.Headers) == 0
	}
	fold := func(s string) string { return s }
	if deny { // goes without case, and a slash at the end of a path
		fold = strings.ToLower
	}
	spellings := []string{path}
	if deny && path != "/" {
		spellings = append(spellings, strings.TrimSuffix(path, "/"))
	}
	if deny && !strings.HasSuffix(path, "/") {
		spellings = append(spellings, path+"/")
	}
	return anyOf(o.Methods, func(m string) bool { return fold(m) == fold(r.Method) }) &&
		anyOf(o.Paths, func(p access.Pattern) bool {
			if form != access.PathNormal {
				return deny
			}
			return slices.ContainsFunc(spellings, func(s string) bool { return is(access.Pattern{Text: fold(p.Text), Kind: p.Kind}, fold(s)) })
		}) &&
		!slices.ContainsFunc(o.Headers, func(h access.Header) bool {
			values := r.Header.Values(h.Name)
			switch {
			case h.Absent:
				return len(values) > 0
			case len(h.Values) > 0 && len(values) > access.MaxHeaderValues: // too many to compare: fails closed
				return !deny
			}
			return !slices.ContainsFunc(values, func(v string) bool { return anyOf(h.Values, func(p access.Pattern) bool { return is(p, v) }) })
		})
}

// asks tells whether the end user is one whom the rule is for: AllowedByRule; else the best that can be said of why not.
func asks(p access.Policy, rule access.Rule, r *access.Request, issuers []access.Issuer) access.Reason {
	if len(rule.Users) == 0 {
		return access.AllowedByRule
	}
	best := access.UserMissing
	for _, u := range rule.Users {
		for _, i := range p.Issuers {
			at := slices.IndexFunc(issuers, func(o access.Issuer) bool { return o.Issuer == i.Issuer })
			if u.Issuer != "" && u.Issuer != i.Name || at >= len(r.Tokens) || !r.HTTP {
				continue
			}
			switch token := r.Tokens[at]; token.State {
			case access.TokenAbsent:
			case access.TokenInvalid:
				best = max(best, access.UserInvalid)
			case access.TokenValid:
				if !slices.ContainsFunc(u.Claims, func(c access.Claim) bool {
					return !has(access.Value{Kind: access.Object, Object: token.User.Claims}, c)
				}) {
					return access.AllowedByRule
				}
				best = access.UserNotAllowed
			}
		}
	}
	return best
}

func has(v access.Value, c access.Claim) bool {
	for _, name := range c.Path {
		v = v.Object[name]
	}
	elements := []access.Value{v}
	if v.Kind == access.List && len(c.Values) > 0 {
		elements = v.List
	}
	return v.Kind != access.Null && anyOf(c.Values, func(p access.Pattern) bool {
		return slices.ContainsFunc(elements, func(e access.Value) bool { return (e.Kind == access.Text || e.Kind == access.Literal) && is(p, e.Text) })
	})
}
