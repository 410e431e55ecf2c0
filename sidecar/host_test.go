package sidecar

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
)

// appAt serves at a loopback address of its own, as a pod has one.
func appAt(t *testing.T, address string, protocol topology.Protocol) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address+":0")
	if err != nil {
		t.Skipf("%v: only Linux has all of 127.0.0.0/8", err)
	}
	says := "copy " + address
	if protocol.IsHTTP() {
		s := &http.Server{Handler: answering(says), ReadHeaderTimeout: patience}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close() })
	} else {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, says)
				_ = c.Close()
			}
		}()
		t.Cleanup(func() { _ = l.Close() })
	}
	return addrOf(l)
}

// TestOneCopy: a captured connection to the address of one copy of a headless service of another cluster reaches that copy, each time: through
// the gateway, which is told which, and the node proxy that stands in for both.
func TestOneCopy(t *testing.T) {
	for _, protocol := range []topology.Protocol{topology.HTTP, topology.TCP} {
		t.Run(string(protocol), func(t *testing.T) {
			w := newWorld(t)
			zero, one := appAt(t, "127.0.0.2", protocol), appAt(t, "127.0.0.3", protocol)
			far := w.server(us, "checkout", protocol, zero, one)
			g := w.gateway("gateway-0", to(far))
			ips := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
			_, k := w.capturing(view{protocol: protocol, remotes: []topology.Remote{remote(2, far)}, hosts: []topology.HostGroup{{
				Cluster: cluster("us"), Ports: []topology.HostPort{{Name: "http", Number: 80, Target: 8080, Protocol: "tcp"}},
				Hosts: []topology.Host{
					{Name: "zero", Address: zero.Addr(), IPs: ips("10.2.0.1")},
					{Name: "one", Address: one.Addr(), IPs: ips("241.0.0.9")},
					{Name: "gone", Address: netip.MustParseAddr("127.0.0.4"), IPs: ips("10.2.0.3")},
				},
			}}}, nil)
			says := func(to string) string {
				if protocol.IsHTTP() {
					resp, body := get(t, k.client(t, to), "http://zero.us.checkout.shop.svc.clusterset.local/a")
					return fmt.Sprint(resp.StatusCode, " ", body)
				}
				got, _ := io.ReadAll(k.open(t, to))
				return string(got)
			}
			before, after := "", ""
			if protocol.IsHTTP() {
				before, after = "200 ", " /a"
			}
			for range 5 {
				for to, want := range map[string]string{"10.2.0.1:8080": "copy 127.0.0.2", "241.0.0.9:8080": "copy 127.0.0.3", "10.2.0.1:80": "copy 127.0.0.2"} {
					if got := says(to); got != before+want+after {
						t.Errorf("%s: %q, want %q", to, got, want)
					}
				}
			}
			if protocol == topology.TCP { // HTTP tries again for as long as it may
				if got := says("10.2.0.3:8080"); got != "" {
					t.Errorf("a copy that is gone there: %q", got)
				}
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			for _, p := range g.seen {
				if p.Port != 80 || p.Host != zero.Addr() && p.Host != one.Addr() && p.Host != netip.MustParseAddr("127.0.0.4") {
					t.Errorf("the gateway was told %+v", p)
				}
			}
		})
	}
}

// TestOnlyThatCopy: whoever asks for one copy that isn't served here is refused in the handshake.
func TestOnlyThatCopy(t *testing.T) {
	at := netip.MustParseAddrPort
	p := &topology.InboundPort{Number: 80, Protocol: topology.TCP, Targets: []netip.AddrPort{at("10.2.0.1:8080"), at("10.2.0.2:8080")}}
	if got := only(p, netip.Addr{}); got != p {
		t.Errorf("no copy is named: %+v", got)
	}
	if got := only(p, at("10.2.0.2:1").Addr()); got == nil || len(got.Targets) != 1 || got.Targets[0] != p.Targets[1] || got.Protocol != topology.TCP {
		t.Errorf("%+v", got)
	}
	if got := only(p, at("10.2.0.3:1").Addr()); got != nil {
		t.Errorf("one that isn't there: %+v", got)
	}
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	if p := near.Sidecar.inbound.keeper.present().port(checkout, 80, netip.MustParseAddr("192.0.2.9")); p != nil {
		t.Errorf("served: %+v", p)
	}
	if _, err := near.Sidecar.inbound.route(preamble.ServerName(checkout, 80, here.Addr()), false); err != nil {
		t.Error(err)
	}
}
