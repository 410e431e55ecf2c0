// Package folder is a control.Registry over a folder of manifests: the whole of a cluster without Kubernetes.
//
// Every *.yaml, *.yml and *.json below the folder counts, also in folders below it, but for names that begin with a dot. A change
// is in force well within a second: fsnotify wakes, a look at the folder each second makes up for what it misses, and the
// state of the files alone decides. A file is read once it has been still for a moment, so that one that is being written
// is not taken for half of itself.
//
// A file counts as a whole or not at all. One that holds something wrong is a Problem, and its last good version stays in force,
// over restarts too; other files go on. Removing a file removes its objects. What became of the exports, and the imports,
// are written to the folder ".status" below the folder, which is never read.
//
// control uses it through control.Registry. One goroutine, Run's, owns all state but the published snapshot.
package folder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/internal/live"
)

// Limits of a folder.
const (
	// MaxFiles is how many manifests are read.
	MaxFiles = 10_000
	// maxFolders bounds the folders below the folder, and with them the watches of the kernel.
	maxFolders = 10_000
	// maxDepth is how deep folders are followed.
	maxDepth = 32
)

// Config is what a Folder is made from. Only Dir is required.
type Config struct {
	Dir string
	// StateDir keeps, over restarts, the last good version of each manifest and when each export was first seen. It must not be
	// inside Dir. Empty: nothing is kept.
	StateDir string
	Settle   time.Duration // how long a file must be still before it is read; default 50 ms
	Rescan   time.Duration // how often the folder is looked at without being told; default 1 s
	Now      func() time.Time
	Log      *slog.Logger // default: none

	blind bool // tests: do as if the kernel told of nothing
}

// Folder is a Registry. Make one with New, and Run it.
type Folder struct {
	cfg     Config
	objects *live.Value[*control.Objects]
	store   *store

	// Of Run's goroutine.
	files    map[string]*file // by path relative to Dir
	trouble  []control.Problem
	problems control.ProblemLog
	owners   map[string]string // object → the file whose version is in force
	watches  *watches
	complete bool // every file was read once

	written map[string]string // of PutStatus' caller: what each status file holds
}

var _ control.Registry = (*Folder)(nil)

// New checks cfg and loads what StateDir kept. The folder itself is first looked at by Run.
func New(cfg Config) (*Folder, error) {
	if cfg.Dir == "" {
		return nil, errors.New("folder: no folder of manifests is given")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("folder: %w", err)
	}
	cfg.Dir = dir
	if cfg.Settle <= 0 {
		cfg.Settle = 50 * time.Millisecond
	}
	if cfg.Rescan <= 0 {
		cfg.Rescan = time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	st, err := openStore(cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("folder: %w", err)
	}
	return &Folder{
		cfg:      cfg,
		objects:  new(live.Value[*control.Objects]),
		store:    st,
		files:    make(map[string]*file),
		problems: control.ProblemLog{Log: cfg.Log},
		owners:   make(map[string]string),
		written:  make(map[string]string),
	}, nil
}

// Objects holds the present state; nil until every manifest was read once.
func (f *Folder) Objects() *live.Value[*control.Objects] { return f.objects }

// Run follows the folder until ctx ends, and then returns nil.
func (f *Folder) Run(ctx context.Context) error {
	f.watches = newWatches(f.cfg.Log, f.cfg.blind)
	defer f.watches.close()
	rescan := time.NewTicker(f.cfg.Rescan)
	defer rescan.Stop()
	settle := time.NewTimer(0)
	defer settle.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-f.watches.events():
			f.watches.note(e)
			f.watches.drain()
			// A burst of events is one look. The timer is not pushed on by later ones, so a storm can't starve us.
			if !f.watches.armed {
				f.watches.armed = true
				settle.Reset(f.cfg.Settle / 5)
			}
		case <-rescan.C:
			f.look(ctx, settle)
		case <-settle.C:
			f.watches.armed = false
			f.look(ctx, settle)
		}
	}
}

// look brings the state up to date with the folder, and arms again for files that are not still yet.
func (f *Folder) look(ctx context.Context, again *time.Timer) {
	wait, changed := f.scan()
	if wait > 0 && !f.watches.armed {
		f.watches.armed = true
		again.Reset(wait)
	}
	if changed {
		f.publish(ctx)
	}
}
