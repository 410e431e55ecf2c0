package manifest_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/isthmus-mesh/isthmus/control/manifest"
)

// FuzzParse: whatever the bytes, a file is taken as a whole or not at all, each problem says which file, each object stands once and has
// a place, and the same bytes are always read the same way.
func FuzzParse(f *testing.F) {
	for _, path := range []string{"testdata/good.txtar", "testdata/bad.txtar"} {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			f.Add(file.Data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		parsed := manifest.Parse("f.yaml", data)
		if len(parsed.Problems) > 0 && parsed.Objects != nil {
			t.Fatal("objects in spite of problems")
		}
		for _, p := range append(parsed.Problems, parsed.Skipped...) {
			if p.File != "f.yaml" || p.Reason == "" || p.Line < 0 {
				t.Fatalf("problem without a place or reason: %+v", p)
			}
		}
		seen := make(map[string]bool)
		for _, o := range parsed.Objects {
			m := o.Meta()
			if m.Name == "" || m.Kind == "" || m.Line <= 0 || seen[m.Object()] {
				t.Fatalf("object without name or place, or twice: %+v", m)
			}
			seen[m.Object()] = true
		}
		again := manifest.Parse("f.yaml", data)
		if diff := cmp.Diff(parsed.Problems, again.Problems); diff != "" {
			t.Fatalf("read another way the second time:\n%s", diff)
		}
	})
}
