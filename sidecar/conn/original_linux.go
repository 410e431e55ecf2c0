package conn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// errNoSocket says that a connection is no TCP connection of the kernel's.
var errNoSocket = errors.New("not a TCP connection of this kernel")

// Original returns where the other end opened c to, before a rule of netfilter on this machine gave it another address
// (SO_ORIGINAL_DST, linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h). Where there was no such rule it is c's local address,
// or an error.
func Original(c net.Conn) (netip.AddrPort, error) {
	for {
		if told, ok := c.(*Told); ok {
			c = told.Conn
			continue
		}
		break
	}
	s, ok := c.(syscall.Conn)
	local, isTCP := c.LocalAddr().(*net.TCPAddr)
	if !ok || !isTCP {
		return netip.AddrPort{}, errNoSocket
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var to netip.AddrPort
	var failed error
	err = raw.Control(func(fd uintptr) {
		if local.AddrPort().Addr().Unmap().Is4() {
			to, failed = original4(int(fd))
		} else {
			to, failed = original6(int(fd))
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	return to, nil
}

func original4(fd int) (netip.AddrPort, error) {
	// An IPv6Mreq is as large as the sockaddr_in that the kernel writes (16 bytes, and 4 more): the way to read it without unsafe.
	m, err := unix.GetsockoptIPv6Mreq(fd, unix.IPPROTO_IP, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, err
	}
	b := m.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4])), nil
}

func original6(fd int) (netip.AddrPort, error) {
	// An IPv6MTUInfo begins with the sockaddr_in6 that the kernel writes.
	m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.IPPROTO_IPV6, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], m.Addr.Port) // as the kernel left it: in network order
	return netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), binary.BigEndian.Uint16(port[:])), nil
}
