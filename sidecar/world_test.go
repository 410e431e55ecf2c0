package sidecar

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/internal/relay"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// patience bounds every wait in these tests; nothing is measured with it.
const patience = 30 * time.Second

var (
	eu = spiffeid.RequireTrustDomainFromString("eu.test")
	us = spiffeid.RequireTrustDomainFromString("us.test")

	checkout = must(topology.NewServiceName("shop", "checkout"))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func cluster(name string) topology.ClusterName { return must(topology.ParseClusterName(name)) }

// world is two clusters, eu and us, as far as a sidecar sees them: their authorities, and a gateway that joins them.
type world struct {
	testing.TB
	authorities map[spiffeid.TrustDomain]*trust.Authority
	gateways    []*fakeGateway
	quiet       bool // no logs, no traces: for benchmarks
}

var authorities = sync.OnceValues(func() (map[spiffeid.TrustDomain]*trust.Authority, error) {
	all := make(map[spiffeid.TrustDomain]*trust.Authority)
	for _, td := range []spiffeid.TrustDomain{eu, us} {
		dir, err := os.MkdirTemp("", "isthmus-sidecar-test")
		if err != nil {
			return nil, err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if all[td], err = trust.OpenAuthority(trust.AuthorityConfig{TrustDomain: td, Dir: dir}); err != nil {
			return nil, err
		}
	}
	return all, nil
})

func newWorld(tb testing.TB) *world {
	tb.Helper()
	all, err := authorities()
	if err != nil {
		tb.Fatal(err)
	}
	return &world{TB: tb, authorities: all}
}

func (w *world) issue(id spiffeid.ID) *trust.Identity {
	w.Helper()
	key, csr, err := trust.NewRequest()
	if err != nil {
		w.Fatal(err)
	}
	chain, err := w.authorities[id.TrustDomain()].Issue(csr, id)
	if err != nil {
		w.Fatal(err)
	}
	identity := trust.NewIdentity()
	identity.Set(&x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key})
	return identity
}

func (w *world) bundles() *trust.Bundles {
	b := trust.NewBundles()
	for td, a := range w.authorities {
		b.Set(td, trust.Bundle{Authorities: a.Roots()})
	}
	return b
}

// clock is a clock that goes on by a microsecond whenever it is read, and else as a test says: by it, nothing is late because a machine is busy.
type clock struct{ nanoseconds atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.nanoseconds.Store(time.Now().UnixNano())
	return c
}

func (c *clock) now() time.Time { return time.Unix(0, c.nanoseconds.Add(int64(time.Microsecond))) }

func (c *clock) advance(d time.Duration) { c.nanoseconds.Add(int64(d)) }

// use has a sidecar go by it.
func (c *clock) use(config *Config) { config.Now = c.now }

// side is a sidecar that runs.
type side struct {
	*Sidecar
	w         *world
	id        spiffeid.ID
	snapshots *live.Value[*topology.Snapshot]
	bundles   *trust.Bundles
	identity  *trust.Identity
	metrics   *prometheus.Registry
	spans     *tracetest.SpanRecorder
	logs      *buffer
	asked     atomic.Int64 // names asked of control
	inbound   netip.AddrPort
	proxy     *url.URL
	stop      func() error // ends Run and returns what it did
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func listenTCP(tb testing.TB) net.Listener {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return ln
}

func addrOf(ln net.Listener) netip.AddrPort { return netip.MustParseAddrPort(ln.Addr().String()) }

// start runs a sidecar with that identity. change may add to its configuration.
func (w *world) start(id spiffeid.ID, snapshot *topology.Snapshot, change func(*Config)) *side {
	w.Helper()
	s := &side{
		w: w, id: id, snapshots: live.NewValue(snapshot), bundles: w.bundles(), identity: w.issue(id),
		metrics: prometheus.NewRegistry(), spans: tracetest.NewSpanRecorder(), logs: new(buffer),
	}
	guard := trust.NewGuard(s.bundles, nil, nil)
	inbound, proxy := listenTCP(w), listenTCP(w)
	s.inbound, s.proxy = addrOf(inbound), &url.URL{Scheme: "http", Host: proxy.Addr().String()}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(s.spans))
	c := Config{
		Identity: s.identity, Bundles: s.bundles, Guard: guard, Snapshots: s.snapshots,
		Subscribe: func(context.Context, topology.ServiceName) error { s.asked.Add(1); return nil },
		Inbound:   inbound, Proxy: proxy,
		Log:     slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Metrics: s.metrics, Tracer: provider,
		DrainGrace: 5 * time.Second,
	}
	if w.quiet {
		c.Log, c.Tracer = slog.New(slog.DiscardHandler), nil
	}
	if change != nil {
		change(&c)
	}
	var err error
	if s.Sidecar, err = New(c); err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = guard.Run(ctx) })
	var ended error
	wg.Go(func() { ended = s.Run(ctx) })
	s.stop = sync.OnceValue(func() error {
		cancel()
		wg.Wait()
		return ended
	})
	w.Cleanup(func() {
		if err := s.stop(); err != nil {
			w.Errorf("%s: Run: %v", id, err)
		}
		if w.Failed() {
			w.Logf("log of %s:\n%s", id, s.logs)
		}
	})
	return s
}

