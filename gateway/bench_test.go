package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/trust"
)

// loopback makes a gateway use real sockets.
func loopback(tb testing.TB) option {
	tb.Helper()
	streams, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	link, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return func(c *Config) {
		_, _ = c.Streams.Close(), c.Link.Close()
		c.Streams, c.Link = streams, link
		c.DialPacket = func() (net.PacketConn, error) { return net.ListenPacket("udp", "127.0.0.1:0") }
		c.DialEndpoint = nil
		c.Log = nil
	}
}

// pair is two gateways on loopback; us exports checkout.shop, which echoes.
func pair(tb testing.TB) (*testGateway, *tls.Config) {
	tb.Helper()
	w := newWorld(tb)
	home, away := w.cluster("eu"), w.cluster("us")
	g := home.gateway("gateway-0", loopback(tb))
	away.gateway("gateway-0", loopback(tb))
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	w.wg.Go(func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { echo(c) })
		}
	})
	tb.Cleanup(func() { _ = server.Close() })
	away.export("checkout.shop", nil, nil).Endpoints[0].Address = netip.MustParseAddrPort(server.Addr().String())
	w.publish()
	g.up("us", 4)
	return g, trust.ClientConfig(trust.TLS{
		Identity: home.identity("/ns/shop/sa/web"), Bundles: home.bundles, Policy: trust.AllowGateways(home.domain), Protocols: []string{preamble.ALPNStream},
	})
}

// dialReal opens a stream on real sockets.
func dialReal(ctx context.Context, g *testGateway, config *tls.Config) (net.Conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", g.address)
	if err != nil {
		return nil, err
	}
	c := tls.Client(wholeConn{raw}, config)
	p := preamble.Preamble{Cluster: clusterName("us"), Service: serviceName("checkout.shop"), Port: 80}
	if _, err := c.Write(p.Append(nil)); err != nil {
		return nil, err
	}
	if _, err := preamble.ReadReply(c); err != nil {
		return nil, err
	}
	return c, nil
}

// The same as in virtual time, once over the kernel's own sockets: offloads, resets and half-closes are its.
func TestLoopback(t *testing.T) {
	g, config := pair(t)
	for _, size := range []int{1, 4 << 10, 4 << 20} {
		c, err := dialReal(t.Context(), g, config)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = c.Write(make([]byte, size))
			_ = c.(*tls.Conn).CloseWrite()
		}()
		n, err := io.Copy(io.Discard, c)
		if err != nil || n != int64(size) {
			t.Errorf("%d of %d bytes came back, %v", n, size, err)
		}
		_ = c.Close()
	}
}

func BenchmarkNewStream(b *testing.B) {
	g, config := pair(b)
	for b.Loop() {
		c, err := dialReal(b.Context(), g, config)
		if err != nil {
			b.Fatal(err)
		}
		cut(c.(*tls.Conn).NetConn())
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	g, config := pair(b)
	for _, size := range []int{64, 16 << 10} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			c, err := dialReal(b.Context(), g, config)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			buf := make([]byte, size)
			for b.Loop() {
				if _, err := c.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkBulk(b *testing.B) {
	g, config := pair(b)
	c, err := dialReal(b.Context(), g, config)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	const chunk = 1 << 20
	b.SetBytes(chunk)
	out, in := make([]byte, chunk), make([]byte, chunk)
	for b.Loop() {
		go func() { _, _ = c.Write(out) }()
		if _, err := io.ReadFull(c, in); err != nil {
			b.Fatal(err)
		}
	}
}
