package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
)

// maxNamed is how many services an error names.
const maxNamed = 20

// catalogue is the services that clusters have or import.
type catalogue struct {
	names    []topology.ServiceName
	answered bool  // by one at least
	err      error // of those that did not answer
}

// catalogue asks all controls, or that of one cluster, which services there are.
func (g *global) catalogue(ctx context.Context, cluster string) catalogue {
	all, err := askAll(ctx, g, func(c *admin.Client, ctx context.Context) (names []topology.ServiceName, err error) {
		services, err := c.Services(ctx)
		if err != nil {
			return nil, err
		}
		imports, err := c.Imports(ctx)
		if err != nil {
			return nil, err
		}
		add := func(namespace, name string) {
			if n, err := topology.NewServiceName(namespace, name); err == nil {
				names = append(names, n)
			}
		}
		for i := range services {
			add(services[i].Namespace, services[i].Name)
		}
		for i := range imports {
			add(imports[i].Namespace, imports[i].Name)
		}
		return names, nil
	})
	if err != nil {
		return catalogue{err: err}
	}
	out := catalogue{err: failures(all)}
	for _, a := range all {
		if a.err == nil && (cluster == "" || a.status.Cluster == cluster) {
			out.answered = true
			out.names = append(out.names, a.answer...)
		}
	}
	return out
}

// hint is didYouMean, of services, in the form in which name was typed. Empty: it is one of them, or nobody
// could be asked.
func (k catalogue) hint(name topology.ServiceName, typed string) string {
	if !k.answered || slices.Contains(k.names, name) {
		return ""
	}
	form := topology.ServiceName.String
	if strings.Contains(typed, "/") {
		form = func(n topology.ServiceName) string { return n.Namespace() + "/" + n.Name() }
	}
	names := make([]string, 0, len(k.names))
	for _, n := range k.names {
		names = append(names, form(n))
	}
	switch hint := didYouMean(form(name), names); {
	case hint == "":
		return "; there is none at all"
	case strings.HasSuffix(hint, "?") || len(names) <= maxNamed:
		return hint
	default:
		return "; isthmus get services and isthmus get imports say which there are"
	}
}

// unknown is the error about a service that nobody knows; nil: somebody does.
func (k catalogue) unknown(name topology.ServiceName, typed string) error {
	hint := k.hint(name, typed)
	switch {
	case hint == "":
		return nil
	case k.err != nil:
		return fmt.Errorf("no cluster that answers has or imports a service %s%s, and: %w", typed, hint, k.err)
	default:
		return usage{fmt.Errorf("no cluster has or imports a service %s%s", typed, hint)}
	}
}

// noService makes of a control's word that it has nothing of a service an error that says what may have been meant; nil: it is another word.
func (g *global) noService(ctx context.Context, err error, cluster string, name topology.ServiceName, typed string) error {
	said, ok := errors.AsType[*admin.Error](err)
	if !ok || said.Status != http.StatusNotFound {
		return nil
	}
	if hint := g.catalogue(ctx, cluster).hint(name, typed); hint != "" {
		return usage{fmt.Errorf("%s has no service %s%s", cmp.Or(cluster, "that cluster"), typed, hint)}
	}
	return nil
}
