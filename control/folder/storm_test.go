package folder_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/control/folder"
)

// TestStorm replaces files in all the ways of editors, many times over. No reader may ever see half a file, or none.
func TestStorm(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", pair(0))
	write(t, dir, "b.yaml", pair(1000))
	// Long enough that a machine that does other things doesn't leave a file half-written for that long.
	const still = 400 * time.Millisecond
	x := follow(t, dir, t.TempDir(), func(c *folder.Config) { c.Settle = still })
	first := x.wait(pairText(0) + pairText(1000))
	seen := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { seen <- watchPairs(ctx, x.folder) }()
	const rounds = 80
	for i := 1; i <= rounds; i++ {
		replace(t, x.dir, "a.yaml", pair(i), i)
		replace(t, x.dir, "b.yaml", pair(1000+i), i+1)
		if i%20 == 0 {
			time.Sleep(3 * still / 2) // so that some of them are read; what is seen is checked by watchPairs
		}
	}
	x.wait(pairText(rounds) + pairText(1000+rounds))
	cancel()
	if err := <-seen; err != nil {
		t.Fatal(err)
	}
	if x.log.count("manifest problem") > 0 {
		t.Fatalf("a half-written file was taken for a bad one:\n%s", x.log)
	}
	if first.Exports[0].Created.IsZero() {
		t.Fatal("an export without an age")
	}
	last := x.folder.Objects().Load()
	if last.Exports[0].Created != first.Exports[0].Created {
		t.Fatalf("the export became younger by being written again: %s, then %s", first.Exports[0].Created, last.Exports[0].Created)
	}
}

// pair is a file of two workloads and an export that belong together.
func pair(n int) string {
	base := "p"
	if n >= 1000 {
		base = "q"
	}
	a := fmt.Sprintf("10.%d.%d.%d", n/65536, n/256%256, n%256)
	return workload(base+"1", a) + strings.Repeat("# padding so that a write is no single block\n", 400) + workload(base+"2", a) + export(base)
}

func pairText(n int) string {
	if n >= 1000 {
		return fmt.Sprintf("Workload shop/q1 %s\nWorkload shop/q2 %[1]s\nServiceExport shop/p\nServiceExport shop/q\n", address(n))
	}
	return fmt.Sprintf("Workload shop/p1 %s\nWorkload shop/p2 %[1]s\n", address(n))
}

func address(n int) string { return fmt.Sprintf("10.%d.%d.%d", n/65536, n/256%256, n%256) }

// watchPairs checks every snapshot: both halves of both files, of one version each.
func watchPairs(ctx context.Context, f *folder.Folder) error {
	for {
		changed := f.Objects().Changed()
		o := f.Objects().Load()
		if len(o.Workloads) != 4 || o.Workloads[0].Address != o.Workloads[1].Address || o.Workloads[2].Address != o.Workloads[3].Address {
			return fmt.Errorf("half a state was in force:\n%s", describe(o))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// replace writes a file as different programs do.
func replace(t *testing.T, dir, name, content string, way int) {
	t.Helper()
	path := filepath.Join(dir, name)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	switch way % 4 {
	case 0: // in place, in pieces
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0o600)
		must(err)
		for piece := range strings.SplitAfterSeq(content, "---\n") {
			_, err := f.WriteString(piece)
			must(err)
		}
		must(f.Close())
	case 1: // written aside and renamed
		must(os.WriteFile(filepath.Join(dir, ".tmp-"+name), []byte(content), 0o600))
		must(os.Rename(filepath.Join(dir, ".tmp-"+name), path))
	case 2: // the old one moved away, a new one made, the old one dropped
		must(os.Rename(path, path+"~"))
		must(os.WriteFile(path, []byte(content), 0o600))
		must(os.Remove(path + "~"))
	case 3: // removed and made anew
		must(os.Remove(path))
		must(os.WriteFile(path, []byte(content), 0o600))
	}
}
