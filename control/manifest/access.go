package manifest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/textproto"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/util/validation"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

// Limits of an AccessPolicy, and of what a QuotaPolicy has of the same.
const (
	maxSelected     = 64 // labels or Services
	maxIssuers      = 16
	maxAudiences    = 16
	maxJWKS         = 64 << 10
	maxRules        = 64
	maxSources      = 32
	maxOperations   = 32
	maxUsers        = 16
	maxOfSource     = 64 // principals, clusters and so on
	maxMethods      = 32
	maxOfOperation  = 64 // paths, ports
	maxHeaders      = 16
	maxHeaderValues = 32
	maxClaims       = 16
	maxClaimValues  = 64
	maxClaimDepth   = 8
	maxPattern      = 1024
	maxPrincipal    = 2048 // SPIFFE ID, section 2.3
	maxHeaderName   = 256
	maxClaimName    = 256
)

const (
	accessKind  = "AccessPolicy"
	modeEnforce = "Enforce"
	modeAudit   = "Audit"
)

func accessPolicy(c *checker, in *meshv1alpha1.AccessPolicy) Object {
	p := &control.AccessPolicy{Meta: c.meta(&in.ObjectMeta, true, validation.IsDNS1123Subdomain), Generation: in.Generation}
	c.hasSpec("an empty one, {}, allows nothing to anybody")
	p.Selects = c.selection(p.Namespace, in.Spec.Selector, in.Spec.TargetRefs)
	p.Audit = c.mode(in.Spec.Mode)
	p.Issuers = c.issuers(in.Spec.Issuers)
	if !c.atMost("spec.rules", len(in.Spec.Rules), maxRules) {
		return Object{Access: p}
	}
	names := map[string]int{}
	for i := range in.Spec.Rules {
		r := &in.Spec.Rules[i]
		at := fmt.Sprintf("spec.rules[%d]", i)
		c.label(at+".name", r.Name, "is missing: logs, metrics and tests name the rule that decides")
		unique(c, names, r.Name, "spec.rules", i, "the name "+strconv.Quote(r.Name))
		out := control.AccessRule{Name: r.Name}
		switch r.Action {
		case "", "Allow":
		case "Deny":
			out.Deny = true
		default:
			c.addf(at+".action", "%q is not known: want Allow or Deny", r.Action)
		}
		out.From = c.callers(at+".from", r.From)
		out.To = c.operations(at+".to", r.To)
		out.Users = c.users(at+".endUsers", r.EndUsers, p.Issuers)
		p.Rules = append(p.Rules, out)
	}
	return Object{Access: p}
}

// closed is an AccessPolicy that refuses everything to what spec selects: to all of its namespace, where that is not understood. One that
// would have refused nothing is none.
func closed(c *checker, spec *meshv1alpha1.AccessPolicySpec) []Object {
	if spec.Mode == modeAudit {
		return nil
	}
	p := &control.AccessPolicy{Closed: true, Meta: control.Meta{
		Source: c.source(), Kind: accessKind, Namespace: cmp.Or(c.header.namespace, defaultNamespace), Name: c.header.name,
	}}
	if len(validation.IsDNS1123Label(p.Namespace)) > 0 {
		return nil // there are no workloads in it
	}
	probe := &checker{header: c.header}
	if p.Selects = probe.selection(p.Namespace, spec.Selector, spec.TargetRefs); len(probe.errs) > 0 {
		p.Selects = control.Selection{}
	}
	return []Object{{Access: p}}
}

// closedDocument is closed for a document that may not even decode.
func closedDocument(c *checker) []Object {
	var whole map[string]any
	spec := new(meshv1alpha1.AccessPolicySpec)
	if err := c.doc.Decode(&whole); err != nil {
		return closed(c, spec)
	}
	in, _ := whole["spec"].(map[string]any)
	maps.DeleteFunc(in, func(field string, _ any) bool { return field != "selector" && field != "targetRefs" && field != "mode" })
	text, err := json.Marshal(in)
	if err == nil {
		d := json.NewDecoder(strings.NewReader(string(text)))
		d.DisallowUnknownFields()
		err = d.Decode(spec)
	}
	if err != nil {
		spec = new(meshv1alpha1.AccessPolicySpec)
	}
	return closed(c, spec)
}

