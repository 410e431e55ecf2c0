package configstream_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

func TestOnlyDifferencesAreSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		c := startClient(t, p, nil)
		synctest.Wait()
		if c.Connected() || c.Snapshots().Load() != nil {
			t.Error("connected before there is a World")
		}
		p.server.Set(world(gateway("gateway-0"), gateway("gateway-1"), service(t, "checkout.shop", 1)))
		p.wantSent("+gateway/gateway-0", "+gateway/gateway-1")
		if !c.Connected() {
			t.Error("not connected")
		}
		c.subscribe(t, "checkout.shop")
		p.wantSent("+service/checkout.shop")
		c.wantHolds(t, "checkout.shop=1 ")

		p.server.Set(world(gateway("gateway-1"), service(t, "checkout.shop", 2), service(t, "other.shop", 1)))
		p.wantSent("+service/checkout.shop", "-gateway/gateway-0")
		c.wantHolds(t, "checkout.shop=2 ")
		if g := c.Snapshots().Load().Gateways(); len(g) != 1 || g[0].ID != "gateway-1" {
			t.Errorf("gateways %v, want gateway-1", g)
		}

		before := c.Snapshots().Load()
		p.server.Set(world(gateway("gateway-1"), service(t, "checkout.shop", 2), service(t, "other.shop", 7)))
		p.wantSent()
		c.subscribe(t, "checkout.shop") // known
		p.wantSent()
		if c.Snapshots().Load() != before {
			t.Error("a new snapshot without a change")
		}
	})
}

func TestAServiceThatAppearsIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.server.Set(world())
		c := startClient(t, p, nil)
		c.subscribe(t, "later.shop")
		p.wantSent("?later.shop")
		p.server.Set(world(service(t, "later.shop", 3)))
		p.wantSent("+service/later.shop")
		c.wantHolds(t, "later.shop=3 ")
		p.server.Set(world())
		p.wantSent("-service/later.shop", "?later.shop")
		c.wantHolds(t, "")
		p.server.Set(world(service(t, "later.shop", 4)))
		c.wantHolds(t, "later.shop=4 ")
	})
}

func TestOfAThousandServicesTwentyAreSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		all := func(n int) []*configv1.Resource {
			var out []*configv1.Resource
			for i := range 1000 {
				out = append(out, service(t, fmt.Sprintf("s%d.shop", i), n))
			}
			return out
		}
		p.server.Set(world(all(1)...))
		c := startClient(t, p, nil)
		var used []string
		for i := range 20 {
			used = append(used, fmt.Sprintf("s%d.shop", i*50))
		}
		c.subscribe(t, used...)
		synctest.Wait()
		if got := p.sent(); len(got) != 20 {
			t.Errorf("%d resources sent, want 20", len(got))
		}
		p.server.Set(world(all(2)...))
		synctest.Wait()
		if got := p.sent(); len(got) != 20 {
			t.Errorf("%d resources sent after all have changed, want 20", len(got))
		}
		if s := p.server.Sessions(); len(s) != 1 || len(s[0].Services()) != 20 {
			t.Errorf("sessions: %v", s)
		}
	})
}

func TestAReconnectResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.server.Set(world(gateway("gateway-0"), service(t, "checkout.shop", 1), service(t, "cart.shop", 1)))
		c := startClient(t, p, nil)
		c.subscribe(t, "checkout.shop", "cart.shop", "nowhere.shop")
		c.Report(&configv1.Report{Links: []*configv1.LinkReport{{Cluster: "us", State: "up"}}})
		synctest.Wait()
		p.sent()
		p.takeEvents()

		p.stop()
		synctest.Wait()
		if c.Connected() {
			t.Error("connected to nobody")
		}
		time.Sleep(time.Minute)
		if err := c.Problems(); len(err) != 1 || !errors.Is(err[0], configstream.ErrUnavailable) {
			t.Errorf("problems %v, want ErrUnavailable", err)
		}
		c.wantHolds(t, "cart.shop=1 checkout.shop=1 ")
		p.server.Set(world(gateway("gateway-0"), service(t, "checkout.shop", 1), service(t, "cart.shop", 2)))
		p.start()
		time.Sleep(10 * moment)
		p.wantSent("+service/cart.shop", "?nowhere.shop")
		c.wantHolds(t, "cart.shop=2 checkout.shop=1 ")
		if len(c.Problems()) > 0 || !c.Connected() {
			t.Errorf("problems %v after the reconnect", c.Problems())
		}
		want := []string{"disconnect sidecar/shop/checkout-0", "connect sidecar/shop/checkout-0", "report up"}
		if got := p.takeEvents(); !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	})
}

func TestBackOffIsBoundedAndNotIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.stop()
		startClient(t, p, nil)
		time.Sleep(10 * time.Minute)
		p.mu.Lock()
		defer p.mu.Unlock()
		// At most one in 2.5 s once the back-off is at its 5 s with jitter, at least one in 5 s.
		if p.dials < 115 || p.dials > 260 {
			t.Errorf("%d attempts in ten minutes", p.dials)
		}
	})
}

func TestSubscribeWhileControlIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.server.Set(world(service(t, "checkout.shop", 1)))
		p.stop()
		c := startClient(t, p, nil)
		start := time.Now()
		if err := c.Subscribe(t.Context(), name(t, "checkout.shop")); !errors.Is(err, configstream.ErrUnavailable) {
			t.Errorf("error %v, want ErrUnavailable", err)
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("it took %v, want 2 s", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Subscribe(ctx, name(t, "checkout.shop")); !errors.Is(err, configstream.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want ErrUnavailable and DeadlineExceeded", err)
		}
		p.start()
		time.Sleep(10 * moment)
		c.wantHolds(t, "checkout.shop=1 ") // the wish stood
	})
}

func TestAStalledClientLosesItsStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		p := newPlane(t, func(cfg *configstream.ServerConfig) {
			cfg.SendTimeout = 5 * time.Second
			cfg.OnDisconnect = func(_ *configstream.Session, err error) { ended <- err }
		})
		p.server.Set(world(bulk(t, 1)...))
		stream := rawStream(t, p)
		start := time.Now()
		// The client does not read.
		if err := <-ended; status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("ended by %v, want DeadlineExceeded", err)
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("after %v, want 5 s", took)
		}
		for {
			if _, err := stream.Recv(); err != nil {
				if status.Code(err) != codes.DeadlineExceeded {
					t.Errorf("the client sees %v, want DeadlineExceeded", err)
				}
				break
			}
		}
	})
}

func TestASlowClientGetsThePresentWorldNotThePast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.server.Set(world(bulk(t, 1)...))
		stream := rawStream(t, p)
		synctest.Wait()
		for n := 2; n <= 20; n++ { // while the first message waits
			p.server.Set(world(bulk(t, n)...))
			synctest.Wait()
		}
		held := make(map[string]uint32)
		var revisions []uint64
		for len(revisions) == 0 || revisions[len(revisions)-1] != 20 {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range m.GetUpsert() {
				held[r.GetKey()] = r.GetExport().GetPorts()[0]
			}
			if m.GetComplete() {
				revisions = append(revisions, m.GetRevision())
			}
		}
		if !slices.Equal(revisions, []uint64{1, 20}) {
			t.Errorf("cuts of revisions %v, want 1 and 20", revisions)
		}
		for key, n := range held {
			if n != 20 {
				t.Errorf("%s is of world %d", key, n)
			}
		}
		if len(held) != bulkSize {
			t.Errorf("%d resources, want %d", len(held), bulkSize)
		}
	})
}

// TestCutsAreConsistent changes the World under a client that reads slowly: each state that the client publishes must be
// that of one World, though cuts take several messages.
func TestCutsAreConsistent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.server.Set(world(bulk(t, 1)...))
		c := startClient(t, p, nil)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for n := 2; n <= 15; n++ {
				p.server.Set(world(bulk(t, n)...))
				time.Sleep(time.Millisecond)
			}
		}()
		seen := 0
		for last := uint16(0); last != 15; {
			changed := c.Snapshots().Changed()
			if s := c.Snapshots().Load(); s != nil {
				exports := s.Exports()
				if len(exports) != bulkSize {
					t.Fatalf("%d exports, want %d", len(exports), bulkSize)
				}
				last = exports[0].Ports[0]
				for _, e := range exports {
					if e.Ports[0] != last {
						t.Fatalf("a mixture of worlds %d and %d", e.Ports[0], last)
					}
				}
				seen++
			}
			if last != 15 {
				<-changed
			}
		}
		<-done
		t.Logf("%d of 15 worlds seen", seen)
	})
}

func TestCloseEndsStreamsAndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.server.Set(world(bulk(t, 1)...))
		stalled := rawStream(t, p) // a send is under way
		idle := rawStream(t, p)
		for {
			m, err := idle.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if m.GetComplete() {
				break
			}
		}
		synctest.Wait()
		p.server.Close()
		if _, err := idle.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("error %v, want Unavailable", err)
		}
		if got := len(p.server.Sessions()); got != 0 {
			t.Errorf("%d sessions after Close", got)
		}
		if _, err := openStream(t, p).Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("a new stream: error %v, want Unavailable", err)
		}
		for {
			if _, err := stalled.Recv(); err != nil {
				break
			}
		}
	})
}

const bulkSize = 20

// bulk is some 2 MiB of exports; their port says of which world they are.
func bulk(tb testing.TB, n int) []*configv1.Resource {
	tb.Helper()
	var endpoints []topology.Endpoint
	for i := range 60 {
		endpoints = append(endpoints, topology.Endpoint{
			ID: fmt.Sprint(i), Address: netip.MustParseAddrPort("10.0.0.1:443"),
			Server: spiffeid.RequireFromString("spiffe://eu.example/" + strings.Repeat("a", 1900)),
		})
	}
	var out []*configv1.Resource
	for i := range bulkSize {
		out = append(out, configstream.EncodeExport(&topology.Export{
			Name: name(tb, fmt.Sprintf("bulk%d.shop", i)), Ports: []uint16{uint16(n)}, Endpoints: endpoints,
		}))
	}
	return out
}

// openStream opens a stream by hand.
func openStream(tb testing.TB, p *plane) grpc.BidiStreamingClient[configv1.Request, configv1.Response] {
	tb.Helper()
	conn, err := p.dial(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	tb.Cleanup(func() {
		cancel()
		_ = conn.Close()
	})
	stream, err := configv1.NewConfigClient(conn).Stream(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	return stream
}

// rawStream opens a stream by hand and says hello.
func rawStream(tb testing.TB, p *plane) grpc.BidiStreamingClient[configv1.Request, configv1.Response] {
	tb.Helper()
	stream := openStream(tb, p)
	if err := stream.Send(&configv1.Request{Message: &configv1.Request_Hello{Hello: hello}}); err != nil {
		tb.Fatal(err)
	}
	return stream
}

// TestResolve: whose address it is, of services in the own cluster and in the clusterset.
func TestResolve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		c := startClient(t, p, nil)
		own, set := netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("241.0.0.7")
		world := func(a ...netip.Addr) *configstream.World {
			name, err := topology.ParseServiceName("checkout.shop")
			if err != nil {
				t.Fatal(err)
			}
			s := &topology.Service{Name: name, Ports: []topology.Port{{Number: 80, Protocol: topology.HTTP}}, ClusterIPs: []netip.Addr{own}, ClusterSetIPs: a, Imported: true}
			return configstream.NewWorld([]*configv1.Resource{configstream.EncodeService(s)})
		}
		if _, _, err := c.Resolve(t.Context(), own); !errors.Is(err, configstream.ErrUnavailable) {
			t.Errorf("before there is a connection: %v", err)
		}
		time.Sleep(moment)
		if _, _, err := c.Resolve(t.Context(), own); !errors.Is(err, configstream.ErrUnavailable) {
			t.Errorf("before there is a world: %v", err)
		}
		p.server.Set(world(set))
		time.Sleep(moment)
		for a, want := range map[netip.Addr]bool{own: true, set: true, netip.MustParseAddr("::ffff:10.0.0.7"): true, netip.MustParseAddr("10.0.0.8"): false} {
			name, ok, err := c.Resolve(t.Context(), a)
			if err != nil || ok != want || ok && name.String() != "checkout.shop" {
				t.Errorf("%s: %s, %v, %v", a, name, ok, err)
			}
		}
		p.server.Set(world())
		if _, ok, err := c.Resolve(t.Context(), set); ok || err != nil {
			t.Errorf("an address that the service has no more: %v, %v", ok, err)
		}
		p.stop()
		time.Sleep(moment)
		if _, _, err := c.Resolve(t.Context(), own); !errors.Is(err, configstream.ErrUnavailable) {
			t.Errorf("while control is away: %v", err)
		}
	})
}
