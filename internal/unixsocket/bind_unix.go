//go:build unix && !linux

package unixsocket

import (
	"net"
	"syscall"
)

// bind listens on a socket that nobody else may connect to, from the moment that it is there. The umask is the process's: files that others make
// at that moment are as private.
func bind(path string) (net.Listener, error) {
	before := syscall.Umask(0o177)
	defer syscall.Umask(before)
	return net.Listen("unix", path)
}
