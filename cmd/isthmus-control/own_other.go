//go:build !unix

package main

import (
	"net"
	"os"
	"path/filepath"
)

// lock makes the state directory. There is no lock to be had here: running one control per state directory is the operator's business.
func lock(state string) (unlock func(), err error) {
	return func() {}, os.MkdirAll(state, 0o700)
}

// listenSocket listens on a Unix socket, as private as its directory.
func listenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	_ = os.Remove(path) // of an earlier run
	return net.Listen("unix", path)
}
