package folder_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/folder"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a loaded machine may take; it fails a test, it never makes one pass.
const patience = 30 * time.Second

// fixture is a folder that is followed.
type fixture struct {
	t      *testing.T
	dir    string
	state  string
	folder *folder.Folder
	log    *recorder
	stop   func()
}

func follow(t *testing.T, dir, state string, options ...func(*folder.Config)) *fixture {
	t.Helper()
	log := new(recorder)
	cfg := folder.Config{Dir: dir, StateDir: state, Rescan: 100 * time.Millisecond, Log: slog.New(log)}
	for _, o := range options {
		o(&cfg)
	}
	f, err := folder.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	x := &fixture{t: t, dir: dir, state: state, folder: f, log: log, stop: func() { cancel(); running.Wait() }}
	t.Cleanup(x.stop)
	return x
}

// start follows a fresh folder that holds files.
func start(t *testing.T, files map[string]string) *fixture {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		write(t, dir, name, content)
	}
	return follow(t, dir, t.TempDir())
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (x *fixture) write(name, content string) { x.t.Helper(); write(x.t, x.dir, name, content) }

func (x *fixture) remove(name string) {
	x.t.Helper()
	if err := os.RemoveAll(filepath.Join(x.dir, name)); err != nil {
		x.t.Fatal(err)
	}
}

// wait waits until the snapshot reads as want: its objects, then its problems, one a line.
func (x *fixture) wait(want string) *control.Objects {
	x.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		changed := x.folder.Objects().Changed()
		objects := x.folder.Objects().Load()
		if got := describe(objects); got == want {
			return objects
		}
		select {
		case <-changed:
		case <-deadline.C:
			x.t.Fatalf("(-want +got)\n%s\nlog:\n%s", cmp.Diff(want, describe(objects)), x.log)
		}
	}
}

func describe(o *control.Objects) string {
	if o == nil {
		return "nothing yet"
	}
	var b strings.Builder
	for i := range o.Access {
		p := &o.Access[i]
		fmt.Fprintf(&b, "%s %v closed=%v rules=%d\n", p.Object(), p.Selects.Labels, p.Closed, len(p.Rules))
	}
	for i := range o.Services {
		fmt.Fprintf(&b, "%s %d\n", o.Services[i].Object(), o.Services[i].Ports[0].Number)
	}
	for i := range o.Workloads {
		fmt.Fprintf(&b, "%s %s\n", o.Workloads[i].Object(), o.Workloads[i].Address)
	}
	for i := range o.Exports {
		fmt.Fprintln(&b, o.Exports[i].Object())
	}
	for _, p := range o.Problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	return b.String()
}

func workload(name, address string) string {
	return fmt.Sprintf("apiVersion: isthmus.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: shop, name: %s}\nspec: {address: %s}\n---\n", name, address)
}

func service(name string, port int) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: %s}\nspec: {ports: [{port: %d}]}\n---\n", name, port)
}

func export(name string) string {
	return fmt.Sprintf("apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {namespace: shop, name: %s}\n---\n", name)
}

