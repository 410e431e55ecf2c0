package sidecar

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// kernel is a listener to which connections come that were opened to other addresses.
type kernel struct {
	net.Listener
	to chan netip.AddrPort
}

// open opens a connection to an address, which the kernel brings to the sidecar.
func (k *kernel) open(t *testing.T, to string) net.Conn {
	t.Helper()
	k.to <- netip.MustParseAddrPort(to)
	c, err := net.Dial("tcp", k.Addr().String())
	if err != nil { // a reset may come before it knows that it is open
		c, _ = net.Pipe()
		_ = c.Close()
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// client is an application that opens HTTP connections to an address whatever the URL says.
func (k *kernel) client(t *testing.T, to string) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return k.open(t, to), nil }}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// capturing is a caller in eu whose kernel captures.
func (w *world) capturing(v view, change func(*Config)) (*side, *kernel) {
	w.Helper()
	k := &kernel{Listener: listenTCP(w), to: make(chan netip.AddrPort, 1)}
	return w.caller(v, func(c *Config) {
		c.Captured, c.PassThrough = k.Listener, true
		c.Original = func(net.Conn) (netip.AddrPort, error) { return <-k.to, nil }
		if change != nil {
			change(c)
		}
	}), k
}

const (
	clusterSetIP = "241.0.0.7:80" // of checkout.shop, in every cluster that exports it
	clusterIP    = "10.0.0.7:80"  // of the own cluster's copies
)

func TestCaptured(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	_, there := serveApp(t, answering("us"))
	near, far := w.server(eu, "checkout", topology.HTTP, here), w.server(us, "checkout", topology.HTTP, there)
	w.gateway("gateway-0", to(far))
	c, k := w.capturing(view{
		endpoints: []topology.Endpoint{near.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, far)},
		policy: &topology.Policy{Tiers: []topology.Tier{{Name: "us", Match: topology.Selector{Cluster: "us"}}, {Name: "eu", Match: topology.Selector{Cluster: "eu"}}}},
	}, nil)
	for address, want := range map[string]string{clusterSetIP: "us /a", clusterIP: "eu /a"} {
		if resp, body := get(t, k.client(t, address), "http://checkout.shop/a"); resp.StatusCode != http.StatusOK || body != want {
			t.Errorf("%s: %s %q, want %q", address, resp.Status, body, want)
		}
	}
	// The address was settled by the kernel: a Host that names another service is a mistake.
	if resp, _ := get(t, k.client(t, clusterSetIP), "http://cart.shop.svc.clusterset.local/"); resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("another service's name: %s", resp.Status)
	}
	if resp, body := get(t, k.client(t, "241.0.0.7:81"), "http://checkout.shop/"); resp.Header.Get(headerError) != string(CodeUnknownPort) {
		t.Errorf("a port that the service has not: %s %q", resp.Status, body)
	}
	if n := c.counter("isthmus_passed_connections_total"); n != 0 {
		t.Errorf("%v connections were passed on", n)
	}
	if n := c.counter("isthmus_requests_total", "direction=outbound", "code=200"); n != 2 {
		t.Errorf("%v requests are counted, want 2", n)
	}
}

