//go:build !linux

package gateway

import (
	"net"

	"github.com/quic-go/quic-go"
)

// receiver is a UDP socket, which elsewhere is read as quic-go does.
type receiver struct{ *net.UDPConn }

func newReceiver(c *net.UDPConn) *receiver { return &receiver{c} }

func (*receiver) watch(*quic.Conn) {}

// listen: what a peer's machine says of packets is heard on Linux alone.
func (*receiver) listen(func()) {}
