//go:build !linux

package conn

import (
	"errors"
	"net"
	"net/netip"
)

// Original is known on Linux only.
func Original(net.Conn) (netip.AddrPort, error) {
	return netip.AddrPort{}, errors.New("captured connections need Linux")
}
