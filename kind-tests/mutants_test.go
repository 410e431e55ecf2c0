package kindtests

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// edit puts one text in the place of another, which stands in the file once.
type edit struct{ file, old, new string }

// mutants are ways to be wrong, each with a scenario that must notice. A scenario that no mutant fails is no check.
var mutants = []struct {
	scenario string
	edits    []edit
}{
	{"mcs/not-exported", []edit{{"control/status.go", `"NoService"`, `"ServiceNotFound"`}}},
	{"mcs/not-exported", []edit{{"control/conditions.go", `Status: False, Reason: reasonNoService`, `Status: True, Reason: reasonNoService`}}},
	{"mcs/last-exporter", []edit{{
		"federation/merge.go", "m.Imports = append(m.Imports, mergeOne(claims))",
		"if len(claims) > 1 {\nm.Imports = append(m.Imports, mergeOne(claims))\n}",
	}}},
	{"mcs/cluster-ip", []edit{{"control/kube/plan.go", `!wanted[name] &&`, `!wanted[name] && name.Name() == "" &&`}}},
	{"mcs/families", []edit{{"control/manifest/status.go", `range s.Families()`, `range []string{"IPv6"}`}}},
	{"mcs/session-affinity", []edit{{"federation/merge.go", `a.SessionAffinityTimeout == b.SessionAffinityTimeout`, `true`}}},
	{"mcs/traffic-policies", []edit{{"control/manifest/status.go", `in.TrafficDistribution != ""`, `false`}}},
	{"mcs/port-union", []edit{{"federation/merge.go", `taken || names[p.Name]`, `taken || names[p.Name] || c.cluster != claims[0].cluster`}}},
	{"mcs/port-conflict", []edit{{"federation/merge.go", `cmp.Compare(c.created, o.created)`, `cmp.Compare(o.created, c.created)`}}},
	{"mcs/port-conflict", []edit{{"federation/merge.go", `taken || names[p.Name]`, `taken`}}},
	{"mcs/headless", []edit{{"control/build.go", `out.Type = federation.Headless`, `out.Type = federation.ClusterSetIP`}}},
	{"mcs/external-name", []edit{{"control/build.go", `r == nil || r.service.ExternalName`, `r == nil`}}},
	{"mcs/headless-conflict", []edit{{"federation/merge.go", `return a.Type == b.Type`, `return true`}}},
	{"mcs/headless-conflict", []edit{{
		"federation/merge.go", "m.Conditions[name][c.cluster] = []Condition{condition}",
		"if c.cluster != claims[0].cluster {\nm.Conditions[name][c.cluster] = []Condition{condition}\n}",
	}}},
	{"mcs/labels", []edit{{"federation/merge.go", `strings.Join(reasons, ",")`, `strings.Join(reasons, ", ")`}}},
	{"mcs/labels", []edit{{"control/kube/plan.go", `w.ObservedGeneration = generation`, `w.ObservedGeneration = 1`}}},
	{"mcs/namespaces", []edit{{"control/kube/caches.go", `{metadataOf("Namespace"), toWriter}`, `{metadataOf("Namespace"), 0}`}}},
	{"mcs/ties", []edit{{"federation/merge.go", `c.cluster.Compare(o.cluster)`, `o.cluster.Compare(c.cluster)`}}},
	{"mcs/hands-off", []edit{{"control/kube/caches.go", `{&mcsv1beta1.ServiceImport{}, toWriter}`, `{&mcsv1beta1.ServiceImport{}, 0}`}}},
	{"mcs/foreign-import", []edit{{"control/kube/plan.go", `have.Labels[ManagedByLabel] != ManagedBy:`, `false:`}}},
	{"mcs/slices", []edit{{"control/kube/caches.go", "case isImported(s):\n\t\treturn toWriter", "case isImported(s):\n\t\treturn 0"}}},
	{"mcs/audience", []edit{{"federation/export.go", `len(e.Audience) == 0 ||`, `len(e.Audience) >= 0 ||`}}},
	{"mcs/copies", []edit{{"control/conditions.go", `r.stranded > 0 && r.stranded == r.copies`, `false`}}},
	{"mcs/sctp", []edit{{"federation/catalog.go", `transport != TCP && transport != UDP && transport != SCTP`, `transport != TCP && transport != UDP`}}},
	{"faults/control-restart", []edit{ // either is enough for the other
		{"federation/recall.go", `saved, ok := s.loadCut(spec.RootFingerprint)`, "saved, ok := s.loadCut(spec.RootFingerprint)\nok = false"},
		{"control/kube/plan.go", `&& !mayReturn(have, want.Silent)`, ``},
	}},
	{"faults/state-lost", []edit{{"control/kube/plan.go", `&& !mayReturn(have, want.Silent)`, ``}}},
	{"faults/import-goes-while-away", []edit{{"control/kube/plan.go", `!wanted[name] && !mayReturn`, `!wanted[name] && len(want.Exports) > 0 && !mayReturn`}}},
	{"faults/restart-writes-nothing", []edit{{"control/kube/plan.go", `if out[i].Status == w.Status {`, `if false {`}}},
	{"faults/apiserver-killed", []edit{{"control/kube/connect.go", `r.up.Set(0)`, `panic("it is gone")`}}},
	{"faults/peer-removed", []edit{ // likewise
		{"control/build.go", `v.Usable() && slices.ContainsFunc(`, `v.Usable() || slices.ContainsFunc(`},
		{"control/loop.go", `l.peers == nil || !slices.EqualFunc(l.peers, peers, samePins)`, `len(l.peers) < len(peers)`},
	}},
	{"faults/role-taken-away", []edit{{"control/kube/watches.go", `" can't be read: "`, `": "`}}},
}

