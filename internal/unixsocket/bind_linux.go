package unixsocket

import (
	"context"
	"net"
	"syscall"
)

// bind listens on a socket that nobody else may connect to, from the moment that it is there: Linux gives the file the mode that the socket
// has when it is bound (unix(7)).
func bind(path string) (net.Listener, error) {
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	return private.Listen(context.Background(), "unix", path)
}
