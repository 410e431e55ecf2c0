package manifest

import (
	"errors"
	"fmt"
	"net/textproto"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/util/validation"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

func (c *checker) callers(at string, in []meshv1alpha1.AccessSource) []control.Caller {
	if !given(c, at, in, maxSources) {
		return nil
	}
	var out []control.Caller
	for i := range in {
		out = append(out, c.caller(fmt.Sprintf("%s[%d]", at, i), &in[i]))
	}
	return out
}

func (c *checker) caller(at string, in *meshv1alpha1.AccessSource) control.Caller {
	placed := len(in.Clusters)+len(in.TrustDomains) > 0
	switch {
	case placed:
	case len(in.Namespaces)+len(in.ServiceAccounts) > 0:
		c.addf(at, "namespaces and serviceAccounts need clusters or trustDomains beside them: the same name in two clusters is two callers (clusters: [%s] is the own one)", topology.Same)
	case len(in.Principals) == 0:
		c.addf(at, "is empty: leave from out where everybody is meant")
	}
	var out control.Caller
	for _, l := range []struct {
		field string
		list  []string
		check func(field, value string)
	}{
		{".principals", in.Principals, func(field, value string) { out.Principals = append(out.Principals, c.principal(field, value, placed)) }},
		{".clusters", in.Clusters, func(field, value string) {
			if value != topology.Same {
				if _, err := topology.ParseClusterName(value); err != nil {
					c.addf(field, "%v (or %q for the own cluster)", err, topology.Same)
				}
			}
			out.Clusters = append(out.Clusters, value)
		}},
		{".trustDomains", in.TrustDomains, func(field, value string) { out.Domains = append(out.Domains, c.domain(field, value)) }},
		{".namespaces", in.Namespaces, func(field, value string) {
			c.all(field, strconv.Quote(value), validation.IsDNS1123Label(value))
			out.Namespaces = append(out.Namespaces, value)
		}},
		{".serviceAccounts", in.ServiceAccounts, func(field, value string) {
			c.all(field, strconv.Quote(value), validation.IsDNS1123Subdomain(value))
			out.ServiceAccounts = append(out.ServiceAccounts, value)
		}},
	} {
		if !given(c, at+l.field, l.list, maxOfSource) {
			continue
		}
		for i, value := range l.list {
			l.check(fmt.Sprintf("%s[%d]", at+l.field, i), value)
		}
	}
	return out
}

func (c *checker) domain(field, s string) spiffeid.TrustDomain {
	td, err := spiffeid.TrustDomainFromString(s)
	switch {
	case err != nil:
		c.addf(field, "%q: %v", s, err)
	case td.Name() != s:
		c.addf(field, "%q: want the name alone, %q", s, td.Name())
	}
	return td
}

// principal checks a pattern of SPIFFE IDs: it says of which trust domain they are, or something beside it does.
func (c *checker) principal(field, s string, placed bool) access.Pattern {
	const scheme = "spiffe://"
	p := c.pattern(field, s, maxPrincipal)
	if p.Kind == access.Exact {
		if id, err := spiffeid.FromString(s); err != nil {
			c.addf(field, "%q: %v", s, err)
		} else if id.Path() == "" {
			c.addf(field, "%q is a trust domain, which calls nobody: %q is all that is of it", s, s+"/*")
		}
		return p
	}
	rest, whole := strings.CutPrefix(p.Text, scheme)
	switch name, _, inside := strings.Cut(rest, "/"); {
	case p.Kind == access.Prefix && whole && !inside:
		c.addf(field, "%q would be that of other trust domains too: end the name of the trust domain with a /", s)
	case p.Kind == access.Prefix && whole:
		c.domain(field, name)
	case p.Kind == access.Prefix && p.Text != "":
		c.addf(field, "%q: want spiffe://TRUST-DOMAIN/…", s)
	case !placed:
		c.addf(field, "%q needs clusters or trustDomains beside it: else any trust domain could call itself so", s)
	}
	return p
}

// pattern reads "text", "text*", "*text" or "*".
func (c *checker) pattern(field, s string, most int) access.Pattern {
	c.text(field, s, most)
	p := access.Pattern{Text: s}
	if text, ok := strings.CutSuffix(s, "*"); ok {
		p = access.Pattern{Text: text, Kind: access.Prefix}
	} else if text, ok := strings.CutPrefix(s, "*"); ok {
		p = access.Pattern{Text: text, Kind: access.Suffix}
	}
	if strings.Contains(p.Text, "*") {
		c.addf(field, "%q: want one * at most, at the beginning or at the end", s)
	}
	return p
}

func (c *checker) patterns(at string, in []string, limit int) []access.Pattern {
	if !given(c, at, in, limit) {
		return nil
	}
	var out []access.Pattern
	for i, s := range in {
		out = append(out, c.pattern(fmt.Sprintf("%s[%d]", at, i), s, maxPattern))
	}
	return out
}

func (c *checker) operations(at string, in []meshv1alpha1.AccessOperation) []access.Operation {
	if !given(c, at, in, maxOperations) {
		return nil
	}
	var out []access.Operation
	for i := range in {
		out = append(out, c.operation(fmt.Sprintf("%s[%d]", at, i), &in[i]))
	}
	return out
}

// usual are the methods that a lower-case spelling is taken for a slip of.
var usual = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"}

func (c *checker) operation(at string, in *meshv1alpha1.AccessOperation) access.Operation {
	if len(in.Methods)+len(in.Paths)+len(in.Ports)+len(in.Headers) == 0 {
		c.addf(at, "is empty: leave to out where everything is meant")
	}
	out := access.Operation{Methods: in.Methods}
	if given(c, at+".methods", in.Methods, maxMethods) {
		for i, m := range in.Methods {
			field := fmt.Sprintf("%s.methods[%d]", at, i)
			switch upper := strings.ToUpper(m); {
			case len(m) > 64 || !isToken(m):
				c.addf(field, "%q is no method", m)
			case m != upper && slices.Contains(usual, upper):
				c.addf(field, "%q: methods are told apart by case: is it %s?", m, upper)
			}
		}
	}
	out.Paths = c.patterns(at+".paths", in.Paths, maxOfOperation)
	for i, p := range out.Paths {
		c.path(fmt.Sprintf("%s.paths[%d]", at, i), p)
	}
	if given(c, at+".ports", in.Ports, maxOfOperation) {
		for i, p := range in.Ports {
			out.Ports = append(out.Ports, c.port(fmt.Sprintf("%s.ports[%d]", at, i), p))
		}
	}
	if given(c, at+".headers", in.Headers, maxHeaders) {
		for i := range in.Headers {
			out.Headers = append(out.Headers, c.headerMatch(fmt.Sprintf("%s.headers[%d]", at, i), &in.Headers[i]))
		}
	}
	return out
}

// path checks that a pattern can match the normal form of some path.
func (c *checker) path(field string, p access.Pattern) {
	_, err := access.Compile([][]access.Policy{{{Rules: []access.Rule{{To: []access.Operation{{Paths: []access.Pattern{p}}}}}}}})
	if err == nil {
		return
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
		err = inner // what is around it tells where, as the field does
	}
	c.addf(field, "%v", err)
}

func (c *checker) headerMatch(at string, in *meshv1alpha1.HeaderMatch) access.Header {
	c.headerName(at+".name", in.Name)
	if in.Absent && in.Values != nil {
		c.addf(at+".values", "and absent: want one of the two")
	}
	return access.Header{
		Name: textproto.CanonicalMIMEHeaderKey(in.Name), Absent: in.Absent, Values: c.patterns(at+".values", in.Values, maxHeaderValues),
	}
}

func (c *checker) users(at string, in []meshv1alpha1.EndUser, issuers []access.Issuer) []access.User {
	if !given(c, at, in, maxUsers) {
		return nil
	}
	if len(in) > 0 && len(issuers) == 0 {
		c.addf(at, "need spec.issuers: whose tokens are believed")
	}
	var out []access.User
	for i := range in {
		field := fmt.Sprintf("%s[%d]", at, i)
		u := access.User{Issuer: in[i].Issuer}
		if u.Issuer != "" && !slices.ContainsFunc(issuers, func(s access.Issuer) bool { return s.Name == u.Issuer }) {
			c.addf(field+".issuer", "%q is none of spec.issuers", u.Issuer)
		}
		if given(c, field+".claims", in[i].Claims, maxClaims) {
			for j := range in[i].Claims {
				u.Claims = append(u.Claims, c.claim(fmt.Sprintf("%s.claims[%d]", field, j), &in[i].Claims[j]))
			}
		}
		out = append(out, u)
	}
	return out
}

func (c *checker) claim(at string, in *meshv1alpha1.ClaimMatch) access.Claim {
	out := access.Claim{Path: in.Path}
	switch {
	case (in.Name != "") == (in.Path != nil):
		c.addf(at, "want one of name and path: which claim is meant")
	case in.Name != "":
		c.text(at+".name", in.Name, maxClaimName)
		out.Path = []string{in.Name}
	case given(c, at+".path", in.Path, maxClaimDepth):
		for i, s := range in.Path {
			c.text(fmt.Sprintf("%s.path[%d]", at, i), s, maxClaimName)
		}
	}
	if in.Values == nil {
		c.addf(at+".values", `is missing: "*" is any value`)
	}
	out.Values = c.patterns(at+".values", in.Values, maxClaimValues)
	return out
}
