package access

import (
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Limits of what is compiled. What is above them is refused, and the last good Set stays.
const (
	MaxPolicies     = 1024  // in all sets
	MaxRules        = 8192  // in all sets
	MaxPatterns     = 65536 // names, ports and patterns in all sets
	MaxRows         = 16384 // pairs of a source and an operation of one rule, in all sets, where such that differ in one list only are one
	MaxSlowRows     = 2048  // of these, those that want headers or end users
	MaxSlowPatterns = 4096  // of headers and claims, in all sets
	MaxPatternSize  = 2048  // bytes
	MaxIssuers      = 32    // different ones, in all sets
	MaxClaimDepth   = 8
	maxMethod       = 64 // bytes
)

// MaxHeaderValues is how many values of one header of a request are compared. If there are more, a Deny rule that wants one matches, and an
// Allow rule does not.
const MaxHeaderValues = 16

// Set is compiled policies: immutable, and safe for concurrent use. A nil Set refuses everything.
//
// What a decision costs does not depend on how many rules there are, up to 4,096 pairs of a source and an operation (about 0.2 µs, the path
// and the ID of 40 bytes each included), with two exceptions. Rules that nothing tells apart for the request in question but headers or
// claims are looked at one by one, 10 to 100 ns each, as far as the first that matches; there are MaxSlowRows at most. And each 4,096 pairs more, each
// further set, and policies in audit mode, cost a decision more. What callers send is bounded by MaxTarget and MaxHeaderValues.
type Set struct {
	sets    []pair
	issuers []Issuer
	rows    int // in all, and those that are looked at one by one
	slow    int
	needs   needs
	headers map[string]struct{} // that rules ask for
}

// pair is one set of policies: those that enforce, and those in audit mode.
type pair struct{ enforce, audit *group }

// Compile makes a Set of policies: each of sets must let a request through. It keeps nothing of its arguments.
func Compile(sets [][]Policy) (*Set, error) {
	s := &Set{}
	count := counter{}
	for _, policies := range sets {
		var enforce, audit []Policy
		for _, p := range policies {
			if err := count.policy(&p); err != nil {
				return nil, fmt.Errorf("access: policy %s: %w", p.Name, err)
			}
			if p.Audit {
				audit = append(audit, p)
			} else {
				enforce = append(enforce, p)
			}
		}
		var made pair
		var err error
		if made.enforce, err = s.group(enforce); err == nil {
			made.audit, err = s.group(audit)
		}
		if err != nil {
			return nil, fmt.Errorf("access: %w", err)
		}
		s.sets = append(s.sets, made)
	}
	if len(s.issuers) > MaxIssuers {
		return nil, fmt.Errorf("access: %d issuers of tokens, more than %d", len(s.issuers), MaxIssuers)
	}
	return s, nil
}

// Asks tells whether some rule asks for a header, by its canonical name.
func (s *Set) Asks(header string) bool {
	if s == nil {
		return false
	}
	_, ok := s.headers[header]
	return ok
}

// Issuers are those whose tokens the policies ask for, each once, whatever policies call it (Name is empty).
// Request.Tokens is in this order.
func (s *Set) Issuers() []Issuer {
	if s == nil {
		return nil
	}
	return slices.Clone(s.issuers)
}

// issuer returns the place of i among the issuers.
func (s *Set) issuer(i Issuer) int {
	i = i.canonical()
	k := slices.IndexFunc(s.issuers, func(o Issuer) bool { return o.equal(i) })
	if k < 0 {
		k = len(s.issuers)
		s.issuers = append(s.issuers, i)
	}
	return k
}

// canonical is i in the form in which the same issuer is equal, whatever a policy calls it.
func (i Issuer) canonical() Issuer {
	i.Name = ""
	i.Audiences = slices.Clone(i.Audiences)
	slices.Sort(i.Audiences)
	i.Audiences = slices.Compact(i.Audiences)
	i.Header = textproto.CanonicalMIMEHeaderKey(i.Header)
	return i
}

func (i Issuer) equal(o Issuer) bool {
	return i.Issuer == o.Issuer && i.JWKS == o.JWKS && i.JWKSFile == o.JWKSFile && i.JWKSURL == o.JWKSURL && i.Header == o.Header &&
		slices.Equal(i.Audiences, o.Audiences)
}

// counter holds the policies to the limits, and finds what can't be meant.
type counter struct{ policies, rules, patterns, slow int }

func (c *counter) policy(p *Policy) error {
	if c.policies++; c.policies > MaxPolicies {
		return fmt.Errorf("more than %d policies", MaxPolicies)
	}
	names := map[string]bool{}
	for _, i := range p.Issuers {
		if i.Name == "" || names[i.Name] {
			return fmt.Errorf("issuers need names, each its own: %q", i.Name)
		}
		names[i.Name] = true
	}
	for k := range p.Rules {
		r := &p.Rules[k]
		if c.rules++; c.rules > MaxRules {
			return fmt.Errorf("more than %d rules", MaxRules)
		}
		if err := c.rule(r, names); err != nil {
			return fmt.Errorf("rule %q: %w", r.Name, err)
		}
	}
	return nil
}

func (c *counter) rule(r *Rule, issuers map[string]bool) error {
	for k := range r.From {
		if err := c.source(&r.From[k]); err != nil {
			return fmt.Errorf("from[%d]: %w", k, err)
		}
	}
	for k := range r.To {
		if err := c.operation(&r.To[k]); err != nil {
			return fmt.Errorf("to[%d]: %w", k, err)
		}
	}
	for k, u := range r.Users {
		if u.Issuer != "" && !issuers[u.Issuer] || len(issuers) == 0 {
			return fmt.Errorf("users[%d]: the policy has no issuer %q", k, u.Issuer)
		}
		for _, claim := range u.Claims {
			if len(claim.Path) == 0 || len(claim.Path) > MaxClaimDepth {
				return fmt.Errorf("users[%d]: a claim's path has 1 to %d names", k, MaxClaimDepth)
			}
			c.slow += len(claim.Values)
			if err := c.values(claim.Values); err != nil {
				return fmt.Errorf("users[%d]: claim %s: %w", k, strings.Join(claim.Path, "."), err)
			}
		}
	}
	return c.total()
}

func (c *counter) total() error {
	if c.patterns > MaxPatterns {
		return fmt.Errorf("more than %d names and patterns in all", MaxPatterns)
	}
	if c.slow > MaxSlowPatterns {
		return fmt.Errorf("more than %d patterns of headers and claims in all", MaxSlowPatterns)
	}
	return nil
}

func (c *counter) source(s *Source) error {
	c.patterns += 1 + len(s.Domains) + len(s.Namespaces) + len(s.ServiceAccounts)
	suffix := false
	for _, p := range s.Principals {
		if p.Kind == Suffix {
			suffix = true
			continue
		}
		if p.Kind == Exact {
			if _, err := spiffeid.FromString(p.Text); err != nil {
				return fmt.Errorf("principal %q: %w", p.Text, err)
			}
		} else if err := principalPrefix(p.Text); err != nil {
			return err
		}
	}
	if !s.Nobody && len(s.Domains) == 0 && (suffix || len(s.Namespaces)+len(s.ServiceAccounts) > 0) {
		return fmt.Errorf("names that exist in each trust domain, and no trust domain beside them: the same namespace in two clusters is two")
	}
	return c.values(s.Principals)
}

// principalPrefix wants the trust domain whole: "spiffe://eu" would be the beginning of "spiffe://europe/…" too.
func principalPrefix(text string) error {
	rest, ok := strings.CutPrefix(text, "spiffe://")
	if td, _, whole := strings.Cut(rest, "/"); ok && whole {
		if _, err := spiffeid.TrustDomainFromString(td); err == nil {
			return nil
		}
	}
	if text == "" {
		return nil // anybody
	}
	return fmt.Errorf("principal %q*: it begins with spiffe://<trust domain>/", text)
}

func (c *counter) operation(o *Operation) error {
	c.patterns += 1 + len(o.Methods) + len(o.Ports)
	for _, m := range o.Methods {
		if m == "" || len(m) > maxMethod {
			return fmt.Errorf("method %q: want 1 to %d bytes", m, maxMethod)
		}
	}
	for _, p := range o.Paths {
		if err := pathPattern(p); err != nil {
			return err
		}
	}
	if err := c.values(o.Paths); err != nil {
		return err
	}
	for _, h := range o.Headers {
		if name := http.CanonicalHeaderKey(h.Name); name == "" || name == "Host" {
			return fmt.Errorf("header %q can't be asked for", h.Name)
		}
		if h.Absent && len(h.Values) > 0 {
			return fmt.Errorf("header %s: absent, and with values", h.Name)
		}
		c.slow += len(h.Values)
		if err := c.values(h.Values); err != nil {
			return fmt.Errorf("header %s: %w", h.Name, err)
		}
	}
	return nil
}

// pathPattern wants the normal form: a pattern in any other would never match, and a Deny rule would let through what it names.
func pathPattern(p Pattern) error {
	text := p.Text
	if text == "" && p.Kind != Exact {
		return nil
	}
	if p.Kind == Suffix {
		text = "/x" + text
	}
	normal, form := NormalPath(text)
	if form != PathNormal || strings.ContainsRune(p.Text, '?') || p.Kind != Suffix && p.Text[0] != '/' {
		return fmt.Errorf("path %q is not the normal form of any: it begins with \"/\", and has no \"//\", \".\" or \"..\" segments, \";\", \"\\\", query, "+
			"encoded slash or escape of an escape", p.Text)
	}
	if normal != text {
		return fmt.Errorf("path %q is not in normal form, which is %q", p.Text, strings.TrimPrefix(normal, text[:len(text)-len(p.Text)]))
	}
	return nil
}

func (c *counter) values(patterns []Pattern) error {
	c.patterns += len(patterns)
	for _, p := range patterns {
		if p.Kind > Suffix {
			return fmt.Errorf("pattern %q is of kind %d, which is none", p.Text, p.Kind)
		}
		if len(p.Text) > MaxPatternSize {
			return fmt.Errorf("a pattern of %d bytes, more than %d", len(p.Text), MaxPatternSize)
		}
	}
	return c.total()
}