func TestLife(t *testing.T) {
	for _, blind := range []bool{false, true} {
		t.Run(fmt.Sprintf("blind=%v", blind), func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "a.yaml", workload("a", "10.0.0.1")+service("a", 80))
			write(t, dir, "deep/er/b.yml", workload("b", "10.0.0.2"))
			write(t, dir, "c.json", `{"apiVersion": "isthmus.dev/v1alpha1", "kind": "Workload", "metadata": {"namespace": "shop", "name": "c"}, "spec": {"address": "10.0.0.3"}}`)
			for _, ignored := range []string{"notes.txt", ".hidden.yaml", ".git/x.yaml", "b.yaml~", "#b.yaml#", "#b.yaml", ".#b.yaml", "b.yaml.swp", "4913"} {
				write(t, dir, ignored, "not: [a manifest")
			}
			x := follow(t, dir, t.TempDir(), folder.Blind(blind))
			x.wait("Service shop/a 80\nWorkload shop/a 10.0.0.1\nWorkload shop/b 10.0.0.2\nWorkload shop/c 10.0.0.3\n")
			x.write("a.yaml", workload("a", "10.0.0.9"))
			x.wait("Workload shop/a 10.0.0.9\nWorkload shop/b 10.0.0.2\nWorkload shop/c 10.0.0.3\n")
			x.write("new/folder/d.yaml", workload("d", "10.0.0.4"))
			x.wait("Workload shop/a 10.0.0.9\nWorkload shop/b 10.0.0.2\nWorkload shop/c 10.0.0.3\nWorkload shop/d 10.0.0.4\n")
			x.write("new/folder/d.yaml", workload("d", "10.0.0.5"))
			x.wait("Workload shop/a 10.0.0.9\nWorkload shop/b 10.0.0.2\nWorkload shop/c 10.0.0.3\nWorkload shop/d 10.0.0.5\n")
			x.remove("new")
			x.remove("c.json")
			x.wait("Workload shop/a 10.0.0.9\nWorkload shop/b 10.0.0.2\n")
			x.remove("deep")
			x.remove("a.yaml")
			x.wait("")
		})
	}
}

func TestBadManifestKeepsItsLastGoodVersion(t *testing.T) {
	x := start(t, map[string]string{"a.yaml": workload("a", "10.0.0.1"), "b.yaml": workload("b", "10.0.0.2")})
	x.wait("Workload shop/a 10.0.0.1\nWorkload shop/b 10.0.0.2\n")

	x.write("a.yaml", workload("a", "10.0.0.9")+service("a", 99999))
	x.write("b.yaml", workload("b", "10.0.0.3"))
	x.wait("Workload shop/a 10.0.0.1\nWorkload shop/b 10.0.0.3\nproblem a.yaml:9: Service shop/a: spec.ports[0].port: 99999 is no port: want 1 to 65535\n")

	// Said once, however often the folder is looked at.
	x.write("b.yaml", workload("b", "10.0.0.4"))
	x.wait("Workload shop/a 10.0.0.1\nWorkload shop/b 10.0.0.4\nproblem a.yaml:9: Service shop/a: spec.ports[0].port: 99999 is no port: want 1 to 65535\n")
	if n := x.log.count("manifest problem"); n != 1 {
		t.Fatalf("the problem was logged %d times\n%s", n, x.log)
	}

	// Over a restart, too.
	x.stop()
	x = follow(t, x.dir, x.state)
	x.wait("Workload shop/a 10.0.0.1\nWorkload shop/b 10.0.0.4\nproblem a.yaml:9: Service shop/a: spec.ports[0].port: 99999 is no port: want 1 to 65535\n")

	x.write("a.yaml", workload("a", "10.0.0.9")+service("a", 80))
	x.wait("Service shop/a 80\nWorkload shop/a 10.0.0.9\nWorkload shop/b 10.0.0.4\n")
	if n := x.log.count("manifest problem gone"); n != 1 {
		t.Fatalf("the end of the problem was logged %d times\n%s", n, x.log)
	}

	// A bad file that is removed takes its last good version along.
	x.write("a.yaml", "{")
	x.wait("Service shop/a 80\nWorkload shop/a 10.0.0.9\nWorkload shop/b 10.0.0.4\nproblem a.yaml:1: did not find expected node content\n")
	x.remove("a.yaml")
	x.wait("Workload shop/b 10.0.0.4\n")
	x.stop()
	write(t, x.dir, "a.yaml", "{")
	x = follow(t, x.dir, x.state)
	x.wait("Workload shop/b 10.0.0.4\nproblem a.yaml:1: did not find expected node content\n")
}

