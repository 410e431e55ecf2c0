// Package policy tries access policies without a mesh: on tables of cases, and on what sidecars remember of requests. What decides is what
// decides in a sidecar (trust/access), and what is read is what control reads (control/manifest).
package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/manifest"
	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

// table is the document of a file that holds cases. The other documents are manifests.
type table struct {
	// Clusters are the trust domains of clusters, by name; Cluster is the own one.
	Clusters map[string]string `json:"clusters"`
	Cluster  string            `json:"cluster"`
	Policies []string          `json:"policies"` // files with manifests, relative to this one
	Workload *workload         `json:"workload"` // which is called; none: every policy is for it
	Enforce  bool              `json:"enforce"`  // policies in audit mode are taken as if they were enforced
	Cases    []testCase        `json:"cases"`
}

type workload struct {
	Namespace string            `json:"namespace"`
	Labels    map[string]string `json:"labels"`
	Services  []string          `json:"services"`
}

type testCase struct {
	Name    string            `json:"name"`
	Caller  string            `json:"caller"` // cluster/namespace/service-account, or a SPIFFE ID
	Method  string            `json:"method"` // default GET
	Path    string            `json:"path"`   // default /
	Port    uint16            `json:"port"`
	Headers map[string]string `json:"headers"`
	User    *user             `json:"user"`
	TCP     bool              `json:"tcp"` // opaque bytes
	Want    string            `json:"want"`
	Rule    string            `json:"rule"`   // that decides: "rule", or "policy/rule"
	Reason  string            `json:"reason"` // by its word
	Audit   string            `json:"audit"`  // what policies in audit mode say: allow or deny; empty: not looked at
}

// user is an end user whose token came along.
type user struct {
	Issuer  string         `json:"issuer"` // as policies call it, or its claim iss
	Subject string         `json:"subject"`
	Claims  map[string]any `json:"claims"`
	Invalid bool           `json:"invalid"` // the token is no good
}

// Result is what became of one case.
type Result struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Name   string `json:"name"`
	Want   string `json:"want"`
	Got    string `json:"got"`
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason"`
	Wrong  string `json:"wrong,omitempty"` // empty: it is as wanted
}

const (
	allow = "allow"
	deny  = "deny"
)

// Test runs the tables of a file. An error is one of whoever wrote it, with file and line.
func Test(file string) ([]Result, error) {
	data, err := os.ReadFile(file) //nolint:gosec // G304: the user names it
	if err != nil {
		return nil, err
	}
	if len(data) > strictyaml.MaxFile {
		return nil, fmt.Errorf("%s: %d bytes, more than the limit of %d", file, len(data), strictyaml.MaxFile)
	}
	tables, manifests := split(data)
	docs, err := strictyaml.Documents(file, tables)
	if err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, fmt.Errorf("%s: has no cases: want a document with the key cases", file)
	}
	inline, err := read(file, manifests)
	if err != nil {
		return nil, err
	}
	var out []Result
	for i := range docs {
		results, err := run(file, &docs[i], inline)
		if err != nil {
			return nil, err
		}
		out = append(out, results...)
	}
	return out, nil
}

// split tells tables from manifests. Each is the whole file, with the lines of the other empty, so that lines keep their numbers.
func split(data []byte) (tables, manifests []byte) {
	var section []string
	var isTable bool
	flush := func() {
		for _, line := range section {
			mine, other := &manifests, &tables
			if isTable {
				mine, other = other, mine
			}
			*mine = append(*mine, line...)
			*other = append(*other, '\n')
		}
		section, isTable = nil, false
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "---") {
			flush()
			tables, manifests = append(tables, "---\n"...), append(manifests, "---\n"...)
			continue
		}
		isTable = isTable || strings.HasPrefix(line, "cases:")
		section = append(section, line)
	}
	flush()
	return tables, manifests
}

// read returns the AccessPolicies of a file of manifests.
func read(file string, data []byte) ([]control.AccessPolicy, error) {
	parsed := manifest.Parse(file, data)
	var errs []error
	for _, p := range parsed.Problems {
		errs = append(errs, errors.New(p.String()))
	}
	var out []control.AccessPolicy
	for _, o := range parsed.Objects {
		if o.Access != nil {
			out = append(out, *o.Access)
		}
	}
	return out, errors.Join(errs...)
}

// Read returns the AccessPolicies of files of manifests.
func Read(files ...string) ([]control.AccessPolicy, error) {
	var out []control.AccessPolicy
	at := make(map[string]string)
	for _, file := range files {
		data, err := os.ReadFile(file) //nolint:gosec // G304: the user names it
		if err != nil {
			return nil, err
		}
		policies, err := read(file, data)
		if err != nil {
			return nil, err
		}
		for _, p := range policies {
			if other, twice := at[p.Object()]; twice {
				return nil, fmt.Errorf("%s: %s stands twice: also at %s", p.Source, p.Object(), other)
			}
			at[p.Object()] = p.String()
		}
		out = append(out, policies...)
	}
	return out, nil
}

