package folder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/manifest"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
)

// maxUnread is how long, in times of Config.Settle, a file may be written to without a pause before it is read as it is.
const maxUnread = 40

// stamp is what tells one version of a file from another without reading it.
type stamp struct {
	size     int64
	modified time.Time
	id       fileID
}

// file is what is known of one manifest.
type file struct {
	seen   stamp     // as last seen
	still  time.Time // since when it has been so
	unread time.Time // since when there has been a version to read; zero: there is none
	gone   time.Time // since when it has not been there; zero: it is there
	read   stamp     // the version that the rest is about
	loaded bool      // read is set

	objects  []manifest.Object // in force: of the version read, or of the last good one
	good     bool              // objects are those of a good version; else the AccessPolicies of a bad one (manifest.File.Guards)
	problems []control.Problem // of the version read
}

// scan looks at the folder. wait is when to look again at the latest, for files that are not still yet; 0: no need.
func (f *Folder) scan() (wait time.Duration, changed bool) {
	now := f.cfg.Now()
	w := &walk{folder: f, now: now, there: make(map[string]struct{}, len(f.files))}
	f.watches.begin()
	w.dir("", 0)
	f.watches.end()
	slices.Sort(w.found)
	for _, name := range w.found {
		w.file(name)
	}
	w.vanished()
	if w.over > 0 {
		w.problemf("", "%d manifests are left out: %d are read, and no more", w.over, MaxFiles)
	}
	if !slices.Equal(f.trouble, w.trouble) {
		f.trouble, w.changed = w.trouble, true
	}
	if !f.complete && w.wait == 0 && !w.blocked {
		f.complete, w.changed = true, true
	}
	return w.wait, w.changed
}

// walk is one look at the folder.
type walk struct {
	folder  *Folder
	now     time.Time
	found   []string            // manifests, relative
	there   map[string]struct{} // found, or in a part of the folder that can't be read now
	folders int
	over    int
	trouble []control.Problem
	blind   []string // folders that can't be read now: their files are as they were
	blocked bool     // the folder itself can't be read
	wait    time.Duration
	changed bool
}

func (w *walk) problemf(name, format string, args ...any) {
	if name == "" {
		name = w.folder.cfg.Dir
	}
	w.trouble = append(w.trouble, control.Problem{Source: control.Source{File: name}, Reason: fmt.Sprintf(format, args...)})
}

// dir collects the manifests below a folder, given relative to the root.
func (w *walk) dir(name string, depth int) {
	path := filepath.Join(w.folder.cfg.Dir, name)
	w.folders++
	if depth > maxDepth || w.folders > maxFolders {
		w.blind = append(w.blind, name)
		w.problemf(name, "is left out: folders are followed %d deep, and %d of them", maxDepth, maxFolders)
		return
	}
	w.folder.watches.see(path)
	entries, err := os.ReadDir(path)
	if err != nil {
		if name != "" && errors.Is(err, fs.ErrNotExist) {
			return // it went between being seen and being read
		}
		// Not being able to look is no word on what is there: everything below stays as it was.
		w.blind = append(w.blind, name)
		w.blocked = w.blocked || name == ""
		w.problemf(name, "can't be read: %v", reason(err))
		return
	}
	for _, e := range entries {
		child := filepath.Join(name, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), "."): // hidden, our own status, an editor's, a volume's inner side
		case e.IsDir():
			w.dir(child, depth+1)
		case isManifest(e.Name()):
			w.found = append(w.found, child)
		}
	}
}

// isManifest tells by the name. Editors put other endings on their temporary files ("~", ".swp"), or a dot before.
func isManifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, "#")
	}
	return false
}

