// Package lab starts whole meshes: clusters with their control plane, gateways, node proxy, and sample workloads with
// their sidecars. It is the one way that clusters are started, for the playground of the isthmus command and for
// scenario tests alike.
//
// A Playground is a folder. What runs in it is written down in playground.json with process ids and start times, so
// that any later call, by any process, finds it again; the programs run in sessions of their own and outlive whoever
// started them (unless Options.DieWithParent says otherwise). One lock file keeps two callers from changing a playground
// at once. A Playground is not safe for concurrent use by several goroutines.
//
// With the runtime Local each program is a process of this machine on 127.0.0.1; nothing is installed and no port is fixed. With Netns each is
// in a network namespace, with an address of its own, and between clusters lies a WAN (internal/wan). That needs root, and Linux.
package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// The errors that a caller decides on.
var (
	// ErrNotUp is what every error is that says there is no playground in a folder.
	ErrNotUp = errors.New("no playground")
	// ErrNoTarget is what every error is that says there is no such cluster, process or workload.
	ErrNoTarget = errors.New("no such target")
)

// Options are how a playground is started. The zero value works.
type Options struct {
	// Binaries finds the programs. Default: beside the running executable, then in PATH.
	Binaries Binaries
	// Env is added to the environment of every program that is started ("KEY=value"). Kept for restarts.
	Env []string
	// Runtime is what a new playground runs on: Local unless it says otherwise.
	Runtime Runtime
	// Links are what lies between the clusters of a new one, with Netns.
	Links []Direction
	// Ledger has the sidecars and applications of a new one log each request, for Ledger to read.
	Ledger bool
	// Patience is how long one program may take to be ready. Default 60 s.
	Patience time.Duration
	// DieWithParent lets the kernel kill what this process started when this process dies (Linux only).
	DieWithParent bool
	// Progress is told what happens, one line at a time. Default: nobody.
	Progress func(line string)
	// Log takes details. Default: discarded.
	Log *slog.Logger
}

func (o Options) filled() Options {
	if o.Patience == 0 {
		o.Patience = 60 * time.Second
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Playground is a mesh on this machine, in a folder.
type Playground struct {
	opts  Options
	dir   string
	state state

	mu sync.Mutex // guards state.Running and playground.json while programs start in parallel

	start  *starter
	claims []*claim // ports that no other playground may take until our programs have bound them
}

// DefaultDir is where the playground is unless somebody says otherwise.
func DefaultDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for the playground: %w; name one with --dir", err)
	}
	return filepath.Join(cache, "isthmus", "playground"), nil
}

// Open finds the playground in dir, running or not. The error is ErrNotUp when there is none.
func Open(dir string, opts Options) (*Playground, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("playground %s: %w", dir, err)
	}
	st, err := loadState(dir)
	if err != nil {
		return nil, err
	}
	opts = opts.filled()
	return &Playground{opts: opts, dir: dir, state: st, start: newStarter(opts.DieWithParent)}, nil
}

// Up makes sure that the mesh of spec runs in dir and is ready, and says which programs it had to start: all of them
// the first time, none when all run already, the dead ones otherwise. A playground that exists keeps its own spec; it is an error to
// ask it for another number of clusters, and one when a port of it has been taken by another program. When ctx ends first, what
// was started is ended again.
func Up(ctx context.Context, dir string, spec Spec, opts Options) (*Playground, []string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("playground %s: %w", dir, err)
	}
	if err = spec.check(); err != nil {
		return nil, nil, err
	}
	if err = opts.Binaries.check(); err != nil {
		return nil, nil, err
	}
	if err = os.MkdirAll(dir, 0o750); err != nil {
		return nil, nil, fmt.Errorf("playground: %w", err)
	}
	opts = opts.filled()
	p := &Playground{opts: opts, dir: dir, start: newStarter(opts.DieWithParent)}
	started, err := p.up(ctx, spec)
	if err != nil {
		p.Close()
		return nil, started, err
	}
	return p, started, nil
}

func (p *Playground) up(ctx context.Context, spec Spec) ([]string, error) {
	unlock, err := lock(ctx, p.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	p.state, err = loadState(p.dir)
	switch {
	case errors.Is(err, ErrNotUp):
		if err = p.begin(spec); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case p.opts.Runtime != "" && p.opts.Runtime != p.state.runtime():
		return nil, fmt.Errorf("playground %s: its runtime is %s, not %s; take it down first (isthmus playground down)", p.dir, p.state.runtime(), p.opts.Runtime)
	case len(p.state.Spec.Clusters) != len(spec.Clusters):
		return nil, fmt.Errorf("playground %s: it has %d clusters, not %d; take it down first (isthmus playground down)",
			p.dir, len(p.state.Spec.Clusters), len(spec.Clusters))
	}
	defer p.releaseClaims()
	if err = p.ensureNetwork(ctx); err != nil {
		return nil, err
	}
	if err = p.prepare(); err != nil {
		return nil, err
	}
	started, err := p.raise(ctx, p.state.all())
	if err == nil && len(started) > 0 {
		err = p.Settle(ctx)
	}
	if err != nil && ctx.Err() != nil {
		return nil, errors.Join(err, p.undo(context.WithoutCancel(ctx), started))
	}
	return started, err
}

// begin writes down what the playground will be, before anything else of it is made: what is written down can be taken down.
func (p *Playground) begin(spec Spec) (err error) {
	if p.state, err = newState(p.dir, spec, p.opts); err == nil {
		err = p.state.save(p.dir)
	}
	if err != nil {
		return errors.Join(err, remove(lockPath(p.dir)))
	}
	return nil
}

// undoGrace is how long a program may take to end when its start was called off.
const undoGrace = 3 * time.Second

// undo ends what was started by a call that was called off.
func (p *Playground) undo(ctx context.Context, started []string) error {
	units := slices.DeleteFunc(p.state.all(), func(u unit) bool { return !slices.Contains(started, u.id()) })
	ended, err := p.end(units, func(r running) error { return r.stop(ctx, undoGrace) })
	p.opts.Progress(fmt.Sprintf("called off: ended all %d processes that were started", len(ended)))
	return err
}

// Dir returns the folder, absolute.
func (p *Playground) Dir() string { return p.dir }

// Spec returns what the playground is made of.
func (p *Playground) Spec() Spec { return p.state.Spec }

// Close lets go of the playground; what runs goes on, unless Options.DieWithParent was set.
func (p *Playground) Close() {
	p.releaseClaims()
	p.start.close()
}
