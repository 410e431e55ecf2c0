package manifest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/isthmus-mesh/isthmus/control/manifest"
	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
)

// TestGolden parses each manifest of an archive and compares all that is said about it with the archive's file "want".
// UPDATE=1 writes it anew.
func TestGolden(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, path := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			want := -1
			for i, f := range archive.Files {
				if f.Name == "want" {
					want = i
					continue
				}
				describe(t, &got, f.Name, manifest.Parse(f.Name, f.Data))
			}
			if want < 0 {
				t.Fatal("no file want")
			}
			if diff := cmp.Diff(string(archive.Files[want].Data), got.String()); diff != "" {
				if os.Getenv("UPDATE") == "" {
					t.Fatalf("(-want +got)\n%s", diff)
				}
				archive.Files[want].Data = []byte(got.String())
				if err := os.WriteFile(path, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func describe(t *testing.T, out *strings.Builder, name string, f manifest.File) {
	t.Helper()
	fmt.Fprintf(out, "# %s\n", name)
	for _, p := range f.Problems {
		fmt.Fprintf(out, "problem %s\n", p)
	}
	for _, p := range f.Skipped {
		fmt.Fprintf(out, "skipped %s\n", p)
	}
	for _, o := range f.Guards {
		fmt.Fprintf(out, "guard %s %s closed=%v %+v\n", o.Meta().Source, o.Meta().Object(), o.Access.Closed, o.Access.Selects)
	}
	for _, o := range f.Objects {
		data, err := json.Marshal(objectOf(o))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(out, "%s %s %s\n", o.Meta().Source, o.Meta().Object(), data)
	}
}

func objectOf(o manifest.Object) any {
	switch {
	case o.Service != nil:
		return o.Service
	case o.Slice != nil:
		return o.Slice
	case o.Workload != nil:
		return o.Workload
	case o.Export != nil:
		return o.Export
	case o.Peer != nil:
		return o.Peer
	case o.Access != nil:
		return o.Access
	case o.Quota != nil:
		return o.Quota
	case o.Domain != nil:
		return o.Domain
	default:
		return o.Policy
	}
}

func TestTooMany(t *testing.T) {
	one := "apiVersion: isthmus.dev/v1alpha1\nkind: Workload\nmetadata: {name: w-%d}\nspec: {address: 10.0.0.1}\n---\n"
	var b strings.Builder
	for i := range 10_001 {
		fmt.Fprintf(&b, one, i)
	}
	if b.Len() > strictyaml.MaxFile {
		if f := manifest.Parse("many.yaml", []byte(b.String())); len(f.Problems) == 0 || f.Objects != nil {
			t.Fatalf("%d problems, %d objects; want it refused for its size", len(f.Problems), len(f.Objects))
		}
	}
	var list strings.Builder
	list.WriteString("{apiVersion: v1, kind: List, items: [")
	for range 10_001 {
		list.WriteString("{apiVersion: v1, kind: Service},")
	}
	list.WriteString("]}")
	f := manifest.Parse("list.yaml", []byte(list.String()))
	if f.Objects != nil {
		t.Fatal("objects of a file that is refused")
	}
}

// What is wrong with one object takes the whole file out, so that a file is in force as a whole or not at all.
func TestFileIsOneUnit(t *testing.T) {
	good := "apiVersion: isthmus.dev/v1alpha1\nkind: Workload\nmetadata: {name: a}\nspec: {address: 10.0.0.1}\n"
	bad := "---\napiVersion: isthmus.dev/v1alpha1\nkind: Workload\nmetadata: {name: b}\nspec: {address: here}\n"
	if f := manifest.Parse("f.yaml", []byte(good)); len(f.Objects) != 1 || len(f.Problems) != 0 {
		t.Fatalf("good: %+v", f)
	}
	if f := manifest.Parse("f.yaml", []byte(good+bad)); len(f.Objects) != 0 || len(f.Problems) != 1 || f.Problems[0].Line != 9 {
		t.Fatalf("good and bad: %+v", f)
	}
}

// A misspelt word of ours must not read as none: without an audience everybody may call.
func TestMisspeltAudience(t *testing.T) {
	f := manifest.Parse("export.yaml", []byte(`apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {namespace: shop, name: pay, annotations: {isthmus.dev/audiense: us, example.org/other: x}}
`))
	if len(f.Objects) != 0 || len(f.Problems) != 1 || !strings.Contains(f.Problems[0].Reason, "isthmus.dev/audiense is not known here; is it isthmus.dev/audience?") {
		t.Errorf("objects %v, problems %v", f.Objects, f.Problems)
	}
}
