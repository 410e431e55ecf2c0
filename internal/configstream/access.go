package configstream

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

// MaxAccessSets is how many sets of access policies one service may have for one receiver.
const MaxAccessSets = 256

// What the access policies of one service may hold at most. Manifests allow less; what is here bounds what a decoder makes.
const (
	maxAccess      = 1024 // policies in a set
	maxAccessRules = 256  // in a policy
	maxAccessList  = 256  // entries of each list in a rule
	maxIssuers     = 64
	maxJWKS        = 64 << 10
	maxPatternText = 2048 // a SPIFFE ID is the longest
	maxClaimDepth  = 16
)

// errNewer says that access policies hold what this program does not know. A part of a rule that is passed over would let through what it
// was to refuse: until the program is upgraded, what was in force before stays.
var errNewer = errors.New("has fields that this version does not know: upgrade it before control")

const (
	patternExact  = "exact"
	patternPrefix = "prefix"
	patternSuffix = "suffix"
)

// EncodeAccess makes the message of all policies that are for one workload.
func EncodeAccess(set []access.Policy) *configv1.AccessSet {
	out := &configv1.AccessSet{}
	for i := range set {
		out.Policies = append(out.Policies, encodeAccess(&set[i]))
	}
	return out
}

func encodeAccess(p *access.Policy) *configv1.AccessPolicy {
	out := &configv1.AccessPolicy{Name: p.Name, Audit: p.Audit, Issuers: encodeIssuers(p.Issuers)}
	for i := range p.Rules {
		r := &p.Rules[i]
		rule := &configv1.AccessRule{Name: r.Name, Deny: r.Deny, From: encodeSources(r.From), To: encodeOperations(r.To)}
		for _, u := range r.Users {
			user := &configv1.EndUser{Issuer: u.Issuer}
			for _, c := range u.Claims {
				user.Claims = append(user.Claims, &configv1.ClaimMatch{Path: c.Path, Values: encodePatterns(c.Values)})
			}
			rule.Users = append(rule.Users, user)
		}
		out.Rules = append(out.Rules, rule)
	}
	return out
}

func encodeIssuers(in []access.Issuer) []*configv1.TokenIssuer {
	var out []*configv1.TokenIssuer
	for i := range in {
		s := &in[i]
		out = append(out, &configv1.TokenIssuer{
			Name: s.Name, Issuer: s.Issuer, Audiences: s.Audiences, Jwks: s.JWKS, JwksFile: s.JWKSFile, JwksUrl: s.JWKSURL, Header: s.Header,
		})
	}
	return out
}

func encodeSources(in []access.Source) []*configv1.AccessSource {
	var out []*configv1.AccessSource
	for i := range in {
		s := &in[i]
		source := &configv1.AccessSource{
			Principals: encodePatterns(s.Principals), Namespaces: s.Namespaces, ServiceAccounts: s.ServiceAccounts, Nobody: s.Nobody,
		}
		for _, d := range s.Domains {
			source.TrustDomains = append(source.TrustDomains, d.Name())
		}
		out = append(out, source)
	}
	return out
}

func encodeOperations(in []access.Operation) []*configv1.AccessOperation {
	var out []*configv1.AccessOperation
	for i := range in {
		o := &in[i]
		operation := &configv1.AccessOperation{Methods: o.Methods, Paths: encodePatterns(o.Paths), Ports: encodeNumbers(o.Ports)}
		for _, h := range o.Headers {
			operation.Headers = append(operation.Headers, &configv1.HeaderMatch{Name: h.Name, Values: encodePatterns(h.Values), Absent: h.Absent})
		}
		out = append(out, operation)
	}
	return out
}

func encodePatterns(in []access.Pattern) []*configv1.Pattern {
	var out []*configv1.Pattern
	for _, p := range in {
		kind := patternExact
		switch p.Kind {
		case access.Exact:
		case access.Prefix:
			kind = patternPrefix
		case access.Suffix:
			kind = patternSuffix
		}
		out = append(out, &configv1.Pattern{Text: p.Text, Kind: kind})
	}
	return out
}