// file takes note of a manifest that is there, and reads it when it is new and still.
func (w *walk) file(name string) {
	path := filepath.Join(w.folder.cfg.Dir, name)
	info, err := os.Stat(path) // follows links: volumes of Kubernetes are made of them
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	w.there[name] = struct{}{}
	if err == nil && info.IsDir() {
		return // a link to a folder: not followed, or a circle would never end
	}
	known := w.folder.files[name]
	if known == nil {
		if len(w.folder.files) >= MaxFiles {
			w.over++
			return
		}
		known = new(file)
		w.folder.files[name] = known
	}
	if err = errors.Join(err, unfit(info)); err != nil {
		w.unreadable(name, known, err)
		return
	}
	known.gone = time.Time{}
	if s := stampOf(info); s != known.seen {
		known.seen, known.still = s, w.now
		// A file that was moved here has been still for longer than we have seen it.
		if s.modified.Before(w.now) {
			known.still = s.modified
		}
	}
	if known.loaded && known.read == known.seen {
		return
	}
	if known.unread.IsZero() {
		known.unread = w.now
	}
	// One that is written to without a pause is read at some time all the same.
	if left := w.folder.cfg.Settle - w.now.Sub(known.still); left > 0 && w.now.Sub(known.unread) < maxUnread*w.folder.cfg.Settle {
		w.later(left)
		return
	}
	w.load(name, path, known)
}

// unfit says why what was found is no manifest.
func unfit(info fs.FileInfo) error {
	switch {
	case info == nil:
		return nil
	case !info.Mode().IsRegular():
		return errors.New("is not a file")
	case info.Size() > strictyaml.MaxFile:
		return fmt.Errorf("%d bytes, more than the limit of %d", info.Size(), strictyaml.MaxFile)
	}
	return nil
}

// load reads a file that is still.
func (w *walk) load(name, path string, known *file) {
	data, err := atomicfile.Read(path, strictyaml.MaxFile)
	if errors.Is(err, fs.ErrNotExist) {
		w.later(w.folder.cfg.Settle)
		return
	}
	if err != nil {
		w.unreadable(name, known, err)
		return
	}
	// What changed while it was read is read again, once it is still.
	if info, err := os.Stat(path); err != nil || stampOf(info) != known.seen {
		w.later(w.folder.cfg.Settle)
		return
	}
	w.changed = true
	known.read, known.unread = known.seen, time.Time{}
	parsed := manifest.Parse(filepath.ToSlash(name), data)
	if len(parsed.Problems) == 0 {
		known.objects, known.problems, known.loaded, known.good = parsed.Objects, parsed.Skipped, true, true
		w.folder.keep(name, data)
		return
	}
	w.fallBack(name, known, append(parsed.Problems, parsed.Skipped...), parsed.Guards)
}

// unreadable is a file that is there and can't be read: a Problem, and the last good version stays.
func (w *walk) unreadable(name string, known *file, err error) {
	known.gone, known.unread, known.seen = time.Time{}, time.Time{}, stamp{}
	problem := control.Problem{Source: control.Source{File: filepath.ToSlash(name)}, Reason: "can't be read: " + reason(err).Error()}
	if known.loaded && known.read == known.seen && slices.Equal(known.problems, []control.Problem{problem}) {
		return
	}
	known.read = known.seen
	w.changed = true
	w.fallBack(name, known, []control.Problem{problem}, known.objects)
}

// fallBack leaves the last good version in force: of this run, or of an earlier one. Where there is none, guards are.
func (w *walk) fallBack(name string, known *file, problems []control.Problem, guards []manifest.Object) {
	if !known.loaded {
		if data, ok := w.folder.store.good(name); ok {
			last := manifest.Parse(filepath.ToSlash(name), data)
			known.objects, known.good = last.Objects, len(last.Problems) == 0
		}
	}
	if !known.good {
		known.objects = guards
	}
	known.problems, known.loaded = problems, true
}

// vanished drops the files that have been gone for long enough not to be in the midst of being replaced.
func (w *walk) vanished() {
	for name, known := range w.folder.files {
		if _, there := w.there[name]; there || w.hidden(name) {
			continue
		}
		if known.gone.IsZero() {
			known.gone = w.now
		}
		if left := w.folder.cfg.Settle - w.now.Sub(known.gone); left > 0 {
			w.later(left)
			continue
		}
		delete(w.folder.files, name)
		w.changed = true
		w.folder.forget(name)
	}
}

// hidden reports whether a file is in a part of the folder that can't be read now.
func (w *walk) hidden(name string) bool {
	for _, dir := range w.blind {
		if dir == "" || strings.HasPrefix(name, dir+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

func (w *walk) later(d time.Duration) {
	if w.wait == 0 || d < w.wait {
		w.wait = d
	}
}

func stampOf(info fs.FileInfo) stamp {
	return stamp{size: info.Size(), modified: info.ModTime(), id: idOf(info)}
}

// reason drops the path that the operating system's errors repeat.
func reason(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}
