package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/check"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
	"github.com/isthmus-mesh/isthmus/internal/version"
)

// checked is what isthmus check -o json prints.
type checked struct {
	Clusters []checkedCluster  `json:"clusters"`
	Results  []check.Result    `json:"results"`
	Reach    [][]check.Reached `json:"reach,omitempty"` // a row for each cluster that answers, where there are two
}

type checkedCluster struct {
	Name      string `json:"name"`              // the context or the socket
	Cluster   string `json:"cluster,omitempty"` // what it calls itself
	Installed bool   `json:"installed"`
}

func newCheck(g *global) *cobra.Command {
	var (
		format           = output.TableFormat
		onlyBefore, list bool
		cidr             string
	)
	c := &cobra.Command{
		Use:   "check",
		Short: "Whether clusters can take Isthmus, whether it stands as it should, and who reaches whom",
		Long: `check looks at each cluster and says what is not as it should be, what was expected, and what to do. Of a Kubernetes cluster without
Isthmus it says whether it could be installed; --before says so of any. Of several clusters it also says who reaches whom.

It changes nothing: what has to be tried is tried in a dry run of the API server. It exits with 1 when a check failed or could not be
made. "isthmus explain ISTnnnn" says what a check is about, and --list lists them all.`,
		Example: example("isthmus check --context eu --before", "isthmus check --context eu,us", "isthmus check -o json | jq '.results[] | select(.status != \"ok\")'"),
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if list {
				return output.Write(c.OutOrStdout(), format, check.All(), listChecks)
			}
			clusters, err := g.gather(c.Context(), check.Options{
				Namespace: g.namespace, CIDR: cidr, Version: version.String(), Timeout: g.timeout, Probe: []string{"/isthmus", "probe"},
			})
			if err != nil {
				return err
			}
			return printChecked(c.OutOrStdout(), format, clusters, check.Judge(clusters, onlyBefore), onlyBefore)
		},
	}
	flags := c.Flags()
	flags.BoolVar(&onlyBefore, "before", false, "only what needs to be so before Isthmus is installed")
	flags.BoolVar(&list, "list", false, "list the checks, and look at nothing")
	flags.StringVar(&cidr, "clusterset-cidr", "241.0.0.0/8", "the `prefix` that imports would have where Isthmus is not installed")
	flags.VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

// gather looks at all clusters that are meant, at once.
func (g *global) gather(ctx context.Context, o check.Options) ([]*check.Cluster, error) {
	targets, err := g.targets()
	if err != nil {
		return nil, err
	}
	out := make([]*check.Cluster, len(targets))
	var all sync.WaitGroup
	for i, t := range targets {
		all.Go(func() {
			name := cmp.Or(t.cluster, t.Where())
			if t.kube != nil {
				name = t.kube.Context
			}
			out[i] = check.Gather(ctx, name, t.Client, t.kube, o)
		})
	}
	all.Wait()
	return out, ctx.Err()
}

func listChecks() output.Table {
	t := output.Table{Columns: []string{"ID", "CHECK", "EXPECTED"}, Wide: []string{"WHAT TO DO"}}
	for _, c := range check.All() {
		t.Row(c.ID, c.Title, c.Expected, c.Fix)
	}
	return t
}

func printChecked(w io.Writer, format output.Format, clusters []*check.Cluster, results []check.Result, onlyBefore bool) error {
	all := checked{Results: results}
	var answered []*check.Cluster
	for _, c := range clusters {
		cc := checkedCluster{Name: c.Name, Installed: c.Installed()}
		if c.Control.Value != nil {
			cc.Cluster = c.Control.Value.Status.Cluster
			answered = append(answered, c)
		}
		all.Clusters = append(all.Clusters, cc)
	}
	if len(answered) > 1 && !onlyBefore {
		all.Reach = check.Reach(answered)
	}
	bad, warnings := 0, 0
	for i := range results {
		switch {
		case results[i].Bad():
			bad++
		case results[i].Status == check.Warning:
			warnings++
		}
	}
	var err error
	if format.IsTable() {
		err = printCheckTables(w, format, &all, bad, warnings)
	} else {
		err = output.Write(w, format, all, nil)
	}
	if err == nil && bad > 0 {
		err = finding{fmt.Sprintf("%d of %d checks did not pass", bad, len(results))}
	}
	return err
}

