package main

import (
	"cmp"
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/api/errcode"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/check"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

// completionTimeout bounds what a shell waits for after the tab key.
const completionTimeout = 2 * time.Second

// completeFlags offers values for the flags that several verbs have.
func completeFlags(c *cobra.Command, g *global) {
	local := c.LocalFlags()
	if f := local.Lookup("output"); f != nil {
		formats := output.Formats
		if _, ok := f.Value.(*bundleFormat); ok {
			formats = bundleFormats
		}
		_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)) // it is there
	}
	if local.Lookup("cluster") != nil {
		_ = c.RegisterFlagCompletionFunc("cluster", g.completeClusters)
	}
	if c.PersistentFlags().Lookup("context") != nil {
		_ = c.RegisterFlagCompletionFunc("context", g.completeContexts)
	}
	for _, sub := range c.Commands() {
		completeFlags(sub, g)
	}
}

// askToComplete asks the controls that answer soon enough.
func askToComplete[T any](g *global, c *cobra.Command, ask func(*admin.Client, context.Context) (T, error)) []asked[T] {
	targets, err := g.targets()
	if err != nil {
		return nil
	}
	all := askEach(cmp.Or(c.Context(), context.Background()), completionTimeout, targets, ask)
	return slices.DeleteFunc(all, func(a asked[T]) bool { return a.err != nil })
}

func (g *global) completeClusters(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, a := range askToComplete(g, c, (*admin.Client).Status) {
		names = append(names, a.status.Cluster)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeContexts offers the contexts of the kubeconfig. Of "a,b" each is one.
func (g *global) completeContexts(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
	names, err := g.source().Contexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if i := strings.LastIndex(begun, ","); i >= 0 {
		for j := range names {
			names[j] = begun[:i+1] + names[j]
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeWorkloads offers workloads, one.
func (g *global) completeWorkloads(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if len(args) == 0 {
		for _, a := range askToComplete(g, c, (*admin.Client).Policies) {
			for _, w := range a.answer.Workloads {
				names = append(names, a.status.Cluster+"/"+w.ID)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeExplain offers workloads and codes, then services.
func (g *global) completeExplain(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	var names []string
	switch {
	case len(args) == 0 && strings.HasPrefix(strings.ToUpper(begun), "IST"):
		for _, e := range errcode.All() {
			names = append(names, e.Code+"\t"+e.Title)
		}
		for _, e := range check.All() {
			names = append(names, e.ID+"\t"+e.Title)
		}
	case len(args) == 0:
		for _, a := range askToComplete(g, c, (*admin.Client).Proxies) {
			for _, p := range a.answer {
				if p.Program == "sidecar" {
					names = append(names, a.status.Cluster+"/"+path.Base(p.Name))
				}
			}
		}
	case len(args) == 1:
		for _, a := range askToComplete(g, c, (*admin.Client).Imports) {
			if cluster, _, _ := strings.Cut(args[0], "/"); a.status.Cluster != cluster {
				continue
			}
			for _, i := range a.answer {
				names = append(names, i.Name+"."+i.Namespace)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeWorkloads offers the workloads of the playground.
func (p *playground) completeWorkloads(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	pg, err := p.openUp()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer pg.Close()
	var names []string
	for _, cl := range pg.Spec().Clusters {
		for _, w := range cl.Workloads {
			names = append(names, cl.Name+"/"+w.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
