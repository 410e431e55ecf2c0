package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// verifyPatience is how long a connection on this machine may take to be made.
const verifyPatience = 5 * time.Second

// ErrNotInForce says that a connection to a service was not brought here.
var ErrNotInForce = errors.New("capture: rules are not in force")

// Verify finds out whether the rules are in force in this network namespace, without the right to look: it takes the place of the sidecar,
// which must not run yet, and opens a connection to an address that is to be captured. The user that it runs as must be none of SkipUsers.
func Verify(ctx context.Context, r Rules) error {
	if err := r.Check(); err != nil {
		return err
	}
	to, ok := r.sample()
	if !ok {
		return nil // all is left out
	}
	loopback := net.IPv4(127, 0, 0, 1)
	if to.Addr().Is6() {
		loopback = net.IPv6loopback
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(loopback.String(), strconv.Itoa(int(r.Port))))
	if err != nil {
		return fmt.Errorf("capture: in the sidecar's place: %w", err)
	}
	defer func() { _ = l.Close() }()
	missing := fmt.Errorf("%w: a connection to %s was not brought to port %d", ErrNotInForce, to, r.Port)
	// One after the other, and in this goroutine: a network namespace is a thread's. The kernel makes the connection without being asked to.
	c, err := (&net.Dialer{Timeout: verifyPatience}).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return fmt.Errorf("%w: %w", missing, err)
	}
	defer func() { _ = c.Close() }()
	if t, isTCP := l.(*net.TCPListener); isTCP {
		if err := t.SetDeadline(time.Now().Add(verifyPatience)); err != nil {
			return fmt.Errorf("capture: %w", err)
		}
	}
	for { // somebody else may have dialled
		taken, err := l.Accept()
		if err != nil {
			return missing // it went elsewhere, where somebody listens
		}
		_ = taken.Close()
		if taken.RemoteAddr().String() == c.LocalAddr().String() {
			return nil
		}
	}
}

// sample returns a destination that is captured.
func (r Rules) sample() (netip.AddrPort, bool) {
	port := uint16(80)
	for slices.Contains(r.SkipPorts, port) {
		port++
	}
	for _, p := range r.To {
		a := p.Masked().Addr()
		if p.Bits() < a.BitLen() {
			a = a.Next() // the first one is the network's own
		}
		if !slices.ContainsFunc(r.SkipTo, func(s netip.Prefix) bool { return s.Contains(a) }) {
			return netip.AddrPortFrom(a, port), true
		}
	}
	return netip.AddrPort{}, false
}
