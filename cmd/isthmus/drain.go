package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	defaultDrainOver = 10 * time.Second
	defaultDrainWait = 5 * time.Minute
	drainLook        = 500 * time.Millisecond // between two looks at how far it has come
)

// draining is one isthmus drain, or undrain.
type draining struct {
	*global
	format              output.Format
	cluster             string
	over                time.Duration
	wait, force, dryRun bool
	undo                bool
	stdout, chatter     io.Writer
}

func newDrain(g *global) *cobra.Command {
	d := draining{global: g, format: output.TableFormat}
	c := &cobra.Command{
		Use:   "drain {CLUSTER | SERVICE [--cluster CLUSTER]}",
		Short: "Take a cluster or a service's copies there out of use, without breaking anything",
		Long: `drain is the owner's word that copies get nothing new. Callers everywhere send them less and less, until after --over they send nothing; what is
under way ends by itself: requests, streams and WebSockets live on until they are done. The copies stay where they are, and are called if nothing
else is left. The word stays until isthmus undrain, also over restarts.

  CLUSTER   all services that it exports. What is not exported is not touched: nothing else could serve it
  SERVICE   its copies in one cluster. NAMESPACE/NAME, or NAME.NAMESPACE

With --wait it says what still comes in and from where, and ends when it is safe to take the copies away: nothing has come in for 10 s. When
the time is up before (--timeout, with --wait 5m), it exits with 4; what is drained stays so.

It is refused, with the list, when no other cluster has ready copies of something; --force does it all the same. Only calls through the mesh are moved:
who calls a Kubernetes Service without a sidecar goes on doing so.`,
		Example: example("isthmus drain us --wait", "isthmus drain shop/checkout --cluster us --over 1m", "isthmus drain us --dry-run", "isthmus undrain us"),
		Args:    oneArg, ValidArgsFunction: g.completeDrain,
		RunE: func(c *cobra.Command, args []string) error { return d.run(c, args[0]) },
	}
	flags := c.Flags()
	flags.DurationVar(&d.over, "over", defaultDrainOver, "how long the share of the copies takes to go to zero; whole seconds")
	flags.BoolVar(&d.wait, "wait", false, "until it is safe to take the copies away")
	flags.BoolVar(&d.force, "force", false, "although nothing else serves some of it")
	d.flags(c, "say what it would do, and do nothing")
	return c
}

func newUndrain(g *global) *cobra.Command {
	d := draining{global: g, format: output.TableFormat, undo: true}
	c := &cobra.Command{
		Use:   "undrain {CLUSTER | SERVICE [--cluster CLUSTER]}",
		Short: "Take a cluster or a service's copies there into use again",
		Long: `undrain takes back what isthmus drain said. Callers come back as their FailoverPolicy has it (failback): without one at once.

A service that was drained by name stays so when its cluster is undrained, and the other way round. To undrain what is not drained is no error; a service that the cluster does not have is one.`,
		Example: example("isthmus undrain us", "isthmus undrain shop/checkout --cluster us"),
		Args:    oneArg, ValidArgsFunction: g.completeDrain,
		RunE: func(c *cobra.Command, args []string) error { return d.run(c, args[0]) },
	}
	d.flags(c, "say what it would do, and do nothing")
	return c
}

