package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go/testutils/simnet"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// oneWay is how long a packet travels between any two gateways.
const oneWay = 20 * time.Millisecond

// inBubble runs f with a world in virtual time.
func inBubble(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f(newWorld(t))
	})
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{t: tb, tcp: newMemnet(), clusters: make(map[string]*testCluster)}
	tb.Cleanup(w.end)
	return w
}

// world is several clusters with their gateways, a simulated network between gateways and TCP in memory within clusters.
type world struct {
	t        testing.TB
	tcp      *memnet
	router   router
	clusters map[string]*testCluster
	order    []*testCluster
	ports    int
	linkTCP  bool // gateways take links over TCP too
	mu       sync.Mutex
	links    []*simnet.SimulatedLink // guarded by mu
	wg       sync.WaitGroup
}

// router drops what it is told to.
type router struct {
	simnet.PerfectRouter
	mu   sync.Mutex
	drop func(simnet.Packet) bool                  // guarded by mu
	late time.Duration                             // guarded by mu
	nat  func(simnet.Packet) (simnet.Packet, bool) // guarded by mu
}

func (r *router) SendPacket(p simnet.Packet) error {
	r.mu.Lock()
	drop, late, nat := r.drop, r.late, r.nat
	r.mu.Unlock()
	if nat != nil {
		var ok bool
		if p, ok = nat(p); !ok {
			return nil
		}
	}
	if drop != nil && drop(p) {
		return nil
	}
	if late > 0 {
		time.AfterFunc(late, func() { _ = r.PerfectRouter.SendPacket(p) })
		return nil
	}
	return r.PerfectRouter.SendPacket(p)
}

func (r *router) dropIf(f func(simnet.Packet) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop = f
}

// delay makes every packet travel longer from now on.
func (r *router) delay(by time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.late = by
}

// translate has every packet's addresses changed, or the packet dropped.
func (r *router) translate(f func(simnet.Packet) (simnet.Packet, bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nat = f
}

// blackhole drops whatever goes to or comes from these gateways.
func (w *world) blackhole(gateways ...*testGateway) {
	w.router.dropIf(func(p simnet.Packet) bool {
		return slices.ContainsFunc(gateways, func(g *testGateway) bool {
			return p.To.(*net.UDPAddr).IP.Equal(g.ip) || p.From.(*net.UDPAddr).IP.Equal(g.ip)
		})
	})
}

type testCluster struct {
	w         *world
	name      topology.ClusterName
	domain    spiffeid.TrustDomain
	authority *trust.Authority
	bundles   *trust.Bundles
	gateways  []*testGateway
	hidden    map[string]bool // ids of gateways that the peers aren't told of
	exports   []*topology.Export
	peers     map[string]bool
	snapshots *live.Value[*topology.Snapshot]
}

func (w *world) cluster(name string) *testCluster {
	w.t.Helper()
	domain := spiffeid.RequireTrustDomainFromString(name + ".test")
	authority, err := trust.OpenAuthority(trust.AuthorityConfig{TrustDomain: domain, Dir: w.t.TempDir()})
	if err != nil {
		w.t.Fatal(err)
	}
	c := &testCluster{
		w: w, name: clusterName(name), domain: domain, authority: authority, bundles: trust.NewBundles(),
		hidden: make(map[string]bool), peers: make(map[string]bool), snapshots: new(live.Value[*topology.Snapshot]),
	}
	w.clusters[name] = c
	w.order = append(w.order, c)
	for _, other := range w.order {
		if other != c {
			c.peers[other.name.String()], other.peers[name] = true, true
		}
	}
	for _, a := range w.order {
		for _, b := range w.order {
			a.bundles.Set(b.domain, trust.Bundle{Authorities: b.authority.Roots()})
		}
	}
	return c
}

func clusterName(s string) topology.ClusterName {
	n, err := topology.ParseClusterName(s)
	if err != nil {
		panic(err)
	}
	return n
}

func serviceName(s string) topology.ServiceName {
	n, err := topology.ParseServiceName(s)
	if err != nil {
		panic(err)
	}
	return n
}

// identity issues an SVID of the cluster.
func (c *testCluster) identity(path string) *trust.Identity {
	c.w.t.Helper()
	identity := trust.NewIdentity()
	c.renew(identity, path)
	return identity
}

func (c *testCluster) renew(identity *trust.Identity, path string) {
	c.w.t.Helper()
	id := spiffeid.RequireFromPath(c.domain, path)
	key, csr, err := trust.NewRequest()
	if err != nil {
		c.w.t.Fatal(err)
	}
	chain, err := c.authority.Issue(csr, id)
	if err != nil {
		c.w.t.Fatal(err)
	}
	identity.Set(&x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key})
}

