package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/lab/demo"
)

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
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !(cfg.Rate > 0 && cfg.Rate <= maxRate) {
				return usage{fmt.Errorf("--rate %v: want more than 0 and at most %d requests a second", cfg.Rate, maxRate)}
			}
			cfg.Dir, cfg.Out, cfg.Lab = p.dir, c.OutOrStdout(), p.options()
			cfg.Lab.DieWithParent = !cfg.Keep
			r, err := demo.Run(c.Context(), cfg)
			if report == "" {
				return err
			}
			return errors.Join(err, writeReport(c, report, r))
		},
	}
	flags := c.Flags()
	flags.StringVar(&report, "report", "", "write the outcome as JSON to this `file`; - is standard output")
	flags.IntVar(&cfg.Clusters, "clusters", 3, "how many clusters")
	flags.Float64Var(&cfg.Rate, "rate", 200, "requests a second")
	flags.BoolVar(&cfg.Keep, "keep", false, "leave everything running in the end")
	return c
}

func writeReport(c *cobra.Command, path string, r demo.Report) error {
	if path == "-" {
		return r.Write(c.OutOrStdout())
	}
	f, err := os.Create(path) //nolint:gosec // G304: the file that the user named
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := errors.Join(r.Write(f), f.Close()); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
