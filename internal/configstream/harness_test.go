package configstream_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	hello = &configv1.Hello{Program: configstream.ProgramSidecar, Workload: "shop/checkout-0", Version: "test"}
	peer  = spiffeid.RequireFromString("spiffe://eu.example/ns/shop/sa/checkout")
)

// plane is a control plane that can be stopped and started, and the way to it.
type plane struct {
	tb testing.TB

	mu      sync.Mutex
	rpc     *grpc.Server         // guarded by mu; nil: it is away
	lis     *bufconn.Listener    // guarded by mu
	events  []string             // guarded by mu: "connect", "report up", "disconnect Canceled"
	dials   int                  // guarded by mu
	heard   []*configv1.Response // guarded by mu: what all clients received
	configs configv1.ConfigServer
	server  *configstream.Server
}

// newPlane starts a control plane that sends all of its World, as change makes it.
func newPlane(tb testing.TB, change func(*configstream.ServerConfig)) *plane {
	tb.Helper()
	p := &plane{tb: tb}
	cfg := configstream.ServerConfig{
		Peer: func(context.Context) (spiffeid.ID, error) { return peer, nil },
		Admit: func(spiffeid.ID, *configv1.Hello) (func(string) bool, error) {
			return func(string) bool { return true }, nil
		},
		OnConnect: func(s *configstream.Session) { p.event("connect " + s.Receiver) },
		OnReport: func(_ *configstream.Session, r *configv1.Report) {
			p.event("report " + r.GetLinks()[0].GetState())
		},
		OnDisconnect: func(s *configstream.Session, err error) { p.event("disconnect " + s.Receiver) },
	}
	if change != nil {
		change(&cfg)
	}
	p.server = configstream.NewServer(cfg)
	p.configs = p.server
	p.start()
	tb.Cleanup(func() {
		p.server.Close()
		p.stop()
	})
	return p
}

func (p *plane) event(e string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
}

func (p *plane) takeEvents() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.events
	p.events = nil
	return e
}

func (p *plane) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rpc = grpc.NewServer(configstream.ServerOptions()...)
	p.lis = bufconn.Listen(64 << 10)
	configv1.RegisterConfigServer(p.rpc, p.configs)
	rpc, lis := p.rpc, p.lis
	go func() { _ = rpc.Serve(lis) }() // ends by stop
}

// stop cuts all connections; new ones are refused.
func (p *plane) stop() {
	p.mu.Lock()
	rpc := p.rpc
	p.rpc = nil
	p.mu.Unlock()
	if rpc != nil {
		rpc.Stop()
	}
}

func (p *plane) connect(ctx context.Context, _ string) (net.Conn, error) {
	p.mu.Lock()
	p.dials++
	lis, up := p.lis, p.rpc != nil
	p.mu.Unlock()
	if !up {
		return nil, errors.New("connection refused")
	}
	return lis.DialContext(ctx)
}

func (p *plane) dial(context.Context) (configstream.Conn, error) {
	return grpc.NewClient("passthrough:///control", append(configstream.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(p.connect),
		grpc.WithStreamInterceptor(p.listen),
	)...)
}

// listen notes what a client receives.
func (p *plane) listen(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := streamer(ctx, desc, cc, method, opts...)
	return listening{s, p}, err
}

type listening struct {
	grpc.ClientStream
	p *plane
}

func (l listening) RecvMsg(m any) error {
	err := l.ClientStream.RecvMsg(m)
	if r, ok := m.(*configv1.Response); ok && err == nil {
		l.p.mu.Lock()
		defer l.p.mu.Unlock()
		l.p.heard = append(l.p.heard, r)
	}
	return err
}

// sent returns what was sent to all clients since it was last asked: "+service/a.shop", "-service/a.shop", "?a.shop".
func (p *plane) sent() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := []string{}
	for _, m := range p.heard {
		for _, r := range m.GetUpsert() {
			out = append(out, "+"+r.GetKey())
		}
		for _, key := range m.GetRemove() {
			out = append(out, "-"+key)
		}
		for _, name := range m.GetAbsent() {
			out = append(out, "?"+name)
		}
	}
	p.heard = nil
	return out
}

func (p *plane) wantSent(want ...string) {
	p.tb.Helper()
	synctest.Wait()
	if got := p.sent(); !slices.Equal(got, want) {
		p.tb.Errorf("sent %v, want %v", got, want)
	}
}

// client is a running client.
type client struct {
	*configstream.Client
	stop func()
}

// startClient runs a client until stop is called or the test ends.
func startClient(tb testing.TB, p *plane, change func(*configstream.ClientConfig), prepare ...func(*configstream.Client)) client {
	tb.Helper()
	cfg := configstream.ClientConfig{Hello: hello, Dial: p.dial, Log: slog.New(slog.NewTextHandler(tb.Output(), nil))}
	if change != nil {
		change(&cfg)
	}
	c, err := configstream.NewClient(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range prepare {
		f(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("Run: %v", err)
		}
	})
	tb.Cleanup(stop)
	return client{c, stop}
}

// startAccounting is startClient, of one that gives account.
func startAccounting(tb testing.TB, p *plane, tell func(all bool) *configv1.Report) client {
	tb.Helper()
	return startClient(tb, p, nil, func(c *configstream.Client) { c.Account(tell) })
}

func (c client) subscribe(tb testing.TB, names ...string) {
	tb.Helper()
	for _, n := range names {
		if err := c.Subscribe(tb.Context(), name(tb, n)); err != nil {
			tb.Errorf("Subscribe(%s): %v", n, err)
		}
	}
}

// holds returns the names of the services in the snapshot with their number of ready copies in us.
func (c client) holds() string {
	s := c.Snapshots().Load()
	if s == nil {
		return "nothing"
	}
	var out string
	for _, v := range s.Services() {
		out += fmt.Sprintf("%s=%d ", v.Name, v.Remotes[0].Ready)
	}
	return out
}

func (c client) wantHolds(tb testing.TB, want string) {
	tb.Helper()
	synctest.Wait()
	if got := c.holds(); got != want {
		tb.Errorf("the client holds %q, want %q", got, want)
	}
}

func name(tb testing.TB, s string) topology.ServiceName {
	tb.Helper()
	n, err := topology.ParseServiceName(s)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// service makes a service with n ready copies in us.
func service(tb testing.TB, s string, n int) *configv1.Resource {
	tb.Helper()
	us, err := topology.ParseClusterName("us")
	if err != nil {
		tb.Fatal(err)
	}
	return configstream.EncodeService(&topology.Service{
		Name: name(tb, s), Imported: true,
		Ports:   []topology.Port{{Number: 80, Protocol: topology.HTTP}},
		Remotes: []topology.Remote{{Cluster: us, Ports: []uint16{80}, Ready: n}},
	})
}

func gateway(id string) *configv1.Resource {
	return configstream.EncodeGateway(topology.Gateway{
		ID: id, Address: "127.0.0.1:443", Identity: spiffeid.RequireFromString("spiffe://eu.example/isthmus/gateway/" + id),
	})
}

func world(resources ...*configv1.Resource) *configstream.World {
	return configstream.NewWorld(resources)
}

const moment = time.Second
