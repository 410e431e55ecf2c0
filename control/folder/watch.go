package folder

import (
	"errors"
	"io/fs"
	"log/slog"

	"github.com/fsnotify/fsnotify"
)

// watches are the kernel's watches on the folder and all below it. Where there are none to be had, the regular look at the
// folder is all there is, and it is enough.
type watches struct {
	log     *slog.Logger
	watcher *fsnotify.Watcher // nil: none
	folders map[string]bool   // absolute path → seen in this round
	armed   bool              // a look is due
	failed  bool              // said so once
}

func newWatches(log *slog.Logger, blind bool) *watches {
	w := &watches{log: log, folders: make(map[string]bool)}
	if blind {
		return w
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		w.complain(err)
		return w
	}
	w.watcher = watcher
	return w
}

func (w *watches) close() {
	if w.watcher != nil {
		_ = w.watcher.Close() // it holds nothing that could be lost
	}
}

// events is where the kernel tells that something changed. It only wakes: state decides.
func (w *watches) events() <-chan fsnotify.Event {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Events
}

// note forgets a folder that was moved or removed: what comes in its place is watched anew.
func (w *watches) note(e fsnotify.Event) {
	if e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
		delete(w.folders, e.Name)
	}
}

// drain takes what else is waiting, and errors: an overflow means only that more has changed.
func (w *watches) drain() {
	for {
		select {
		case e := <-w.watcher.Events:
			w.note(e)
		case err := <-w.watcher.Errors:
			w.complain(err)
		default:
			return
		}
	}
}

// begin starts a round in which each folder that is there is seen.
func (w *watches) begin() {
	for dir := range w.folders {
		w.folders[dir] = false
	}
}

// see watches a folder. It must come before the folder is read, or what appears between is missed.
func (w *watches) see(dir string) {
	if _, known := w.folders[dir]; known || w.watcher == nil {
		w.folders[dir] = true
		return
	}
	if err := w.watcher.Add(dir); err != nil {
		w.complain(err)
		return
	}
	w.folders[dir] = true
}

// end forgets the folders that are gone.
func (w *watches) end() {
	for dir, seen := range w.folders {
		if !seen {
			delete(w.folders, dir)
			if w.watcher != nil {
				_ = w.watcher.Remove(dir) // it went by itself with the folder
			}
		}
	}
}

func (w *watches) complain(err error) {
	if err == nil || w.failed || errors.Is(err, fs.ErrNotExist) { // a folder that is gone is not for the kernel to tell of
		return
	}
	w.failed = true
	w.log.Warn("the kernel does not tell of all changes; looking regularly instead", "error", err)
}
