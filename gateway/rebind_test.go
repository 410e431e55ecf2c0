package gateway

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
)

// renumber makes a gateway's packets come from another address, and takes none that go to an address that it had before: a NAT that has
// forgotten, or a route that has changed.
func (w *world) renumber(g *testGateway, to net.IP) {
	w.router.translate(func(p simnet.Packet) (simnet.Packet, bool) {
		from, at := p.From.(*net.UDPAddr), p.To.(*net.UDPAddr)
		switch {
		case from.IP.Equal(g.ip):
			p.From = &net.UDPAddr{IP: to, Port: from.Port}
		case at.IP.Equal(to):
			p.To = &net.UDPAddr{IP: g.ip, Port: at.Port}
		case at.IP.Equal(g.ip):
			return p, false
		}
		return p, true
	})
}

// The own address changes while streams are open: they go on, and no connection is lost.
func TestOwnAddressChanges(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, _ := twoClusters(w, 1)
		c := eu.open("us", "checkout.shop", "")
		defer func() { cut(c.raw) }()
		if _, err := preamble.ReadReply(c); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			w.renumber(eu, net.IPv4(10, 77, byte(i), 1).To4())
			began := time.Now()
			for range 20 {
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := c.Write([]byte("still here")); err != nil {
					t.Fatalf("after change %d: %v", i, err)
				}
				var got [10]byte
				if _, err := io.ReadFull(c, got[:]); err != nil || string(got[:]) != "still here" {
					t.Fatalf("after change %d: %q, %v", i, got, err)
				}
				if _, echoed, err := eu.ask("us", "checkout.shop", "new"); err != nil || echoed != "new" {
					t.Fatalf("a new call after change %d: %q, %v", i, echoed, err)
				}
			}
			t.Logf("change %d: twenty of each took %s", i, time.Since(began))
			time.Sleep(10 * time.Second) // the peer keeps three addresses in mind, each for five seconds
		}
		if lost := eu.counterOf("isthmus_link_connections_lost_total", "us"); lost != 0 {
			t.Errorf("%v connections were lost", lost)
		}
	})
}

// A peer's gateway is at another address now, and gone from the first, says its cluster: it is dialed there at once, and no call is lost.
func TestPeerAddressChanges(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1)
		old := us[0]
		away := old.c
		away.gateway(old.id)
		all := away.gateways
		defer func() { away.gateways = all }()
		away.gateways = all[1:]
		w.blackhole(old)
		changed := time.Now()
		w.publish()
		for range 20 {
			if _, echoed, err := eu.ask("us", "checkout.shop", "new"); err != nil || echoed != "new" {
				t.Fatalf("%q, %v", echoed, err)
			}
		}
		t.Logf("twenty calls took %s", time.Since(changed))
		for _, c := range (*eu.links.Load())[clusterName("us")].live() {
			if c.gateway.QUIC == all[1].quic {
				return
			}
		}
		t.Error("no connection to the new address")
	})
}
