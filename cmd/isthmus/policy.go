package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/policy"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

func newPolicy(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Access policies: try them, see what applies, see what a change would do",
		Long: `An AccessPolicy says who may call a workload. test tries policies on a table of cases, without a mesh; effective shows what is in
force for a workload; simulate says what policies that are not in force yet would change for what workloads were asked lately.

docs/policy.md tells how to get from nothing to deny-by-default.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newPolicyTest(), newPolicyEffective(g), newPolicySimulate(g))
	return c
}

func formatFlag(c *cobra.Command, format *output.Format) {
	c.Flags().VarP(format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
}

func newPolicyTest() *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:   "test FILE...",
		Short: "Try access policies on tables of cases, offline",
		Long: `test reads tables of cases: who asks for what, and what shall become of it. What decides is what decides in a sidecar. The policies are
named by the table, or stand in the same file.

  clusters: {eu: eu.example, us: us.example}   # trust domains; cluster is the own one, that policies call Same
  cluster: us
  policies: [checkout.yaml]                    # relative to this file
  workload: {namespace: shop, labels: {app: checkout}}   # which is called; without it every policy is for it
  cases:
  - {name: the cart, caller: eu/shop/web, method: GET, path: /cart, want: allow, rule: web}
  - {name: strangers, caller: spiffe://ap.example/ns/shop/sa/web, path: /cart, want: deny}

With enforce: true beside cases, policies in audit mode are taken as if they were enforced.

A case may also have port, headers, user ({issuer, subject, claims}, or invalid: true), tcp (opaque bytes), reason, and audit (what policies
in audit mode say).

It exits with 1 when a case does not come out as it shall, and says in which line it stands.`,
		Example: example("isthmus policy test checkout_test.yaml", "isthmus policy test policies/*_test.yaml -o json"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("test what? Name a file with cases")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			var all []policy.Result
			for _, file := range args {
				results, err := policy.Test(file)
				if err != nil {
					return usage{err}
				}
				all = append(all, results...)
			}
			return printTest(c.OutOrStdout(), format, all)
		},
	}
	formatFlag(c, &format)
	return c
}

// tested is what policy test prints for programs.
type tested struct {
	Cases  []policy.Result `json:"cases"`
	Passed int             `json:"passed"`
	Failed int             `json:"failed"`
}

func printTest(w io.Writer, format output.Format, all []policy.Result) error {
	out := tested{Cases: all}
	for _, r := range all {
		if r.Wrong == "" {
			out.Passed++
		} else {
			out.Failed++
		}
	}
	if !format.IsTable() {
		if err := output.Write(w, format, out, nil); err != nil {
			return err
		}
	} else {
		for _, r := range all {
			var err error
			switch {
			case r.Wrong != "":
				_, err = fmt.Fprintf(w, "FAIL %s:%d: %s: %s\n", r.File, r.Line, r.Name, r.Wrong)
			case format == output.WideFormat:
				_, err = fmt.Fprintf(w, "ok   %s:%d: %s: %s (%s)\n", r.File, r.Line, r.Name, r.Got, strings.Trim(r.Policy+"/"+r.Rule+" "+r.Reason, "/ "))
			}
			if err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(w, "%d passed, %d failed\n", out.Passed, out.Failed); err != nil {
			return err
		}
	}
	if out.Failed > 0 {
		return finding{fmt.Sprintf("%d of %d cases did not come out as they shall", out.Failed, len(all))}
	}
	return nil
}

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

func newPolicySimulate(g *global) *cobra.Command {
	format := output.TableFormat
	var cluster string
	var remove []string
	c := &cobra.Command{
		Use:   "simulate FILE...",
		Short: "What access policies would change, for what workloads were asked lately",
		Long: `simulate takes the AccessPolicies of FILE as if they were in force in a cluster, in the place of those of their names, and asks the sidecars
of the workloads that they are for what they were asked since they started. It says what would be refused that is let through, and what
would be let through that is refused, by caller and rule. Those with mode Audit are taken as if they were enforced. Nothing is changed.

Sidecars remember who asked for which method and path, and no headers, queries or tokens: what hangs on these is told as "depends".

It exits with 1 when something would be refused that is let through now, or might be, and with 3 when none of these sidecars could be asked.`,
		Example: example("isthmus policy simulate checkout.yaml --cluster us", "isthmus policy simulate --remove shop/checkout --cluster us", "isthmus policy simulate *.yaml --context us -o json"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 && len(remove) == 0 {
				return errors.New("simulate what? Name a file with AccessPolicies, or a policy to --remove")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			proposed, err := policy.Read(args...)
			if err != nil {
				return usage{err}
			}
			if len(proposed) == 0 && len(remove) == 0 {
				return usage{fmt.Errorf("%s: no AccessPolicy in it", strings.Join(args, ", "))}
			}
			ctx, cancel := context.WithTimeout(c.Context(), g.timeout)
			defer cancel()
			t, err := g.one(ctx, cluster)
			if err != nil {
				return err
			}
			now, err := t.Policies(ctx)
			if err != nil {
				return err
			}
			plan, err := policy.NewPlan(now, proposed, remove)
			if err != nil {
				return usage{err}
			}
			s, err := simulate(ctx, t, plan)
			if err != nil {
				return err
			}
			return s.print(c.OutOrStdout(), format)
		},
	}
	formatFlag(c, &format)
	c.Flags().StringVar(&cluster, "cluster", "", "which `cluster` is meant, when there are several")
	c.Flags().StringSliceVar(&remove, "remove", nil, "take out the AccessPolicy `namespace/name`")
	return c
}

// simulation is what would change in a cluster.
type simulation struct {
	Changes  []policy.Change `json:"changes"`
	Requests uint64          `json:"requests"`
	Asked    []string        `json:"asked"`  // sidecars and node proxies
	Silent   []string        `json:"silent"` // that did not answer, and why
	// AsEnforced are policies in audit mode ("namespace/name"), which are taken as if they were enforced.
	AsEnforced []string `json:"as_enforced"`
}

func simulate(ctx context.Context, t target, plan *policy.Plan) (simulation, error) {
	out := simulation{Changes: []policy.Change{}, Asked: []string{}, Silent: []string{}, AsEnforced: []string{}}
	out.AsEnforced = append(out.AsEnforced, plan.AsEnforced()...)
	proxies, err := t.Proxies(ctx)
	if err != nil {
		return out, err
	}
	touched := plan.Touched()
	for _, receiver := range slices.Sorted(maps.Keys(touched)) {
		asked, err := askDecisions(ctx, t, proxies, receiver)
		if err != nil {
			if ctx.Err() != nil {
				return out, ctx.Err()
			}
			out.Silent = append(out.Silent, receiver+": "+err.Error())
			continue
		}
		out.Asked = append(out.Asked, receiver)
		for _, w := range touched[receiver] {
			changes, requests, err := plan.Simulate(&w, asked.Decisions)
			if err != nil {
				return out, err
			}
			out.Changes = append(out.Changes, changes...)
			out.Requests += requests
		}
	}
	return out, nil
}

// askDecisions asks a sidecar or a node proxy what it remembers.
func askDecisions(ctx context.Context, t target, proxies []admin.Proxy, receiver string) (admin.Decisions, error) {
	var out admin.Decisions
	i := slices.IndexFunc(proxies, func(p admin.Proxy) bool { return p.Program+"/"+p.Name == receiver })
	switch {
	case i < 0:
		return out, errors.New("it has not joined")
	case proxies[i].Admin == "":
		return out, errors.New("it has no admin listener (listen.admin)")
	}
	ask := listener(proxies[i].Admin, nil)
	if t.kube != nil {
		var err error
		if ask, err = inPod(t.kube, proxies[i]); err != nil {
			return out, err
		}
	}
	status, b, err := ask(ctx, "/decisions", nil)
	switch {
	case err != nil:
		return out, err
	case status == http.StatusNotFound:
		return out, errors.New("it is of a version that remembers nothing")
	case status != http.StatusOK:
		return out, fmt.Errorf("%d %s: %s", status, http.StatusText(status), strings.TrimSpace(string(b)))
	}
	return out, json.Unmarshal(b, &out)
}

func (s simulation) print(w io.Writer, format output.Format) error {
	worse := 0
	for _, c := range s.Changes {
		if c.Before.Decision != "deny" && c.After.Decision != "allow" {
			worse++
		}
	}
	if !format.IsTable() {
		if err := output.Write(w, format, s, nil); err != nil {
			return err
		}
	} else if err := s.printTable(w, format); err != nil {
		return err
	}
	if len(s.Asked) == 0 && len(s.Silent) > 0 {
		return fmt.Errorf("none of the sidecars that enforce it could be asked, so nothing is known: %w", admin.ErrUnreachable)
	}
	if worse > 0 {
		return finding{fmt.Sprintf("%d kinds of request that are let through would be refused, or might be", worse)}
	}
	return nil
}

func (s simulation) printTable(w io.Writer, format output.Format) error {
	if len(s.AsEnforced) > 0 {
		if _, err := fmt.Fprintf(w, "in audit mode, taken as if enforced: %s\n\n", list(s.AsEnforced)); err != nil {
			return err
		}
	}
	t := output.Table{
		Columns: []string{"WORKLOAD", "CALLER", "REQUEST", "COUNT", "NOW", "THEN", "BY"}, Wide: []string{"LAST", "REASON"},
		Empty: "nothing would change",
	}
	for _, c := range s.Changes {
		request := c.Asked.Method + " " + c.Asked.Path
		if c.Asked.Opaque {
			request = "tcp"
		}
		by := strings.Trim(c.After.Policy+"/"+c.After.Rule, "/")
		if by == "" || c.After.Rule == "" {
			by = strings.TrimSpace(by + " (" + c.After.Reason + ")")
		}
		t.Row(c.Workload, c.Asked.Caller, request, strconv.FormatUint(c.Asked.Count, 10), c.Before.Decision, c.After.Decision, by,
			c.Asked.Last.UTC().Format("2006-01-02 15:04:05"), c.After.Reason)
	}
	if err := output.Write(w, format, nil, func() output.Table { return t }); err != nil {
		return err
	}
	if len(s.Asked)+len(s.Silent) == 0 {
		_, err := fmt.Fprintln(w, "\nno workload is touched: none is selected, or no Service leads to those that are")
		return err
	}
	if _, err := fmt.Fprintf(w, "\n%d requests are remembered by %s\n", s.Requests, cmp.Or(list(s.Asked), "nobody")); err != nil {
		return err
	}
	for _, silent := range s.Silent {
		if _, err := fmt.Fprintf(w, "not asked: %s\n", silent); err != nil {
			return err
		}
	}
	return nil
}
