package archtest_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/isthmus-mesh/isthmus/internal/archtest"
)

// TestHouse checks the module itself.
func TestHouse(t *testing.T) {
	page, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := archtest.ParseRules(string(page))
	if err != nil {
		t.Fatal(err)
	}
	imports, err := archtest.Imports(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if len(imports) < 100 {
		t.Fatalf("only %d imports seen: the walk went wrong", len(imports))
	}
	for _, b := range archtest.Check(rules, imports) {
		t.Error(b)
	}
	for _, r := range rules {
		if _, err := os.Stat("../../" + r.Package); err != nil {
			t.Errorf("docs/architecture.md has a row for %s, which is not there", r.Package)
		}
	}
}

// TestSidecarStaysLight follows the sidecar's imports through the module: NATS, QUIC and Kubernetes clients must not be reached.
func TestSidecarStaysLight(t *testing.T) {
	imports, err := archtest.Imports(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	reached := archtest.Reach(imports, "cmd/isthmus-sidecar")
	if !slices.Contains(reached, archtest.Module+"/sidecar") {
		t.Fatal("the walk went wrong: cmd/isthmus-sidecar does not reach sidecar")
	}
	for _, r := range reached {
		for _, heavy := range []string{"nats-io", "quic-go", "k8s.io/client-go", "sigs.k8s.io/controller-runtime", archtest.Module + "/federation"} {
			if strings.Contains(r, heavy) {
				t.Errorf("the sidecar reaches %s", r)
			}
		}
	}
}

// TestDependenciesHaveReasons: what go.mod requires directly, docs/dependencies.md gives a reason for.
func TestDependenciesHaveReasons(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	direct := 0
	for line := range strings.Lines(string(mod)) {
		fields := strings.Fields(line)
		if !strings.HasPrefix(line, "\t") || len(fields) != 2 { // an indirect one has a comment
			continue
		}
		direct++
		name := strings.TrimPrefix(strings.TrimPrefix(fields[0], "github.com/"), "google/")
		if !strings.Contains(string(page), name) && !strings.Contains(string(page), fields[0]) {
			t.Errorf("docs/dependencies.md does not say why %s", fields[0])
		}
	}
	if direct < 10 {
		t.Errorf("only %d direct requirements seen: the reading went wrong", direct)
	}
}

const plan = `
<!-- archtest:begin -->
| package | owns | may import | libraries | central |
|---|---|---|---|---|
| ` + "`idea` | ideas | | `lib` | `T` |" + `
| ` + "`idea/adapter` | one | `idea` | `example.org/nats` | `T` |" + `
| ` + "`gateway` | streams | `idea`, `internal` | | `T` |" + `
| ` + "`sidecar` | connections | `idea` | | `T` |" + `
<!-- archtest:end -->`

// TestSeesWhatBreaks is the proof that the check can fail.
func TestSeesWhatBreaks(t *testing.T) {
	rules, err := archtest.ParseRules(plan)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ file, imports, want string }{
		{"idea/a.go", "fmt", ""},
		{"idea/a.go", "example.org/lib/v2", ""},
		{"idea/a.go", "example.org/other", "its row does not name that library"},
		{"idea/a.go", archtest.Module + "/gateway", "its row does not allow it"},
		{"idea/a.go", archtest.Module + "/idea/adapter", "a parent never imports its child"},
		{"idea/adapter/a.go", archtest.Module + "/idea", ""},
		{"idea/adapter/a.go", "example.org/nats/server", ""},
		{"gateway/a.go", archtest.Module + "/internal/relay", ""},
		{"gateway/room/a.go", archtest.Module + "/idea", ""},
		{"gateway/a.go", archtest.Module + "/gateway/room", ""},
		{"gateway/a.go", archtest.Module + "/sidecar", "programs never import each other"},
		{"gateway/a_test.go", archtest.Module + "/sidecar", "programs never import each other"},
		{"gateway/a_test.go", "example.org/other", ""},
		{"elsewhere/a.go", archtest.Module + "/idea", "has no row"},
	} {
		src := "package p\nimport _ \"" + c.imports + "\"\n"
		imports, err := archtest.Imports(fstest.MapFS{c.file: {Data: []byte(src)}})
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(archtest.Check(rules, imports), "\n")
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s importing %s: got %q, want %q", c.file, c.imports, got, c.want)
		}
	}
}
