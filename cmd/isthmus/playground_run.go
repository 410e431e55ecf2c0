package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/lab/demo"
)

// leastClusters is what the main job takes.
const leastClusters = 3

// maxRate is far more than this machine's loopback carries.
const maxRate = 100_000

func newPlaygroundRun(p *playground) *cobra.Command {
	var report string
	cfg := demo.Config{}
	c := &cobra.Command{
		Use:   "run",
		Short: "The main job, from start to end: kill a cluster under load and watch the traffic move",
		Long: `run starts clusters, sends steady traffic from eu/web to checkout.shop, kills the cluster that answers (SIGKILL, all of it) while
it serves, watches the traffic move to another cluster, brings the killed one back, and takes everything down.

It exits with 0 only if not one request failed: all of them may be retried, so there is no excuse.
Its folder is a temporary one unless --dir names one.`,
		Example: example("isthmus playground run", "isthmus playground run --report report.json --clusters 5"),
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !(cfg.Rate > 0 && cfg.Rate <= maxRate) {
				return usage{fmt.Errorf("--rate %v: want more than 0 and at most %d requests a second", cfg.Rate, maxRate)}
			}
			if cfg.Clusters < leastClusters {
				return usage{fmt.Errorf("--clusters %d: want at least %d: one that calls, one that is killed, one that takes over", cfg.Clusters, leastClusters)}
			}
			if _, err := lab.Sample(cfg.Clusters); err != nil {
				return usage{err}
			}
			w, err := openReport(c, report)
			if err != nil {
				return err
			}
			cfg.Dir, cfg.Out, cfg.Lab = p.dir, c.OutOrStdout(), p.options()
			cfg.Lab.DieWithParent = !cfg.Keep
			r, err := demo.Run(c.Context(), cfg)
			if w == nil {
				return err
			}
			if e := errors.Join(r.Write(w), w.Close()); e != nil {
				err = errors.Join(err, fmt.Errorf("report: %w", e))
			}
			return err
		},
	}
	flags := c.Flags()
	flags.StringVar(&report, "report", "", "write the outcome as JSON to this `file`; - is standard output")
	flags.IntVar(&cfg.Clusters, "clusters", 3, "how many clusters, at least 3")
	flags.Float64Var(&cfg.Rate, "rate", 200, "requests a second")
	flags.BoolVar(&cfg.Keep, "keep", false, "leave everything running in the end")
	return c
}

// openReport opens the file of the report: what can't be written is better known before the run than after it. None: nil.
func openReport(c *cobra.Command, path string) (io.WriteCloser, error) {
	switch path {
	case "":
		return nil, nil //nolint:nilnil // nobody wants a report
	case "-":
		return standardOutput{c.OutOrStdout()}, nil
	}
	f, err := os.Create(path) //nolint:gosec // G304: the file that the user named
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	return f, nil
}

// standardOutput stays open when it is closed.
type standardOutput struct{ io.Writer }

func (standardOutput) Close() error { return nil }
