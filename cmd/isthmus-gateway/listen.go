package main

import (
	"fmt"
	"net"

	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
)

// linkTCP is where links of other clusters' gateways are taken over TCP.
type linkTCP struct {
	listener net.Listener // nil: none of its own
	shared   bool         // with the sidecars, on listen.streams
	bound    net.Addr     // nil: nowhere
	likeQUIC bool         // on the port number of listen.quic
}

// off is what listen.tcp says when no links are taken over TCP.
const off = "off"

// wantedTCP is what listen.tcp says, or its default; empty: links come over QUIC alone.
func (c *config) wantedTCP() strictyaml.Address {
	switch c.Listen.TCP {
	case off:
		return ""
	case "":
		return c.Listen.QUIC
	}
	return c.Listen.TCP
}

// listenTCP binds what listen.tcp says: by default the address and port number of listen.quic, which may be those of listen.streams too.
func listenTCP(c *config, streams, quic net.Addr) (linkTCP, error) {
	want := string(c.wantedTCP())
	if want == "" {
		return linkTCP{}, nil
	}
	byDefault := c.Listen.TCP == ""
	host, port, err := net.SplitHostPort(want)
	if err != nil {
		return linkTCP{}, fmt.Errorf("listen.tcp: %w", err)
	}
	anyPort := port == "0"
	if byDefault {
		_, port = hostPort(quic)
	}
	if onHost, onPort := hostPort(streams); onPort == port && sameHost(host, onHost) {
		return linkTCP{shared: true, bound: streams, likeQUIC: byDefault}, nil
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil && byDefault && anyPort {
		// The kernel chose the number for UDP, and somebody has it for TCP.
		if listener, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err == nil {
			return linkTCP{listener: listener, bound: listener.Addr()}, nil
		}
	}
	if err != nil {
		if byDefault {
			return linkTCP{}, fmt.Errorf("listen.tcp, by default as listen.quic: %w (another address, or off, may be set)", err)
		}
		return linkTCP{}, fmt.Errorf("listen.tcp: %w", err)
	}
	return linkTCP{listener: listener, bound: listener.Addr(), likeQUIC: byDefault}, nil
}

func hostPort(a net.Addr) (host, port string) {
	host, port, _ = net.SplitHostPort(a.String()) // a bound address has both
	return host, port
}

// sameHost reports whether a listener on one of them takes what the other is for.
func sameHost(a, b string) bool {
	return a == b || everywhere(a) || everywhere(b)
}

func everywhere(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// advertised returns the address to tell others; quic is that for QUIC. Empty: there is none.
func (l linkTCP) advertised(c *config, quic string) (string, error) {
	switch {
	case l.bound == nil:
		return "", nil
	case c.Advertise.TCP == "" && l.likeQUIC:
		return quic, nil
	}
	return advertised("advertise.tcp", c.Advertise.TCP, l.bound)
}