func printCheckTables(w io.Writer, format output.Format, all *checked, bad, warnings int) error {
	t := output.Table{Columns: []string{"CLUSTER", "CHECK", "STATUS", "WHAT", "FOUND"}, Wide: []string{"EXPECTED"}}
	var todo strings.Builder
	for i := range all.Results {
		r := &all.Results[i]
		found := strings.Join(r.Found, "; ")
		if format != output.WideFormat {
			found = shortened(found)
		}
		t.Row(cmp.Or(r.Cluster, "all"), r.ID, string(r.Status), r.Title, found, r.Expected)
		if !r.Bad() && r.Status != check.Warning || r.Because != "" {
			continue
		}
		fmt.Fprintf(&todo, "\n%s %s in %s: %s\n", r.ID, r.Status, cmp.Or(r.Cluster, "all"), r.Title)
		for _, f := range r.Found {
			fmt.Fprintf(&todo, "  found       %s\n", f)
		}
		fmt.Fprintf(&todo, "  expected    %s\n  what to do  %s\n", r.Expected, r.Fix)
	}
	if err := output.Write(w, format, nil, func() output.Table { return t }); err != nil {
		return err
	}
	if len(all.Reach) > 0 {
		_, _ = fmt.Fprintln(w) // the next write has the error
		if err := output.Write(w, format, nil, func() output.Table { return matrix(all.Reach) }); err != nil {
			return err
		}
	}
	for _, c := range all.Clusters {
		if !c.Installed {
			_, _ = fmt.Fprintf(&todo, "\nIsthmus is not installed in %s. Next: isthmus install --context %s\n", c.Name, shellQuote(c.Name))
		}
	}
	_, err := fmt.Fprintf(w, "%s\n%d checks: %d did not pass, %d warnings\n", todo.String(), len(all.Results), bad, warnings)
	return err
}

// foundWidth is how much of what was found a line of the table has; all of it is below.
const foundWidth = 60

func shortened(s string) string {
	if r := []rune(s); len(r) > foundWidth {
		return string(r[:foundWidth-1]) + "…"
	}
	return s
}

// matrix says who reaches whom.
func matrix(reach [][]check.Reached) output.Table {
	t := output.Table{Columns: []string{"FROM \\ TO"}}
	for _, row := range reach {
		t.Columns = append(t.Columns, row[0].From)
		cells := []string{row[0].From}
		for _, r := range row {
			cells = append(cells, r.How)
		}
		t.Row(cells...)
	}
	return t
}

// newProbe is what check runs beside control. It is no verb for people.
func newProbe() *cobra.Command {
	return &cobra.Command{
		Use:    "probe NAME",
		Short:  "Asks DNS for the TXT records of a name",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := io.WriteString(c.OutOrStdout(), kubeaccess.Greeting); err != nil {
				return err
			}
			return json.NewEncoder(c.OutOrStdout()).Encode(probe(c.Context(), net.DefaultResolver, args[0]))
		},
	}
}

// probeTimeout is shorter than what check waits for an answer.
const probeTimeout = 5 * time.Second

func probe(ctx context.Context, r *net.Resolver, name string) check.Probe {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	txt, err := r.LookupTXT(ctx, strings.TrimSuffix(name, ".")+".") // as it is, and not below the domains that resolv.conf searches
	out := check.Probe{TXT: txt}
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		out.Error = dns.Err + " (" + dns.Server + ")"
	case err != nil:
		out.Error = err.Error()
	}
	return out
}
