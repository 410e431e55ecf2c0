package access

import (
	"net/http"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Decide says what becomes of a request. It allocates nothing, but for a path that is not in normal form.
func (s *Set) Decide(r *Request) Decision {
	if s == nil {
		return Decision{Audit: Verdict{Allowed: true, Reason: NoPolicy}}
	}
	q := query{Request: r}
	q.path, q.form = NormalPath(r.Path)
	d := Decision{Verdict: Verdict{Allowed: true, Reason: NoPolicy}, Audit: Verdict{Allowed: true, Reason: NoPolicy}}
	for k := range s.sets {
		d.Verdict = d.and(s.sets[k].enforce.decide(&q))
		d.Audit = d.Audit.and(s.sets[k].audit.decide(&q))
	}
	return d
}

// and is both: the first that refuses, else the first that is of a rule.
func (v Verdict) and(o Verdict) Verdict {
	if v.Allowed && (!o.Allowed || v.Reason == NoPolicy) {
		return o
	}
	return v
}

// Admits tells whether there may be any request of the caller to that port that Decide would let through: it is for sessions, of which
// no request is known yet. For opaque TCP ask Decide. Port 0: to any port.
func (s *Set) Admits(caller spiffeid.ID, port uint16) bool {
	if s == nil {
		return false
	}
	return !slices.ContainsFunc(s.sets, func(p pair) bool { return !p.enforce.admits(caller, port) })
}

// query is a request, with what is reckoned once.
type query struct {
	*Request
	path string
	form PathForm
}

// group is policies that are reckoned together.
type group struct {
	policies []Policy
	issuers  [][]int // by policy and issuer of it: place in Set.issuers
	paths    bool    // whether any rule has paths, and which is the first
	first    [2]string
}

func (s *Set) group(policies []Policy) *group {
	g := &group{policies: policies}
	for _, p := range policies {
		var at []int
		for _, i := range p.Issuers {
			at = append(at, s.issuer(i))
		}
		g.issuers = append(g.issuers, at)
		for _, r := range p.Rules {
			if !g.paths && slices.ContainsFunc(r.To, func(o Operation) bool { return len(o.Paths) > 0 }) {
				g.paths, g.first = true, [2]string{p.Name, r.Name}
			}
		}
	}
	return g
}

func (g *group) decide(q *query) Verdict {
	if len(g.policies) == 0 {
		return Verdict{Allowed: true, Reason: NoPolicy}
	}
	refuse := Verdict{Reason: NoRuleAllows, Policy: g.policies[0].Name}
	if q.Caller.IsZero() {
		refuse.Reason = NoCaller
		return refuse
	}
	if g.paths && q.HTTP && q.form == PathAmbiguous {
		return Verdict{Reason: AmbiguousPath, Policy: g.first[0], Rule: g.first[1]}
	}
	for k := range g.policies {
		for n := range g.policies[k].Rules {
			rule := &g.policies[k].Rules[n]
			if !rule.Deny {
				continue
			}
			if reason, ok := g.denies(k, rule, q); ok {
				return Verdict{Reason: reason, Policy: g.policies[k].Name, Rule: rule.Name}
			}
		}
	}
	for k := range g.policies {
		for n := range g.policies[k].Rules {
			rule := &g.policies[k].Rules[n]
			if rule.Deny || !from(rule.From, q.Caller) {
				continue
			}
			if !to(rule, q) {
				if q.HTTP && q.form == PathBad && refuse.Reason == NoRuleAllows && slices.ContainsFunc(rule.To, func(o Operation) bool { return len(o.Paths) > 0 }) {
					refuse.Reason = BadPath
				}
				continue
			}
			reason, ok := g.user(k, rule, q)
			if ok {
				return Verdict{Allowed: true, Reason: AllowedByRule, Policy: g.policies[k].Name, Rule: rule.Name}
			}
			if refuse.Rule == "" && reason != NoRuleAllows {
				refuse = Verdict{Reason: reason, Policy: g.policies[k].Name, Rule: rule.Name}
			}
		}
	}
	return refuse
}

func (g *group) denies(k int, rule *Rule, q *query) (Reason, bool) {
	if !from(rule.From, q.Caller) || !to(rule, q) {
		return 0, false
	}
	reason := DeniedByRule
	if q.HTTP && q.form == PathBad && slices.ContainsFunc(rule.To, func(o Operation) bool { return len(o.Paths) > 0 }) {
		reason = BadPath
	}
	if len(rule.Users) == 0 || !q.HTTP {
		return reason, true
	}
	why, ok := g.user(k, rule, q)
	if why == UserInvalid {
		return UserInvalid, true
	}
	return reason, ok
}

// user tells whether one of the rule's end users is who asks; else why not.
func (g *group) user(k int, rule *Rule, q *query) (Reason, bool) {
	if len(rule.Users) == 0 {
		return AllowedByRule, true
	}
	if !q.HTTP {
		return NoRuleAllows, false
	}
	reason := UserMissing
	for _, u := range rule.Users {
		for n, i := range g.policies[k].Issuers {
			if u.Issuer != "" && u.Issuer != i.Name {
				continue
			}
			var token Token
			if at := g.issuers[k][n]; at < len(q.Tokens) {
				token = q.Tokens[at]
			}
			switch {
			case token.State == TokenInvalid:
				reason = max(reason, UserInvalid)
			case token.State != TokenValid || token.User == nil:
			case claims(u.Claims, token.User):
				return AllowedByRule, true
			default:
				reason = UserNotAllowed
			}
		}
	}
	return reason, false
}

func claims(claims []Claim, u *EndUser) bool {
	for _, c := range claims {
		v := u.Claim(c.Path)
		if !v.matches(c.Values) {
			return false
		}
	}
	return true
}

func (v Value) matches(patterns []Pattern) bool {
	switch v.Kind {
	case Text, Literal:
		return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p Pattern) bool { return p.matches(v.Text) })
	case List:
		return len(patterns) == 0 || slices.ContainsFunc(v.List, func(e Value) bool { return (e.Kind == Text || e.Kind == Literal) && e.matches(patterns) })
	case Object:
		return len(patterns) == 0
	default:
		return false
	}
}