// What is looked for in text that can't be read as YAML.
var (
	textKind      = regexp.MustCompile(`(?m)^[^#\n]*\bkind["']?[ \t]*:[ \t]*["']?` + accessKind + `\b`)
	textNamespace = regexp.MustCompile(`(?m)^[^#\n]*?\bnamespace["']?[ \t]*:[ \t]*["']?([a-z0-9-]{1,63})`)
	textName      = regexp.MustCompile(`(?m)^[^#\n]*?\bname["']?[ \t]*:[ \t]*["']?([a-z0-9.-]{1,253})`)
	textMode      = regexp.MustCompile(`(?m)^[^#\n]*?\bmode["']?[ \t]*:[ \t]*["']?(\w+)`)
	textSeparator = regexp.MustCompile(`(?m)^---`)
)

// closedText adds to guards what text seems to have of AccessPolicies beside them, as ones that refuse everything to their namespace: a slip
// may be such that nothing of a file can be read, and what it guards must not stand open for that.
func closedText(file, text string, guards []Object) []Object {
	line := 1
	for _, part := range textSeparator.Split(text, -1) {
		at := line
		line += strings.Count(part, "\n")
		if mode := textMode.FindStringSubmatch(part); !textKind.MatchString(part) || mode != nil && mode[1] == modeAudit {
			continue
		}
		p := control.AccessPolicy{Closed: true, Meta: control.Meta{
			Source: control.Source{File: file, Line: at}, Kind: accessKind, Namespace: defaultNamespace, Name: "unreadable",
		}}
		if m := textName.FindStringSubmatch(part); m != nil {
			p.Name = m[1]
		}
		namespaces := []string{defaultNamespace}
		if found := textNamespace.FindAllStringSubmatch(part, -1); found != nil {
			namespaces = nil
			for _, m := range found {
				namespaces = append(namespaces, m[1])
			}
		}
		for _, namespace := range namespaces {
			if len(validation.IsDNS1123Label(namespace)) > 0 || slices.ContainsFunc(guards, func(o Object) bool {
				return o.Access.Namespace == namespace && o.Access.Name == p.Name
			}) {
				continue
			}
			closed := p
			closed.Namespace = namespace
			guards = append(guards, Object{Access: &closed})
		}
	}
	return guards
}

// hasSpec wants a spec to be written down, be it an empty one.
func (c *checker) hasSpec(why string) {
	if c.doc != nil && !c.header.spec {
		c.addf("spec", "is missing: %s", why)
	}
}

func (c *checker) atMost(field string, n, limit int) bool {
	if n > limit {
		c.addf(field, "%d entries, more than the limit of %d", n, limit)
		return false
	}
	return true
}

// label checks a name that is an RFC 1123 label.
func (c *checker) label(field, name, missing string) {
	if name == "" {
		c.addf(field, "%s", missing)
		return
	}
	c.all(field, strconv.Quote(name), validation.IsDNS1123Label(name))
}

func (c *checker) mode(mode string) (audit bool) {
	switch mode {
	case "", modeEnforce:
	case modeAudit:
		return true
	default:
		c.addf("spec.mode", "%q is not known: want %s or %s", mode, modeEnforce, modeAudit)
	}
	return false
}

// selection checks which workloads a policy is for.
func (c *checker) selection(namespace string, selector *meshv1alpha1.PolicySelector, refs []meshv1alpha1.PolicyTargetRef) control.Selection {
	var out control.Selection
	switch {
	case selector != nil && refs != nil:
		c.addf("spec.targetRefs", "and spec.selector: want one of the two")
	case selector != nil && len(selector.MatchLabels) == 0:
		c.addf("spec.selector.matchLabels", "is empty: leave selector out where all workloads of the namespace are meant")
	case refs != nil && len(refs) == 0:
		c.addf("spec.targetRefs", "is empty: leave it out where all workloads of the namespace are meant")
	}
	if selector != nil && c.atMost("spec.selector.matchLabels", len(selector.MatchLabels), maxSelected) {
		c.labels("spec.selector.matchLabels", selector.MatchLabels)
		out.Labels = selector.MatchLabels
	}
	if !c.atMost("spec.targetRefs", len(refs), maxSelected) {
		return out
	}
	seen := map[topology.ServiceName]int{}
	for i, r := range refs {
		at := fmt.Sprintf("spec.targetRefs[%d]", i)
		switch {
		case r.Kind != "Service":
			c.addf(at+".kind", "%q: want Service", r.Kind)
			continue
		case r.Group != "":
			c.addf(at+".group", `%q: a Service is of group ""`, r.Group)
		}
		s, err := topology.NewServiceName(namespace, r.Name)
		if err != nil {
			c.addf(at+".name", "%v", err)
			continue
		}
		unique(c, seen, s, "spec.targetRefs", i, "the Service")
		out.Services = append(out.Services, s)
	}
	return out
}

