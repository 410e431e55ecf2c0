package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/netns"
)

// stateVersion changes when an older playground.json can't be read any more.
const stateVersion = 1

// maxStateBytes bounds what is read of a playground.json.
const maxStateBytes = 4 << 20

// state is playground.json: what the playground is made of and what was started. Guarded by the lock file when it is changed.
type state struct {
	Version int      `json:"version"`
	Spec    Spec     `json:"spec"`
	Env     []string `json:"env,omitempty"`
	Sockets string   `json:"sockets"` // folder of the admin sockets
	// Network is where the programs are; none: they share the machine's loopback.
	Network *netns.Network     `json:"network,omitempty"`
	Ledger  bool               `json:"ledger,omitempty"` // each request is logged
	Links   []Direction        `json:"links,omitempty"`  // of the WAN, as they were set last
	Ports   map[string]int     `json:"ports"`            // by "<cluster>/<process>/<purpose>"
	Running map[string]running `json:"running"`          // by "<cluster>/<process>"; what was started and not stopped by us
	Written map[string]string  `json:"written"`          // by "<cluster>/<file>": SHA-256 of the manifest as we left it
}

// running is a process that was started. Pid alone would not do: it may be somebody else's by now.
type running struct {
	Pid     int    `json:"pid"`
	Started string `json:"started"` // as identity returns it
}

func statePath(dir string) string { return filepath.Join(dir, "playground.json") }
func lockPath(dir string) string  { return filepath.Join(dir, ".lock") }

func loadState(dir string) (state, error) {
	path := statePath(dir)
	f, err := os.Open(path) //nolint:gosec // G304: in the folder that the user named
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, fmt.Errorf("%w in %s; start one with: isthmus playground up --dir %s", ErrNotUp, dir, dir)
	}
	if err != nil {
		return state{}, fmt.Errorf("playground: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return state{}, fmt.Errorf("playground: %w", err)
	}
	if info.Size() > maxStateBytes {
		return state{}, fmt.Errorf("playground %s: larger than %d bytes", path, maxStateBytes)
	}
	var st state
	if err := json.NewDecoder(f).Decode(&st); err != nil {
		return state{}, fmt.Errorf("playground %s: %w; remove the file to start anew", path, err)
	}
	if st.Version != stateVersion {
		return state{}, fmt.Errorf("playground %s: version %d, this isthmus knows %d; take it down with the isthmus that made it",
			path, st.Version, stateVersion)
	}
	return st, nil
}

func newState(dir string, spec Spec, opts Options) (state, error) {
	st := state{Version: stateVersion, Spec: spec, Env: opts.Env, Ledger: opts.Ledger, Ports: map[string]int{}, Running: map[string]running{}, Written: map[string]string{}}
	if opts.Runtime == Netns {
		st.Network, st.Links = networkOf(dir, spec), opts.Links
	}
	sockets, err := socketDir(dir, spec)
	st.Sockets = sockets
	return st, err
}

// maxSocketPath is what fits into a sockaddr_un everywhere (104 bytes on BSD, 108 on Linux, with the final zero).
const maxSocketPath = 103

// socketDir returns where the admin sockets go: into the playground, or, when that is too deep for a Unix socket, into a
// folder of the system's temporary one, named after the playground.
func socketDir(dir string, spec Spec) (string, error) {
	longest := len(wanSocket)
	for _, c := range spec.Clusters {
		longest = max(longest, len(socketName(c.Name)))
		for _, w := range c.Workloads {
			longest = max(longest, len(workloadSocketName(c.Name, w.Name)))
		}
	}
	inside := filepath.Join(dir, "sockets")
	if len(inside)+1+longest <= maxSocketPath {
		return inside, nil
	}
	sum := sha256.Sum256([]byte(dir))
	short := filepath.Join(os.TempDir(), "isthmus-"+hex.EncodeToString(sum[:6]))
	if len(short)+1+longest > maxSocketPath {
		return "", fmt.Errorf("playground: %s and %s are both too long for a Unix socket; choose a shorter --dir", inside, short)
	}
	return short, nil
}

func socketName(cluster string) string { return cluster + ".sock" }

// save writes the state so that a reader sees the old one or the new one, never half of it.
func (st state) save(dir string) error {
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return fmt.Errorf("playground: %w", err)
	}
	return writeFile(statePath(dir), append(b, '\n'), 0o600)
}

// writeFile replaces a file in one step. A watcher of the folder sees one rename; the name it has before begins with a dot.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("playground: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Chmod(mode), tmp.Close()); err != nil {
		return fmt.Errorf("playground: %w", err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("playground: %w", err)
	}
	return nil
}

// lock takes the playground for this caller; others wait until it is given back or their context ends.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(lockPath(dir), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s", ErrNotUp, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("playground: %w", err)
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("playground %s: lock: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("playground %s: somebody else is changing it: %w", dir, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// all returns every unit of the playground, cluster by cluster.
func (st state) all() []unit {
	var out []unit
	for _, c := range st.Spec.Clusters {
		out = append(out, c.units()...)
	}
	return out
}

func portKey(u unit, purpose string) string { return u.id() + "/" + purpose }

func (st state) port(u unit, purpose string) int { return st.Ports[portKey(u, purpose)] }
