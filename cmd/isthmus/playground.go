package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/lab"
)

// playground holds what the playground's verbs share.
type playground struct {
	*global
	dir      string
	patience time.Duration
}

func newPlayground(g *global) *cobra.Command {
	p := &playground{global: g}
	c := &cobra.Command{
		Use:     "playground",
		Aliases: []string{"pg"},
		Short:   "A mesh of clusters on this machine, to try things on",
		Long: `playground starts clusters as processes of this machine: for each a control plane, two gateways, a node proxy, and sample
workloads with their sidecars. Nothing is installed, no port is fixed, no root is needed.

Its folder (--dir) is the first given of: --dir, --playground, ISTHMUS_PLAYGROUND, the default one in the user's cache folder.
Several playgrounds can stand side by side, each in its own folder.

Targets of break and heal:
  us               the whole cluster
  us/control       its control plane (with its NATS server); likewise us/gateway-0, us/node-0
  us/checkout      every copy of the sample application checkout, each with its sidecar
  us/checkout-0    one copy; us/checkout-0-app and us/checkout-0-sidecar are its halves`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	flags := c.PersistentFlags()
	flags.StringVar(&p.dir, "dir", "", "`folder` of the playground")
	flags.DurationVar(&p.patience, "patience", 60*time.Second, "how long one program may take to be ready")
	c.AddCommand(
		newPlaygroundRun(p), newPlaygroundChaos(p), newPlaygroundUp(p), newPlaygroundStatus(p), newPlaygroundEnv(p), newPlaygroundBreak(p),
		newPlaygroundHeal(p), newPlaygroundLogs(p), newPlaygroundDown(p), newPlaygroundWAN(p), newPlaygroundWorkload(), newPlaygroundTraffic(), newPlaygroundRouter(p),
	)
	return c
}

// folder returns the folder that is meant, and whether it is the default one.
func (p *playground) folder() (dir string, isDefault bool, err error) {
	if p.dir != "" {
		return p.dir, false, nil
	}
	dir, err = p.playgroundDir()
	if err != nil {
		return "", false, err
	}
	std, err := lab.DefaultDir()
	return dir, err == nil && dir == std, nil
}

func (p *playground) options() lab.Options { return lab.Options{Patience: p.patience} }

// openUp returns the playground that is meant; there must be one.
func (p *playground) openUp() (*lab.Playground, error) {
	dir, _, err := p.folder()
	if err != nil {
		return nil, err
	}
	return lab.Open(dir, p.options())
}

// dirFlag returns the flag that a person must repeat in the next command, if any, with a space before it.
func (p *playground) dirFlag() string {
	if p.dir == "" {
		return ""
	}
	return " --dir " + shellQuote(p.dir)
}

// count says how many of something there are.
func count(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case strings.HasSuffix(what, "s"):
		return fmt.Sprintf("%d %ses", n, what)
	default:
		return fmt.Sprintf("%d %ss", n, what)
	}
}

// each says one thing of each name on standard error.
func each(c *cobra.Command, what string, names []string) {
	for _, n := range names {
		_, _ = fmt.Fprintln(c.ErrOrStderr(), what, n)
	}
}

// completeTargets offers what break and heal take.
func (p *playground) completeTargets(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	pg, err := p.openUp()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer pg.Close()
	names, _, err := pg.LogsOf()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, cl := range pg.Spec().Clusters {
		names = append(names, cl.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// someTargets is the argument check of verbs that must be told what they are for.
func someTargets(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("name at least one target, for example us, us/gateway-0 or us/checkout")
	}
	return nil
}
