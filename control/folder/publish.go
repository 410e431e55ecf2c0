package folder

import (
	"context"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/manifest"
)

// keep writes down the last good version of a manifest. That it can't is said, and nothing else: it is needed only if a restart
// meets a bad version.
func (f *Folder) keep(name string, data []byte) {
	if err := f.store.keep(name, data); err != nil {
		f.cfg.Log.Error("last good version of a manifest not kept", "file", name, "error", err)
	}
}

func (f *Folder) forget(name string) {
	if err := f.store.forget(name); err != nil {
		f.cfg.Log.Error("last good version of a removed manifest not dropped", "file", name, "error", err)
	}
}

// publish makes a snapshot of what is in force, once every file was read, and says what is newly wrong.
func (f *Folder) publish(ctx context.Context) {
	problems := slices.Clone(f.trouble)
	for i := range problems {
		problems[i].File = filepath.ToSlash(problems[i].File)
	}
	for _, known := range f.files {
		problems = append(problems, known.problems...)
	}
	objects, twice := f.inForce()
	problems = control.SortProblems(append(problems, twice...))
	f.problems.Report(ctx, problems)
	if !f.complete {
		return // nothing is deleted until all was read: an incomplete snapshot would read as one
	}
	next := f.snapshot(objects, problems)
	if last := f.objects.Load(); last != nil {
		next.Loaded = last.Loaded
		if reflect.DeepEqual(last, next) {
			return
		}
	}
	next.Loaded = f.cfg.Now()
	f.objects.Store(next)
	f.cfg.Log.InfoContext(ctx, "manifests in force", "files", len(f.files), "objects", next.Len(), "problems", len(problems))
}

// inForce returns each object once. Where two files hold one, the file whose version was in force keeps it; else the first by name.
func (f *Folder) inForce() (map[string]manifest.Object, []control.Problem) {
	var twice []control.Problem
	chosen := make(map[string]manifest.Object)
	owners := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		for _, o := range f.files[name].objects {
			key := o.Meta().Object()
			first, taken := chosen[key]
			switch {
			case !taken:
				chosen[key], owners[key] = o, name
			case f.owners[key] == name && owners[key] != name:
				chosen[key], owners[key] = o, name
				twice = append(twice, duplicate(first, o))
			default:
				twice = append(twice, duplicate(o, first))
			}
		}
	}
	f.owners = owners
	return chosen, twice
}

func duplicate(loser, winner manifest.Object) control.Problem {
	l, w := loser.Meta(), winner.Meta()
	return control.Problem{Source: l.Source, Object: l.Object(), Reason: "stands in two files: that at " + w.String() + " is in force, this one is not"}
}

// snapshot puts the objects into order.
func (f *Folder) snapshot(objects map[string]manifest.Object, problems []control.Problem) *control.Objects {
	out := &control.Objects{Source: f.cfg.Dir, Problems: problems}
	exports := make(map[string]struct{})
	for _, key := range slices.SortedFunc(maps.Keys(objects), func(a, b string) int {
		x, y := objects[a].Meta(), objects[b].Meta()
		if c := strings.Compare(x.Namespace, y.Namespace); c != 0 {
			return c
		}
		if c := strings.Compare(x.Name, y.Name); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	}) {
		switch o := objects[key]; {
		case o.Service != nil:
			out.Services = append(out.Services, *o.Service)
		case o.Slice != nil:
			out.Slices = append(out.Slices, *o.Slice)
		case o.Workload != nil:
			out.Workloads = append(out.Workloads, *o.Workload)
		case o.Export != nil:
			e := *o.Export
			if e.Created.IsZero() {
				exports[key] = struct{}{}
				e.Created = f.store.born(key, f.files[f.owners[key]].read.modified, f.cfg.Now())
			}
			out.Exports = append(out.Exports, e)
		case o.Peer != nil:
			out.Peers = append(out.Peers, *o.Peer)
		case o.Policy != nil:
			out.Policies = append(out.Policies, *o.Policy)
		case o.Domain != nil:
			out.Domains = append(out.Domains, *o.Domain)
		case o.Access != nil:
			out.Access = append(out.Access, *o.Access)
		case o.Quota != nil:
			out.Quotas = append(out.Quotas, *o.Quota)
		}
	}
	if err := f.store.retain(exports); err != nil {
		f.cfg.Log.Error("age of the exports not kept", "error", err)
	}
	return out
}