type testGateway struct {
	*Gateway
	c        *testCluster
	id       string
	ip       net.IP
	address  string // of the streams' listener
	quic     string // of the links' listener
	tcp      string // likewise; empty: none
	identity *trust.Identity
	registry *prometheus.Registry
	stop     context.CancelFunc
	done     chan error

	mu      sync.Mutex
	reports []*configv1.Report // guarded by mu
	dials   int                // guarded by mu
}

type option func(*Config)

// gateway starts one.
func (c *testCluster) gateway(id string, options ...option) *testGateway {
	w := c.w
	w.t.Helper()
	w.ports++
	gw := &testGateway{
		c: c, id: id, ip: net.IPv4(10, 0, byte(w.ports), 1).To4(), address: fmt.Sprintf("10.0.%d.1:9000", w.ports),
		identity: c.identity("/isthmus/gateway/" + id), registry: prometheus.NewRegistry(), done: make(chan error, 1),
	}
	guard := trust.NewGuard(c.bundles, nil, nil)
	cfg := Config{
		ID: id, Identity: gw.identity, Bundles: c.bundles, Guard: guard, Snapshots: c.snapshots,
		Streams: w.tcp.listen(gw.address), Link: w.socket(gw.ip, 4433),
		DialPacket: func() (net.PacketConn, error) {
			gw.mu.Lock()
			defer gw.mu.Unlock()
			gw.dials++
			return w.socket(gw.ip, 20000+gw.dials), nil
		},
		DialEndpoint: func(_ context.Context, a netip.AddrPort) (net.Conn, error) { return w.tcp.dialAddrPort(a) },
		Report: func(r *configv1.Report) {
			gw.mu.Lock()
			defer gw.mu.Unlock()
			gw.reports = append(gw.reports, r)
		},
		Log:     slog.New(slog.NewTextHandler(testWriter{w.t, c.name.String()}, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Metrics: gw.registry,
	}
	if w.linkTCP {
		w.tcp.latency = oneWay
		gw.tcp = cfg.Link.LocalAddr().String()
		cfg.LinkTCP = w.tcp.listen(gw.tcp)
		cfg.DialTCP = func(_ context.Context, hostPort string) (net.Conn, error) {
			c, err := w.tcp.dialFar(hostPort)
			if err != nil {
				return nil, err
			}
			return c, nil
		}
	}
	for _, o := range options {
		o(&cfg)
	}
	gw.quic, gw.address = cfg.Link.LocalAddr().String(), cfg.Streams.Addr().String()
	var err error
	if gw.Gateway, err = New(cfg); err != nil {
		w.t.Fatal(err)
	}
	var ctx context.Context
	ctx, gw.stop = context.WithCancel(context.Background())
	guardCtx, stopGuard := context.WithCancel(context.Background())
	w.wg.Go(func() { _ = guard.Run(guardCtx) })
	w.wg.Go(func() {
		gw.done <- gw.Run(ctx)
		stopGuard()
	})
	c.gateways = append(c.gateways, gw)
	return gw
}

type testWriter struct {
	t    testing.TB
	name string
}

func (w testWriter) Write(p []byte) (int, error) {
	if testing.Verbose() {
		w.t.Logf("%s: %s", w.name, p)
	}
	return len(p), nil
}

// socket opens a UDP socket on the simulated network.
func (w *world) socket(ip net.IP, port int) net.PacketConn {
	address := &net.UDPAddr{IP: ip, Port: port}
	l := &simnet.SimulatedLink{Latency: oneWay, UploadPacket: &w.router}
	c := simnet.NewBlockingSimConn(address, l)
	w.router.AddNode(address, l)
	l.Start()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.links = append(w.links, l)
	return c
}

// publish gives every cluster its snapshot.
func (w *world) publish() {
	for _, c := range w.order {
		spec := topology.SnapshotSpec{Self: topology.Self{Cluster: c.name, Domain: c.domain}, Exports: c.exports}
		for _, peer := range w.order {
			if c.peers[peer.name.String()] {
				spec.Clusters = append(spec.Clusters, peer.described())
			}
		}
		c.snapshots.Store(topology.NewSnapshot(spec))
	}
}

func (c *testCluster) described() *topology.Cluster {
	d := &topology.Cluster{Name: c.name, Domain: c.domain}
	for _, g := range c.gateways {
		if !c.hidden[g.id] {
			d.Gateways = append(d.Gateways, topology.Gateway{
				ID: g.id, QUIC: g.quic, TCP: g.tcp, Identity: spiffeid.RequireFromPath(c.domain, "/isthmus/gateway/"+g.id),
			})
		}
	}
	return d
}

// export exports a service on port 80 with one endpoint for each handler; an empty audience is everybody.
func (c *testCluster) export(name string, audience []string, handlers ...func(net.Conn)) *topology.Export {
	e := &topology.Export{Name: serviceName(name), Ports: []uint16{80}}
	for _, a := range audience {
		e.Audience = append(e.Audience, clusterName(a))
	}
	for i, h := range handlers {
		c.w.ports++
		address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(c.w.ports), 1}), 15000)
		e.Endpoints = append(e.Endpoints, topology.Endpoint{
			ID: fmt.Sprintf("copy-%d", i), Address: address, Ports: []uint16{80}, Ready: true, Capacity: 1,
		})
		if h != nil {
			c.w.serve(address.String(), h)
		}
	}
	c.exports = append(c.exports, e)
	return e
}

