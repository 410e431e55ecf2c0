package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/lab"
)

func newPlaygroundBreak(p *playground) *cobra.Command {
	return &cobra.Command{
		Use:   "break TARGET...",
		Short: "Kill a cluster, a program or a workload (SIGKILL)",
		Long: `break kills what the targets name, all at one moment, as a crash would (SIGKILL). "isthmus playground --help" lists what can be a
target; "isthmus playground heal" brings it back.`,
		Example:           example("isthmus playground break us", "isthmus playground break us/gateway-0 us/control", "isthmus playground break us/checkout"),
		Args:              someTargets,
		ValidArgsFunction: p.completeTargets,
		RunE: func(c *cobra.Command, args []string) error {
			pg, err := p.openUp()
			if err != nil {
				return err
			}
			defer pg.Close()
			dead, err := pg.Break(c.Context(), args...)
			each(c, "killed", dead)
			if err == nil && len(dead) == 0 {
				_, _ = fmt.Fprintln(c.ErrOrStderr(), "nothing of that was running")
			}
			return err
		},
	}
}

func newPlaygroundHeal(p *playground) *cobra.Command {
	return &cobra.Command{
		Use:   "heal [TARGET...]",
		Short: "Start again what is dead",
		Long: `heal starts again what the targets name and does not run (without targets: everything), and returns when it is ready and linked. Callers
that found it wanting try it again in their own time, within seconds. A program whose control
plane is dead starts with the state that it has on disk.`,
		Example:           example("isthmus playground heal", "isthmus playground heal us/gateway-0"),
		ValidArgsFunction: p.completeTargets,
		RunE: func(c *cobra.Command, args []string) error {
			pg, err := p.openUp()
			if err != nil {
				return err
			}
			defer pg.Close()
			started, err := pg.Heal(c.Context(), args...)
			each(c, "started", started)
			if err != nil {
				return err
			}
			if len(started) == 0 {
				if err := ready(c.Context(), pg, args...); err != nil {
					return err
				}
				_, _ = fmt.Fprintln(c.ErrOrStderr(), "all of that is running")
				return nil
			}
			return pg.Settle(c.Context())
		},
	}
}

// ready is an error when something runs that is not ready: starting what is dead is no help there.
func ready(ctx context.Context, pg *lab.Playground, targets ...string) error {
	sick, err := pg.NotReady(ctx, targets...)
	if err != nil || len(sick) == 0 {
		return err
	}
	return finding{"running, but not ready:\n  " + strings.Join(sick, "\n  ") + "\nTo start one anew, break it first (isthmus playground break TARGET), then heal."}
}

func newPlaygroundDown(p *playground) *cobra.Command {
	var keep bool
	grace := 5 * time.Second
	var runtime string
	c := &cobra.Command{
		Use:   "down",
		Short: "End everything, and leave nothing behind",
		Long: `down ends every process (SIGTERM; SIGKILL when --grace has passed) and removes what the playground wrote: states, logs, and the clusters'
folders of manifests with all that is in them. A folder that --dir names stays, empty of all that. With --keep the files stay too,
and "isthmus playground up" starts from them again.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			switch runtime {
			case runtimeKind:
				k := &kindPlayground{playground: p, say: func(line string) { _, _ = fmt.Fprintln(c.ErrOrStderr(), line) }}
				return k.down(c)
			case runtimeLocal, runtimeNetns:
			default:
				return usage{fmt.Errorf("--runtime %s: want %s or %s", runtime, runtimeLocal, runtimeKind)}
			}
			dir, isDefault, err := p.folder()
			if err != nil {
				return err
			}
			pg, err := lab.Open(dir, p.options())
			if errors.Is(err, lab.ErrNotUp) {
				_, _ = fmt.Fprintf(c.ErrOrStderr(), "no playground in %s: nothing to do\n", dir)
				return nil
			}
			if err != nil {
				return err
			}
			defer pg.Close()
			if keep {
				var ended []string
				ended, err = pg.Stop(c.Context(), grace)
				_, _ = fmt.Fprintf(c.ErrOrStderr(), "ended %s; the files are in %s\n", count(len(ended), "process"), pg.Dir())
			} else if err = pg.Down(c.Context(), grace, isDefault); err == nil {
				_, _ = fmt.Fprintf(c.ErrOrStderr(), "the playground in %s is down\n", pg.Dir())
			}
			if pointsAt(pg) {
				_, _ = fmt.Fprintln(c.ErrOrStderr(), "this shell still calls through it; undo that with: "+unsetLine)
			}
			return err
		},
	}
	c.Flags().StringVar(&runtime, "runtime", runtimeLocal, "which playground: local or kind")
	c.Flags().BoolVar(&keep, "keep", false, "keep manifests, states and logs")
	c.Flags().DurationVar(&grace, "grace", grace, "how long a program may take to end its work")
	return c
}

func newPlaygroundLogs(p *playground) *cobra.Command {
	var lines int
	var follow bool
	c := &cobra.Command{
		Use:               "logs [TARGET...]",
		Short:             "What programs of the playground logged",
		Example:           example("isthmus playground logs us/gateway-0", "isthmus playground logs -n 0 -f us"),
		ValidArgsFunction: p.completeTargets,
		RunE: func(c *cobra.Command, args []string) error {
			if lines < 0 {
				return usage{fmt.Errorf("--lines %d: want 0 or more", lines)}
			}
			pg, err := p.openUp()
			if err != nil {
				return err
			}
			defer pg.Close()
			names, files, err := pg.LogsOf(args...)
			if err != nil {
				return err
			}
			tails := make([]*tail, len(files))
			for i := range files {
				tails[i] = &tail{name: names[i], path: files[i], alone: len(files) == 1}
				if err := tails[i].last(c.OutOrStdout(), lines); err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
			}
			for follow {
				for _, t := range tails {
					if err := t.more(c.OutOrStdout()); err != nil && !errors.Is(err, os.ErrNotExist) {
						return err
					}
				}
				select {
				case <-c.Context().Done():
					return nil
				case <-time.After(200 * time.Millisecond):
				}
			}
			return nil
		},
	}
	c.Flags().IntVarP(&lines, "lines", "n", 20, "the last `n` lines of each")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	return c
}
