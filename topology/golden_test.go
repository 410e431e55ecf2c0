package topology_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/isthmus-mesh/isthmus/topology"
)

var update = flag.Bool("update", false, "write what is into testdata, as what is wanted")

// TestGolden explains each query of testdata/*.txtar on the archive's snapshot. Files: snapshot, then pairs of NAME.query and
// NAME.want (a table) or NAME.json (the whole answer).
func TestGolden(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s *topology.Snapshot
	var x topology.Explanation
	queries, wants := 0, 0
	for i := range archive.Files {
		f := &archive.Files[i]
		var got string
		switch title, kind, _ := strings.Cut(f.Name, "."); {
		case f.Name == "snapshot":
			s = parseSnapshot(t, string(f.Data))
			continue
		case kind == "query":
			q, load := parseQuery(t, string(f.Data))
			plan, err := topology.Choose(s, q, load)
			x = topology.Explain(plan, err)
			queries++
			continue
		case kind == "want":
			got = formatExplanation(x)
		case kind == "json":
			b, err := json.MarshalIndent(x, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = string(b) + "\n"
		default:
			t.Fatalf("%s: what is %q?", title, f.Name)
		}
		wants++
		if *update {
			f.Data = []byte(got)
		} else if diff := cmp.Diff(string(f.Data), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", f.Name, diff)
		}
	}
	if queries == 0 || wants < queries {
		t.Errorf("%d queries, %d answers", queries, wants)
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(archive), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