// run runs one table.
func run(file string, d *strictyaml.Document, inline []control.AccessPolicy) ([]Result, error) {
	var t table
	if err := d.Decode(&t); err != nil {
		return nil, err
	}
	var errs []error
	wrong := func(field, format string, args ...any) { errs = append(errs, d.Errorf(field, format, args...)) }
	policies := slices.Clone(inline)
	for i, name := range t.Policies {
		more, err := Read(filepath.Join(filepath.Dir(file), name))
		if err != nil {
			wrong(fmt.Sprintf("policies[%d]", i), "%v", err)
		}
		policies = append(policies, more...)
	}
	domains := t.domains(wrong)
	set, applied, err := t.compile(policies, domains, wrong)
	if err != nil {
		wrong("policies", "%v", err)
	}
	if len(t.Cases) == 0 {
		wrong("cases", "is empty")
	}
	var out []Result
	for i := range t.Cases {
		at := fmt.Sprintf("cases[%d]", i)
		q := t.Cases[i].request(at, domains, set, applied, wrong)
		t.Cases[i].check(at, wrong)
		if len(errs) > 0 {
			continue
		}
		r := t.Cases[i].judge(set.Decide(q))
		r.File, r.Line = file, d.Line(at)
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}

// domains returns the trust domains by the names of clusters; topology.Same is the own one.
func (t *table) domains(wrong func(field, format string, args ...any)) map[string]spiffeid.TrustDomain {
	out := make(map[string]spiffeid.TrustDomain)
	for name, text := range t.Clusters {
		d, err := spiffeid.TrustDomainFromString(text)
		if err != nil {
			wrong("clusters."+name, "%v", err)
		}
		out[name] = d
	}
	if t.Cluster != "" {
		if _, ok := out[t.Cluster]; !ok {
			wrong("cluster", "%q is none of clusters", t.Cluster)
		}
		out[topology.Same] = out[t.Cluster]
	}
	return out
}

// compile makes the set of the policies that are for the workload.
func (t *table) compile(policies []control.AccessPolicy, domains map[string]spiffeid.TrustDomain, wrong func(field, format string, args ...any)) (*access.Set, []access.Policy, error) {
	var services []topology.ServiceName
	if t.Workload != nil {
		for i, s := range t.Workload.Services {
			name, err := topology.NewServiceName(t.Workload.Namespace, s)
			if err != nil {
				wrong(fmt.Sprintf("workload.services[%d]", i), "%v", err)
			}
			services = append(services, name)
		}
	}
	var applied []access.Policy
	for i := range policies {
		p := &policies[i]
		if t.Workload != nil && (p.Namespace != t.Workload.Namespace || !p.Selects.Picks(t.Workload.Labels, services)) {
			continue
		}
		for _, r := range p.Rules {
			for _, c := range r.From {
				for _, name := range c.Clusters {
					if _, ok := domains[name]; !ok {
						wrong("clusters", "%s names cluster %s, which is not said here: give its trust domain (Same is what cluster says)", p.Object(), name)
					}
				}
			}
		}
		policy := p.Resolve(func(name string) spiffeid.TrustDomain { return domains[name] })
		policy.Audit = policy.Audit && !t.Enforce
		applied = append(applied, policy)
	}
	set, err := access.Compile([][]access.Policy{applied})
	return set, applied, err
}

// check looks at what a case wants.
func (c *testCase) check(at string, wrong func(field, format string, args ...any)) {
	if c.Want != allow && c.Want != deny {
		wrong(at+".want", "%q: want %s or %s", c.Want, allow, deny)
	}
	if c.Audit != "" && c.Audit != allow && c.Audit != deny {
		wrong(at+".audit", "%q: want %s or %s", c.Audit, allow, deny)
	}
	if c.TCP && (c.Method != "" || c.Path != "" || c.Headers != nil || c.User != nil) {
		wrong(at+".tcp", "opaque bytes have no method, path, headers or user")
	}
	if c.Reason != "" && !slices.ContainsFunc(access.Reasons(), func(r access.Reason) bool { return r.String() == c.Reason }) {
		wrong(at+".reason", "%q is none", c.Reason)
	}
}

// request is what a case asks.
func (c *testCase) request(at string, domains map[string]spiffeid.TrustDomain, set *access.Set, applied []access.Policy, wrong func(field, format string, args ...any)) *access.Request {
	q := &access.Request{HTTP: !c.TCP, Method: c.Method, Path: c.Path, Port: c.Port, Header: make(http.Header)}
	var err error
	if q.Caller, err = callerOf(c.Caller, domains); err != nil {
		wrong(at+".caller", "%v", err)
	}
	if q.HTTP && q.Method == "" {
		q.Method = http.MethodGet
	}
	if q.HTTP && q.Path == "" {
		q.Path = "/"
	}
	for name, value := range c.Headers {
		q.Header.Add(name, value)
	}
	if c.User == nil {
		return q
	}
	names := make(map[string]bool) // claims iss that are meant
	for _, p := range applied {
		for _, i := range p.Issuers {
			if c.User.Issuer == "" || i.Name == c.User.Issuer || i.Issuer == c.User.Issuer {
				names[i.Issuer] = true
			}
		}
	}
	if len(names) == 0 {
		wrong(at+".user.issuer", "%q is none of the policies' issuers", c.User.Issuer)
	}
	for _, i := range set.Issuers() {
		switch {
		case !names[i.Issuer]:
			q.Tokens = append(q.Tokens, access.Token{})
		case c.User.Invalid:
			q.Tokens = append(q.Tokens, access.Token{State: access.TokenInvalid})
		default:
			q.Tokens = append(q.Tokens, access.Token{State: access.TokenValid, User: &access.EndUser{
				Issuer: i.Issuer, Subject: c.User.Subject, Claims: objectOf(c.User.claims(i.Issuer)),
			}})
		}
	}
	return q
}

// claims are those of the token, the registered ones too.
func (u *user) claims(issuer string) map[string]any {
	out := map[string]any{"iss": issuer}
	if u.Subject != "" {
		out["sub"] = u.Subject
	}
	maps.Copy(out, u.Claims)
	return out
}

func objectOf(in map[string]any) map[string]access.Value {
	out := make(map[string]access.Value, len(in))
	for k, v := range in {
		out[k] = valueOf(v)
	}
	return out
}

// valueOf is a claim as JSON spells it.
func valueOf(v any) access.Value {
	switch v := v.(type) {
	case nil:
		return access.Value{}
	case string:
		return access.Value{Kind: access.Text, Text: v}
	case []any:
		out := access.Value{Kind: access.List}
		for _, e := range v {
			out.List = append(out.List, valueOf(e))
		}
		return out
	case map[string]any:
		return access.Value{Kind: access.Object, Object: objectOf(v)}
	default:
		var b bytes.Buffer
		if json.NewEncoder(&b).Encode(v) != nil {
			return access.Value{}
		}
		return access.Value{Kind: access.Text, Text: strings.TrimSpace(b.String())}
	}
}

// callerOf reads a SPIFFE ID, or cluster/namespace/service-account.
func callerOf(text string, domains map[string]spiffeid.TrustDomain) (spiffeid.ID, error) {
	if strings.HasPrefix(text, "spiffe://") {
		return spiffeid.FromString(text)
	}
	parts := strings.Split(text, "/")
	if len(parts) != 3 {
		return spiffeid.ID{}, fmt.Errorf("%q: want cluster/namespace/service-account, or a SPIFFE ID", text)
	}
	d, ok := domains[parts[0]]
	if !ok {
		return spiffeid.ID{}, fmt.Errorf("cluster %q is none of clusters", parts[0])
	}
	return trust.WorkloadID(d, parts[1], parts[2])
}

// judge compares what was decided with what is wanted.
func (c *testCase) judge(d access.Decision) Result {
	r := Result{Name: c.Name, Want: c.Want, Got: word(d.Verdict), Policy: d.Policy, Rule: d.Rule, Reason: d.Reason.String()}
	if r.Name == "" {
		r.Name = strings.TrimSpace(strings.Join([]string{c.Caller, c.Method, c.Path}, " "))
	}
	audit := word(d.Audit)
	switch {
	case r.Got != c.Want:
		r.Wrong = fmt.Sprintf("want %s, got %s %s", c.Want, r.Got, by(d.Verdict))
	case c.Rule != "" && c.Rule != d.Rule && !isRule(c.Rule, d.Verdict):
		r.Wrong = fmt.Sprintf("want it by rule %s, got %s %s", c.Rule, r.Got, by(d.Verdict))
	case c.Reason != "" && c.Reason != r.Reason:
		r.Wrong = fmt.Sprintf("want the reason %s, got %s %s", c.Reason, r.Got, by(d.Verdict))
	case c.Audit != "" && c.Audit != audit:
		r.Wrong = fmt.Sprintf("want %s of policies in audit mode, got %s %s", c.Audit, audit, by(d.Audit))
	}
	// Whoever asks for what a policy in audit mode would say is told so, as nothing else here tells of its mode.
	if r.Wrong != "" && d.Audit.Reason != access.NoPolicy && audit == c.Want && (c.Rule == "" || c.Rule == d.Audit.Rule || isRule(c.Rule, d.Audit)) {
		r.Wrong += fmt.Sprintf("; in audit mode it is %s %s: say enforce: true beside cases to have policies in audit mode tried as if they were enforced", audit, by(d.Audit))
	}
	return r
}

// isRule reports whether text names the rule that decided, with its policy's name or with namespace and name.
func isRule(text string, v access.Verdict) bool {
	_, name, _ := strings.Cut(v.Policy, "/")
	return text == v.Policy+"/"+v.Rule || text == name+"/"+v.Rule
}

func word(v access.Verdict) string {
	if v.Allowed {
		return allow
	}
	return deny
}

// by says who decided, and why.
func by(v access.Verdict) string {
	switch {
	case v.Policy == "":
		return "(" + v.Reason.String() + ")"
	case v.Rule == "":
		return "(" + v.Reason.String() + ", policy " + v.Policy + ")"
	default:
		return "by rule " + strconv.Quote(v.Rule) + " of " + v.Policy + " (" + v.Reason.String() + ")"
	}
}