func decodeAccess(in []*configv1.AccessSet) ([][]access.Policy, error) {
	if err := atMost("access sets", len(in), MaxAccessSets); err != nil {
		return nil, err
	}
	var out [][]access.Policy
	for _, set := range in {
		if err := cmp.Or(known(set.ProtoReflect()), atMost("access policies", len(set.GetPolicies()), maxAccess)); err != nil {
			return nil, err
		}
		var policies []access.Policy
		for _, b := range set.GetPolicies() {
			p, err := decodePolicyOfAccess(b)
			if err != nil {
				return nil, fmt.Errorf("access policy %q: %w", clip(b.GetName()), err)
			}
			policies = append(policies, p)
		}
		out = append(out, policies)
	}
	return out, nil
}

// known refuses a message in which something is that this version does not know, at whatever depth.
func known(m protoreflect.Message) error {
	if len(m.GetUnknown()) > 0 {
		return fmt.Errorf("%s %w", m.Descriptor().Name(), errNewer)
	}
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				err = cmp.Or(err, known(v.List().Get(i).Message()))
			}
		default:
			err = known(v.Message())
		}
		return err == nil
	})
	return err
}

func decodePolicyOfAccess(b *configv1.AccessPolicy) (access.Policy, error) {
	p := access.Policy{Name: b.GetName(), Audit: b.GetAudit()}
	issuers, err := decodeIssuers(b.GetIssuers())
	if err = cmp.Or(err, checkTexts(p.Name), atMost("rules", len(b.GetRules()), maxAccessRules)); err != nil {
		return p, err
	}
	p.Issuers = issuers
	for _, br := range b.GetRules() {
		r, err := decodeRule(br)
		if err != nil {
			return p, fmt.Errorf("rule %q: %w", clip(br.GetName()), err)
		}
		p.Rules = append(p.Rules, r)
	}
	return p, nil
}

func decodeRule(b *configv1.AccessRule) (r access.Rule, err error) {
	r = access.Rule{Name: b.GetName(), Deny: b.GetDeny()}
	if err = cmp.Or(checkTexts(r.Name), atMost("end users", len(b.GetUsers()), maxAccessList)); err != nil {
		return r, err
	}
	if r.From, err = decodeSources(b.GetFrom()); err != nil {
		return r, err
	}
	if r.To, err = decodeOperations(b.GetTo()); err != nil {
		return r, err
	}
	for _, bu := range b.GetUsers() {
		u := access.User{Issuer: bu.GetIssuer()}
		if err = cmp.Or(checkTexts(u.Issuer), atMost("claims", len(bu.GetClaims()), maxAccessList)); err != nil {
			return r, err
		}
		for _, bc := range bu.GetClaims() {
			c := access.Claim{Path: bc.GetPath()}
			if c.Values, err = decodePatterns(bc.GetValues()); err != nil {
				return r, err
			}
			if err = cmp.Or(checkTexts(c.Path...), atMost("names in a claim's path", len(c.Path), maxClaimDepth)); err != nil {
				return r, err
			}
			if len(c.Path) == 0 {
				return r, errors.New("a claim without a name")
			}
			u.Claims = append(u.Claims, c)
		}
		r.Users = append(r.Users, u)
	}
	return r, nil
}

