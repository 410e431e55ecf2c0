package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

func newDrill(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "drill",
		Short: "Rehearse a failover, before the bad day",
		Long: `A drill makes a service look dead in one cluster, for whoever calls it through the mesh, and measures what the callers see of that.
It is a lease: whatever is killed meanwhile, it ends by itself.`,
	}
	c.AddCommand(newDrillFailover(g), newDrillList(g), newDrillStop(g))
	return c
}

func newDrillList(g *global) *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:     "list",
		Short:   "Drills that are on, and the last ones that were",
		Example: example("isthmus drill list", "isthmus drill list -o json"),
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := askAll(c.Context(), g, (*admin.Client).Drills)
			if err != nil {
				return err
			}
			drills := []admin.Drill{}
			for _, a := range all {
				drills = append(drills, a.answer...)
			}
			err = output.Write(c.OutOrStdout(), format, drills, func() output.Table { return drillTable(drills) })
			return errors.Join(err, failures(all))
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

func drillTable(drills []admin.Drill) output.Table {
	t := output.Table{Columns: []string{"DRILL", "CLUSTER", "SERVICE", "HOW", "BEGAN", "STATE"}, Empty: "no drill is on"}
	for _, d := range drills {
		state := fmt.Sprintf("on, for %s more at most", max(d.Ends.Sub(d.Now), 0).Round(time.Second))
		if !d.Ended.IsZero() {
			state = fmt.Sprintf("over after %s: %s", d.Ended.Sub(d.Began).Round(100*time.Millisecond), d.Why)
		}
		t.Row(d.ID, d.Cluster, d.Service, d.How, d.Began.Local().Format(time.DateTime), state)
	}
	return t
}

func newDrillStop(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "stop {DRILL | SERVICE}",
		Short: "End a drill now",
		Long: `stop ends a drill, by its name or by its service's. Whoever measures it says that it proved nothing.

It exits with 1 when no such drill is on.`,
		Example: example("isthmus drill stop d-1a2b3c4d", "isthmus drill stop shop/checkout"),
		Args:    oneArg, ValidArgsFunction: g.completeDrills,
		RunE: func(c *cobra.Command, args []string) error {
			service := ""
			if isService(args[0]) {
				n, err := parseService(args[0])
				if err != nil {
					return err
				}
				service = n.String()
			}
			all, err := askAll(c.Context(), g, (*admin.Client).Drills)
			if err != nil {
				return err
			}
			stopped := 0
			for _, a := range all {
				for _, d := range a.answer {
					if !d.Ended.IsZero() || d.ID != args[0] && d.Service != service {
						continue
					}
					ctx, cancel := context.WithTimeout(c.Context(), g.timeout)
					over, err := a.client.EndDrill(ctx, d.ID)
					cancel()
					if err != nil && !isOver(err) {
						return err
					}
					stopped++
					_, _ = fmt.Fprintf(c.OutOrStdout(), "drill %s of %s in %s is over, after %s\n", d.ID, d.Service, d.Cluster, over.Ended.Sub(d.Began).Round(100*time.Millisecond))
				}
			}
			if stopped == 0 {
				return errors.Join(finding{"no drill " + args[0] + " is on"}, failures(all))
			}
			return nil
		},
	}
	return c
}

// completeDrills offers the drills that are on.
func (g *global) completeDrills(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if len(args) == 0 {
		for _, a := range askToComplete(g, c, (*admin.Client).Drills) {
			for _, d := range a.answer {
				if d.Ended.IsZero() {
					names = append(names, d.ID)
				}
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// isOver reports whether a control says that there is no such drill.
func isOver(err error) bool {
	said, ok := errors.AsType[*admin.Error](err)
	return ok && said.Status == http.StatusNotFound
}

// renewEvery is how often a drill's lease is renewed: several times in its 5 s.
const renewEvery = 1500 * time.Millisecond

// lease is a drill that is on, as long as it is renewed.
type lease struct {
	control target
	drill   admin.Drill
	renew   func(context.Context) error
	rival   func(context.Context, *admin.Drill) (admin.Drill, bool) // another drill that it has to give way to

	mu    sync.Mutex
	ended string // guarded by mu: why, if it ended before it was to
}

// keep renews the lease until ctx ends, or the drill does.
func (l *lease) keep(ctx context.Context) {
	held := time.Now() // since when it runs on without a word
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		asking, cancel := context.WithTimeout(ctx, renewEvery)
		err := l.renew(asking)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			held = time.Now()
			if to, there := l.rival(ctx, &l.drill); there && ctx.Err() == nil {
				l.end(gaveWay(&to))
				return
			}
		case isOver(err):
			l.over(ctx)
			return
		case time.Since(held) > l.drill.LeaseEnds.Sub(l.drill.Now):
			l.end("the control of " + l.drill.Cluster + " does not answer, so that the lease ran out")
			return
		}
	}
}

// over notes that a drill is over, and why.
func (l *lease) over(ctx context.Context) {
	why := "the control of " + l.drill.Cluster + " knows nothing of it any more (did it start again?)"
	asking, cancel := context.WithTimeout(ctx, renewEvery)
	defer cancel()
	if all, err := l.control.Drills(asking); err == nil {
		if i := slices.IndexFunc(all, func(d admin.Drill) bool { return d.ID == l.drill.ID }); i >= 0 {
			if !all[i].Ended.Before(all[i].Ends) {
				return // it was on for all of its time, by control's clock, which is a little ahead
			}
			why = all[i].Why
		}
	}
	l.end(why)
}

func (l *lease) end(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = why
}

// early returns why the drill ended before it was to; empty: it did not.
func (l *lease) early() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

// chatter says what is going on, with the time since it began.
type chatter struct {
	w     io.Writer
	began time.Time
}

func (c chatter) say(format string, args ...any) {
	_, _ = fmt.Fprintf(c.w, "%6.1fs  "+format+"\n", append([]any{time.Since(c.began).Seconds()}, args...)...)
}
