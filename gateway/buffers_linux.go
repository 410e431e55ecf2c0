package gateway

import (
	"net"

	"golang.org/x/sys/unix"
)

// growBuffers sets both socket buffers to size, by force where this process may, and returns the smaller of what they are now.
func growBuffers(c *net.UDPConn, size int) int {
	_ = c.SetReadBuffer(size)  // the kernel cuts it to its limit
	_ = c.SetWriteBuffer(size) // likewise
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	smallest := 0
	err = raw.Control(func(fd uintptr) {
		s := int(fd)
		read := bufferSize(s, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, size)
		write := bufferSize(s, unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, size)
		smallest = min(read, write)
	})
	if err != nil {
		return 0
	}
	return smallest
}

func bufferSize(fd, get, force, size int) int {
	// The kernel reports twice what was asked for: it counts its own bookkeeping in (socket(7)).
	if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, get); err == nil && n/2 >= size {
		return n / 2
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) // needs CAP_NET_ADMIN
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, get)
	if err != nil {
		return 0
	}
	return n / 2
}
