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

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/policy"
)

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