// serve answers TCP connections to address with h.
func (w *world) serve(address string, h func(net.Conn)) *memListener {
	l := w.tcp.listen(address)
	w.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { h(conn) })
		}
	})
	return l
}

// echo sends back what it gets, and ends when that has ended.
func echo(c net.Conn) {
	_, err := io.Copy(c, c)
	if err != nil {
		cut(c)
		return
	}
	_ = c.Close()
}

// up waits until the gateway has n connections to the cluster.
func (g *testGateway) up(cluster string, n int) {
	g.c.w.t.Helper()
	for range 1000 {
		l := (*g.links.Load())[clusterName(cluster)]
		isDead := func(c *connection) bool { return c.conn.Context().Err() != nil } // and not taken out yet
		if l != nil && len(l.live()) == n && !slices.ContainsFunc(l.live(), isDead) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	g.c.w.t.Fatalf("%s/%s has not %d connections to %s: %v", g.c.name, g.id, n, cluster, g.linkReports())
}

// end stops all that runs, in an order in which nobody waits for the dead.
func (w *world) end() {
	for _, c := range w.order {
		for _, g := range c.gateways {
			g.stop()
		}
	}
	for _, c := range w.order {
		for _, g := range c.gateways {
			if err := <-g.done; err != nil {
				w.t.Errorf("%s/%s: Run: %v", c.name, g.id, err)
			}
		}
	}
	w.tcp.mu.Lock()
	var listeners []*memListener
	for _, l := range w.tcp.listeners {
		listeners = append(listeners, l)
	}
	w.tcp.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close()
	}
	w.wg.Wait()
	for _, l := range w.links {
		_ = l.Close()
	}
}

// metricsOf returns the sum of a metric's gauges.
func (g *testGateway) metricsOf(name string) float64 {
	g.c.w.t.Helper()
	families, err := g.registry.Gather()
	if err != nil {
		g.c.w.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// counterOf returns the sum of a metric's counters that have a label of this value.
func (g *testGateway) counterOf(name, value string) float64 {
	g.c.w.t.Helper()
	families, err := g.registry.Gather()
	if err != nil {
		g.c.w.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == value {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

func mustSVID(tb testing.TB, i *trust.Identity) *x509svid.SVID {
	tb.Helper()
	s, err := i.SVID()
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// settle waits until nothing moves.
func (w *world) settle() {
	synctest.Wait()
}
