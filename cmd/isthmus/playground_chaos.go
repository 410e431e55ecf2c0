package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/lab/chaos"
)

func newPlaygroundChaos(p *playground) *cobra.Command {
	cfg := chaos.Config{Faults: 20, Seed: 1}
	var runtime, report string
	only := -1
	c := &cobra.Command{
		Use:   "chaos",
		Short: "Break a playground in every way there is, under load, and see whether the ledger adds up",
		Long: `chaos starts three clusters, calls from one of them, and breaks the others and what lies between: kills and stops of every program, of whole
clusters, programs that are held in the midst of what they do, rolling restarts, exports, policies and roots that change, and with --runtime netns black holes, one-way
partitions, loss, delay, disorder, slow and flapping links and isolation: each alone and with each other, if there are --faults enough. What the client, both sidecars and the
applications noted of each request is then joined: one outcome each, no request failed that may be repeated, none executed twice that may not, nothing executed that did not
come through a sidecar from a caller who may call; and, with netns, nothing that a caller said was in the clear on a wire.

The same --seed breaks the same things in the same order; --only has one round of them. It exits with 1 when the ledger does not add up.`,
		Example: example("isthmus playground chaos", "isthmus playground chaos --runtime netns --faults 1000 --seed 7 --report ledger.json",
			"isthmus playground chaos --runtime netns --seed 7 --only 123"),
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			switch runtime {
			case runtimeLocal, runtimeNetns:
			default:
				return usage{fmt.Errorf("--runtime %s: want %s or %s", runtime, runtimeLocal, runtimeNetns)}
			}
			if cfg.Faults < 1 || cfg.Rate <= 0 {
				return usage{errors.New("--faults and --rate: want more than 0")}
			}
			if only >= 0 {
				cfg.Only = &only
			}
			cfg.Lab, cfg.Dir, cfg.Out = p.options(), p.dir, c.OutOrStdout()
			cfg.Lab.Runtime, cfg.Lab.DieWithParent = lab.Runtime(runtime), true
			cfg.Lab.Patience = max(cfg.Lab.Patience, 90*time.Second)
			r, err := chaos.Run(c.Context(), cfg)
			if report != "" {
				b, e := json.MarshalIndent(r, "", "  ")
				if e == nil {
					e = atomicfile.Write(report, append(b, '\n'), 0o644)
				}
				err = errors.Join(err, e)
			}
			return err
		},
	}
	flags := c.Flags()
	flags.StringVar(&runtime, "runtime", runtimeLocal, "local, or netns (root, Linux): with a WAN to break")
	flags.IntVar(&cfg.Faults, "faults", cfg.Faults, "how many, at least")
	flags.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "what is broken, and in which order")
	flags.IntVar(&only, "only", only, "the one round to have, by its `number`")
	flags.Float64Var(&cfg.Rate, "rate", 50, "requests a second that may be repeated, and as many that may not")
	flags.StringVar(&report, "report", "", "`file` for the faults and the ledger, as JSON")
	return c
}