func (c *checker) issuers(in []meshv1alpha1.TokenIssuer) []access.Issuer {
	if !c.atMost("spec.issuers", len(in), maxIssuers) {
		return nil
	}
	var out []access.Issuer
	names := map[string]int{}
	for i := range in {
		at, s := fmt.Sprintf("spec.issuers[%d]", i), &in[i]
		c.label(at+".name", s.Name, "is missing: rules call the issuer by it")
		unique(c, names, s.Name, "spec.issuers", i, "the name "+strconv.Quote(s.Name))
		c.text(at+".issuer", s.Issuer, maxPattern)
		if len(s.Audiences) == 0 {
			c.addf(at+".audiences", "is empty: name who the tokens are for, or one for another application would do here")
		}
		if c.atMost(at+".audiences", len(s.Audiences), maxAudiences) {
			for j, a := range s.Audiences {
				c.text(fmt.Sprintf("%s.audiences[%d]", at, j), a, maxPattern)
			}
		}
		c.keys(at, s)
		if s.Header != "" {
			c.headerName(at+".header", s.Header)
		}
		out = append(out, access.Issuer{
			Name: s.Name, Issuer: s.Issuer, Audiences: s.Audiences, JWKS: s.JWKS, JWKSFile: s.JWKSFile, JWKSURL: s.JWKSURL,
			Header: textproto.CanonicalMIMEHeaderKey(s.Header),
		})
	}
	return out
}

// keys checks where an issuer's keys come from.
func (c *checker) keys(at string, s *meshv1alpha1.TokenIssuer) {
	given := 0
	for _, v := range []string{s.JWKS, s.JWKSFile, s.JWKSURL} {
		if v != "" {
			given++
		}
	}
	if given != 1 {
		c.addf(at, "want one of jwks, jwksFile and jwksURL: where its keys come from")
		return
	}
	switch {
	case len(s.JWKS) > maxJWKS:
		c.addf(at+".jwks", "%d bytes, more than the limit of %d", len(s.JWKS), maxJWKS)
	case s.JWKS != "":
		if err := checkJWKS(s.JWKS); err != nil {
			c.addf(at+".jwks", "%v", err)
		}
	case s.JWKSFile != "":
		if !isFileName(s.JWKSFile) {
			c.addf(at+".jwksFile", "%q: want the name of a file in the sidecars' folder of keys: letters, digits, '-', '_' and inner '.', at most 253", s.JWKSFile)
		}
	default:
		u, err := url.Parse(s.JWKSURL)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" || len(s.JWKSURL) > maxPrincipal {
			c.addf(at+".jwksURL", "%q: want https://host/path, at most %d bytes", s.JWKSURL, maxPrincipal)
		}
	}
}

// checkJWKS looks at the form alone.
func checkJWKS(text string) error {
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		return fmt.Errorf("is no JWK set (RFC 7517): %w", err)
	}
	if len(doc.Keys) == 0 {
		return fmt.Errorf("has no keys: no token would ever be believed")
	}
	return nil
}

func isFileName(s string) bool {
	if s == "" || len(s) > 253 || s[0] == '.' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	})
}

// text checks words that are compared to the letter.
func (c *checker) text(field, s string, most int) {
	switch {
	case s == "":
		c.addf(field, "is empty")
	case len(s) > most:
		c.addf(field, "%d bytes, more than the limit of %d", len(s), most)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		c.addf(field, "%q: has characters that can't be printed", s)
	}
}

// isToken reports whether s is a token, as methods and names of headers are (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

func (c *checker) headerName(field, name string) {
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	switch {
	case len(name) > maxHeaderName || !isToken(name):
		c.addf(field, "%q is no name of a header", name)
	case slices.Contains(notForApplications, canonical) || strings.HasPrefix(canonical, "Isthmus-"):
		c.addf(field, "%q is for the programs between caller and application: what the application sees of it is not the caller's word", name)
	}
}

// notForApplications are headers that don't pass from the caller to the application as they are: those of one connection (RFC 9110, section
// 7.6.1) and those that HTTP itself is made of.
var notForApplications = []string{
	"Connection", "Content-Length", "Expect", "Host", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// given says that a list which stands there is not empty: an empty one would match nothing, and reads as if it matched everything.
func given[T any](c *checker, field string, list []T, limit int) bool {
	if list != nil && len(list) == 0 {
		c.addf(field, "is empty: leave it out where any is meant")
		return false
	}
	return c.atMost(field, len(list), limit)
}

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
