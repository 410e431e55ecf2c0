package access

import (
	"fmt"
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
	q.read(s.needs)
	d := Decision{Verdict: Verdict{Allowed: true, Reason: NoPolicy}, Audit: Verdict{Allowed: true, Reason: NoPolicy}}
	for k := range s.sets {
		if g := s.sets[k].enforce; g != nil {
			d.and(g, &q)
		}
		if g := s.sets[k].audit; g != nil {
			d.Audit.and(g, &q)
		}
	}
	return d
}

// and asks another group: the first that refuses is told, else the first that has policies.
func (v *Verdict) and(g *group, q *query) {
	if o := g.decide(q); v.Allowed && (!o.Allowed || v.Reason == NoPolicy) {
		*v = o
	}
}

// Admits tells whether there may be any request of the caller to that port that Decide would let through: it is for sessions, of which
// no request is known yet. For opaque TCP ask Decide. Port 0: to any port.
func (s *Set) Admits(caller spiffeid.ID, port uint16) bool {
	if s == nil {
		return false
	}
	q := query{Request: &Request{Caller: caller, Port: port}, anyPort: port == 0}
	q.read(s.needs)
	for k := range s.sets {
		if g := s.sets[k].enforce; g != nil && !g.admits(&q) {
			return false
		}
	}
	return true
}

// query is a request, with what is reckoned once.
type query struct {
	*Request
	path    string
	form    PathForm
	domain  spiffeid.TrustDomain
	ns, sa  string // of a workload's SPIFFE ID; empty: it is none
	anyPort bool
	name    string // of the header that was looked at last, and its values
	values  []string
}

// needs is what policies look at.
type needs struct{ paths, domains, workloads bool }

func (n *needs) of(t *table) {
	n.paths = n.paths || t.paths.used
	n.domains = n.domains || t.domains.used
	n.workloads = n.workloads || t.namespaces.used || t.sas.used
}

// read reads of a request what is needed.
func (q *query) read(n needs) {
	if n.domains {
		q.domain = q.Caller.TrustDomain()
	}
	if n.workloads {
		q.ns, q.sa = workload(q.Caller.Path())
	}
	if n.paths && q.HTTP {
		q.path, q.form = NormalPath(q.Path)
	}
}

// group is policies that are reckoned together: those of a set that enforce, or those that audit. Nil: there are none.
type group struct {
	policy     string // the first
	tables     []*table
	paths      bool // some rule has paths, and which is the first that has
	first      [2]string
	allowPaths bool // some Allow rule has
}

// group compiles policies.
func (s *Set) group(policies []Policy) (*group, error) {
	if len(policies) == 0 {
		return nil, nil
	}
	g := &group{policy: policies[0].Name}
	var all []part
	for _, p := range policies {
		issuers := map[string]int{}
		var every []int
		for _, i := range p.Issuers {
			issuers[i.Name] = s.issuer(i)
			every = append(every, issuers[i.Name])
		}
		for k := range p.Rules {
			r := &p.Rules[k]
			if r.hasPaths() {
				if !g.paths {
					g.paths, g.first = true, [2]string{p.Name, r.Name}
				}
				g.allowPaths = g.allowPaths || !r.Deny
			}
			var users []user
			for _, u := range r.Users {
				of := every
				if u.Issuer != "" {
					of = []int{issuers[u.Issuer]}
				}
				users = append(users, user{of, cloneClaims(u.Claims)})
			}
			rows, err := parts(p.Name, r, users, MaxRows-s.rows)
			if err != nil {
				return nil, fmt.Errorf("policy %s: %w", p.Name, err)
			}
			s.rows += len(rows)
			for k := range rows {
				if len(rows[k].headers)+len(rows[k].users) > 0 {
					s.slow++
				}
				for _, h := range rows[k].headers {
					if s.headers == nil {
						s.headers = make(map[string]struct{})
					}
					s.headers[h.name] = struct{}{}
				}
			}
			if s.slow > MaxSlowRows {
				return nil, fmt.Errorf("policy %s: rule %q: more than %d pairs of a source and an operation, with headers or end users, in all", p.Name, r.Name, MaxSlowRows)
			}
			all = append(all, rows...)
		}
	}
	g.tables = tables(all)
	s.needs.paths = s.needs.paths || g.paths
	for _, t := range g.tables {
		s.needs.of(t)
	}
	return g, nil
}