func from(sources []Source, caller spiffeid.ID) bool {
	if len(sources) == 0 {
		return true
	}
	ns, sa := workload(caller.Path())
	return slices.ContainsFunc(sources, func(s Source) bool {
		return !s.Nobody &&
			(len(s.Principals) == 0 || slices.ContainsFunc(s.Principals, func(p Pattern) bool { return p.matches(caller.String()) })) &&
			(len(s.Domains) == 0 || slices.Contains(s.Domains, caller.TrustDomain())) &&
			(len(s.Namespaces) == 0 || ns != "" && slices.Contains(s.Namespaces, ns)) &&
			(len(s.ServiceAccounts) == 0 || sa != "" && slices.Contains(s.ServiceAccounts, sa))
	})
}

// workload reads namespace and service account of /ns/<namespace>/sa/<service account>; empty if the path is another.
func workload(path string) (ns, sa string) {
	rest, ok := strings.CutPrefix(path, "/ns/")
	ns, rest, cut := strings.Cut(rest, "/")
	sa, isSA := strings.CutPrefix(rest, "sa/")
	if !ok || !cut || !isSA || strings.Contains(sa, "/") {
		return "", ""
	}
	return ns, sa
}

func to(rule *Rule, q *query) bool {
	if len(rule.To) == 0 {
		return true
	}
	return slices.ContainsFunc(rule.To, func(o Operation) bool {
		if len(o.Ports) > 0 && !slices.Contains(o.Ports, q.Port) {
			return false
		}
		if !q.HTTP {
			return rule.Deny || len(o.Methods)+len(o.Paths)+len(o.Headers) == 0
		}
		return method(o.Methods, q.Method, rule.Deny) && paths(o.Paths, q, rule.Deny) && headers(o.Headers, q.Header)
	})
}

func method(methods []string, method string, deny bool) bool {
	return len(methods) == 0 || slices.ContainsFunc(methods, func(m string) bool {
		return m == method || deny && strings.EqualFold(m, method)
	})
}

// paths compares paths. A Deny rule goes without case and a slash at the end: there are servers that do.
func paths(paths []Pattern, q *query, deny bool) bool {
	if len(paths) == 0 {
		return true
	}
	if q.form != PathNormal {
		return deny
	}
	return slices.ContainsFunc(paths, func(p Pattern) bool {
		if !deny {
			return p.matches(q.path)
		}
		p.Text = strings.ToLower(p.Text)
		path := strings.ToLower(q.path)
		return p.matches(path) || p.matches(path+"/") || len(path) > 1 && p.matches(strings.TrimSuffix(path, "/"))
	})
}

func headers(headers []Header, got http.Header) bool {
	return !slices.ContainsFunc(headers, func(h Header) bool {
		values := got[http.CanonicalHeaderKey(h.Name)]
		if h.Absent {
			return len(values) > 0
		}
		return !slices.ContainsFunc(values, func(v string) bool {
			return len(h.Values) == 0 || slices.ContainsFunc(h.Values, func(p Pattern) bool { return p.matches(v) })
		})
	})
}

func (p Pattern) matches(text string) bool {
	switch p.Kind {
	case Exact:
		return p.Text == text
	case Prefix:
		return strings.HasPrefix(text, p.Text)
	case Suffix:
		return strings.HasSuffix(text, p.Text)
	default:
		return false
	}
}

// admits: some Allow rule could match, and no Deny rule does whatever is asked.
func (g *group) admits(caller spiffeid.ID, port uint16) bool {
	if len(g.policies) == 0 {
		return true
	}
	if caller.IsZero() {
		return false
	}
	allowed := false
	for k := range g.policies {
		for n := range g.policies[k].Rules {
			r := &g.policies[k].Rules[n]
			if !from(r.From, caller) {
				continue
			}
			switch {
			case !r.Deny:
				allowed = allowed || len(r.To) == 0 || slices.ContainsFunc(r.To, func(o Operation) bool {
					return port == 0 || len(o.Ports) == 0 || slices.Contains(o.Ports, port)
				})
			case len(r.Users) > 0:
			case len(r.To) == 0, slices.ContainsFunc(r.To, func(o Operation) bool {
				return len(o.Methods)+len(o.Paths)+len(o.Headers) == 0 && (len(o.Ports) == 0 || slices.Contains(o.Ports, port))
			}):
				return false
			}
		}
	}
	return allowed
}

// Filter tells which requests something else than access is about: a quota.
type Filter struct{ rule Rule }

// CompileFilter makes a Filter. It matches as a Deny rule does: whoever spells a path oddly is counted too.
func CompileFilter(sources []Source, operations []Operation) (*Filter, error) {
	f := &Filter{Rule{Deny: true, From: sources, To: operations}}
	c := counter{}
	if err := c.rule(&f.rule, nil); err != nil {
		return nil, err
	}
	return f, nil
}

// Matches tells whether it is about the request.
func (f *Filter) Matches(r *Request) bool {
	q := query{Request: r}
	q.path, q.form = NormalPath(r.Path)
	return from(f.rule.From, r.Caller) && to(&f.rule, &q)
}
