package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/internal/lab"
)

func newPlaygroundWAN(p *playground) *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:   "wan [CLUSTER-CLUSTER=LINK | CLUSTER>CLUSTER=LINK]...",
		Short: "What lies between the clusters; and make it as bad as you like",
		Long: `wan shows what lies between each two clusters of a playground that was started with --runtime netns, and how many packets it passed, lost
and cut off. With arguments it changes that first, from the next packet on; eu-us is both ways, eu>us (in quotes, for the shell) one.

A LINK is made of parts, separated by commas, in any order: 80ms (delay), 80ms~5ms (and up to 5 ms more), 1% (loss), dup=1%, reorder=2%,
20mbit (rate), queue=64k (what waits for its turn, in bytes), noudp (UDP does not pass), down (nothing passes, nobody is told); or perfect.`,
		Example: example("isthmus playground wan eu-us=80ms,1%", `isthmus playground wan "eu>us=down"`, "isthmus playground wan eu-us=perfect"),
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			pg, err := p.openUp()
			if err != nil {
				return err
			}
			defer pg.Close()
			wanted, err := directions(args, pg.Spec())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), p.timeout)
			defer cancel()
			var all []lab.Direction
			if len(wanted) > 0 {
				all, err = pg.SetDirections(ctx, wanted)
			} else {
				all, err = pg.Directions(ctx)
			}
			if err != nil {
				return err
			}
			if !format.IsTable() {
				return output.Write(c.OutOrStdout(), format, all, nil)
			}
			return printDirections(c.OutOrStdout(), format, all)
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

func directions(args []string, spec lab.Spec) ([]lab.Direction, error) {
	var names []string
	for _, c := range spec.Clusters {
		names = append(names, c.Name)
	}
	var out []lab.Direction
	for _, a := range args {
		d, err := lab.ParseDirections(a, names)
		if err != nil {
			return nil, usage{err}
		}
		out = append(out, d...)
	}
	return out, nil
}

func printDirections(w io.Writer, format output.Format, all []lab.Direction) error {
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	return output.Write(w, format, nil, func() output.Table {
		t := output.Table{
			Columns: []string{"FROM", "TO", "LINK", "PASSED", "LOST", "OVERFLOWED", "CUT"},
			Wide:    []string{"DUPLICATED", "REORDERED", "REFUSED"},
		}
		for _, d := range all {
			s := d.Stats
			t.Row(d.From, d.To, d.Link, number(s.Passed), number(s.Lost), number(s.Overflowed), number(s.Cut),
				number(s.Duplicated), number(s.Reordered), number(s.Refused))
		}
		return t
	})
}

// newPlaygroundRouter carries the packets. Hidden, because only the playground starts it.
func newPlaygroundRouter(p *playground) *cobra.Command {
	return &cobra.Command{
		Use:    "wan-router",
		Short:  "Carry packets between the clusters",
		Hidden: true,
		Args:   noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if p.dir == "" {
				return usage{fmt.Errorf("--dir is missing")}
			}
			return lab.RunWAN(c.Context(), p.dir)
		},
	}
}
