package agent_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
	"github.com/isthmus-mesh/isthmus/internal/agent"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	receiver = "sidecar/shop/checkout-0"
	lifetime = 10 * time.Minute // of SVIDs
)

var (
	domain = spiffeid.RequireTrustDomainFromString("eu.example")
	other  = spiffeid.RequireTrustDomainFromString("us.example")
	hello  = &configv1.Hello{Program: configstream.ProgramSidecar, Workload: "shop/checkout-0", Version: "test"}
)

// control is a control plane with an authority, that can be stopped, started and robbed of its state.
type control struct {
	identityv1.UnimplementedIdentityServer
	tb        testing.TB
	authority *trust.Authority
	identity  *trust.Identity
	bundles   *trust.Bundles
	stream    *configstream.Server
	dir       string // of the program: state, token, bundle

	mu     sync.Mutex
	rpc    *grpc.Server      // guarded by mu; nil: it is away
	end    func()            // guarded by mu; ends what else belongs to rpc
	lis    *bufconn.Listener // guarded by mu
	tokens map[string]bool   // guarded by mu
	joins  int               // guarded by mu
	renews int               // guarded by mu
	as     spiffeid.ID       // guarded by mu; who the next server is
	logs   strings.Builder   // guarded by mu
}

func newControl(tb testing.TB) *control {
	tb.Helper()
	c := &control{tb: tb, bundles: trust.NewBundles(), identity: trust.NewIdentity(), dir: tb.TempDir(), tokens: make(map[string]bool)}
	c.reset()
	var err error
	if c.as, err = trust.ControlID(domain); err != nil {
		tb.Fatal(err)
	}
	c.stream = configstream.NewServer(configstream.ServerConfig{
		Peer: func(ctx context.Context) (spiffeid.ID, error) { return peerID(ctx) },
		Admit: func(spiffeid.ID, *configv1.Hello) (func(string) bool, error) {
			return func(string) bool { return true }, nil
		},
	})
	c.tell()
	c.start()
	tb.Cleanup(func() {
		c.stream.Close()
		c.stop()
	})
	return c
}

// reset makes a new authority, as after the loss of control's state.
func (c *control) reset() {
	c.tb.Helper()
	a, err := trust.OpenAuthority(trust.AuthorityConfig{TrustDomain: domain, Dir: c.tb.TempDir(), SVIDLifetime: lifetime})
	if err != nil {
		c.tb.Fatal(err)
	}
	c.authority = a
	c.bundles.Replace(map[spiffeid.TrustDomain]trust.Bundle{domain: {Authorities: a.Roots()}})
	c.write("bundle.pem", string(trust.MarshalPEM(a.Roots())))
}

// tell puts a World in force that has the present roots.
func (c *control) tell(more ...*configv1.Resource) {
	cluster, err := topology.ParseClusterName("eu")
	if err != nil {
		c.tb.Fatal(err)
	}
	c.stream.Set(configstream.NewWorld(append(more,
		configstream.EncodeSelf(receiver, topology.Self{Cluster: cluster, Domain: domain}),
		configstream.EncodeBundle(domain, configstream.BundleData{Authorities: c.authority.Roots()}),
	)))
}

// start serves as c.as, with a fresh SVID.
func (c *control) start() {
	c.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	renewed := make(chan struct{})
	c.identity.Set(nil)
	issued := c.identity.Changed()
	as := c.as
	go func() {
		defer close(renewed)
		_ = trust.Renewal{
			Identity: c.identity,
			Issue:    func(_ context.Context, csr []byte) ([]*x509.Certificate, error) { return c.authority.Issue(csr, as) },
		}.Run(ctx)
	}()
	<-issued
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end = func() {
		cancel()
		<-renewed
	}
	c.rpc = grpc.NewServer(append(configstream.ServerOptions(), grpc.Creds(credentials.NewTLS(trust.ServerConfig(trust.TLS{
		Identity: c.identity, Bundles: c.bundles, Policy: trust.AllowDomain(domain), Protocols: []string{"h2"}, AllowAnonymous: true,
	}))))...)
	configv1.RegisterConfigServer(c.rpc, c.stream)
	identityv1.RegisterIdentityServer(c.rpc, c)
	c.lis = bufconn.Listen(64 << 10)
	rpc, lis := c.rpc, c.lis
	go func() { _ = rpc.Serve(lis) }() // ends by stop
}