func (d *draining) flags(c *cobra.Command, dry string) {
	flags := c.Flags()
	flags.StringVar(&d.cluster, "cluster", "", "`name` of the cluster in which the service's copies are meant")
	flags.BoolVar(&d.dryRun, "dry-run", false, dry)
	flags.VarP(&d.format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
}

// completeDrain offers clusters, and their services.
func (g *global) completeDrain(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if len(args) == 0 {
		for _, a := range askToComplete(g, c, (*admin.Client).Services) {
			names = append(names, a.status.Cluster)
			for _, s := range a.answer {
				names = append(names, s.Namespace+"/"+s.Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}

func (d *draining) run(c *cobra.Command, what string) error {
	d.stdout, d.chatter = c.OutOrStdout(), c.ErrOrStderr()
	cluster, service := what, ""
	var name topology.ServiceName
	if isService(what) {
		var err error
		if name, err = parseService(what); err != nil {
			return err
		}
		cluster, service = d.cluster, name.String()
	} else if d.cluster != "" && d.cluster != what {
		return usage{fmt.Errorf("--cluster %s doesn't go with cluster %s", d.cluster, what)}
	}
	if d.over < 0 || d.over%time.Second != 0 {
		return usage{fmt.Errorf("--over %s: want whole seconds, 0 or more", d.over)}
	}
	if d.wait && d.dryRun {
		return usage{errors.New("--wait doesn't go with --dry-run")}
	}
	patience := defaultDrainWait
	if c.Flags().Changed("timeout") {
		patience = d.timeout
	}
	ctx, cancel := context.WithTimeout(c.Context(), d.timeout)
	defer cancel()
	control, err := d.one(ctx, cluster)
	if err != nil {
		return err
	}
	var now admin.Drains
	if d.undo {
		now, err = control.Undrain(ctx, service, d.dryRun)
	} else {
		now, err = control.Drain(ctx, admin.DrainRequest{Service: service, Over: d.over, Force: d.force, DryRun: d.dryRun})
	}
	if err != nil {
		if none := d.noService(ctx, err, cluster, name, what); service != "" && none != nil {
			return none
		}
		return advise(err, d.force)
	}
	d.say(now, cmp.Or(service, "cluster "+now.Cluster))
	if d.wait {
		waiting, cancel := context.WithTimeout(c.Context(), patience)
		defer cancel()
		if now, err = d.await(waiting, control, service); err != nil {
			return err
		}
	}
	if service != "" {
		now.Services = slices.DeleteFunc(now.Services, func(s admin.DrainedService) bool { return s.Service != service })
	}
	if err = output.Write(d.stdout, d.format, now, func() output.Table { return drainTable([]admin.Drains{now}) }); err != nil {
		return err
	}
	if d.format.IsTable() && len(now.Untouched) > 0 {
		_, err = fmt.Fprintf(d.stdout, "\nNot exported, so not touched: %s\n", list(now.Untouched))
	}
	return err
}

// advise says what to do about a refusal.
func advise(err error, forced bool) error {
	if said, ok := errors.AsType[*admin.Error](err); ok && said.Status == http.StatusConflict && !forced {
		return advised{finding{said.Message}, "Where callers may fail, or go on calling these copies, --force drains all the same."}
	}
	return err
}

// say tells what was done.
func (d *draining) say(now admin.Drains, what string) {
	var said string
	switch {
	case d.dryRun:
		return
	case d.undo && now.Already:
		said = what + " is not drained"
	case d.undo:
		said = what + " is in use again"
		if still := len(now.Services); still > 0 && what == "cluster "+now.Cluster {
			said += fmt.Sprintf(", but for what is drained by name: %d service(s), below", still)
		}
	case now.Already:
		said = what + " is drained already"
	default:
		undo := now.Cluster
		if what != "cluster "+now.Cluster {
			undo = what + " --cluster " + now.Cluster
		}
		said = fmt.Sprintf("%s is drained, over %s. Undo it with: isthmus undrain %s", what, d.over, undo)
	}
	_, _ = fmt.Fprintln(d.chatter, said)
}

// await looks until what is drained is safe to take away, and says what still comes in whenever that changes.
func (d *draining) await(ctx context.Context, control target, service string) (admin.Drains, error) {
	told := ""
	var last admin.Drains
	for {
		now, err := control.Drains(ctx)
		switch {
		case ctx.Err() != nil:
			return last, fmt.Errorf("not safe yet, and it stays drained: %s: %w", pending(last, service), context.DeadlineExceeded)
		case err != nil:
			return now, err
		}
		last = now
		if safe(now, service) {
			return now, nil
		}
		if text := pending(now, service); text != told {
			told = text
			_, _ = fmt.Fprintln(d.chatter, text)
		}
		select {
		case <-ctx.Done():
		case <-time.After(drainLook):
		}
	}
}

// safe reports whether a service (empty: all that is drained) can be taken away.
func safe(now admin.Drains, service string) bool {
	if service == "" {
		return now.Safe
	}
	i := slices.IndexFunc(now.Services, func(s admin.DrainedService) bool { return s.Service == service })
	return i >= 0 && now.Services[i].Safe
}

// pending says what is not safe yet.
func pending(now admin.Drains, service string) string {
	var parts []string
	for _, s := range now.Services {
		if !s.Safe && (service == "" || service == s.Service) {
			parts = append(parts, s.Service+": "+s.Why+callersText(s.Callers))
		}
	}
	if len(parts) == 0 {
		return "nothing of it is drained"
	}
	return strings.Join(parts, "; ")
}

func callersText(callers []admin.DrainCaller) string {
	var parts []string
	for _, c := range callers {
		parts = append(parts, fmt.Sprintf("%s %d open, %s/s", c.Cluster, c.Active, rateText(c.Rate)))
	}
	if len(parts) == 0 {
		return ""
	}
	return " (from " + strings.Join(parts, "; ") + ")"
}

func rateText(r float64) string { return strconv.FormatFloat(r, 'f', 1, 64) }

func drainTable(all []admin.Drains) output.Table {
	t := output.Table{
		Columns: []string{"CLUSTER", "DRAINED", "SINCE", "OVER", "OPEN", "REQUESTS/S", "FROM", "ELSEWHERE", "SAFE"},
		Empty:   "nothing is drained",
	}
	if len(all) == 1 && all[0].Cluster != "" {
		t.Empty += " in " + all[0].Cluster
	}
	for _, d := range all {
		for _, s := range d.Services {
			from := make([]string, 0, len(s.Callers))
			for _, c := range s.Callers {
				from = append(from, c.Cluster)
			}
			var elsewhere []string
			for _, e := range s.Elsewhere {
				elsewhere = append(elsewhere, e.Cluster+" ("+cmp.Or(e.Problem, strconv.Itoa(e.Ready)+" ready")+")")
			}
			t.Row(d.Cluster, s.Service, age(d.Now, s.Began), s.Over.String(), strconv.FormatUint(s.Active, 10), rateText(s.Rate),
				list(from), list(elsewhere), s.Why)
		}
	}
	return t
}
