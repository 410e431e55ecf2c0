package unixsocket

import (
	"os"
	"path/filepath"
	"testing"
)

// TestBindIsPrivate: from the moment that the socket is there; widening it comes after.
func TestBindIsPrivate(t *testing.T) {
	dir, err := os.MkdirTemp("", "us") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := bind(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if info, err := os.Stat(filepath.Join(dir, "s")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
