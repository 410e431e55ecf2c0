package datagram

import (
	"net"
	"net/netip"
	"sync"
)

// Socket is a connected UDP socket to an application.
type Socket struct {
	*net.UDPConn
	to netip.AddrPort
}

// Connect opens a Socket to an address. What is not that address' can't be received on it.
func Connect(to netip.AddrPort) (*Socket, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil, err
	}
	return &Socket{c, to}, nil
}

// To returns what it is connected to.
func (s *Socket) To() netip.AddrPort { return s.to }

// buffers are what datagrams are received into: one is held while there is something to receive, and not while a socket waits.
var buffers = sync.Pool{New: func() any { return new([MaxPayload + 1]byte) }}
