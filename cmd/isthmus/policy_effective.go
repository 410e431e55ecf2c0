package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

func newPolicyEffective(g *global) *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:   "effective CLUSTER/WORKLOAD",
		Short: "Which policies are for a workload, in the order in which they decide",
		Long: `effective asks a cluster's control which AccessPolicies and QuotaPolicies are for a workload, and shows their rules in the order in which
they decide: rules that deny come first, whatever policy they are of; then those that allow; what none allows is refused. Policies in audit
mode are reckoned apart, and change nothing. Policies without rules allow nothing, and stand below. After that come the quotas, each of which must have room.

WORKLOAD is namespace/name, or the name alone where one workload has it.`,
		Example:           example("isthmus policy effective us/checkout-0", "isthmus policy effective us/shop/checkout-0 -o json"),
		Args:              oneArg,
		ValidArgsFunction: g.completeWorkloads,
		RunE: func(c *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), g.timeout)
			defer cancel()
			all, workload, err := g.policed(ctx, args[0])
			if err != nil {
				return err
			}
			e, err := effectiveOf(all, workload)
			if err != nil {
				return err
			}
			return e.print(c.OutOrStdout(), format)
		},
	}
	formatFlag(c, &format)
	return c
}

// policed asks the control of a workload's cluster what is for it.
func (g *global) policed(ctx context.Context, name string) (admin.Policies, admin.PolicedWorkload, error) {
	cluster, name, ok := strings.Cut(name, "/")
	if !ok {
		return admin.Policies{}, admin.PolicedWorkload{}, usage{fmt.Errorf("workload %q: want CLUSTER/WORKLOAD, for example us/checkout-0", cluster)}
	}
	targets, err := g.targets()
	if err != nil {
		return admin.Policies{}, admin.PolicedWorkload{}, err
	}
	if i := slices.IndexFunc(targets, func(t target) bool { return t.cluster == cluster }); i >= 0 {
		targets = targets[i : i+1]
	}
	answers := askEach(ctx, g.timeout, targets, (*admin.Client).Policies)
	for _, a := range answers {
		if a.err == nil && a.answer.Cluster == cluster {
			w, err := workloadIn(a.answer, name)
			return a.answer, w, err
		}
	}
	return admin.Policies{}, admin.PolicedWorkload{}, noCluster(cluster, answers)
}

// workloadIn finds a workload, "web" or "shop/web".
func workloadIn(p admin.Policies, name string) (admin.PolicedWorkload, error) {
	var names, found []string
	var out admin.PolicedWorkload
	for _, w := range p.Workloads {
		names = append(names, p.Cluster+"/"+w.ID)
		if w.ID == name {
			return w, nil
		}
		if strings.HasSuffix(w.ID, "/"+name) {
			found, out = append(found, p.Cluster+"/"+w.ID), w
		}
	}
	switch len(found) {
	case 1:
		return out, nil
	case 0:
		return out, usage{fmt.Errorf("cluster %s knows no workload %q; it knows: %s", p.Cluster, name, list(names))}
	default:
		return out, usage{fmt.Errorf("which of these is meant? %s", list(found))}
	}
}

// effective is what is for a workload.
type effective struct {
	Cluster  string                `json:"cluster"`
	Workload admin.PolicedWorkload `json:"workload"`
	// Default is what becomes of a request that no rule matches.
	Default string `json:"default"`
	// Policies are those that are for it, also those without rules.
	Policies []effectivePolicy `json:"policies"`
	Rules    []effectiveRule   `json:"rules"` // in the order in which they decide; those of policies in audit mode last
	Quotas   []effectiveQuota  `json:"quotas"`
}

type effectivePolicy struct {
	Policy  string `json:"policy"`
	Audit   bool   `json:"audit"`
	Perhaps bool   `json:"perhaps,omitempty"` // see AppliedPolicy
	Closed  bool   `json:"closed,omitempty"`  // it is not understood, and refuses everything
	Rules   int    `json:"rules"`             // that count for the workload
}

type effectiveRule struct {
	Policy  string `json:"policy"`
	Rule    string `json:"rule"`
	Action  string `json:"action"` // deny or allow
	Audit   bool   `json:"audit"`
	Perhaps bool   `json:"perhaps,omitempty"` // see AppliedPolicy
	// What it matches; a list that isn't there matches everything.
	From  []effectiveSource    `json:"from,omitempty"`
	To    []effectiveOperation `json:"to,omitempty"`
	Users []effectiveUser      `json:"end_users,omitempty"`

	rule access.Rule
}

// What follows is access.Source and so on for programs: patterns as manifests spell them, under names that stay.

