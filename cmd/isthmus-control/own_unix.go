//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

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