func (r *Rule) hasPaths() bool {
	return slices.ContainsFunc(r.To, func(o Operation) bool { return len(o.Paths) > 0 })
}

func (g *group) decide(q *query) Verdict {
	refuse := Verdict{Reason: NoRuleAllows, Policy: g.policy}
	switch {
	case q.Caller.IsZero():
		refuse.Reason = NoCaller
		return refuse
	case g.paths && q.HTTP && q.form == PathAmbiguous:
		return Verdict{Reason: AmbiguousPath, Policy: g.first[0], Rule: g.first[1]}
	case g.allowPaths && q.HTTP && q.form == PathBad:
		refuse.Reason = BadPath
	}
	// All Deny rows are in the tables before the first Allow row, or in its.
	missed := false
	for _, t := range g.tables {
		var x terms
		t.asked(&x, q)
		if t.deny > 0 {
			n := x.n
			if r, reason := t.denies(&x, q); r != nil {
				return Verdict{Reason: reason, Policy: r.policy, Rule: r.rule}
			}
			x.n = n
		}
		for walk := t.allows(&x, q); ; {
			k := walk.next(&x)
			if k < 0 {
				break
			}
			r := &t.rows[k]
			if !q.headers(r) {
				continue
			}
			why := r.user(q)
			if why == AllowedByRule {
				return Verdict{Allowed: true, Reason: why, Policy: r.policy, Rule: r.rule}
			}
			if !missed {
				missed, refuse = true, Verdict{Reason: why, Policy: r.policy, Rule: r.rule}
			}
		}
	}
	return refuse
}

// asked adds what does not tell Deny rows from Allow rows.
func (t *table) asked(x *terms, q *query) {
	x.add(term{t.every, none, none})
	if t.principals.used {
		a, b := t.principal.find(q.Caller.String())
		x.add(term{t.principals.any, a, b})
	}
	if t.namespaces.used {
		x.add(t.namespaces.of(q.ns))
	}
	if t.sas.used {
		x.add(t.sas.of(q.sa))
	}
	if t.domains.used {
		x.add(t.domains.of(q.domain))
	}
	if t.ports.used && !q.anyPort {
		x.add(t.ports.of(q.Port))
	}
}

// denies finds the Deny row that matches.
func (t *table) denies(x *terms, q *query) (*row, Reason) {
	if q.HTTP {
		if t.denyMethods.used {
			x.add(upper(&t.denyMethods, q.Method))
		}
		if t.paths.used && q.form == PathNormal {
			a, b := t.denyPath.find(q.path)
			x.add(term{t.paths.any, a, b})
		}
	}
	for walk := x.over(0, t.deny); ; {
		k := walk.next(x)
		if k < 0 {
			return nil, 0
		}
		r := &t.rows[k]
		switch {
		case !q.HTTP:
			return r, DeniedByRule
		case !q.headers(r):
			continue
		}
		reason := DeniedByRule
		if r.hasPaths && q.form != PathNormal {
			reason = BadPath
		}
		// A token that is no good may be that of somebody whom the rule is against.
		if user := r.user(q); user == UserInvalid {
			return r, user
		} else if user == AllowedByRule {
			return r, reason
		}
	}
}

// upper is the term for a name in upper case.
func upper(c *named[string], name string) term {
	var buf [maxMethod]byte // longer ones are not asked for
	if len(name) > len(buf) {
		return term{c.any, none, none}
	}
	for k := range len(name) {
		buf[k] = name[k]
		if 'a' <= name[k] && name[k] <= 'z' {
			buf[k] -= 'a' - 'A'
		}
	}
	if s := c.sets[string(buf[:len(name)])]; s != nil {
		return term{c.any, s, none}
	}
	return term{c.any, none, none}
}

// allows begins a walk over the Allow rows that match, but for headers and end users.
func (t *table) allows(x *terms, q *query) scan {
	switch {
	case !q.HTTP:
		x.add(term{t.withoutHTTP, none, none})
		return x.over(t.deny, t.words)
	case t.methods.used:
		x.add(t.methods.of(q.Method))
	}
	if t.paths.used {
		a, b := none, none
		if q.form == PathNormal {
			a, b = t.path.find(q.path)
		}
		x.add(term{t.paths.any, a, b})
	}
	return x.over(t.deny, t.words)
}