func TestCapturedBytes(t *testing.T) {
	w := newWorld(t)
	far := w.server(us, "checkout", topology.TCP, tcpApp(t, whole))
	w.gateway("gateway-0", to(far))
	_, k := w.capturing(view{protocol: topology.TCP, remotes: []topology.Remote{remote(1, far)}}, nil)
	conn := k.open(t, clusterSetIP)
	_, _ = io.WriteString(conn, "hello")
	_ = conn.(*net.TCPConn).CloseWrite() // it is one
	if got, err := io.ReadAll(conn); err != nil || string(got) != "HELLO" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestPassedOn: what is none of the mesh's affair goes where it was going; a node proxy, which captures the mesh's own addresses
// alone, resets it.
func TestPassedOn(t *testing.T) {
	w := newWorld(t)
	outside := tcpApp(t, whole)
	says := func(conn net.Conn) string {
		if _, err := io.WriteString(conn, "hello"); err != nil {
			return "broken" // whoever meets the reset first has it: reading would see an end
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
		got, err := io.ReadAll(conn)
		if err != nil {
			return "broken"
		}
		return string(got)
	}
	var down atomic.Bool
	var asked atomic.Int64
	resolve := func(context.Context, netip.Addr) (topology.ServiceName, bool, error) {
		asked.Add(1)
		if down.Load() {
			return topology.ServiceName{}, false, errors.New("control is away")
		}
		return topology.ServiceName{}, false, nil
	}
	var later atomic.Bool // what was asked is long ago
	c, k := w.capturing(view{}, func(c *Config) {
		c.Resolve = resolve
		c.Now = func() time.Time {
			if later.Load() {
				return time.Now().Add(2 * strangerFor)
			}
			return time.Now()
		}
	})
	down.Store(true)
	if got := says(k.open(t, outside.String())); got != "broken" {
		t.Errorf("whatever it is, it went out in the clear: %q", got)
	}
	down.Store(false)
	before := asked.Load()
	for range 3 {
		if got := says(k.open(t, outside.String())); got != "HELLO" {
			t.Errorf("outside of the mesh: %q", got)
		}
	}
	if n := asked.Load() - before; n != 1 {
		t.Errorf("control was asked %d times for an address that is no service's", n)
	}
	if n := c.counter("isthmus_passed_connections_total"); n != 3 {
		t.Errorf("%v connections are counted, want 3", n)
	}
	down.Store(true)
	later.Store(true)
	if got := says(k.open(t, outside.String())); got != "HELLO" {
		t.Errorf("what was outside of the mesh is not any more, because control is away: %q", got)
	}
	down.Store(false)
	// A service of the own cluster that has no copies in the mesh is called as it was before there was one.
	c.config.Connect, c.outbound.connectTo = nil, func(ctx context.Context, address string) (net.Conn, error) {
		if address == clusterIP {
			address = outside.String()
		}
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	if got := says(k.open(t, clusterIP)); got != "HELLO" {
		t.Errorf("a service without copies in the mesh: %q", got)
	}
	// Opened to the listener itself.
	if got := says(k.open(t, k.Addr().String())); got != "broken" {
		t.Errorf("a connection to the listener itself: %q", got)
	}

	_, node := w.capturing(view{}, func(c *Config) { c.PassThrough = false })
	if got := says(node.open(t, outside.String())); got != "broken" {
		t.Errorf("a node proxy passed on: %q", got)
	}
}

// TestCapturedUnknownAddress: an address that the sidecar has never heard of is asked about, and the service subscribed to.
func TestCapturedUnknownAddress(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	var c *side
	var k *kernel
	c, k = w.capturing(view{}, func(config *Config) {
		config.Snapshots.Store(topology.NewSnapshot(topology.SnapshotSpec{Self: config.Snapshots.Load().Self()}))
		config.Resolve = func(_ context.Context, a netip.Addr) (topology.ServiceName, bool, error) {
			return checkout, a == netip.MustParseAddrPort(clusterIP).Addr(), nil
		}
		config.Subscribe = func(_ context.Context, name topology.ServiceName) error {
			if name == checkout {
				c.snapshots.Store(w.snapshot(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}))
			}
			return nil
		}
	})
	if resp, body := get(t, k.client(t, clusterIP), "http://10.0.0.7/a"); resp.StatusCode != http.StatusOK || body != "eu /a" {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// TestCapturedBeforeConfiguration: nothing is guessed: what might be a call of the mesh's does not go out in the clear.
func TestCapturedBeforeConfiguration(t *testing.T) {
	w := newWorld(t)
	k := &kernel{Listener: listenTCP(w), to: make(chan netip.AddrPort, 1)}
	w.start(must(trust.NodeID(eu, "node-0")), nil, func(c *Config) {
		c.Captured = k.Listener
		c.Original = func(net.Conn) (netip.AddrPort, error) { return <-k.to, nil }
	})
	if got, err := io.ReadAll(k.open(t, clusterSetIP)); err == nil {
		t.Errorf("got %q", got)
	}
}
