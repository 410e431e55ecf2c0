package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"helm.sh/helm/v4/pkg/strvals"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/internal/install"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
	"github.com/isthmus-mesh/isthmus/internal/version"
)

// maxValues bounds a file of values.
const maxValues = 1 << 20

// installFlags are those of install and upgrade.
type installFlags struct {
	sets, files []string
	output      string
	dryRun      bool
	wait        bool
	force       bool
	timeout     time.Duration
}

func (f *installFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringArrayVar(&f.sets, "set", nil, "a `value` of the chart, key=value; may be given several times")
	flags.StringArrayVarP(&f.files, "values", "f", nil, "`file` of values of the chart, YAML; - is standard input; may be given several times, the last counts")
	flags.BoolVar(&f.dryRun, "dry-run", false, "show what would change, and change nothing")
	flags.BoolVar(&f.wait, "wait", true, "wait until everything is ready")
	flags.BoolVar(&f.force, "force-conflicts", false, "take over fields that others have set")
	flags.DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long to wait")
}

// values reads what the flags say.
func (f *installFlags) values(stdin io.Reader) (install.Values, error) {
	out := install.Values{}
	for _, file := range f.files {
		data, err := readBounded(file, stdin)
		if err != nil {
			return nil, usage{fmt.Errorf("--values: %w", err)}
		}
		more := install.Values{}
		if err := yaml.UnmarshalStrict(data, &more); err != nil {
			return nil, usage{fmt.Errorf("--values %s: %w", file, err)}
		}
		out = install.MergeValues(more, out)
	}
	for _, s := range f.sets {
		if err := strvals.ParseInto(s, out); err != nil {
			return nil, usage{fmt.Errorf("--set %s: %w", s, err)}
		}
	}
	return out, nil
}

func readBounded(file string, stdin io.Reader) ([]byte, error) {
	r := stdin
	if file != "-" {
		f, err := os.Open(file) //nolint:gosec // the file that the user names
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, maxValues+1))
	if len(data) > maxValues {
		return nil, fmt.Errorf("%s: larger than 1 MiB", file)
	}
	return data, err
}

func newInstall(g *global) *cobra.Command {
	f := &installFlags{}
	c := &cobra.Command{
		Use:   "install",
		Short: "Put Isthmus into Kubernetes clusters",
		Long: `install puts control, gateways and node proxies, and the kinds that they read, into the cluster of each --context, and
waits until they are ready. It is a Helm release (helm list shows it) of the charts that are part of this program.

Run again, it changes nothing; with other values it changes what they change, and values that were given before and are not
given again are back at their defaults ("isthmus upgrade" keeps them).`,
		Example: example("isthmus install --context kind-c1,kind-c2",
			"isthmus install --set gateway.replicas=3 -f values.yaml",
			"isthmus install -o yaml --set cluster=eu > isthmus.yaml"),
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			values, err := f.values(c.InOrStdin())
			if err != nil {
				return err
			}
			switch f.output {
			case "":
				return g.install(c, f, install.Options{Values: values, ForceConflicts: f.force})
			case "yaml":
				return g.printManifests(c, values)
			default:
				return usage{fmt.Errorf("--output %s: want yaml", f.output)}
			}
		},
	}
	f.add(c)
	c.Flags().StringVarP(&f.output, "output", "o", "", "yaml: print the objects, and install nothing; a cluster is asked only for its name")
	return c
}

func newUpgrade(g *global) *cobra.Command {
	f := &installFlags{}
	c := &cobra.Command{
		Use:   "upgrade",
		Short: "Bring Isthmus in Kubernetes clusters to the version of this program",
		Long: `upgrade does what install does, with the values that are in force, changed by those that are given. --plan shows what would
change, object by object and field by field, as the API server would have it. Of several clusters, each is ready before the next begins.`,
		Example: example("isthmus upgrade --context kind-c1 --plan", "isthmus upgrade --context kind-c1 --set log.level=debug"),
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			values, err := f.values(c.InOrStdin())
			if err != nil {
				return err
			}
			return g.install(c, f, install.Options{Values: values, Keep: true, MustExist: true, ForceConflicts: f.force})
		},
	}
	f.add(c)
	c.Flags().BoolVar(&f.dryRun, "plan", false, "show what would change, and change nothing")
	return c
}

