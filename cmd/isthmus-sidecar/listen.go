package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/unixsocket"
	"github.com/isthmus-mesh/isthmus/sidecar"
)

// listeners are the addresses that are bound.
type listeners struct {
	inbound, proxy, captured, admin, dnsStream net.Listener
	workloadAPI                                net.Listener
	dnsPackets                                 net.PacketConn
	services                                   []sidecar.LocalListener
	datagrams                                  []sidecar.UDPListener

	names []string // "proxy 127.0.0.1:15001", in order
	open  []interface{ Close() error }
	local []net.Addr // those that only the application should reach
}

// listen binds what c names. On failure, what was bound until then is in the result.
func listen(c *config) (*listeners, error) {
	l := new(listeners)
	tcp := func(field, name, address string) (net.Listener, error) {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
		l.bound(name, ln.Addr(), ln)
		return ln, nil
	}
	for _, b := range []struct {
		name, address string
		into          *net.Listener
	}{
		{"inbound", string(c.Listen.Inbound), &l.inbound},
		{"proxy", loopback(c.Listen.Proxy), &l.proxy},
		{"captured", loopback(c.Listen.Captured), &l.captured},
		{"admin", loopback(c.Listen.Admin), &l.admin},
	} {
		if b.address == "" {
			continue
		}
		ln, err := tcp("listen."+b.name, b.name, b.address)
		if err != nil {
			return l, err
		}
		*b.into = ln
	}
	if c.Listen.DNS != "" {
		var err error
		if l.dnsPackets, l.dnsStream, err = onePort(loopback(c.Listen.DNS)); err != nil {
			return l, fmt.Errorf("listen.dns: %w", err)
		}
		l.bound("dns", l.dnsPackets.LocalAddr(), l.dnsPackets)
		l.bound("dns", l.dnsStream.Addr(), l.dnsStream)
	}
	if path := c.Listen.WorkloadAPI; path != "" {
		ln, err := unixsocket.Listen(path, c.workloadAPIMode())
		switch {
		case errors.Is(err, unixsocket.ErrPath):
			return l, &usageError{fmt.Errorf("listen.workloadAPI: %w", err)}
		case err != nil:
			return l, fmt.Errorf("listen.workloadAPI: %w", err)
		}
		l.workloadAPI = ln
		l.names = append(l.names, "workloadAPI "+path)
		l.open = append(l.open, ln)
	}
	for i, s := range c.Listeners {
		if s.isUDP() {
			socket, err := listenUDP(loopback(s.Listen))
			if err != nil {
				return l, fmt.Errorf("listeners[%d].listen: %w", i, err)
			}
			l.bound(s.service.String()+"/udp", socket.LocalAddr(), socket)
			l.datagrams = append(l.datagrams, sidecar.UDPListener{Service: s.service, Port: s.Port, Scope: s.scope, Socket: socket, Idle: s.idle})
			continue
		}
		ln, err := tcp(fmt.Sprintf("listeners[%d].listen", i), s.service.String(), loopback(s.Listen))
		if err != nil {
			return l, err
		}
		l.services = append(l.services, sidecar.LocalListener{Service: s.service, Port: s.Port, Scope: s.scope, Listener: ln})
	}
	return l, nil
}

func listenUDP(address string) (*net.UDPConn, error) {
	at, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	return net.ListenUDP("udp", at)
}

// workloadAPIMode lets no other user connect where none has an identity. Where some have, who connects is looked at then.
func (c *config) workloadAPIMode() fs.FileMode {
	if c.WorkloadAPI.AnyUID || len(c.WorkloadAPI.UIDs) > 0 {
		return 0o666
	}
	return 0o600
}

// onePort binds the same port for UDP and TCP. Where the kernel chooses it (port 0), what is free for the one may be taken for the
// other: then it chooses again.
func onePort(address string) (net.PacketConn, net.Listener, error) {
	const tries = 20
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, nil, err
	}
	for try := 1; ; try++ {
		packets, err := net.ListenPacket("udp", address)
		if err != nil {
			return nil, nil, err
		}
		stream, err := net.Listen("tcp", packets.LocalAddr().String())
		if err == nil {
			return packets, stream, nil
		}
		_ = packets.Close()
		if port != "0" || try == tries {
			return nil, nil, err
		}
	}
}

func (l *listeners) bound(name string, address net.Addr, c interface{ Close() error }) {
	l.names = append(l.names, name+" "+address.String())
	l.open = append(l.open, c)
	if name != "inbound" && name != "captured" && name != "admin" { // what was not captured is reset
		l.local = append(l.local, address)
	}
}

// String lists what is bound.
func (l *listeners) String() string { return strings.Join(l.names, ", ") }

// warn warns of addresses through which others can speak as the workload.
func (l *listeners) warn(ctx context.Context, log *slog.Logger) {
	for _, a := range l.local {
		if !isLocal(a) {
			log.WarnContext(ctx, "listening where others may reach it: they can call with this workload's identity", "address", a.String())
		}
	}
}

func (l *listeners) close() {
	for _, c := range l.open {
		_ = c.Close() // most were closed by who served them
	}
}