// TestBadPolicyGuards: an AccessPolicy that is not understood refuses everything, unless a good version of its file is known.
func TestBadPolicyGuards(t *testing.T) {
	policy := func(rule string) string {
		return "apiVersion: isthmus.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {namespace: shop, name: p}\nspec:\n  selector: {matchLabels: {app: a}}\n  rules: [{name: " + rule + "}]\n---\n"
	}
	const problem = "problem p.yaml:6: AccessPolicy shop/p: spec.rules[0].name: \"No_\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character\n"
	x := start(t, nil)
	put := func(content string) { // as a whole, as editors do: half of a file is another file
		x.write(".p.yaml.new", content)
		if err := os.Rename(filepath.Join(x.dir, ".p.yaml.new"), filepath.Join(x.dir, "p.yaml")); err != nil {
			t.Fatal(err)
		}
	}
	put(policy("No_") + workload("a", "10.0.0.1"))
	x.wait("AccessPolicy shop/p map[app:a] closed=true rules=0\n" + problem)
	put(policy("any") + workload("a", "10.0.0.1"))
	x.wait("AccessPolicy shop/p map[app:a] closed=false rules=1\nWorkload shop/a 10.0.0.1\n")
	put(policy("No_") + workload("a", "10.0.0.2"))
	x.wait("AccessPolicy shop/p map[app:a] closed=false rules=1\nWorkload shop/a 10.0.0.1\n" + problem)
	x.stop()
	x = follow(t, x.dir, x.state)
	x.wait("AccessPolicy shop/p map[app:a] closed=false rules=1\nWorkload shop/a 10.0.0.1\n" + problem)
	x.stop()
	// Nothing is known any more of what was in force.
	x = follow(t, x.dir, t.TempDir())
	x.wait("AccessPolicy shop/p map[app:a] closed=true rules=0\n" + problem)
	x.remove("p.yaml")
	x.wait("")
}

func TestUnknownKindIsSkippedAlone(t *testing.T) {
	x := start(t, map[string]string{"a.yaml": "apiVersion: apps/v1\nkind: Deployment\nmetadata: {namespace: shop, name: web}\n---\n" + workload("a", "10.0.0.1")})
	x.wait("Workload shop/a 10.0.0.1\nproblem a.yaml:2: Deployment shop/web: kind: apps/v1 Deployment is not used here and was skipped\n")
}

func TestSameObjectInTwoFiles(t *testing.T) {
	x := start(t, map[string]string{"b.yaml": workload("a", "10.0.0.1")})
	x.wait("Workload shop/a 10.0.0.1\n")
	// What is in force stays so, whatever the new file is called.
	x.write("a.yaml", workload("a", "10.0.0.2")+workload("c", "10.0.0.3"))
	x.wait("Workload shop/a 10.0.0.1\nWorkload shop/c 10.0.0.3\nproblem a.yaml:1: Workload shop/a: stands in two files: that at b.yaml:1 is in force, this one is not\n")
	x.remove("b.yaml")
	x.wait("Workload shop/a 10.0.0.2\nWorkload shop/c 10.0.0.3\n")
}

func TestFilesThatCantBeRead(t *testing.T) {
	x := start(t, map[string]string{"a.yaml": workload("a", "10.0.0.1"), "b.yaml": workload("b", "10.0.0.2"), "c.yaml": workload("c", "10.0.0.3")})
	x.wait("Workload shop/a 10.0.0.1\nWorkload shop/b 10.0.0.2\nWorkload shop/c 10.0.0.3\n")
	x.write("a.yaml", workload("a", "10.0.0.9")+strings.Repeat("#", 1<<20))
	x.remove("b.yaml")
	if err := syscall.Mkfifo(filepath.Join(x.dir, "b.yaml"), 0o600); err != nil {
		t.Skip("no named pipes here: ", err)
	}
	x.wait("Workload shop/a 10.0.0.1\nWorkload shop/b 10.0.0.2\nWorkload shop/c 10.0.0.3\n" +
		"problem a.yaml: can't be read: 1048691 bytes, more than the limit of 1048576\nproblem b.yaml: can't be read: is not a file\n")
	x.remove("a.yaml")
	x.remove("b.yaml")
	x.wait("Workload shop/c 10.0.0.3\n")
}