// server runs a sidecar that serves checkout.shop port 80 by the application at target.
func (w *world) server(td spiffeid.TrustDomain, name string, protocol topology.Protocol, targets ...netip.AddrPort) *side {
	w.Helper()
	id := must(trust.WorkloadID(td, "shop", name))
	clusterName, _, _ := strings.Cut(td.Name(), ".")
	return w.start(id, topology.NewSnapshot(topology.SnapshotSpec{
		Self: topology.Self{Cluster: cluster(clusterName), Domain: td, Namespace: "shop", Workload: name},
		Clusters: []*topology.Cluster{
			{Name: cluster("eu"), Domain: eu}, {Name: cluster("us"), Domain: us},
		},
		Inbounds: []*topology.Inbound{{Name: checkout, Exported: true, Ports: []topology.InboundPort{{Number: 80, Protocol: protocol, Targets: targets}}}},
	}), nil)
}

// endpoint is how a caller in the same cluster sees a server.
func (s *side) endpoint(id string) topology.Endpoint {
	return topology.Endpoint{ID: id, Address: s.inbound, Server: s.id, Ports: []uint16{80}, UDPPorts: []uint16{80}, Ready: true, Capacity: 1}
}

// view is what a caller in eu sees.
type view struct {
	protocol  topology.Protocol
	endpoints []topology.Endpoint
	remotes   []topology.Remote
	policy    *topology.Policy
	hosts     []topology.HostGroup // makes it headless
}

func (w *world) snapshot(v view) *topology.Snapshot {
	if v.protocol == "" {
		v.protocol = topology.HTTP
	}
	gateways := make([]topology.Gateway, 0, len(w.gateways))
	for _, g := range w.gateways {
		gateways = append(gateways, topology.Gateway{ID: g.name, Address: g.ln.Addr().String(), Identity: g.id})
	}
	setIPs := []netip.Addr{netip.MustParseAddr("241.0.0.7")}
	if v.hosts != nil {
		setIPs = nil
	}
	return topology.NewSnapshot(topology.SnapshotSpec{
		Self:     topology.Self{Cluster: cluster("eu"), Domain: eu, Namespace: "shop", Workload: "web"},
		Clusters: []*topology.Cluster{{Name: cluster("us"), Domain: us, Link: topology.LinkUp}},
		Gateways: gateways,
		Services: []*topology.Service{{
			Name: checkout, Ports: []topology.Port{{Name: "http", Number: 80, Protocol: v.protocol}},
			ClusterSetIPs: setIPs, Headless: v.hosts != nil, Hosts: v.hosts, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.0.0.7")},
			Imported: true, Exported: true, Endpoints: v.endpoints, Remotes: v.remotes, Policy: v.policy,
		}},
	})
}

// remote is how eu sees servers in us.
func remote(ready int, servers ...*side) topology.Remote {
	r := topology.Remote{Cluster: cluster("us"), Ports: []uint16{80}, UDPPorts: []uint16{80}, Ready: ready}
	for _, s := range servers {
		r.Servers = append(r.Servers, s.id)
	}
	return r
}

// caller runs the sidecar of eu's shop/web, which sees v.
func (w *world) caller(v view, change func(*Config)) *side {
	w.Helper()
	return w.start(must(trust.WorkloadID(eu, "shop", "web")), w.snapshot(v), change)
}

// client is the application beside s: an HTTP client that uses the proxy, HTTP/1.1.
func (s *side) client() *http.Client {
	t := &http.Transport{Proxy: http.ProxyURL(s.proxy), DisableCompression: true}
	s.w.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: patience}
}

const checkoutURL = "http://checkout.shop.svc.clusterset.local/"

// heard is what an application got to hear, but for the body.
type heard struct {
	Status          string
	StatusCode      int
	Header, Trailer http.Header
}

// get fetches and returns what came, and the body.
func get(tb testing.TB, c *http.Client, url string) (heard, string) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, url, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return do(tb, c, req)
}

func do(tb testing.TB, c *http.Client, req *http.Request) (heard, string) {
	tb.Helper()
	resp, err := c.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatalf("body: %v", err)
	}
	return heard{resp.Status, resp.StatusCode, resp.Header, resp.Trailer}, string(body)
}

// serveApp is an application: an HTTP/1.1 and h2c server.
func serveApp(tb testing.TB, h http.HandlerFunc) (*httptest.Server, netip.AddrPort) {
	tb.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.DisableGeneralOptionsHandler = true
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	tb.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s, addrOf(s.Listener)
}

// named answers with a name and the path.
func answering(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprintf(w, "%s %s", name, r.URL.Path) }
}

// fakeGateway is a gateway of eu that reaches the servers of us by itself.
type fakeGateway struct {
	name string
	id   spiffeid.ID
	ln   net.Listener
	far  string // the gateway of us that it says it went through

	mu      sync.Mutex
	open    map[*tls.Conn]netip.AddrPort // guarded by mu; where to
	opened  int                          // guarded by mu; streams so far
	seen    []preamble.Preamble          // guarded by mu
	decide  func(preamble.Preamble) (netip.AddrPort, *preamble.Refusal)
	waiting sync.WaitGroup
}

