package kindtests

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// kindVariable names the folder of kindlab in the environment. The tests that need clusters with nodes run where it is set, as "make
// kind-test" sets it: it skips them, or in CI fails, where there can be none.
const kindVariable = "ISTHMUS_KIND"

// kindClusters are those that kindlab makes. Of exports made in one second the first by name is the oldest.
var kindClusters = []string{"eu", "us"}

// TestKind installs Isthmus in two clusters as a user does, and runs what needs pods. It ends with the proof that nothing of it is left.
//
//	TestKind/conformance    the specifications of the MCS conformance suite, beside each other
//	TestKind/scenarios      what breaks something, one after the other
//	TestKind/uninstall      everything goes
//
// In addition to the commands of TestMCS there are:
//
//	ready CLUSTER...                     waits until every Pod of $ns is Ready
//	sh CLUSTER POD COMMAND               a shell's command, in a Pod of $ns; eventually repeats it
//	always N REGEXP COMMAND...           what kubectl or sh prints matches, N times one after the other
//	never N REGEXP COMMAND...            it does not, in none of N times
//	node pause|resume CLUSTER            the whole cluster stands still, as if its power were gone
//	apiserver stop|start CLUSTER         its API server ends; is started again
//	block udp|all|none CLUSTER           what its gateways and those of others send each other is dropped: datagrams, all of it, none of it
//
// Files of testdata/kind/common are there for each, in common/.
func TestKind(t *testing.T) {
	if os.Getenv(kindVariable) == "" {
		t.Skipf("needs two clusters with nodes: run it with: make kind-test (it sets %s)", kindVariable)
	}
	m, err := newKindMesh(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	before := m.install(ctx, t)
	specs := newResults(t, "testdata/kind/conformance")
	t.Run("conformance", func(t *testing.T) { testscript.Run(t, m.kindScenarios("testdata/kind/conformance", 4, specs)) })
	specs.print(t)
	t.Run("scenarios", func(t *testing.T) { testscript.Run(t, m.kindScenarios("testdata/kind/scenarios", 1, nil)) })
	t.Run("uninstall", func(t *testing.T) { m.uninstall(ctx, t, before) })
}

func newKindMesh(dir string) (*mesh, error) {
	m := &mesh{dir: dir, deadline: deadline, programs: filepath.Join(os.Getenv(kindVariable), "bin")}
	for _, name := range kindClusters {
		k, err := readKubeconfig(os.Getenv("KUBECONFIG"), name)
		if err != nil {
			return nil, err
		}
		m.members = append(m.members, &member{name: name, programs: m.programs, api: k, node: "isthmus-" + name + "-control-plane"})
	}
	return m, nil
}

// kindScenarios are like scenarios, with what is common to them.
func (m *mesh) kindScenarios(dir string, atOnce int, results *results) testscript.Params {
	p := m.scenarios(dir, atOnce)
	setup := p.Setup
	p.Setup = func(env *testscript.Env) error {
		if err := os.CopyFS(filepath.Join(env.WorkDir, "common"), os.DirFS("testdata/kind/common")); err != nil {
			return err
		}
		if results != nil {
			env.Defer(func() { results.note(env) }) // it runs last: the namespace must have gone
		}
		return setup(env)
	}
	return p
}

// results are how the specifications came out.
type results struct {
	dir   string
	names []string // of files, in the order of their numbers
	begun time.Time

	mu      sync.Mutex // guards outcome
	outcome map[string]string
}

func newResults(t *testing.T, dir string) *results {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no specifications in %s (%v)", dir, err)
	}
	r := &results{dir: dir, begun: time.Now(), outcome: map[string]string{}}
	for _, f := range files {
		r.names = append(r.names, strings.TrimSuffix(filepath.Base(f), ".txtar"))
	}
	slices.SortStableFunc(r.names, func(a, b string) int { return cmp.Compare(b[0], a[0]) }) // what is required stands first
	return r
}

func (r *results) note(env *testscript.Env) {
	name := strings.TrimPrefix(filepath.Base(env.WorkDir), "script-")
	outcome := "passed"
	if t, ok := env.T().(interface{ Failed() bool }); !ok || t.Failed() {
		outcome = "FAILED"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outcome[name] = outcome
}

// print makes a table of them: what did not run has not passed.
func (r *results) print(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.outcome) == 0 {
		return // other tests were asked for
	}
	var out strings.Builder
	count := map[string]int{}
	for _, name := range r.names {
		outcome := cmp.Or(r.outcome[name], "not run")
		count[outcome]++
		text, err := os.ReadFile(filepath.Join(r.dir, name+".txtar"))
		if err != nil {
			t.Fatal(err)
		}
		title, _, _ := strings.Cut(strings.TrimPrefix(string(text), "# "), "\n")
		fmt.Fprintf(&out, "%-7s %s\n", outcome, title)
	}
	fmt.Fprintf(os.Stdout, "\nThe Multi-Cluster Services API, in %s:\n\n%s\n%d passed", strings.Join(kindClusters, " and "), out.String(), count["passed"])
	for _, other := range []string{"FAILED", "not run"} {
		if count[other] > 0 {
			fmt.Fprintf(os.Stdout, ", %d %s", count[other], other)
		}
	}
	fmt.Fprintf(os.Stdout, " of %d, in %s\n\n", len(r.names), time.Since(r.begun).Round(time.Second))
}

// install does what a user does, unless it was done before: of clusters that stay, the first run has installed it. It returns what was there.
func (m *mesh) install(ctx context.Context, t *testing.T) (before []snapshot) {
	t.Helper()
	if m.members[0].installed(ctx) {
		t.Log("Isthmus is installed: what uninstalling leaves is not looked at")
		return nil
	}
	for _, c := range m.members {
		s, err := c.snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, s)
	}
	begun := time.Now()
	err := m.each(func(c *member) error {
		_, err := c.isthmus(ctx, "install", "--set", "cluster="+c.name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err = m.link(ctx); err != nil {
		t.Fatal(err)
	}
	if err = m.settle(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("installed and linked in %s", time.Since(begun).Round(time.Second))
	return before
}

func (c *member) installed(ctx context.Context) bool {
	_, err := c.api.Get(ctx, "/api/v1/namespaces/isthmus-system")
	return err == nil
}

// link lets the two clusters into each other, by the words of one command of the handbook.
func (m *mesh) link(ctx context.Context) error {
	isthmus := filepath.Join(m.programs, "isthmus")
	first, second := m.members[0].name, m.members[1].name
	cmd := exec.CommandContext(ctx, "bash", "-c", `set -o pipefail; "$0" peer invite --context "$1" | "$0" peer accept --context "$2" - | "$0" peer accept --context "$1" -`,
		isthmus, first, second)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("isthmus peer: %w: %s", err, out)
	}
	return nil
}

func (m *mesh) uninstall(ctx context.Context, t *testing.T, before []snapshot) {
	t.Helper()
	if before == nil {
		if os.Getenv("CI") != "" {
			t.Fatal("Isthmus was there before: in CI the clusters must be fresh")
		}
		t.Skip("Isthmus was there before: make kind-down, and run it again")
	}
	err := m.each(func(c *member) error {
		_, err := c.isthmus(ctx, "uninstall", "--yes") // the peers are still declared
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range m.members {
		if err := poll(ctx, m.deadline, func() error {
			after, err := c.snapshot(ctx)
			if err != nil {
				return err
			}
			return before[i].differ(after)
		}); err != nil {
			t.Errorf("cluster %s is not what it was: %v", c.name, err)
		}
	}
}
