package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// global holds the flags that every verb has.
type global struct {
	controls   []string
	playground string
	timeout    time.Duration
}

func newRoot() *cobra.Command {
	g := &global{}
	root := &cobra.Command{
		Use:   "isthmus",
		Short: "One service mesh across clusters, without a hub",
		Long: `isthmus shows what stands in a mesh, why a call goes where it goes, and starts a playground of clusters.

Which clusters a verb speaks of, the first that is given:
  --control SOCKET     the admin socket of a control plane (may be given several times)
  --playground DIR     the clusters of the playground in that folder
  ISTHMUS_CONTROL      like --control; several are separated as in PATH
  ISTHMUS_PLAYGROUND   like --playground; "isthmus playground env" sets it
  the default playground, when it is up

Exit codes: 0 ok, 1 a finding, 2 usage, 3 unreachable, 4 time-out.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              cobra.NoArgs,
		RunE:              func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	flags := root.PersistentFlags()
	flags.StringArrayVar(&g.controls, "control", nil, "admin `socket` of a control plane; may be given several times")
	flags.StringVar(&g.playground, "playground", "", "`folder` of the playground whose clusters are meant")
	flags.DurationVar(&g.timeout, "timeout", 10*time.Second, "how long to wait for answers")
	root.AddCommand(
		newStatus(g), newGet(g), newExplain(g), newIntroduction(g), newJoinToken(g), newVersion(), newPlayground(g),
	)
	markUsage(root)
	return root
}

// markUsage makes every error about arguments and flags, of every verb, one of usage.
func markUsage(c *cobra.Command) {
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	if args := c.Args; args != nil {
		c.Args = func(c *cobra.Command, given []string) error {
			if err := args(c, given); err != nil {
				return usage{err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		markUsage(sub)
	}
}

// example indents examples as help shows them.
func example(lines ...string) string { return "  " + strings.Join(lines, "\n  ") }
