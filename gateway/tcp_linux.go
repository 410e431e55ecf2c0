package gateway

import (
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// tuneTCP makes the kernel give a connection up as soon as QUIC would: when nothing that was sent is acknowledged, or nothing is heard.
func tuneTCP(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: idleTimeout / 3, Interval: idleTimeout / 6, Count: 4})
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(idleTimeout/time.Millisecond))
	})
}

// untouched reports whether an idle connection is still open and nothing has come on it.
func untouched(c net.Conn) bool {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return true
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, peeked := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		quiet = errors.Is(peeked, unix.EAGAIN)
	})
	return err == nil && quiet
}
