package gateway

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
)

// shaker is a connection that notes whether it was closed.
type shaker struct {
	net.Conn
	from   string
	closed bool
}

func (s *shaker) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s.from))
}
func (s *shaker) Close() error { s.closed = true; return nil }

// Strangers who say nothing, from as many addresses as it takes, shut nobody out.
func TestStrangersMakeRoom(t *testing.T) {
	var s shaking
	strangers := make([]*shaker, maxShaking)
	dones := make([]func(), 0, maxShaking)
	for i := range strangers {
		strangers[i] = &shaker{from: fmt.Sprintf("192.0.2.%d:%d", i/maxShakingFrom, 1+i)}
		done, ok := s.take(strangers[i])
		if !ok {
			t.Fatalf("stranger %d was not let in", i)
		}
		dones = append(dones, done)
	}
	if _, ok := s.take(&shaker{from: "192.0.2.0:9999"}); ok {
		t.Error("there are more from one address than may be")
	}
	done, ok := s.take(&shaker{from: "198.51.100.1:1"})
	if !ok || !strangers[0].closed || strangers[1].closed {
		t.Errorf("a peer: let in %t; the oldest stranger gone %t, the next %t", ok, strangers[0].closed, strangers[1].closed)
	}
	done()
	for _, done := range dones {
		done()
	}
	if s.all.Len() != 0 || len(s.from.held) != 0 {
		t.Errorf("%d are left, from %v", s.all.Len(), s.from.held)
	}
}

// A host that has a network of IPv6 has one place in the count, whatever address it comes from.
func TestStrangersOfOneNetwork(t *testing.T) {
	var s shaking
	for i := range maxShakingFrom {
		if _, ok := s.take(&shaker{from: fmt.Sprintf("[2001:db8::%x]:1", 1+i)}); !ok {
			t.Fatalf("number %d was not let in", i)
		}
	}
	if _, ok := s.take(&shaker{from: "[2001:db8::ffff]:1"}); ok {
		t.Error("another address of the network was let in")
	}
	if _, ok := s.take(&shaker{from: "[2001:db8:0:1::1]:1"}); !ok {
		t.Error("another network was not let in")
	}
}
