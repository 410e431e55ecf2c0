package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/trust"
)

// withoutUDP is two clusters between which nothing passes but TCP: eu has one gateway and us n.
func withoutUDP(t *testing.T, n int, f func(w *world, eu *testGateway, us []*testGateway)) {
	t.Helper()
	inBubble(t, func(w *world) {
		w.linkTCP = true
		w.router.dropIf(func(simnet.Packet) bool { return true })
		home, away := w.cluster("eu"), w.cluster("us")
		eu := home.gateway("gateway-0")
		var us []*testGateway
		for i := range n {
			us = append(us, away.gateway("gateway-"+string(rune('0'+i))))
		}
		away.export("checkout.shop", nil, echo)
		w.publish()
		eu.up("us", n)
		f(w, eu, us)
	})
}

func TestStreamsOverTCP(t *testing.T) {
	withoutUDP(t, 2, func(w *world, eu *testGateway, _ []*testGateway) {
		t := w.t
		by := make(map[string]int)
		for range 40 {
			path, echoed, err := eu.ask("us", "checkout.shop", "hello")
			if err != nil || echoed != "hello" {
				t.Fatalf("echoed %q, %v", echoed, err)
			}
			by[path[1]]++
		}
		if by["us/gateway-0"] == 0 || by["us/gateway-1"] == 0 {
			t.Errorf("40 streams went %v, want both", by)
		}
		if _, _, err := eu.ask("us", "other.shop", "x"); !isCode(err, streamv1.Code_CODE_NOT_EXPORTED) {
			t.Errorf("a service that isn't exported: %v", err)
		}
	})
}

// What was cut short doesn't look complete, in either direction.
func TestResetOverTCP(t *testing.T) {
	withoutUDP(t, 1, func(w *world, eu *testGateway, _ []*testGateway) {
		t := w.t
		seen := make(chan error, 1)
		us := w.clusters["us"]
		us.export("cut.shop", nil, func(c net.Conn) {
			_, _ = c.Write([]byte("half"))
			_, _ = c.Read(make([]byte, 1))
			cut(c)
		})
		us.export("sees.shop", nil, func(c net.Conn) {
			_, err := io.ReadAll(c)
			seen <- err
			_ = c.Close()
		})
		w.publish()
		c := eu.open("us", "cut.shop", "")
		if _, err := preamble.ReadReply(c); err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadFull(c, make([]byte, 4))
		_, _ = c.Write([]byte("x"))
		if rest, err := io.ReadAll(c); err == nil {
			t.Errorf("the copy's cut reads as an end, after %q", rest)
		}
		c = eu.open("us", "sees.shop", "half")
		if _, err := preamble.ReadReply(c); err != nil {
			t.Fatal(err)
		}
		cut(c.raw)
		if err := <-seen; err == nil {
			t.Error("the caller's cut reads as an end")
		}
	})
}

// No stream stays behind, nor does a connection that one was on.
func TestConnectionsOverTCPAreUsedOnce(t *testing.T) {
	withoutUDP(t, 1, func(w *world, eu *testGateway, us []*testGateway) {
		t := w.t
		for range 50 {
			if _, _, err := eu.ask("us", "checkout.shop", "hello"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
		carrier := (*eu.links.Load())[clusterName("us")].live()[0].conn.(*tcpCarrier)
		carrier.mu.Lock()
		streams, warm := len(carrier.streams), len(carrier.warm)
		carrier.mu.Unlock()
		if streams != 0 || warm == 0 || warm > maxWarm {
			t.Errorf("%d streams are open and %d connections ready", streams, warm)
		}
		time.Sleep(2 * warmIdle)
		synctest.Wait()
		us[0].warm.mu.Lock()
		left := us[0].warm.held[clusterName("eu")]
		us[0].warm.mu.Unlock()
		if left != 0 {
			t.Errorf("%d connections are ready long after the last stream", left)
		}
		if n := us[0].streams.Load(); n != 0 {
			t.Errorf("%d streams are carried", n)
		}
	})
}

// A domain that is not trusted any more is cut off, with what is open and what is ready.
func TestTrustDomainRemovedOverTCP(t *testing.T) {
	withoutUDP(t, 1, func(w *world, eu *testGateway, us []*testGateway) {
		t := w.t
		open := eu.open("us", "checkout.shop", "x")
		if _, err := preamble.ReadReply(open); err != nil {
			t.Fatal(err)
		}
		_, _ = open.Read(make([]byte, 1))
		us[0].c.bundles.Remove(eu.c.domain)
		time.Sleep(time.Second)
		if _, err := open.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the open stream ended with %v", err)
		}
		if _, _, err := eu.ask("us", "checkout.shop", "x"); !isCode(err, streamv1.Code_CODE_LINK_DOWN) {
			t.Errorf("got %v", err)
		}
	})
}

// Links over TCP may come where the sidecars do.
func TestLinksOnTheStreamsListener(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		w.router.dropIf(func(simnet.Packet) bool { return true })
		shared := func(c *Config) {
			c.LinkOnStreams = true
			c.DialTCP = func(_ context.Context, hostPort string) (net.Conn, error) {
				return w.tcp.dialAddrPort(netip.MustParseAddrPort(hostPort))
			}
		}
		home, away := w.cluster("eu"), w.cluster("us")
		eu, us := home.gateway("gateway-0", shared), away.gateway("gateway-0", shared)
		eu.tcp, us.tcp = eu.address, us.address
		away.export("checkout.shop", nil, echo)
		w.publish()
		eu.up("us", 1)
		if _, echoed, err := eu.ask("us", "checkout.shop", "hello"); err != nil || echoed != "hello" {
			t.Errorf("echoed %q, %v", echoed, err)
		}
		// The right protocol doesn't make a workload a gateway.
		raw, err := w.tcp.dial(us.address)
		if err != nil {
			t.Fatal(err)
		}
		defer cut(raw)
		conn := tls.Client(raw, trust.ClientConfig(trust.TLS{
			Identity: us.c.identity("/ns/shop/sa/web"), Bundles: us.c.bundles, Policy: trust.AllowGateways(us.c.domain), Protocols: []string{preamble.ALPNLinkStream},
		}))
		if err = conn.Handshake(); err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if err == nil {
			t.Error("a workload of the own domain was let in as a gateway")
		}
	})
}

// Where what the dialer sends doesn't get through, the side that was dialed notices too, and lets go of what it carries.
func TestTheDialedSideNoticesAPartition(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		ended := make(chan error, 1)
		eu, us := twoClusters(w, 1)
		us[0].c.export("wait.shop", nil, func(c net.Conn) {
			_, err := io.ReadAll(c)
			ended <- err
			cut(c)
		})
		w.publish()
		time.Sleep(3 * time.Second)
		open := eu.open("us", "wait.shop", "x")
		if _, err := preamble.ReadReply(open); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second) // of probes as on a link that carries something
		lost := eu.ip
		w.router.dropIf(func(p simnet.Packet) bool { return p.From.(*net.UDPAddr).IP.Equal(lost) })
		start := time.Now()
		if err := <-ended; err == nil {
			t.Error("the copy reads an end")
		}
		if took := time.Since(start); took > deafAfter+time.Second {
			t.Errorf("noticed after %s", took)
		}
	})
}