// TestMutants is run by hand (make kube-mutants): it takes minutes, and what it finds out changes with the scenarios only.
func TestMutants(t *testing.T) {
	if os.Getenv("ISTHMUS_KUBE_MUTANTS") == "" {
		t.Skip("run it with: make kube-mutants (it sets ISTHMUS_KUBE_MUTANTS)")
	}
	m := theMesh(t)
	m.deadline = 8 * time.Second // what is to fail shall not take long
	defer func() {
		m.deadline = deadline
		m.control(t, "")
	}()
	sound := map[string]bool{}
	for _, mutant := range mutants {
		t.Run(mutant.scenario, func(t *testing.T) {
			if !sound[mutant.scenario] {
				m.control(t, "")
				if failed, log := m.fails(mutant.scenario); failed {
					t.Fatalf("it fails without a mutant, within %s:\n%s", m.deadline, log)
				}
				sound[mutant.scenario] = true
			}
			m.control(t, mutate(t, mutant.edits))
			failed, log := m.fails(mutant.scenario)
			if !failed {
				t.Errorf("it passes with %q", mutant.edits)
			}
			t.Log(log)
		})
	}
}

// fails runs a scenario.
func (m *mesh) fails(scenario string) (failed bool, log string) {
	var o outcome
	p := m.scenarios("", 1)
	p.Files = []string{filepath.Join("testdata", scenario+".txtar")}
	testscript.RunT(&o, p)
	return o.failed.Load(), o.log.String()
}

// mutate builds a control plane that is wrong.
func mutate(t *testing.T, edits []edit) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	for i, e := range edits {
		path, err := filepath.Abs(filepath.Join("..", e.file))
		if err != nil {
			t.Fatal(err)
		}
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(source), e.old) != 1 {
			t.Fatalf("%q does not stand once in %s: bring the mutant up to date", e.old, e.file)
		}
		replace[path] = filepath.Join(dir, strconv.Itoa(i)+".go")
		if err := os.WriteFile(replace[path], []byte(strings.Replace(string(source), e.old, e.new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := build(t.Context(), dir, "-overlay", filepath.Join(dir, "overlay"), "./cmd/"+control); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, control)
}

// control replaces the control planes; "" is the right one.
func (m *mesh) control(t *testing.T, mutant string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.each(func(c *member) error {
		c.control.Kill()
		c.mutant = mutant
		return c.runControl(ctx)
	}); err != nil {
		t.Fatal(err)
	}
	if err := m.settle(ctx); err != nil {
		t.Fatal(err)
	}
}

// outcome is a testscript.T that is told of a failure, and doesn't fail.
type outcome struct {
	failed atomic.Bool
	log    strings.Builder
}

func (o *outcome) Skip(...any) { runtime.Goexit() }
func (o *outcome) Parallel()   {}

func (o *outcome) Log(args ...any) {
	for _, a := range args {
		if s, ok := a.(string); ok {
			o.log.WriteString(s)
		}
	}
}

func (o *outcome) Verbose() bool { return true }

func (o *outcome) Fatal(args ...any) {
	o.Log(args...)
	o.FailNow()
}

func (o *outcome) FailNow() {
	o.failed.Store(true)
	runtime.Goexit()
}

func (o *outcome) Run(_ string, f func(testscript.T)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(o)
	}()
	<-done
}