func (w *world) gateway(name string, decide func(preamble.Preamble) (netip.AddrPort, *preamble.Refusal)) *fakeGateway {
	w.Helper()
	g := &fakeGateway{
		name: name, id: must(trust.GatewayID(eu, name)), ln: listenTCP(w), far: "us/gateway-0",
		open: make(map[*tls.Conn]netip.AddrPort), decide: decide,
	}
	config := trust.ServerConfig(trust.TLS{
		Identity: w.issue(g.id), Bundles: w.bundles(), Policy: trust.AllowDomain(eu), Protocols: []string{preamble.ALPNStream},
	})
	g.waiting.Go(func() {
		for {
			c, err := g.ln.Accept()
			if err != nil {
				return
			}
			g.waiting.Go(func() { g.serve(tls.Server(c, config)) })
		}
	})
	w.Cleanup(g.kill)
	w.gateways = append(w.gateways, g)
	return g
}

// to sends every stream to one of the servers, in turn.
func to(servers ...*side) func(preamble.Preamble) (netip.AddrPort, *preamble.Refusal) {
	var n atomic.Int64
	return func(preamble.Preamble) (netip.AddrPort, *preamble.Refusal) {
		return servers[int(n.Add(1)-1)%len(servers)].inbound, nil
	}
}

func (g *fakeGateway) serve(c *tls.Conn) {
	g.mu.Lock()
	g.open[c] = netip.AddrPort{}
	g.opened++
	decide := g.decide
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.open, c)
		g.mu.Unlock()
		_ = c.Close()
	}()
	p, err := preamble.Read(c)
	if err != nil {
		return
	}
	g.mu.Lock()
	g.seen = append(g.seen, p)
	g.mu.Unlock()
	target, refusal := decide(p)
	if refusal != nil {
		_, _ = c.Write(preamble.AppendRefusal(nil, refusal))
		return
	}
	g.mu.Lock()
	g.open[c] = target
	g.mu.Unlock()
	far, err := net.Dial("tcp", target.String())
	for range 2 { // as a gateway does: up to three copies, as they are known at the time
		if err == nil {
			break
		}
		g.mu.Lock()
		decide := g.decide
		g.mu.Unlock()
		if next, refusal := decide(p); refusal == nil {
			target = next
			g.mu.Lock()
			g.open[c] = target
			g.mu.Unlock()
			far, err = net.Dial("tcp", target.String())
		}
	}
	if err != nil {
		_, _ = c.Write(preamble.AppendRefusal(nil, &preamble.Refusal{Code: 8, Path: []string{"eu/" + g.name, g.far}}))
		return
	}
	if _, err := c.Write(preamble.AppendReply(nil, preamble.Reply{Path: []string{"eu/" + g.name, g.far}})); err != nil {
		_ = far.Close()
		return
	}
	_, _ = relay.Pipe(context.Background(), &cutting{c}, far)
}

// cutting is a stream that ends with a break when it must.
type cutting struct{ *tls.Conn }

func (c *cutting) Abort(error) { _ = c.NetConn().Close() }

// cut breaks every stream; with servers, those to them.
func (g *fakeGateway) cut(servers ...*side) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c, target := range g.open {
		if len(servers) > 0 && !slices.ContainsFunc(servers, func(s *side) bool { return s.inbound == target }) {
			continue
		}
		_ = c.NetConn().(*net.TCPConn).SetLinger(0) // it is one
		_ = c.NetConn().Close()
	}
}

// kill stops the gateway.
func (g *fakeGateway) kill() {
	_ = g.ln.Close()
	g.cut()
	g.waiting.Wait()
}

func (g *fakeGateway) streams() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened
}

func (g *fakeGateway) set(decide func(preamble.Preamble) (netip.AddrPort, *preamble.Refusal)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.decide = decide
}

// waitFor waits until ok.
func waitFor(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			tb.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// counter sums the samples of a metric whose labels include all of these.
func (s *side) counter(name string, labels ...string) float64 {
	families, err := s.metrics.Gather()
	if err != nil {
		s.w.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			have := make([]string, 0, len(m.GetLabel()))
			for _, l := range m.GetLabel() {
				have = append(have, l.GetName()+"="+l.GetValue())
			}
			all := true
			for _, l := range labels {
				all = all && slices.Contains(have, l)
			}
			if all {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestReadinessWaitsForConfiguration(t *testing.T) {
	w := newWorld(t)
	s := w.start(must(trust.WorkloadID(eu, "shop", "web")), nil, nil)
	checks := ready.New()
	s.Checks(checks)
	if len(checks.Missing()) == 0 {
		t.Fatal("ready without a configuration")
	}
	resp, body := get(t, s.client(), checkoutURL)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get(headerError) != string(CodeNotReady) {
		t.Errorf("got %d %v %q", resp.StatusCode, resp.Header, body)
	}
	s.snapshots.Store(w.snapshot(view{}))
	waitFor(t, "ready", func() bool { return len(checks.Missing()) == 0 })
}
