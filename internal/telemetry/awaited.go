package telemetry

import (
	"context"
	"errors"
	"net"
	"net/http"
	"syscall"
)

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// Awaited reports whether whoever sent a request that ServeHTTP serves is still there. A process that was paused, or had no time, finds requests whose
// clients have given up long ago: their connections are closed, and what they asked for is still in the buffer. Ask when the request was read whole, and
// before it changes anything. (A deadline in the request would do as well, if clocks were the same everywhere.)
func Awaited(r *http.Request) bool {
	conn, ok := r.Context().Value(connKey{}).(syscall.Conn)
	return r.Context().Err() == nil && (!ok || !hungUp(conn))
}

// hungUp reports whether the other end has closed the connection: all that is left to read is its end.
func hungUp(conn syscall.Conn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true // closed here
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		n, _, problem := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		gone = problem == nil && n == 0 || problem != nil && !errors.Is(problem, syscall.EAGAIN) && !errors.Is(problem, syscall.EINTR)
	})
	return gone || err != nil
}
