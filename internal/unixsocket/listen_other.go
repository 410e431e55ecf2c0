//go:build !unix

package unixsocket

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

// Listen listens on a Unix socket, as private as its folder.
func Listen(path string, _ fs.FileMode) (net.Listener, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	_ = os.Remove(path) // of an earlier run
	return net.Listen("unix", path)
}
