// Package unixsocket listens on Unix sockets: with the right mode from the first moment, in place of what a dead process left, and never in
// place of one that lives. It holds no state.
package unixsocket

import (
	"errors"
	"fmt"
)

// maxPath is what fits into sockaddr_un with its closing zero byte (unix(7)).
const maxPath = 107

// ErrPath says that a path is too long for a socket.
var ErrPath = errors.New("the path is too long for a socket: choose a shorter one")

func checkPath(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("%s: %w (%d bytes, at most %d)", path, ErrPath, len(path), maxPath)
	}
	return nil
}