func decodeIssuers(in []*configv1.TokenIssuer) ([]access.Issuer, error) {
	if err := atMost("issuers", len(in), maxIssuers); err != nil {
		return nil, err
	}
	var out []access.Issuer
	for _, b := range in {
		s := access.Issuer{
			Name: b.GetName(), Issuer: b.GetIssuer(), Audiences: b.GetAudiences(),
			JWKS: b.GetJwks(), JWKSFile: b.GetJwksFile(), JWKSURL: b.GetJwksUrl(), Header: b.GetHeader(),
		}
		err := cmp.Or(
			atMost("bytes of a JWK set", len(s.JWKS), maxJWKS), atMost("audiences", len(s.Audiences), maxAccessList),
			atMost("bytes of a URL", len(s.JWKSURL), maxPatternText),
			checkTexts(s.Name, s.Issuer, s.JWKSFile, s.Header), checkTexts(s.Audiences...),
		)
		if err == nil && strings.ContainsAny(s.JWKSFile, "/\\\x00") {
			err = fmt.Errorf("file of keys %q: want a name alone", clip(s.JWKSFile))
		}
		if err != nil {
			return nil, fmt.Errorf("issuer %q: %w", clip(s.Name), err)
		}
		out = append(out, s)
	}
	return out, nil
}

func decodeSources(in []*configv1.AccessSource) (out []access.Source, err error) {
	if err = atMost("sources", len(in), maxAccessList); err != nil {
		return nil, err
	}
	for _, b := range in {
		s := access.Source{Namespaces: b.GetNamespaces(), ServiceAccounts: b.GetServiceAccounts(), Nobody: b.GetNobody()}
		if s.Principals, err = decodePatterns(b.GetPrincipals()); err != nil {
			return nil, err
		}
		if err = cmp.Or(
			atMost("trust domains", len(b.GetTrustDomains()), maxAccessList), atMost("namespaces", len(s.Namespaces), maxAccessList),
			atMost("service accounts", len(s.ServiceAccounts), maxAccessList), checkTexts(s.Namespaces...), checkTexts(s.ServiceAccounts...),
		); err != nil {
			return nil, err
		}
		for _, name := range b.GetTrustDomains() {
			d, err := decodeDomain(name)
			if err != nil {
				return nil, err
			}
			s.Domains = append(s.Domains, d)
		}
		out = append(out, s)
	}
	return out, nil
}

func decodeOperations(in []*configv1.AccessOperation) (out []access.Operation, err error) {
	if err = atMost("operations", len(in), maxAccessList); err != nil {
		return nil, err
	}
	for _, b := range in {
		o := access.Operation{Methods: b.GetMethods()}
		if err = cmp.Or(
			atMost("methods", len(o.Methods), maxAccessList), atMost("headers", len(b.GetHeaders()), maxAccessList), checkTexts(o.Methods...),
		); err != nil {
			return nil, err
		}
		if o.Paths, err = decodePatterns(b.GetPaths()); err != nil {
			return nil, err
		}
		if o.Ports, err = decodeNumbers(b.GetPorts()); err != nil {
			return nil, err
		}
		for _, bh := range b.GetHeaders() {
			h := access.Header{Name: bh.GetName(), Absent: bh.GetAbsent()}
			if h.Values, err = decodePatterns(bh.GetValues()); err != nil {
				return nil, err
			}
			if err = checkTexts(h.Name); err != nil {
				return nil, err
			}
			if h.Name == "" || h.Absent && len(h.Values) > 0 {
				return nil, fmt.Errorf("header %q: want a name, and either values or absent", clip(h.Name))
			}
			o.Headers = append(o.Headers, h)
		}
		out = append(out, o)
	}
	return out, nil
}

func decodePatterns(in []*configv1.Pattern) ([]access.Pattern, error) {
	if err := atMost("patterns", len(in), maxAccessList); err != nil {
		return nil, err
	}
	var out []access.Pattern
	for _, b := range in {
		p := access.Pattern{Text: b.GetText()}
		switch b.GetKind() {
		case patternExact:
		case patternPrefix:
			p.Kind = access.Prefix
		case patternSuffix:
			p.Kind = access.Suffix
		default:
			return nil, fmt.Errorf("pattern of kind %q", clip(b.GetKind()))
		}
		if len(p.Text) > maxPatternText || !isPrintable(p.Text) {
			return nil, fmt.Errorf("pattern %q: want at most %d bytes, printable", clip(p.Text), maxPatternText)
		}
		out = append(out, p)
	}
	return out, nil
}
