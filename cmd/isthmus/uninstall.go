package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/install"
)

func newUninstall(g *global) *cobra.Command {
	var (
		yes, dryRun bool
		o           install.RemoveOptions
	)
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take Isthmus out of Kubernetes clusters, without a trace",
		Long: `uninstall removes all that install and control wrote: the programs, imports, what is in CoreDNS, the kinds and what was
declared of them, the cluster's keys, and the namespace. Where somebody still uses it, or something would be lost, it shows who and what,
and does nothing without --yes. Kinds of the Multi-Cluster Services API that somebody else brought stay, with their ServiceExports.`,
		Example: example("isthmus uninstall --context kind-c1 --dry-run", "isthmus uninstall --context kind-c1 --yes"),
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx := c.Context()
			engines, err := g.engines(c)
			if err != nil {
				return err
			}
			found := make([]*install.Removal, len(engines))
			if err := onEach(engines, func(i int, e *install.Engine) (err error) {
				found[i], err = e.Survey(ctx, o)
				return err
			}); err != nil {
				return err
			}
			harmless := true
			for i, r := range found {
				if err := printRemoval(c.OutOrStdout(), engines[i].Context, r, dryRun); err != nil {
					return err
				}
				harmless = harmless && r.Harmless()
			}
			switch {
			case dryRun:
				return nil
			case !harmless && !yes:
				return finding{"nothing was removed: say --yes if all of this may go"}
			}
			return onEach(engines, func(i int, e *install.Engine) error {
				if found[i].Nothing() {
					return nil
				}
				if err := e.Remove(ctx, found[i], o); err != nil {
					return err
				}
				e.Say("Isthmus is gone")
				return nil
			})
		},
	}
	flags := c.Flags()
	flags.BoolVar(&yes, "yes", false, "do it though somebody uses it, or something is lost")
	flags.BoolVar(&dryRun, "dry-run", false, "show what would be removed, and remove nothing")
	flags.BoolVar(&o.KeepState, "keep-state", false, "keep the cluster's keys, in their Secret: installed again, it is the same to its peers")
	flags.DurationVar(&o.Timeout, "timeout", 3*time.Minute, "how long to wait until all is gone")
	return c
}

func printRemoval(w io.Writer, context string, r *install.Removal, objects bool) error {
	var s strings.Builder
	section := func(heading string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(&s, "  %s\n    %s\n", heading, strings.Join(lines, "\n    "))
		}
	}
	fmt.Fprintf(&s, "context %s", context)
	if r.Nothing() {
		s.WriteString(": nothing of Isthmus is there\n")
	} else {
		s.WriteString("\n")
	}
	section("in use:", r.Uses)
	section("lost for good:", r.Lost)
	if objects {
		section("removed:", r.Objects)
	}
	_, err := io.WriteString(w, s.String())
	return err
}
