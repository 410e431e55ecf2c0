package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/lab"
)

func newPlaygroundUp(p *playground) *cobra.Command {
	clusters := 3
	var env, links []string
	var runtime string
	k := &kindPlayground{playground: p}
	c := &cobra.Command{
		Use:   "up",
		Short: "Start a playground, and return when it is ready",
		Long: `up starts the clusters and returns when calls go through; they live on until "isthmus playground down". Where a playground is up
already it starts what is dead, and says when there is nothing to do.

With --runtime netns each program has an address of its own, and between the clusters lies a WAN that can be made as bad as one likes,
also while it runs ("isthmus playground wan"). That needs root, and Linux.

With --runtime kind the clusters are real Kubernetes clusters, kind's, in Docker: the mesh is installed in each, they are linked, and a shop
with traffic is opened, in namespace shop with sidecars and in namespace outside without.`,
		Example: example("isthmus playground up", "isthmus playground up --clusters 5 --dir /tmp/five", "isthmus playground up --runtime netns --wan eu-us=80ms,1%", "isthmus playground up --runtime kind"),
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, kv := range env {
				if key, _, ok := strings.Cut(kv, "="); !ok || key == "" {
					return usage{fmt.Errorf("--env %q: want KEY=VALUE", kv)}
				}
			}
			k.say = func(line string) { _, _ = fmt.Fprintln(c.ErrOrStderr(), line) }
			switch runtime {
			case runtimeKind:
				if !c.Flags().Changed("clusters") {
					clusters = 2
				}
				return k.up(c, clusters)
			case runtimeLocal, runtimeNetns:
			default:
				return usage{fmt.Errorf("--runtime %s: want %s, %s or %s", runtime, runtimeLocal, runtimeNetns, runtimeKind)}
			}
			if len(links) > 0 && runtime != runtimeNetns {
				return usage{fmt.Errorf("--wan is for --runtime %s: with %s, nothing lies between the clusters", runtimeNetns, runtime)}
			}
			dir, _, err := p.folder()
			if err != nil {
				return err
			}
			if !c.Flags().Changed("clusters") {
				if there, e := lab.Open(dir, p.options()); e == nil {
					clusters = len(there.Spec().Clusters)
					there.Close()
				}
			}
			spec, err := lab.Shop(clusters)
			if err != nil {
				return usage{err}
			}
			opts := p.options()
			opts.Env = env
			if c.Flags().Changed("runtime") {
				opts.Runtime = lab.Runtime(runtime)
			}
			if opts.Links, err = directions(links, spec); err != nil {
				return err
			}
			opts.Progress = func(line string) { _, _ = fmt.Fprintln(c.ErrOrStderr(), line) }
			begun := time.Now()
			pg, started, err := lab.Up(c.Context(), dir, spec, opts)
			if err != nil {
				return p.advise(c.Context(), err, dir, started)
			}
			defer pg.Close()
			if len(started) == 0 {
				if err = ready(c.Context(), pg); err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "The playground is already up in %s.\n", pg.Dir())
			} else {
				_, err = fmt.Fprintf(c.OutOrStdout(), "The playground is up in %s: %s started in %.1f s.\n",
					pg.Dir(), count(len(started), "process"), time.Since(begun).Seconds())
			}
			if err != nil {
				return err
			}
			return p.whatNext(c.OutOrStdout(), pg)
		},
	}
	c.Flags().StringVar(&runtime, "runtime", runtimeLocal, "what a cluster is: local (processes of this machine), netns (those in network namespaces, a WAN between; root, Linux) or kind (Kubernetes in Docker)")
	c.Flags().StringArrayVar(&links, "wan", nil, "with netns: what lies between two clusters, `CLUSTER-CLUSTER=LINK` such as eu-us=80ms,1%; may be given several times (isthmus playground wan --help)")
	c.Flags().IntVar(&clusters, "clusters", 3, "how many clusters: eu, us, ap, c4, …; 2 of kind, unless it is said")
	k.flags(c)
	c.Flags().StringArrayVar(&env, "env", nil, "`KEY=VALUE` for the environment of every program; may be given several times")
	return c
}

func (p *playground) whatNext(w io.Writer, pg *lab.Playground) error {
	_, err := fmt.Fprintf(w, `
Try:
  eval "$(isthmus playground env eu/web%[1]s)"
      This shell calls as eu/web from now on, and the verbs below speak of this playground.
  curl -i http://checkout.shop.svc.clusterset.local/
      Served-By-Cluster says who answers: the copy in eu.
  isthmus explain eu/web checkout.shop
      Why it goes there, and where it would go next.
  isthmus drill failover shop/checkout --cluster eu --for 20s
      What if eu had none? Rehearses it, and says what callers saw.
  isthmus playground break eu/checkout
      Kills it. Curl again: us answers. Break us, too, and ap does. "heal" brings them back.
  isthmus status
      Clusters, peers, links, and what is wrong with the manifests.
  isthmus playground down%[1]s
      Ends it all.

Each cluster is a folder of manifests; what you put there takes effect at once:
`, p.dirFlag())
	for _, c := range pg.Spec().Clusters {
		if err == nil {
			_, err = fmt.Fprintf(w, "  %-3s %s\n", c.Name, pg.ManifestsOf(c.Name))
		}
	}
	return err
}

// advise says how to look at a playground that did not come up, and how to be rid of it.
func (p *playground) advise(ctx context.Context, err error, dir string, started []string) error {
	pg, e := lab.Open(dir, p.options())
	if e != nil {
		return err // nothing is there
	}
	pg.Close()
	switch {
	case ctx.Err() != nil:
		return advised{err, "What it wrote stays for the next up. Remove it with: isthmus playground down" + p.dirFlag()}
	case len(started) > 0:
		return advised{err, "What is up stays up. Look with: isthmus playground status" + p.dirFlag() +
			"\nEnd it with: isthmus playground down" + p.dirFlag()}
	default:
		return err
	}
}
