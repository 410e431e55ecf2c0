//go:build linux

package control_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/test/bufconn"

	"github.com/isthmus-mesh/isthmus/api/admin"
	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/internal/agent"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/workload"
)

var usDomain = spiffeid.RequireTrustDomainFromString("us.example")

// spire stands in for another SPIFFE implementation: an authority, and a socket for each identity.
type spire struct {
	t         *testing.T
	authority *trust.Authority
	bundles   *trust.Bundles
	dir       string
}

func newSpire(t *testing.T) *spire {
	t.Helper()
	a, err := trust.OpenAuthority(trust.AuthorityConfig{TrustDomain: usDomain, Dir: filepath.Join(t.TempDir(), "authority")})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sp") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &spire{t: t, authority: a, bundles: trust.NewBundles(), dir: dir}
	s.publish()
	return s
}

func (s *spire) publish() {
	s.bundles.Set(usDomain, trust.Bundle{Authorities: s.authority.Roots(), JWTAuthorities: s.authority.JWTKeys()})
}

// socket serves one identity. renew gives it another SVID.
func (s *spire) socket(name, id string) (address string, renew func()) {
	s.t.Helper()
	identity := trust.NewIdentity()
	renew = func() {
		key, csr, err := trust.NewRequest()
		if err != nil {
			s.t.Fatal(err)
		}
		chain, err := s.authority.Issue(csr, spiffeid.RequireFromString(id))
		if err != nil {
			s.t.Fatal(err)
		}
		identity.Set(&x509svid.SVID{ID: spiffeid.RequireFromString(id), Certificates: chain, PrivateKey: key})
	}
	renew()
	server, err := workload.NewServer(workload.Config{
		Source: &workload.Own{Identity: identity, UIDs: []uint32{uint32(os.Getuid())}}, Bundles: s.bundles,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.dir, name)
	l, err := net.Listen("unix", path)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ctx, l) })
	s.t.Cleanup(func() { cancel(); serving.Wait() })
	return "unix://" + path, renew
}

// startBy runs a control of us that has somebody else's authority, in real time: sockets are not virtual.
func startBy(t *testing.T, set func(*control.Config)) *cluster {
	t.Helper()
	m := newMesh(t)
	c := &cluster{
		mesh: m, name: "us", dir: filepath.Join(t.TempDir(), "us"), checks: ready.New(),
		registry: &registry{objects: new(live.Value[*control.Objects])}, listener: live.NewValue(bufconn.Listen(64 << 10)),
	}
	cfg := control.Config{
		Cluster: clusterName(t, "us"), Domain: usDomain, StateDir: c.dir, Registry: c.registry, Courier: &courier{m, "us"},
		GRPC: c.listener.Load(), Checks: c.checks,
	}
	set(&cfg)
	var err error
	if c.Control, err = control.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	c.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(c.stop)
	c.registry.declare(t, checkoutManifest)
	return c
}

