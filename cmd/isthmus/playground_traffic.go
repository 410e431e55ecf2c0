package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
)

// newPlaygroundTraffic calls a service for ever, and says how that goes: the caller of a playground on Kubernetes. Hidden, because only the
// playground starts it.
func newPlaygroundTraffic() *cobra.Command {
	var load traffic.Load
	every := 5 * time.Second
	c := &cobra.Command{
		Use:    "traffic",
		Short:  "Steady calls, and who answered",
		Hidden: true,
		Args:   noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if load.URL == "" || load.Rate <= 0 || every <= 0 {
				return usage{fmt.Errorf("--url, and a --rate and --every above zero")}
			}
			return sendTraffic(c.Context(), load, every, c.OutOrStdout())
		},
	}
	flags := c.Flags()
	flags.StringVar(&load.URL, "url", "", "what is called")
	flags.Float64Var(&load.Rate, "rate", 5, "calls a second")
	flags.DurationVar(&every, "every", every, "how often a line says how it goes")
	return c
}

// sendTraffic sends until ctx ends, and writes a line for each interval.
func sendTraffic(ctx context.Context, load traffic.Load, every time.Duration, w io.Writer) error {
	load.Workers, load.Timeout = 2, 5*time.Second
	answers := make(chan traffic.Answer)
	sent := make(chan error, 1)
	go func() {
		err := load.Run(ctx, func(a traffic.Answer) { answers <- a })
		close(answers)
		sent <- err
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	period := newPeriod()
	for open := true; open; {
		var a traffic.Answer
		select {
		case a, open = <-answers:
			if open {
				period.add(a)
			}
			continue
		case <-tick.C:
		}
		if _, err := fmt.Fprintln(w, period); err != nil {
			return err
		}
		period = newPeriod()
	}
	return <-sent
}

// period is what came of the calls of one interval.
type period struct {
	failed    int
	reason    string // of the last that failed
	byCluster map[string]int
}

func newPeriod() *period { return &period{byCluster: make(map[string]int)} }

func (p *period) add(a traffic.Answer) {
	if a.Failed() {
		p.failed++
		p.reason = a.Reason()
		return
	}
	p.byCluster[a.Cluster]++
}

// String is a line such as "ok 25, failed 0: eu 20, us 5".
func (p *period) String() string {
	ok := 0
	var who []string
	for _, c := range slices.Sorted(maps.Keys(p.byCluster)) {
		ok += p.byCluster[c]
		who = append(who, fmt.Sprintf("%s %d", c, p.byCluster[c]))
	}
	line := fmt.Sprintf("ok %d, failed %d", ok, p.failed)
	if ok > 0 {
		line += ": " + strings.Join(who, ", ")
	}
	if p.failed > 0 {
		line += "; " + p.reason
	}
	return line
}
