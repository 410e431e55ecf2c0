package sidecar

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	records "github.com/isthmus-mesh/isthmus/internal/datagram"
	"github.com/isthmus-mesh/isthmus/sidecar/datagram"
	"github.com/isthmus-mesh/isthmus/topology"
)

// udpApp is an application that answers each datagram with its name and what it got. It counts the addresses that it hears from.
type udpApp struct {
	socket *net.UDPConn
	mu     sync.Mutex
	seen   map[netip.AddrPort]int // guarded by mu; datagrams by whence they came
	silent atomic.Bool
}

func newUDPApp(tb testing.TB, name string) *udpApp {
	tb.Helper()
	a := &udpApp{socket: listenUDP(tb), seen: make(map[netip.AddrPort]int)}
	var wg sync.WaitGroup
	wg.Go(func() {
		buffer := make([]byte, datagram.MaxPayload)
		for {
			n, from, err := a.socket.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			a.mu.Lock()
			a.seen[from]++
			a.mu.Unlock()
			if a.silent.Load() {
				continue
			}
			answer := append([]byte(name+" "), buffer[:n]...)
			_, _ = a.socket.WriteToUDPAddrPort(answer[:min(len(answer), datagram.MaxPayload)], from)
		}
	})
	tb.Cleanup(func() { _ = a.socket.Close(); wg.Wait() })
	return a
}

func (a *udpApp) at() netip.AddrPort { return netip.MustParseAddrPort(a.socket.LocalAddr().String()) }

func (a *udpApp) callers() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.seen)
}

func (a *udpApp) got() (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.seen {
		n += m
	}
	return n
}

func listenUDP(tb testing.TB) *net.UDPConn {
	tb.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// udpCaller is a caller in eu with a listener for checkout's datagrams.
func (w *world) udpCaller(v view, idle time.Duration) (*side, netip.AddrPort) {
	w.Helper()
	v.protocol = topology.UDP
	socket := listenUDP(w)
	c := w.caller(v, func(c *Config) {
		c.UDP = []UDPListener{{Service: checkout, Port: 80, Socket: socket, Idle: idle}}
	})
	return c, netip.MustParseAddrPort(socket.LocalAddr().String())
}

// udpClient is an application's socket, to one address.
type udpClient struct {
	tb testing.TB
	c  *net.UDPConn
}

func newUDPClient(tb testing.TB, to netip.AddrPort) *udpClient {
	tb.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return &udpClient{tb, c}
}

// ask sends until an answer comes: any datagram may be lost.
func (c *udpClient) ask(text string) string {
	c.tb.Helper()
	buffer := make([]byte, datagram.MaxPayload)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := c.c.Write([]byte(text)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			c.tb.Fatal(err)
		}
		_ = c.c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		for {
			n, err := c.c.Read(buffer)
			if err != nil {
				break
			}
			if strings.HasSuffix(string(buffer[:n]), " "+text) {
				return string(buffer[:n])
			}
		}
	}
	c.tb.Fatalf("%q was not answered", text)
	return ""
}

func TestDatagrams(t *testing.T) {
	for _, where := range []string{"own cluster", "another cluster"} {
		t.Run(where, func(t *testing.T) {
			w := newWorld(t)
			app := newUDPApp(t, "app")
			var v view
			var served *side
			if where == "own cluster" {
				served = w.server(eu, "checkout", topology.UDP, app.at())
				v.endpoints = []topology.Endpoint{served.endpoint("checkout-0")}
			} else {
				served = w.server(us, "checkout", topology.UDP, app.at())
				w.gateway("gateway-0", to(served))
				v.remotes = []topology.Remote{remote(1, served)}
			}
			c, at := w.udpCaller(v, 0)
			one, two := newUDPClient(t, at), newUDPClient(t, at)
			for i := range 5 {
				for _, client := range []*udpClient{one, two} {
					text := fmt.Sprint("hello ", i)
					if got := client.ask(text); got != "app "+text {
						t.Fatalf("got %q", got)
					}
				}
			}
			if n := app.callers(); n != 2 {
				t.Errorf("the application saw %d addresses, want one for each client", n)
			}
			if n := c.counter("isthmus_sessions"); n != 1 {
				t.Errorf("%v sessions for two clients, want 1", n)
			}
			if n := served.counter("isthmus_udp_flows", "direction=inbound"); n != 2 {
				t.Errorf("%v flows, want 2", n)
			}
		})
	}
}

// Every size that UDP has arrives whole, that of nothing too.
func TestDatagramSizes(t *testing.T) {
	w := newWorld(t)
	app := newUDPApp(t, "")
	served := w.server(us, "checkout", topology.UDP, app.at())
	w.gateway("gateway-0", to(served))
	_, at := w.udpCaller(view{remotes: []topology.Remote{remote(1, served)}}, 0)
	client := newUDPClient(t, at)
	buffer := make([]byte, datagram.MaxPayload)
	for _, size := range []int{1, 0, 1200, 1472, 9000, datagram.MaxPayload - 1} {
		want := bytes.Repeat([]byte{'x'}, size)
		got := false
		for try := 0; try < 50 && !got; try++ {
			if _, err := client.c.Write(want); err != nil {
				t.Fatal(err)
			}
			_ = client.c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			n, err := client.c.Read(buffer)
			got = err == nil && n == size+1 && bytes.Equal(buffer[1:n], want)
		}
		if !got {
			t.Errorf("%d bytes did not come back", size)
		}
	}
}