type effectiveSource struct {
	Principals      []string `json:"principals,omitempty"`
	TrustDomains    []string `json:"trust_domains,omitempty"`
	Namespaces      []string `json:"namespaces,omitempty"`
	ServiceAccounts []string `json:"service_accounts,omitempty"`
	Nobody          bool     `json:"nobody,omitempty"` // it names only what does not exist
}

type effectiveOperation struct {
	Methods []string          `json:"methods,omitempty"`
	Paths   []string          `json:"paths,omitempty"`
	Ports   []uint16          `json:"ports,omitempty"`
	Headers []effectiveHeader `json:"headers,omitempty"`
}

type effectiveHeader struct {
	Name   string   `json:"name"`
	Values []string `json:"values,omitempty"`
	Absent bool     `json:"absent,omitempty"`
}

type effectiveUser struct {
	Issuer string           `json:"issuer,omitempty"`
	Claims []effectiveClaim `json:"claims,omitempty"`
}

type effectiveClaim struct {
	Path   []string `json:"path"`
	Values []string `json:"values"`
}

// mapped is what f makes of each; nil of none.
func mapped[T, U any](in []T, f func(T) U) []U {
	var out []U
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

func sourceOf(s access.Source) effectiveSource {
	return effectiveSource{
		Principals: mapped(s.Principals, patternText), TrustDomains: mapped(s.Domains, spiffeid.TrustDomain.Name),
		Namespaces: s.Namespaces, ServiceAccounts: s.ServiceAccounts, Nobody: s.Nobody,
	}
}

func operationOf(o access.Operation) effectiveOperation {
	return effectiveOperation{
		Methods: o.Methods, Paths: mapped(o.Paths, patternText), Ports: o.Ports,
		Headers: mapped(o.Headers, func(h access.Header) effectiveHeader {
			return effectiveHeader{Name: h.Name, Values: mapped(h.Values, patternText), Absent: h.Absent}
		}),
	}
}

func userOf(u access.User) effectiveUser {
	return effectiveUser{Issuer: u.Issuer, Claims: mapped(u.Claims, func(c access.Claim) effectiveClaim {
		return effectiveClaim{Path: c.Path, Values: mapped(c.Values, patternText)}
	})}
}

type effectiveQuota struct {
	Policy string           `json:"policy"`
	Audit  bool             `json:"audit"`
	Limit  admin.QuotaLimit `json:"limit"`
}

func effectiveOf(all admin.Policies, w admin.PolicedWorkload) (effective, error) {
	out := effective{Cluster: all.Cluster, Workload: w, Default: "allow", Policies: []effectivePolicy{}, Rules: []effectiveRule{}, Quotas: []effectiveQuota{}}
	byName := make(map[string]admin.Policy)
	for _, p := range all.Policies {
		byName[p.Kind+p.Namespace+"/"+p.Name] = p
	}
	for _, a := range w.Access {
		p := byName["AccessPolicy"+a.Policy]
		var rules access.Policy
		if err := json.Unmarshal(p.Access, &rules); err != nil {
			return out, fmt.Errorf("policy %s: %w", a.Policy, err)
		}
		if !p.Audit {
			out.Default = "deny"
		}
		applied := effectivePolicy{Policy: a.Policy, Audit: p.Audit, Perhaps: a.Perhaps, Closed: p.Closed}
		for _, r := range rules.Rules {
			if a.Perhaps && !r.Deny {
				continue
			}
			applied.Rules++
			action := "allow"
			if r.Deny {
				action = "deny"
			}
			out.Rules = append(out.Rules, effectiveRule{
				Policy: a.Policy, Rule: r.Name, Action: action, Audit: p.Audit, Perhaps: a.Perhaps,
				From: mapped(r.From, sourceOf), To: mapped(r.To, operationOf), Users: mapped(r.Users, userOf), rule: r,
			})
		}
		out.Policies = append(out.Policies, applied)
	}
	slices.SortStableFunc(out.Rules, func(a, b effectiveRule) int {
		return cmp.Or(compareBool(a.Audit, b.Audit), -cmp.Compare(a.Action, b.Action)) // "deny" is greater than "allow"
	})
	for _, a := range w.Quotas {
		p := byName["QuotaPolicy"+a.Policy]
		for _, l := range p.Limits {
			out.Quotas = append(out.Quotas, effectiveQuota{a.Policy, p.Audit, l})
		}
	}
	return out, nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

func (e effective) print(w io.Writer, format output.Format) error {
	if !format.IsTable() {
		return output.Write(w, format, e, nil)
	}
	enforced := list(e.Workload.Enforced)
	if len(e.Workload.Enforced) == 0 {
		enforced = "nobody: it has no sidecar and no node proxy stands in for it, or no Service leads to it"
	}
	_, err := fmt.Fprintf(w, "%s/%s, enforced by %s:\n\n", e.Cluster, e.Workload.ID, enforced)
	if err != nil {
		return err
	}
	t := output.Table{Columns: []string{"ORDER", "ACTION", "POLICY", "RULE", "FROM", "TO", "END USERS"}, Empty: "no rules"}
	for i, r := range e.Rules {
		action := r.Action
		if r.Audit {
			action += " (audit)"
		}
		name := r.Policy
		if r.Perhaps {
			name += " (perhaps)"
		}
		t.Row(strconv.Itoa(i+1), action, name, r.Rule, sourcesText(r.rule.From), operationsText(r.rule.To), usersText(r.rule.Users))
	}
	for _, p := range e.Policies {
		if p.Rules > 0 {
			continue
		}
		action, name := "none", p.Policy
		if p.Audit {
			action += " (audit)"
		}
		if p.Perhaps {
			name += " (perhaps)"
		}
		t.Row("-", action, name, "-", "-", "-", "-")
	}
	if err = output.Write(w, format, nil, func() output.Table { return t }); err != nil {
		return err
	}
	last := "no enforcing policy is for it: everybody may whom the mesh lets in"
	if e.Default == "deny" {
		last = "what no rule allows is refused"
	}
	if _, err = fmt.Fprintf(w, "\n%s\n", last); err != nil || len(e.Quotas) == 0 {
		return err
	}
	q := output.Table{Columns: []string{"QUOTA", "PER", "REQUESTS", "WINDOW", "BURST", "SHARED", "MODE"}}
	for _, x := range e.Quotas {
		mode := "enforce"
		if x.Audit {
			mode = "audit"
		}
		q.Row(x.Policy+"/"+x.Limit.Name, x.Limit.Per, strconv.FormatUint(uint64(x.Limit.Requests), 10), x.Limit.Window.String(),
			strconv.FormatUint(uint64(x.Limit.Burst), 10), strconv.FormatBool(x.Limit.Shared), mode)
	}
	if _, err = fmt.Fprintln(w); err != nil {
		return err
	}
	return output.Write(w, format, nil, func() output.Table { return q })
}

const anything = "*"

func patternText(p access.Pattern) string {
	switch p.Kind {
	case access.Prefix:
		return p.Text + "*"
	case access.Suffix:
		return "*" + p.Text
	case access.Exact:
	}
	return p.Text
}

func texts[T any](in []T, text func(T) string) string {
	return strings.Join(mapped(in, text), ",")
}

// anyOf joins the fields of each entry, and the entries.
func anyOf[T any](in []T, fields func(T) []string) string {
	if len(in) == 0 {
		return anything
	}
	return strings.Join(slices.Collect(func(yield func(string) bool) {
		for _, v := range in {
			parts := slices.DeleteFunc(fields(v), func(s string) bool { return s == "" })
			if len(parts) == 0 {
				parts = []string{anything}
			}
			if !yield(strings.Join(parts, " ")) {
				return
			}
		}
	}), " or ")
}

func labelled(name, value string) string {
	if value == "" {
		return ""
	}
	return name + "=" + value
}

func sourcesText(in []access.Source) string {
	return anyOf(in, func(s access.Source) []string {
		if s.Nobody {
			return []string{"nobody"}
		}
		domains := make([]string, 0, len(s.Domains))
		for _, d := range s.Domains {
			domains = append(domains, d.Name())
		}
		return []string{
			texts(s.Principals, patternText), labelled("domain", strings.Join(domains, ",")),
			labelled("ns", strings.Join(s.Namespaces, ",")), labelled("sa", strings.Join(s.ServiceAccounts, ",")),
		}
	})
}

func operationsText(in []access.Operation) string {
	return anyOf(in, func(o access.Operation) []string {
		return []string{
			strings.Join(o.Methods, ","), texts(o.Paths, patternText),
			labelled("port", texts(o.Ports, func(p uint16) string { return strconv.Itoa(int(p)) })),
			texts(o.Headers, func(h access.Header) string {
				switch {
				case h.Absent:
					return "no " + h.Name
				case len(h.Values) == 0:
					return h.Name
				}
				return h.Name + "=" + texts(h.Values, patternText)
			}),
		}
	})
}

func usersText(in []access.User) string {
	if len(in) == 0 {
		return "-"
	}
	return anyOf(in, func(u access.User) []string {
		return []string{u.Issuer, texts(u.Claims, func(c access.Claim) string { return strings.Join(c.Path, ".") + "=" + texts(c.Values, patternText) })}
	})
}
