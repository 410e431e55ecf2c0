package atomicfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
)

func TestWriteReplacesAndLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, want := range []string{"one", "another", ""} {
		if err := atomicfile.Write(path, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := atomicfile.Read(path, 100)
		if err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Fatalf("mode %v, %v; want 0640", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Fatalf("%d entries left, want 1", len(entries))
	}
}

func TestWriteFailsWhole(t *testing.T) {
	dir := t.TempDir()
	// A folder stands where the file should go: the rename fails after everything else went well.
	path := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(path, "child"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(path, []byte("x"), 0o600); err == nil {
		t.Fatal("wrote over a folder")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Fatalf("%d entries left, want the folder alone", len(entries))
	}
	if err := atomicfile.Write(filepath.Join(dir, "no", "such"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%v, want not exist", err)
	}
}

func TestReadLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if _, err := atomicfile.Read(path, 3); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%v, want not exist", err)
	}
	if err := atomicfile.Write(path, []byte("1234"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := atomicfile.Read(path, 3); err == nil {
		t.Fatal("read past the limit")
	}
	if data, err := atomicfile.Read(path, 4); err != nil || string(data) != "1234" {
		t.Fatalf("%q, %v", data, err)
	}
}
