//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// maxSocketPath is what fits into sockaddr_un with its closing zero byte (unix(7)).
const maxSocketPath = 107

// lock makes the state directory ours alone for as long as the process lives: two controls over one state would say two stories under
// one name. unlock gives it up.
func lock(state string) (unlock func(), err error) {
	if err = os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(state, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // G304: in the configured state directory
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: another isthmus-control uses this state directory: %w", path, err), f.Close())
	}
	return func() { _ = f.Close() }, nil // the lock goes with it
}

// listenSocket listens on a Unix socket that only this user can open. One that a dead process left is replaced.
func listenSocket(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, &usageError{fmt.Errorf("admin.socket: %s: %d bytes, and a socket's path has at most %d: choose a shorter one", path, len(path), maxSocketPath)}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Not chmod afterwards: somebody could open it in between.
	before := syscall.Umask(0o177)
	defer syscall.Umask(before)
	return net.Listen("unix", path)
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("admin.socket: %s is there and is no socket", path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("admin.socket: %s: another process answers there", path)
	}
	return os.Remove(path)
}