// user tells whether one of the row's end users is who asks (AllowedByRule, also if it asks for none); else why not.
func (r *row) user(q *query) Reason {
	if r.users == nil {
		return AllowedByRule
	}
	reason := UserMissing
	for k := range r.users {
		u := &r.users[k]
		for _, at := range u.issuers {
			var token Token
			if at < len(q.Tokens) {
				token = q.Tokens[at]
			}
			switch {
			case token.State == TokenValid && token.User != nil:
				if claims(u.claims, token.User) {
					return AllowedByRule
				}
				reason = UserNotAllowed
			case token.State != TokenAbsent:
				reason = max(reason, UserInvalid)
			}
		}
	}
	return reason
}

func cloneClaims(claims []Claim) []Claim {
	out := make([]Claim, len(claims))
	for k, c := range claims {
		out[k] = Claim{slices.Clone(c.Path), slices.Clone(c.Values)}
	}
	return out
}

func claims(want []Claim, u *EndUser) bool {
	for k := range want {
		if v := u.Claim(want[k].Path); !v.matches(want[k].Values) {
			return false
		}
	}
	return true
}

// matches tells whether the claim, or one element of it, is one of patterns, or anything where there are none.
func (v *Value) matches(patterns []Pattern) bool {
	switch v.Kind {
	case Text, Literal:
		return len(patterns) == 0 || matchesAny(patterns, v.Text)
	case List:
		for k := range v.List {
			if e := &v.List[k]; (e.Kind == Text || e.Kind == Literal) && matchesAny(patterns, e.Text) {
				return true
			}
		}
		return len(patterns) == 0
	case Object:
		return len(patterns) == 0
	default:
		return false
	}
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

// headers tells whether all of them are as a row wants them.
func (q *query) headers(r *row) bool {
	for k := range r.headers {
		h := &r.headers[k]
		if h.name != q.name { // many rows in turn want the same
			q.name, q.values = h.name, q.Header[h.name]
		}
		if !h.matches(q.values, r.deny) {
			return false
		}
	}
	return true
}

func (h *header) matches(values []string, deny bool) bool {
	switch {
	case h.absent || len(h.values) == 0:
		return h.absent == (len(values) == 0)
	case len(values) > MaxHeaderValues:
		return deny // not worth the work: none of them is good enough, and each of them bad enough
	}
	for _, v := range values {
		if matchesAny(h.values, v) {
			return true
		}
	}
	return false
}

func matchesAny(patterns []Pattern, text string) bool {
	for k := range patterns {
		if patterns[k].matches(text) {
			return true
		}
	}
	return false
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

// admits: some Allow row could match, and no Deny row does whatever is asked.
func (g *group) admits(q *query) bool {
	if q.Caller.IsZero() {
		return false
	}
	allowed := false
	for _, t := range g.tables {
		var x terms
		t.asked(&x, q)
		walk := x.over(t.deny, t.words)
		allowed = allowed || walk.next(&x) >= 0
		if q.anyPort {
			x.add(term{t.always, none, none})
		} else {
			x.add(term{t.alwaysPort, none, none})
		}
		if walk = x.over(0, t.deny); walk.next(&x) >= 0 {
			return false
		}
	}
	return allowed
}

// Filter tells which requests something else than access is about: a quota.
type Filter struct {
	tables []*table
	needs  needs
}

// CompileFilter makes a Filter. It matches as a Deny rule does: whoever spells a path oddly, so that none or two can be read, is counted too.
func CompileFilter(from []Source, to []Operation) (*Filter, error) {
	rule := Rule{Deny: true, From: from, To: to}
	c := counter{}
	if err := c.rule(&rule, nil); err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	rows, err := parts("", &rule, nil, MaxRows)
	if err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	f := &Filter{tables: tables(rows)}
	for _, t := range f.tables {
		f.needs.of(t)
	}
	return f, nil
}

// Matches tells whether it is about the request.
func (f *Filter) Matches(r *Request) bool {
	q := query{Request: r}
	q.read(f.needs)
	for _, t := range f.tables {
		var x terms
		t.asked(&x, &q)
		if found, _ := t.denies(&x, &q); found != nil {
			return true
		}
	}
	return false
}
