package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// Break kills (SIGKILL) what the targets name, all at once, and returns which processes were running until then.
func (p *Playground) Break(ctx context.Context, targets ...string) ([]string, error) {
	if len(targets) == 0 {
		return nil, fmt.Errorf("break what? %w", ErrNoTarget)
	}
	unlock, units, err := p.take(ctx, targets)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return p.end(units, func(r running) error { return r.kill(ctx) })
}

// Heal starts again what the targets name and is dead; without targets, all that is dead. It returns when each of
// them is ready, and says what it started. Calls may take a moment longer to use it: see Settle.
func (p *Playground) Heal(ctx context.Context, targets ...string) ([]string, error) {
	unlock, units, err := p.take(ctx, targets)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err = errors.Join(p.busyPorts(units)...); err != nil {
		return nil, err
	}
	if err = p.ensureNetwork(ctx); err != nil {
		return nil, err
	}
	defer p.releaseClaims()
	if p.state.Network == nil {
		p.claims = reclaim(p.state.portNumbers())
	}
	return p.raise(ctx, units)
}

// Stop ends what the targets name, or everything, as an operator would: SIGTERM, and SIGKILL when grace has passed.
func (p *Playground) Stop(ctx context.Context, grace time.Duration, targets ...string) ([]string, error) {
	unlock, units, err := p.take(ctx, targets)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return p.end(units, func(r running) error { return r.stop(ctx, grace) })
}

// Pause holds what the targets name in the midst of what it does (SIGSTOP), as a machine that swaps or a process that is traced is held: its
// sockets stay, and nobody answers. Resume lets it go on; so does ending it.
func (p *Playground) Pause(targets ...string) ([]string, error) {
	if len(targets) == 0 {
		return nil, fmt.Errorf("pause what? %w", ErrNoTarget)
	}
	return p.tell(syscall.SIGSTOP, targets)
}

// Resume lets what the targets name go on, or everything, and returns which processes run.
func (p *Playground) Resume(targets ...string) ([]string, error) {
	return p.tell(syscall.SIGCONT, targets)
}

// tell sends a signal that ends nothing. It takes no lock: who holds it may be waiting for one who is paused.
func (p *Playground) tell(what os.Signal, targets []string) (told []string, err error) {
	if p.state, err = loadState(p.dir); err != nil {
		return nil, err
	}
	units, err := p.state.resolve(targets)
	if err != nil {
		return nil, err
	}
	for _, u := range units {
		if r := p.state.Running[u.id()]; r.alive() {
			told = append(told, u.id())
			err = errors.Join(err, r.signal(what))
		}
	}
	return told, err
}

// Down ends everything and removes all that the playground left on this machine, except the folder itself unless
// removeDir says so.
func (p *Playground) Down(ctx context.Context, grace time.Duration, removeDir bool) error {
	if err := p.endAll(ctx, grace); err != nil {
		return err
	}
	var errs []error
	for _, c := range p.state.Spec.Clusters {
		errs = append(errs, os.RemoveAll(filepath.Join(p.dir, c.Name)))
	}
	errs = append(errs, os.RemoveAll(p.state.Sockets), remove(filepath.Join(p.dir, wanLog)), remove(statePath(p.dir)), remove(lockPath(p.dir)))
	if removeDir {
		// Not RemoveAll: what somebody else put there is theirs.
		if err := os.Remove(p.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			p.opts.Log.InfoContext(ctx, "folder kept", "folder", p.dir, "error", err)
		}
		if std, err := DefaultDir(); err == nil && std == p.dir {
			_ = os.Remove(filepath.Dir(std)) // made for it alone; stays when something else is in it
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("playground: %w", err)
	}
	return nil
}

// endAll ends everything and writes nothing down: the disk may be full, and what is written goes away next.
func (p *Playground) endAll(ctx context.Context, grace time.Duration) error {
	unlock, units, err := p.take(ctx, nil)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = p.halt(units, func(r running) error { return r.stop(ctx, grace) })
	return errors.Join(err, p.removeNetwork(ctx))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// take locks the playground, reads what stands now, and resolves the targets.
func (p *Playground) take(ctx context.Context, targets []string) (unlock func(), units []unit, err error) {
	unlock, err = lock(ctx, p.dir)
	if err != nil {
		return nil, nil, err
	}
	if p.state, err = loadState(p.dir); err != nil {
		unlock()
		return nil, nil, err
	}
	if units, err = p.state.resolve(targets); err != nil {
		unlock()
		return nil, nil, err
	}
	return unlock, units, nil
}

// end halts the units, and writes down that those which are gone don't run.
func (p *Playground) end(units []unit, how func(running) error) ([]string, error) {
	ended, err := p.halt(units, how)
	return ended, errors.Join(err, p.state.save(p.dir))
}

// halt ends the units in parallel, so that a cluster dies at one moment, and forgets those that are gone.
func (p *Playground) halt(units []unit, how func(running) error) ([]string, error) {
	var ended []string
	var g errgroup.Group
	for _, u := range units {
		r := p.state.Running[u.id()]
		if !r.alive() {
			continue
		}
		ended = append(ended, u.id())
		g.Go(func() error {
			if err := how(r); err != nil {
				return fmt.Errorf("%s: %w", u.id(), err)
			}
			return nil
		})
	}
	err := g.Wait()
	for _, u := range units {
		if !p.alive(u) {
			delete(p.state.Running, u.id())
		}
	}
	return ended, err
}