func (c *control) stop() {
	c.mu.Lock()
	rpc, end := c.rpc, c.end
	c.rpc = nil
	c.mu.Unlock()
	if rpc != nil {
		rpc.Stop()
		end()
	}
}

func (c *control) dial(ctx context.Context, address string) (net.Conn, error) {
	c.mu.Lock()
	lis, up := c.lis, c.rpc != nil
	c.mu.Unlock()
	if address != "control.eu:7443" {
		return nil, fmt.Errorf("unexpected address %q", address)
	}
	if !up {
		return nil, errors.New("connection refused")
	}
	return lis.DialContext(ctx)
}

func peerID(ctx context.Context) (spiffeid.ID, error) {
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return spiffeid.ID{}, trust.ErrNoPeer
	}
	who, err := trust.PeerOf(info.State)
	return who.ID, err
}

// Join takes a token once.
func (c *control) Join(_ context.Context, r *identityv1.JoinRequest) (*identityv1.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joins++
	if !c.tokens[r.GetToken()] {
		return nil, status.Error(codes.Unauthenticated, "no such token")
	}
	delete(c.tokens, r.GetToken())
	return c.issue(r.GetCsr())
}

// Renew takes whoever has an SVID.
func (c *control) Renew(ctx context.Context, r *identityv1.RenewRequest) (*identityv1.Certificate, error) {
	if _, err := peerID(ctx); err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renews++
	return c.issue(r.GetCsr())
}

// SignJWT says who asks, and for whom.
func (c *control) SignJWT(ctx context.Context, r *identityv1.SignJWTRequest) (*identityv1.SignJWTResponse, error) {
	id, err := peerID(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return &identityv1.SignJWTResponse{Token: id.String() + " for " + strings.Join(r.GetAudience(), ",")}, nil
}

func (c *control) issue(csr []byte) (*identityv1.Certificate, error) {
	id, err := trust.WorkloadID(domain, "shop", "checkout")
	if err != nil {
		return nil, err
	}
	chain, err := c.authority.Issue(csr, id)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	out := &identityv1.Certificate{SpiffeId: id.String()}
	for _, cert := range chain {
		out.Chain = append(out.Chain, cert.Raw)
	}
	return out, nil
}

// token writes a token that is good, or one that is not, to the program's file.
func (c *control) token(token string, good bool) {
	c.mu.Lock()
	c.tokens[token] = good
	c.mu.Unlock()
	c.write("token", token+"\n")
}

func (c *control) counts() (joins, renews int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.joins, c.renews
}

func (c *control) write(name, content string) {
	c.tb.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(content), 0o600); err != nil {
		c.tb.Fatal(err)
	}
}

// Write collects the logs of the agents.
func (c *control) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.logs.Write(b)
}

func (c *control) logged() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.logs.String()
}

func (c *control) config() agent.Config {
	return agent.Config{
		Control:         "control.eu:7443",
		TrustDomain:     domain,
		StateDir:        filepath.Join(c.dir, "state"),
		JoinTokenFile:   filepath.Join(c.dir, "token"),
		TrustBundleFile: filepath.Join(c.dir, "bundle.pem"),
		Hello:           hello,
		Dial:            c.dial,
		Log:             slog.New(slog.NewTextHandler(c, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// program is a running agent.
type program struct {
	*agent.Agent
	stop func()
}

func (c *control) run() program {
	c.tb.Helper()
	a, err := agent.New(c.config())
	if err != nil {
		c.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.tb.Errorf("Run: %v", err)
		}
	})
	c.tb.Cleanup(stop)
	return program{a, stop}
}

// ready waits until the program is ready, for at most a time.
func (p program) ready(tb testing.TB, within time.Duration) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), within)
	defer cancel()
	if err := p.WaitReady(ctx); err != nil {
		tb.Fatal(err)
	}
}
