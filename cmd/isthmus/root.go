package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/version"
)

// global holds the flags that every verb has.
type global struct {
	controls   []string
	contexts   []string
	kubeconfig string
	namespace  string // that Isthmus is installed in
	playground string
	timeout    time.Duration
	plugin     bool // kubectl runs it

	opened []*admin.Client // that hold connections
}

// close ends what the verb's clients hold open.
func (g *global) close() {
	for _, c := range g.opened {
		c.Close()
	}
}

// newRoot returns the command. The streams come first: cobra's completion verbs take the standard output of when they are made.
func newRoot(g *global, stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "isthmus",
		Short: "One service mesh across clusters, without a hub",
		Long: `isthmus shows what stands in a mesh, why a call goes where it goes, and starts a playground of clusters.

Which clusters a verb speaks of, the first that is given:
  --context CONTEXT    a Kubernetes cluster, by its context in the kubeconfig (several: a,b or given again)
  --control SOCKET     the admin socket of a control plane (may be given several times, and beside --context)
  --playground DIR     the clusters of the playground in that folder
  --kubeconfig FILE    the current context of that file
  ISTHMUS_CONTEXT      like --context
  ISTHMUS_CONTROL      like --control; several are separated as in PATH
  ISTHMUS_PLAYGROUND   like --playground; "isthmus playground env" sets it
  the default playground, when it is up
  the current context of the kubeconfig; "kubectl isthmus" looks there before it looks for the default playground

Exit codes: 0 ok, 1 a finding, 2 usage, 3 unreachable, 4 time-out.`,
		Version:           version.Long(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              cobra.NoArgs,
		RunE:              func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(c *cobra.Command, _ []string) error { return checkFlags(c, g) },
	}
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetVersionTemplate("isthmus {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringArrayVar(&g.controls, "control", nil, "admin `socket` of a control plane; may be given several times")
	flags.StringSliceVar(&g.contexts, "context", nil, "`context` of a Kubernetes cluster; several: a,b or given again")
	flags.StringVar(&g.kubeconfig, "kubeconfig", "", "`file` that has the contexts (default: KUBECONFIG, or ~/.kube/config)")
	flags.StringVar(&g.namespace, "system-namespace", "isthmus-system", "`namespace` that Isthmus is installed in")
	flags.StringVar(&g.playground, "playground", "", "`folder` of the playground whose clusters are meant")
	flags.DurationVar(&g.timeout, "timeout", 10*time.Second, "how long to wait for answers")
	root.AddCommand(
		newInstall(g), newUpgrade(g), newUninstall(g),
		newStatus(g), newCheck(g), newGet(g), newLinks(g), newExplain(g), newDrain(g), newUndrain(g), newDrill(g), newTimeline(g),
		newTrust(g), newPolicy(g), newPeer(g), newIntroduction(g), newJoinToken(g), newInject(g),
		newPlayground(g), newVersion(),
		newAdminPipe(), newProbe(),
	)
	if g.plugin {
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl isthmus"}
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	strictHelp(root)
	markUsage(root)
	completeFlags(root, g)
	return root
}

// checkFlags refuses values that would mean something else than they say: an empty one would mean the default.
func checkFlags(c *cobra.Command, g *global) error {
	given := func(name string) (string, bool) {
		f := c.Flags().Lookup(name)
		if f == nil || !f.Changed {
			return "", false
		}
		return f.Value.String(), true
	}
	for _, name := range []string{"dir", "playground", "report", "cluster", "workload", "gateway", "node", "kubeconfig", "system-namespace"} {
		if v, ok := given(name); ok && v == "" {
			return usage{fmt.Errorf("--%s is empty", name)}
		}
	}
	if slices.Contains(g.controls, "") {
		return usage{errors.New("--control is empty")}
	}
	if _, ok := given("context"); ok && (len(g.contexts) == 0 || slices.Contains(g.contexts, "")) {
		return usage{errors.New("--context is empty")}
	}
	for _, name := range []string{"timeout", "patience"} {
		if v, ok := given(name); ok {
			if d, err := time.ParseDuration(v); err != nil || d <= 0 {
				return usage{fmt.Errorf("--%s %s: want more than 0", name, v)}
			}
		}
	}
	if v, ok := given("grace"); ok && strings.HasPrefix(v, "-") {
		return usage{fmt.Errorf("--grace %s: want 0 or more", v)}
	}
	return nil
}

// noArgs is the argument check of a verb that takes none. (cobra's would call an argument a command.)
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return nil
}

// oneArg is the argument check of a verb that takes exactly one: it says which is missing, with an example.
func oneArg(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return upToOneArg(c, args)
	}
	_, what, _ := strings.Cut(c.Use, " ")
	what, _, _ = strings.Cut(what, " --")
	first, _, _ := strings.Cut(strings.TrimSpace(c.Example), "\n")
	return fmt.Errorf("%s is missing: %s", what, first)
}

// upToOneArg is the argument check of a verb that takes one or none.
func upToOneArg(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("unexpected argument %q: one is enough", args[1])
	}
	return nil
}

// strictHelp makes an error of a topic or a shell that is not known: cobra would end with 0.
func strictHelp(root *cobra.Command) {
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			show := c.Run
			c.Run, c.RunE = nil, func(c *cobra.Command, args []string) error {
				if _, rest, err := root.Find(args); err != nil || len(rest) > 0 {
					return usage{fmt.Errorf("no such verb: %s", strings.Join(args, " "))}
				}
				show(c, args)
				return nil
			}
		case "completion":
			c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	}
}

// markUsage makes every error about arguments and flags, of every verb, one of usage.
func markUsage(c *cobra.Command) {
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	if c.HasSubCommands() {
		c.Args = knownVerb
		if !c.Runnable() { // cobra would show help without a look at the arguments, and end with 0
			c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	} else if args := c.Args; args != nil {
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

// knownVerb is the argument check of a command that has verbs below it: what comes to it is none of them.
func knownVerb(c *cobra.Command, given []string) error {
	if len(given) == 0 {
		return nil
	}
	var names []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return usage{fmt.Errorf("unknown command %q for %q%s", given[0], c.CommandPath(), didYouMean(given[0], names))}
}

// example indents examples as help shows them.
func example(lines ...string) string { return "  " + strings.Join(lines, "\n  ") }
