package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
	"github.com/isthmus-mesh/isthmus/internal/lab"
)

const (
	envControl    = "ISTHMUS_CONTROL"
	envContext    = "ISTHMUS_CONTEXT"
	envPlayground = "ISTHMUS_PLAYGROUND"
)

// target is a control that a verb speaks of.
type target struct {
	*admin.Client
	cluster string              // by the playground that it is of; empty: it has not said yet
	kube    *kubeaccess.Cluster // whose control it is; nil: it was named by its socket
}

// scope says by what the clusters that a verb speaks of are named. One of them is not empty, or isPlayground.
type scope struct {
	sockets      []string
	contexts     []string // "" is the current one
	isPlayground bool
}

// scope chooses by the order that the help of isthmus gives.
func (g *global) scope() (scope, error) {
	current := func() (scope, bool) {
		_, err := g.source().Cluster("")
		return scope{contexts: []string{""}}, err == nil
	}
	switch {
	case len(g.controls) > 0 || len(g.contexts) > 0:
		return scope{sockets: g.controls, contexts: g.contexts}, nil
	case g.playground != "":
		return scope{isPlayground: true}, nil
	case g.kubeconfig != "": // whoever names a file means a cluster in it
		return scope{contexts: []string{""}}, nil
	}
	sockets := filepath.SplitList(os.Getenv(envControl))
	contexts := strings.FieldsFunc(os.Getenv(envContext), func(r rune) bool { return r == ',' })
	switch {
	case len(sockets) > 0 || len(contexts) > 0:
		return scope{sockets: sockets, contexts: contexts}, nil
	case os.Getenv(envPlayground) != "":
		return scope{isPlayground: true}, nil
	case g.plugin: // kubectl's users mean kubectl's cluster
		if s, ok := current(); ok {
			return s, nil
		}
	}
	p, err := g.open()
	if err == nil {
		p.Close()
		return scope{isPlayground: true}, nil
	}
	if !errors.Is(err, lab.ErrNotUp) {
		return scope{}, err
	}
	if s, ok := current(); ok {
		return s, nil
	}
	return scope{}, usage{errors.New("which mesh? Name a cluster with --context CONTEXT (" + envContext + ") or --control SOCKET (" + envControl +
		"), a playground with --playground DIR (" + envPlayground + "), or start one: isthmus playground up")}
}

// targets returns each control that the verb speaks of.
func (g *global) targets() ([]target, error) {
	in, err := g.scope()
	if err != nil {
		return nil, err
	}
	var out []target
	if in.isPlayground {
		p, err := g.open()
		if err != nil {
			return nil, err
		}
		defer p.Close()
		for _, c := range p.Spec().Clusters {
			out = append(out, target{Client: admin.NewClient(p.SocketOf(c.Name)), cluster: c.Name})
		}
		return out, nil
	}
	for _, s := range in.sockets {
		out = append(out, target{Client: admin.NewClient(s)})
	}
	if len(in.contexts) > 0 {
		clusters, err := g.source().Clusters(in.contexts...)
		if err != nil {
			return nil, err
		}
		for _, c := range clusters {
			out = append(out, g.kubeTarget(c))
		}
	}
	return out, nil
}

// playgroundDir returns the folder of the playground that is meant, up or not.
func (g *global) playgroundDir() (string, error) {
	if g.playground != "" {
		return g.playground, nil
	}
	if dir := os.Getenv(envPlayground); dir != "" {
		return dir, nil
	}
	return lab.DefaultDir()
}

// open returns the playground that is meant.
func (g *global) open() (*lab.Playground, error) {
	dir, err := g.playgroundDir()
	if err != nil {
		return nil, err
	}
	return lab.Open(dir, lab.Options{})
}

// asked is what one control answered.
type asked[T any] struct {
	client target
	status admin.Status
	answer T
	err    error
}

// askAll asks every control for its status and for one thing more, all at once. The answers are in the controls' order.
func askAll[T any](
	ctx context.Context, g *global, ask func(*admin.Client, context.Context) (T, error),
) ([]asked[T], error) {
	clients, err := g.targets()
	if err != nil {
		return nil, err
	}
	return askEach(ctx, g.timeout, clients, ask), nil
}

func askEach[T any](
	ctx context.Context, timeout time.Duration, clients []target, ask func(*admin.Client, context.Context) (T, error),
) []asked[T] {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out := make([]asked[T], len(clients))
	var all sync.WaitGroup
	for i, c := range clients {
		all.Go(func() {
			out[i].client = c
			if out[i].status, out[i].err = c.Status(ctx); out[i].err == nil {
				out[i].answer, out[i].err = ask(c.Client, ctx)
			}
			if out[i].err != nil && c.cluster != "" {
				out[i].err = fmt.Errorf("%s: %w", c.cluster, out[i].err)
			}
		})
	}
	all.Wait()
	return out
}

// failures joins the errors of the controls that did not answer.
func failures[T any](from []asked[T]) error {
	var errs []error
	for _, a := range from {
		errs = append(errs, a.err)
	}
	return errors.Join(errs...)
}

// one returns the only control that is meant, or that of the named cluster.
func (g *global) one(ctx context.Context, cluster string) (target, error) {
	clients, err := g.targets()
	if err != nil {
		return target{}, err
	}
	if cluster == "" && len(clients) == 1 {
		return clients[0], nil
	}
	if cluster == "" {
		return target{}, usage{fmt.Errorf("which of %d clusters? Name it with --cluster", len(clients))}
	}
	all, err := askAll(ctx, g, func(*admin.Client, context.Context) (struct{}, error) { return struct{}{}, nil })
	if err != nil {
		return target{}, err
	}
	for _, a := range all {
		if a.err == nil && a.status.Cluster == cluster {
			return a.client, nil
		}
	}
	return target{}, noCluster(cluster, all)
}

// noCluster is the error when the named cluster is none of those that answered.
func noCluster[T any](cluster string, all []asked[T]) error {
	var names []string
	silent := false // one has not said which it is
	for _, a := range all {
		switch {
		case a.err == nil:
			names = append(names, a.status.Cluster)
		case a.client.cluster == cluster:
			return a.err
		case a.client.cluster != "":
			names = append(names, a.client.cluster)
		default:
			silent = true
		}
	}
	if silent {
		return fmt.Errorf("no cluster %q among those that answer (%s), and: %w", cluster, cmp.Or(list(names), "none"), failures(all))
	}
	return usage{fmt.Errorf("no cluster %q; there are: %s", cluster, list(names))}
}