// Not being able to look at the folder is no word on what is in it.
func TestFolderThatIsAway(t *testing.T) {
	x := start(t, map[string]string{"a.yaml": workload("a", "10.0.0.1")})
	x.wait("Workload shop/a 10.0.0.1\n")
	away := x.dir + ".away"
	if err := os.Rename(x.dir, away); err != nil {
		t.Fatal(err)
	}
	x.wait("Workload shop/a 10.0.0.1\nproblem " + x.dir + ": can't be read: no such file or directory\n")
	write(t, away, "a.yaml", workload("a", "10.0.0.2"))
	if err := os.Rename(away, x.dir); err != nil {
		t.Fatal(err)
	}
	x.wait("Workload shop/a 10.0.0.2\n")
	x.write("a.yaml", workload("a", "10.0.0.3"))
	x.wait("Workload shop/a 10.0.0.3\n")
}

func TestFolderThatIsNotThereYet(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	x := follow(t, dir, "")
	deadline := time.Now().Add(patience)
	for x.log.count("manifest problem") == 0 {
		if time.Now().After(deadline) {
			t.Fatal("nothing was said")
		}
		time.Sleep(10 * time.Millisecond) // for a log line of another goroutine
	}
	if o := x.folder.Objects().Load(); o != nil {
		t.Fatalf("a snapshot of a folder that was never read: %+v", o)
	}
	write(t, dir, "a.yaml", workload("a", "10.0.0.1"))
	x.wait("Workload shop/a 10.0.0.1\n")
}

// A Kubernetes volume is a folder of links into a folder that is swapped as a whole.
func TestVolumeOfLinks(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "..v1/a.yaml", workload("a", "10.0.0.1"))
	write(t, dir, "..v2/a.yaml", workload("a", "10.0.0.2"))
	for link, to := range map[string]string{"..data": "..v1", "a.yaml": "..data/a.yaml", "loop": ".", "gone.yaml": "nowhere.yaml"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	x := follow(t, dir, t.TempDir())
	x.wait("Workload shop/a 10.0.0.1\n")
	if err := os.Symlink("..v2", filepath.Join(dir, "..data_tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	x.wait("Workload shop/a 10.0.0.2\n")
}

func TestAgeOfAnExport(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	write(t, dir, "a.yaml", export("web"))
	born := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	if err := os.Chtimes(filepath.Join(dir, "a.yaml"), born, born); err != nil {
		t.Fatal(err)
	}
	x := follow(t, dir, state)
	o := x.wait("ServiceExport shop/web\n")
	want := born.Truncate(time.Second)
	if !o.Exports[0].Created.Equal(want) {
		t.Fatalf("created %s, want when its file was written: %s", o.Exports[0].Created, want)
	}
	x.stop()
	write(t, dir, "a.yaml", export("web")+workload("a", "10.0.0.1"))
	x = follow(t, dir, state)
	o = x.wait("Workload shop/a 10.0.0.1\nServiceExport shop/web\n")
	if !o.Exports[0].Created.Equal(want) {
		t.Fatalf("created %s after a restart, want %s", o.Exports[0].Created, want)
	}
	// Gone and made again is another export.
	x.remove("a.yaml")
	x.wait("")
	x.write("a.yaml", export("web"))
	if o = x.wait("ServiceExport shop/web\n"); !o.Exports[0].Created.After(want) {
		t.Fatalf("created %s: an export that was removed kept its age", o.Exports[0].Created)
	}
}

// recorder keeps log messages.
type recorder struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

func (r *recorder) Enabled(context.Context, slog.Level) bool { return true }
func (r *recorder) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *recorder) WithGroup(string) slog.Handler            { return r }

func (r *recorder) Handle(_ context.Context, rec slog.Record) error {
	line := rec.Message
	rec.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
	return nil
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines, "\n")
}

func (r *recorder) count(message string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, l := range r.lines {
		if rest, ok := strings.CutPrefix(l, message); ok && !strings.HasPrefix(rest, " gone") {
			n++
		}
	}
	return n
}