// Control and its programs take who they are from a Workload API, and follow its changes; control issues nothing, and says where SVIDs are.
func TestWorkloadAPIAuthority(t *testing.T) {
	other := newSpire(t)
	controlAt, _ := other.socket("control", "spiffe://us.example/isthmus/control")
	checkoutAt, renew := other.socket("checkout", "spiffe://us.example/ns/shop/sa/checkout")
	us := startBy(t, func(c *control.Config) { c.UpstreamAPI = controlAt })
	s := get[admin.Trust](t, us, "/v1/trust")
	if s.Authority.Kind != "workload-api" || s.Authority.Source != controlAt || s.Authority.Issuing != nil || len(s.Domains[0].Roots) != 1 {
		t.Errorf("%+v", s)
	}
	a, err := agent.New(agent.Config{
		Control: "us:7400", TrustDomain: usDomain, StateDir: filepath.Join(t.TempDir(), "state"), WorkloadAPI: checkoutAt,
		Hello: sidecarHello("shop/checkout-0"), Dial: func(ctx context.Context, _ string) (net.Conn, error) { return us.dial(ctx) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = a.Run(ctx) })
	defer func() { cancel(); running.Wait() }()
	eventually(t, 20*time.Second, func() error {
		if !a.Stream.Connected() {
			return errors.Join(append(a.Stream.Problems(), errors.New("not connected"))...)
		}
		return nil
	})
	first, err := a.Identity.SVID()
	if err != nil {
		t.Fatal(err)
	}
	renew()
	eventually(t, 20*time.Second, func() error {
		if svid, _ := a.Identity.SVID(); svid.Certificates[0].Equal(first.Certificates[0]) {
			return errors.New("the old SVID still")
		}
		return nil
	})
	if err = errors.Join(other.authority.Prepare(), other.authority.Publish()); err != nil {
		t.Fatal(err)
	}
	other.publish()
	eventually(t, 20*time.Second, func() error {
		if b, _ := a.Bundles.Get(usDomain); len(b.Authorities) != 2 {
			return fmt.Errorf("%d roots", len(b.Authorities))
		}
		return nil
	})
	_, csr, err := trust.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	_, err = us.call(t, nil).Join(t.Context(), &identityv1.JoinRequest{Token: us.token(t, `{"workload":"shop/checkout-0"}`), Csr: csr})
	wantCode(t, "join", err, codes.FailedPrecondition)
	if err == nil || !strings.Contains(err.Error(), "identity.workloadAPI") {
		t.Errorf("it doesn't say what to do: %v", err)
	}
	_, err = us.call(t, first).Renew(t.Context(), &identityv1.RenewRequest{Csr: csr})
	wantCode(t, "renew", err, codes.FailedPrecondition)
	if _, code := us.step(t, `{"step":"start"}`); code != http.StatusConflict {
		t.Errorf("the root of somebody else is changed: %d", code)
	}
	// How long SVIDs of somebody else last is not known here: what is revoked of them stays so.
	if r := us.revoke(t, `{"subject":"spiffe://us.example/ns/shop/sa/other"}`); !r.Ends.IsZero() {
		t.Errorf("a revocation of what somebody else issued ends at %v", r.Ends)
	}
}

// Somebody else's identity is none: control does not start as one of its workloads.
func TestWorkloadAPIOfSomebodyElse(t *testing.T) {
	other := newSpire(t)
	at, _ := other.socket("cart", "spiffe://us.example/ns/shop/sa/cart")
	_, err := control.New(control.Config{
		Cluster: clusterName(t, "us"), Domain: usDomain, StateDir: t.TempDir(), UpstreamAPI: at,
		Registry: &registry{objects: new(live.Value[*control.Objects])}, Courier: &courier{newMesh(t), "us"}, GRPC: nobody{},
	})
	if err == nil || !strings.Contains(err.Error(), "register it as that") {
		t.Errorf("%v", err)
	}
}

// An intermediate CA comes as files, and programs join as ever.
func TestFileAuthority(t *testing.T) {
	dir := t.TempDir()
	files := writeCA(t, dir)
	us := startBy(t, func(c *control.Config) { c.Upstream = &files })
	eventually(t, 20*time.Second, func() error {
		_, code := ask[admin.Token](t, us, http.MethodPost, "/v1/tokens", `{"workload":"shop/checkout-0"}`)
		if code != http.StatusOK {
			return fmt.Errorf("%d", code)
		}
		return nil
	})
	svid := us.joined(t, us.token(t, `{"workload":"shop/checkout-0"}`))
	s := get[admin.Trust](t, us, "/v1/trust")
	if s.Authority.Kind != "files" || s.Authority.Source != files.Certificate || s.Authority.Issuing == nil || len(svid.Certificates) != 2 {
		t.Errorf("%+v", s.Authority)
	}
	if err := os.WriteFile(files.Certificate, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		if s := get[admin.Trust](t, us, "/v1/trust"); !strings.Contains(s.Authority.Problem, files.Certificate) {
			return fmt.Errorf("%+v", s.Authority)
		}
		return nil
	})
	us.joined(t, us.token(t, `{"workload":"shop/checkout-0"}`))
}

// writeCA writes an intermediate CA of a root that names no trust domain.
func writeCA(t *testing.T, dir string) control.UpstreamFiles {
	t.Helper()
	rootKey, root := makeCA(t, nil, nil, nil)
	key, ca := makeCA(t, []*url.URL{usDomain.ID().URL()}, root, rootKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := control.UpstreamFiles{Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), Bundle: filepath.Join(dir, "ca.crt")}
	for path, data := range map[string][]byte{
		files.Certificate: trust.MarshalPEM([]*x509.Certificate{ca}), files.Bundle: trust.MarshalPEM([]*x509.Certificate{root}),
		files.Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// makeCA makes a CA; parent nil: a root.
func makeCA(t *testing.T, uris []*url.URL, parent *x509.Certificate, by *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "company"}, URIs: uris,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, c
}
