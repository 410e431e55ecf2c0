package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// raise starts those of the units that don't run, waits until all of them are ready, and returns which it started.
//
// The order is the one that a person would keep: controls first; then each cluster is introduced to the others; then
// everything that joins a control. A unit whose control is dead starts with the state that it has on disk.
func (p *Playground) raise(ctx context.Context, units []unit) ([]string, error) {
	dead := slices.DeleteFunc(slices.Clone(units), func(u unit) bool { return p.alive(u) })
	if len(dead) == 0 {
		return nil, nil
	}
	p.announce(units, dead)
	isControl := func(u unit) bool { return u.program == Control }
	controls := slices.DeleteFunc(slices.Clone(dead), func(u unit) bool { return !isControl(u) })
	others := slices.DeleteFunc(slices.Clone(dead), isControl)

	b := &batch{p: p}
	if err := b.each(ctx, controls, func(ctx context.Context, u unit) error {
		if err := b.launch(u); err != nil {
			return err
		}
		return p.waitSocket(ctx, u)
	}); err != nil {
		return b.started, err
	}
	if err := p.introduce(ctx); err != nil {
		return b.started, err
	}
	if err := b.each(ctx, others, func(ctx context.Context, u unit) error {
		if err := p.token(ctx, u); err != nil {
			return err
		}
		return b.launch(u)
	}); err != nil {
		return b.started, err
	}
	err := b.each(ctx, dead, p.waitReady)
	slices.Sort(b.started)
	return b.started, err
}

// announce says what is about to be started.
func (p *Playground) announce(units, dead []unit) {
	what := fmt.Sprintf("%d clusters", len(p.state.Spec.Clusters))
	if len(dead) < len(units) || len(units) < len(p.state.all()) {
		names := make([]string, len(dead))
		for i, u := range dead {
			names[i] = u.id()
		}
		what = strings.Join(names, ", ")
	}
	p.opts.Progress(fmt.Sprintf("starting %s in %s", what, p.dir))
}

// batch starts units in parallel.
type batch struct {
	p *Playground

	started []string // guarded by p.mu
}

func (b *batch) each(ctx context.Context, units []unit, do func(context.Context, unit) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, u := range units {
		g.Go(func() error { return do(ctx, u) })
	}
	return g.Wait()
}

// launch starts the process and writes down that it did.
func (b *batch) launch(u unit) error {
	c, err := b.p.command(u)
	if err != nil {
		return err
	}
	c.env = append(os.Environ(), b.p.state.Env...)
	r, err := b.p.start.run(c)
	if err != nil {
		return fmt.Errorf("%s: start: %w", u.id(), err)
	}
	b.p.opts.Log.Debug("started", "process", u.id(), "pid", r.Pid)
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.started = append(b.started, u.id())
	b.p.state.Running[u.id()] = r
	if err := b.p.state.save(b.p.dir); err != nil {
		return errors.Join(err, r.signal(os.Kill)) // nobody would find it again
	}
	return nil
}

// introduce writes, into each cluster's manifests, who the others are.
func (p *Playground) introduce(ctx context.Context) error {
	introductions := map[string]admin.Introduction{}
	for _, c := range p.state.Spec.Clusters {
		control := unit{cluster: c.Name, name: "control", program: Control}
		if !p.alive(control) {
			continue
		}
		intro, err := admin.NewClient(p.SocketOf(c.Name)).Introduction(ctx)
		if err != nil {
			return p.complain(control, err)
		}
		introductions[c.Name] = intro
	}
	for _, c := range p.state.Spec.Clusters {
		if err := p.peerManifests(c, introductions); err != nil {
			return err
		}
	}
	return p.state.save(p.dir)
}

// token gives a program what it joins its control with. It is good once; one that has joined before has its identity on
// disk and doesn't need it, so a dead control is no error.
func (p *Playground) token(ctx context.Context, u unit) error {
	var ask admin.TokenRequest
	switch u.program {
	case Gateway:
		ask.Gateway = u.name
	case Node:
		ask.Node = u.name
	case Sidecar:
		ask.Workload = u.workload.Namespace + "/" + u.workload.Name
	default:
		return nil
	}
	if !p.alive(unit{cluster: u.cluster, name: "control"}) {
		return nil
	}
	t, err := p.askToken(ctx, u, ask)
	if err != nil {
		return fmt.Errorf("%s: join token: %w", u.id(), err)
	}
	return writeFile(p.tokenFile(u), []byte(t.Token+"\n"), 0o600)
}

// askToken asks until the control knows the workload: it may not have read the manifests yet.
func (p *Playground) askToken(ctx context.Context, u unit, ask admin.TokenRequest) (admin.Token, error) {
	client := admin.NewClient(p.SocketOf(u.cluster))
	control := unit{cluster: u.cluster, name: "control", program: Control}
	var t admin.Token
	err := p.poll(ctx, func(ctx context.Context) (err error) {
		if !p.alive(control) {
			return p.complain(control, errDied)
		}
		t, err = client.Token(ctx, ask)
		return err
	})
	return t, err
}

// tail returns the last lines of a file, for an error that quotes a log.
func tail(path string, lines int) string {
	const most = 16 << 10
	f, err := os.Open(path) //nolint:gosec // G304: a log of the playground
	if err != nil {
		return "(" + err.Error() + ")"
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "(" + err.Error() + ")"
	}
	b := make([]byte, min(info.Size(), most))
	n, _ := f.ReadAt(b, info.Size()-int64(len(b)))
	all := strings.Split(strings.TrimRight(string(b[:n]), "\n"), "\n")
	all = all[max(0, len(all)-lines):]
	return strings.Join(all, "\n")
}

// shorten names a file of the playground for a person.
func (p *Playground) shorten(path string) string {
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, path); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
	}
	return path
}
