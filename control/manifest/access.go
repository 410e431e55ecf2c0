package manifest

import (
	"fmt"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/topology"
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