// engines returns what works on the cluster of each context that is meant.
func (g *global) engines(c *cobra.Command) ([]*install.Engine, error) {
	clusters, err := g.clusters()
	if err != nil {
		return nil, err
	}
	var out []*install.Engine
	var line sync.Mutex
	for _, cluster := range clusters {
		prefix := ""
		if len(clusters) > 1 {
			prefix = cluster.Context + ": "
		}
		e, err := install.New(cluster, g.namespace, install.Build{Version: version.Release()}, func(s string) {
			line.Lock()
			defer line.Unlock()
			_, _ = fmt.Fprintln(c.ErrOrStderr(), prefix+s)
		})
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// clusters returns those of the contexts that are meant.
func (g *global) clusters() ([]*kubeaccess.Cluster, error) {
	if len(g.controls) > 0 || g.playground != "" {
		return nil, usage{errors.New("this is for Kubernetes clusters: name them with --context, not with --control or --playground")}
	}
	return g.source().Clusters(g.kubeContexts()...)
}

func (g *global) install(c *cobra.Command, f *installFlags, o install.Options) error {
	ctx := c.Context()
	engines, err := g.engines(c)
	if err != nil {
		return err
	}
	if name, _ := o.Values["cluster"].(string); name != "" && len(engines) > 1 {
		return usage{fmt.Errorf("cluster %s, for %d contexts: each cluster has a name of its own; install them one by one", name, len(engines))}
	}
	if f.wait {
		o.Wait = f.timeout
	}
	// All are looked at before any is changed.
	plans := make([]*install.Plan, len(engines))
	if err := onEach(engines, func(i int, e *install.Engine) (err error) {
		plans[i], err = e.Plan(ctx, o)
		return err
	}); err != nil {
		return err
	}
	if f.dryRun {
		return g.showPlans(c, engines, plans, o)
	}
	work := onEach
	if o.MustExist {
		work = oneByOne
	}
	failed := work(engines, func(i int, e *install.Engine) error {
		p := plans[i]
		if p.ClusterFrom != "" {
			e.Say(fmt.Sprintf("cluster %s, by %s", p.Cluster, p.ClusterFrom))
		}
		for _, n := range p.Notes {
			e.Say("note: " + n)
		}
		if err := e.Apply(ctx, p, o); err != nil {
			return err
		}
		done := "installed"
		if f.wait {
			done = "ready"
		}
		e.Say(fmt.Sprintf("Isthmus is %s in cluster %s", done, p.Cluster))
		return nil
	})
	if failed == nil && !o.MustExist {
		_, _ = fmt.Fprintln(c.ErrOrStderr(), afterInstall(engines))
	}
	return failed
}

// afterInstall says what to do next.
func afterInstall(engines []*install.Engine) string {
	a, b := shellQuote(engines[0].Context), "OTHER"
	if len(engines) > 1 {
		b = shellQuote(engines[1].Context)
	}
	return fmt.Sprintf("Next: isthmus check --context %s; then link clusters: isthmus peer invite --context %s | isthmus peer accept --context %s | isthmus peer accept --context %s",
		a, a, b, a)
}

func (g *global) showPlans(c *cobra.Command, engines []*install.Engine, plans []*install.Plan, o install.Options) error {
	for i, e := range engines {
		changes, err := e.Diff(c.Context(), plans[i], o)
		if err != nil {
			return inContext(e, err)
		}
		if len(engines) > 1 {
			_, _ = fmt.Fprintf(c.OutOrStdout(), "context %s\n", e.Context) // the next write has the error
		}
		if err := install.PrintChanges(c.OutOrStdout(), changes); err != nil {
			return err
		}
	}
	return nil
}

// printManifests prints what would be installed, for GitOps. Where the values name the cluster, no cluster is asked.
func (g *global) printManifests(c *cobra.Command, values install.Values) error {
	if name, _ := values["cluster"].(string); name == "" {
		engines, err := g.engines(c)
		if err != nil {
			return err
		}
		if len(engines) > 1 {
			return usage{errors.New("the objects of one cluster at a time: name one --context")}
		}
		name, _, err := engines[0].Name(c.Context())
		if err != nil {
			return inContext(engines[0], err)
		}
		values["cluster"] = name
	}
	return install.PrintManifests(c.Context(), c.OutOrStdout(), g.namespace, values, install.Build{Version: version.Release()})
}

// onEach does something with every cluster at once, and joins the errors.
func onEach(engines []*install.Engine, do func(int, *install.Engine) error) error {
	errs := make([]error, len(engines))
	var all sync.WaitGroup
	for i, e := range engines {
		all.Go(func() { errs[i] = inContext(e, do(i, e)) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// oneByOne does something with every cluster in turn, and ends with the first error: what is wrong with a version is to be seen in one
// cluster, while the others carry its calls.
func oneByOne(engines []*install.Engine, do func(int, *install.Engine) error) error {
	for i, e := range engines {
		if err := inContext(e, do(i, e)); err != nil {
			return err
		}
	}
	return nil
}

// inContext says which cluster an error is of, and marks those of the user.
func inContext(e *install.Engine, err error) error {
	var (
		values  *install.ValuesError
		waiting *install.NotReadyError
	)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &values):
		return usage{fmt.Errorf("context %q: %w", e.Context, err)}
	case errors.As(err, &waiting):
		return fmt.Errorf("context %q: %w", e.Context, err)
	case strings.Contains(err.Error(), fmt.Sprintf("context %q", e.Context)):
		return err
	default:
		return e.Explain(err)
	}
}

// kubeContexts returns the contexts that are meant; none: the current one.
func (g *global) kubeContexts() []string {
	if len(g.contexts) > 0 {
		return g.contexts
	}
	return strings.FieldsFunc(os.Getenv(envContext), func(r rune) bool { return r == ',' })
}