// A flow stays with its copy, and goes to another when that is lost.
func TestDatagramsMove(t *testing.T) {
	w := newWorld(t)
	apps := map[string]*udpApp{"near": newUDPApp(t, "near"), "far": newUDPApp(t, "far")}
	near := w.server(eu, "checkout", topology.UDP, apps["near"].at())
	far := w.server(us, "checkout", topology.UDP, apps["far"].at())
	w.gateway("gateway-0", to(far))
	c, at := w.udpCaller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, far)}}, 0)
	client := newUDPClient(t, at)
	for range 10 {
		if got := client.ask("a"); got != "near a" {
			t.Fatalf("got %q", got)
		}
	}
	_ = near.stop()
	waitFor(t, "it is answered by the other", func() bool { return client.ask("b") == "far b" })
	if n := c.counter("isthmus_udp_flows_moved_total"); n < 1 {
		t.Errorf("%v flows have moved, want 1", n)
	}
}

// What flows send to a service that no copy takes up doesn't fill the memory, nor the room of other services' datagrams.
func TestDatagramsWaitWithinBounds(t *testing.T) {
	o := &Outbound{
		udp: &udpSessions{waiting: records.NewBudget(maxUDPWaitingAll)}, now: time.Now, metrics: &metrics{udp: newUDPMetrics()},
		log: slog.New(slog.DiscardHandler),
	}
	flow := func(service topology.ServiceName) *udpFlow {
		return &udpFlow{listener: &udpListener{o: o, query: topology.Query{Service: service}}, settling: true}
	}
	var waiting int
	count := func(f *udpFlow) {
		for _, payload := range f.waits() {
			waiting += len(payload)
		}
	}
	payload := make([]byte, datagram.MaxPayload)
	var flows []*udpFlow
	for range 1000 {
		f := flow(checkout)
		flows = append(flows, f)
		for range maxUDPWaiting {
			f.send(payload)
		}
	}
	other := flow(must(topology.NewServiceName("shop", "payments")))
	other.send(payload)
	if count(other); waiting != len(payload) {
		t.Errorf("%d bytes wait for the other service, want those that were sent: %d", waiting, len(payload))
	}
	waiting = 0
	for _, f := range flows {
		count(f)
	}
	if waiting > maxUDPWaitingAll/2 {
		t.Errorf("%d bytes wait, want at most %d", waiting, maxUDPWaitingAll/2)
	}
}

// An application that does not listen is found out (ICMP), though the sidecar before it is well.
func TestDatagramsUnreachable(t *testing.T) {
	w := newWorld(t)
	closed := listenUDP(t)
	nobody := netip.MustParseAddrPort(closed.LocalAddr().String())
	_ = closed.Close()
	app := newUDPApp(t, "far")
	near := w.server(eu, "checkout", topology.UDP, nobody)
	far := w.server(us, "checkout", topology.UDP, app.at())
	w.gateway("gateway-0", to(far))
	_, at := w.udpCaller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, far)}}, 0)
	if got := newUDPClient(t, at).ask("a"); got != "far a" {
		t.Errorf("got %q", got)
	}
}

// One that answers nothing is well: a syslog server never does.
func TestDatagramsOneWay(t *testing.T) {
	w := newWorld(t)
	app := newUDPApp(t, "near")
	app.silent.Store(true)
	near := w.server(eu, "checkout", topology.UDP, app.at())
	c, at := w.udpCaller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, 0)
	client := newUDPClient(t, at)
	waitFor(t, "a hundred arrive", func() bool {
		_, _ = client.c.Write([]byte("log"))
		return app.got() >= 100
	})
	if n := c.counter("isthmus_ejections_total"); n != 0 {
		t.Errorf("ejected %v times", n)
	}
}

func TestDatagramsIdle(t *testing.T) {
	w := newWorld(t)
	app := newUDPApp(t, "near")
	near := w.server(eu, "checkout", topology.UDP, app.at())
	c, at := w.udpCaller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, time.Millisecond)
	newUDPClient(t, at).ask("a")
	waitFor(t, "both sides forget the flow", func() bool {
		return c.counter("isthmus_udp_flows") == 0 && near.counter("isthmus_udp_flows") == 0
	})
}

// TestDatagramsAreTold: control is told of flows as of requests: which cluster they came to, and what is open where they go.
func TestDatagramsAreTold(t *testing.T) {
	w := newWorld(t)
	near, far := w.server(eu, "checkout", topology.UDP, newUDPApp(t, "near").at()), w.server(us, "checkout", topology.UDP, newUDPApp(t, "far").at())
	w.gateway("gateway-0", to(far))
	c, at := w.udpCaller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, far)}}, 0)
	client := newUDPClient(t, at)
	waitFor(t, "it is answered", func() bool { return client.ask("a") == "near a" })
	waitFor(t, "it is answered again", func() bool { return client.ask("b") == "near b" })
	if got := counts(c.Account(true))["checkout.shop eu"]; got.GetRequests() != 1 || got.GetFailed() != 0 {
		t.Errorf("of one flow, control is told %v", got)
	}
	if got := near.Account(true).GetServed(); len(got) != 1 || got[0].GetActive() != 1 || got[0].GetRequests() != 1 {
		t.Errorf("the called side says %v", got)
	}
	_ = near.stop()
	waitFor(t, "it is answered by the other", func() bool { return client.ask("c") == "far c" })
	if got := counts(c.Account(true))["checkout.shop us"]; got.GetRequests() != 1 {
		t.Errorf("of the flow that has moved, control is told %v", got)
	}
	_ = far.stop()
	waitFor(t, "nobody answers, which is told", func() bool {
		_, _ = client.c.Write([]byte("d"))
		return counts(c.Account(true))["checkout.shop "].GetFailed() > 0
	})
}
