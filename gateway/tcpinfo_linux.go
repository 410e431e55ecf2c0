package gateway

import (
	"net"

	"golang.org/x/sys/unix"
)

// segments returns how many segments the kernel has sent on a TCP connection, and how many of them again.
func segments(c net.Conn) (sent, again uint64) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return 0, 0
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return 0, 0
	}
	_ = raw.Control(func(fd uintptr) { // fails when the connection is closed: then nothing is known of it
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			sent, again = uint64(info.Segs_out), uint64(info.Total_retrans)
		}
	})
	return sent, again
}
