//go:build unix

package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Listen listens on a Unix socket with that mode: who may write to it may connect. Its folder is made where it is missing, for this user
// alone if the socket is, else so that others can get to it. A socket that a dead process left is replaced.
func Listen(path string, mode fs.FileMode) (net.Listener, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	folder := fs.FileMode(0o700)
	if mode.Perm()&0o077 != 0 {
		folder = 0o755
	}
	if err := os.MkdirAll(filepath.Dir(path), folder); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := bind(path)
	if err == nil {
		if err = os.Chmod(path, mode.Perm()); err != nil {
			_ = l.Close()
		}
	}
	return l, err
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket", path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("%s: another process answers there", path)
	}
	return os.Remove(path)
}
