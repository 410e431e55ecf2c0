//go:build !linux

package gateway

import "net"

// growBuffers sets both socket buffers to size. Elsewhere than on Linux what they are then isn't asked for.
func growBuffers(c *net.UDPConn, size int) int {
	if c.SetReadBuffer(size) != nil || c.SetWriteBuffer(size) != nil {
		return 0
	}
	return size
}
