//go:build unix

package unixsocket_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/unixsocket"
)

func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "us") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, mode := range []os.FileMode{0o600, 0o666} {
		path := filepath.Join(dir, mode.String(), "s")
		l, err := unixsocket.Listen(path, mode)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("got %v, %v: want %v", info.Mode(), err, mode)
		}
		folder, err := os.Stat(filepath.Dir(path))
		if others := folder.Mode().Perm()&0o005 != 0; err != nil || others != (mode == 0o666) {
			t.Errorf("a folder of mode %v for a socket of mode %v", folder.Mode(), mode)
		}
		if _, err = unixsocket.Listen(path, mode); err == nil || !strings.Contains(err.Error(), "another process answers") {
			t.Errorf("got %v", err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false) // as a process that is killed
		_ = l.Close()
		again, err := unixsocket.Listen(path, mode)
		if err != nil {
			t.Fatal(err)
		}
		_ = again.Close()
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := unixsocket.Listen(file, 0o600); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("got %v", err)
	}
	if _, err := unixsocket.Listen(filepath.Join(dir, strings.Repeat("long/", 30), "s"), 0o600); !errors.Is(err, unixsocket.ErrPath) {
		t.Errorf("got %v", err)
	}
}
