//go:build linux

package upstream_test

import (
	"context"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/upstream"
	"github.com/isthmus-mesh/isthmus/trust/workload"
)

var domain = spiffeid.RequireTrustDomainFromString("a.test")

// spire stands in for another SPIFFE implementation.
type spire struct {
	t         *testing.T
	authority *trust.Authority
	identity  *trust.Identity
	bundles   *trust.Bundles
	address   string
}

func newSpire(t *testing.T) *spire {
	t.Helper()
	a, err := trust.OpenAuthority(trust.AuthorityConfig{TrustDomain: domain, Dir: filepath.Join(t.TempDir(), "authority")})
	if err != nil {
		t.Fatal(err)
	}
	s := &spire{t: t, authority: a, identity: trust.NewIdentity(), bundles: trust.NewBundles()}
	s.publish()
	s.issue("spiffe://a.test/isthmus/control")
	server, err := workload.NewServer(workload.Config{Source: &workload.Own{
		Identity: s.identity, UIDs: []uint32{uint32(os.Getuid())},
		Sign: func(_ context.Context, audience []string) (string, error) {
			svid, missing := s.identity.SVID()
			if missing != nil {
				return "", missing
			}
			return a.SignJWT(svid.ID, audience, 0)
		},
	}, Bundles: s.bundles})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "up") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s.address = "unix://" + socket
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *spire) publish() {
	s.bundles.Set(domain, trust.Bundle{Authorities: s.authority.Roots(), JWTAuthorities: s.authority.JWTKeys()})
}

func (s *spire) issue(id string) *x509svid.SVID {
	s.t.Helper()
	key, csr, err := trust.NewRequest()
	if err != nil {
		s.t.Fatal(err)
	}
	chain, err := s.authority.Issue(csr, spiffeid.RequireFromString(id))
	if err != nil {
		s.t.Fatal(err)
	}
	svid := &x509svid.SVID{ID: spiffeid.RequireFromString(id), Certificates: chain, PrivateKey: key}
	s.identity.Set(svid)
	return svid
}

func source(t *testing.T, cfg upstream.Config) *upstream.Source {
	t.Helper()
	cfg.TrustDomain, cfg.Identity = domain, trust.NewIdentity()
	s, err := upstream.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// until waits for a change until check is content.
func until(t *testing.T, s *upstream.Source, check func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := s.Changed()
		if check() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("not in time: %v", s.Problem())
		}
	}
}

// A program is who the other side says, and follows each change of SVID, roots and keys.
func TestSourceFollows(t *testing.T) {
	other := newSpire(t)
	identity := trust.NewIdentity()
	s, err := upstream.New(upstream.Config{
		Address: other.address, TrustDomain: domain, ID: spiffeid.RequireFromString("spiffe://a.test/isthmus/control"), Identity: identity,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if err = s.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	first, err := identity.SVID()
	if err != nil || len(s.Roots()) != 1 || len(s.JWTKeys()) != 1 || s.Problem() != nil {
		t.Fatalf("%d roots, %d keys: %v, %v", len(s.Roots()), len(s.JWTKeys()), err, s.Problem())
	}
	token, err := s.SignJWT(t.Context(), []string{"pay", "shop"})
	if err != nil || strings.Count(token, ".") != 2 {
		t.Errorf("%q, %v", token, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	other.issue("spiffe://a.test/isthmus/control")
	until(t, s, func() bool {
		svid, _ := identity.SVID()
		return svid.Certificates[0] != first.Certificates[0] && !svid.Certificates[0].Equal(first.Certificates[0])
	})
	if err := other.authority.Prepare(); err != nil {
		t.Fatal(err)
	}
	if err := other.authority.Publish(); err != nil {
		t.Fatal(err)
	}
	other.publish()
	until(t, s, func() bool { return len(s.Roots()) == 2 })
	// Somebody else's identity is none.
	last, _ := identity.SVID()
	other.issue("spiffe://a.test/ns/shop/sa/cart")
	until(t, s, func() bool { return s.Problem() != nil })
	if p := s.Problem().Error(); !strings.Contains(p, "register it as that") {
		t.Error(p)
	}
	if now, _ := identity.SVID(); now != last {
		t.Error("became somebody else")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSourceRefuses(t *testing.T) {
	other := newSpire(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s := source(t, upstream.Config{Address: other.address, ID: spiffeid.RequireFromString("spiffe://a.test/isthmus/gateway/g")})
	if err := s.Fetch(ctx); err == nil || !strings.Contains(err.Error(), "/isthmus/control") {
		t.Errorf("took somebody else's identity: %v", err)
	}
	other.bundles.Set(domain, trust.Bundle{Authorities: []*x509.Certificate{}})
	s = source(t, upstream.Config{Address: other.address})
	if err := s.Fetch(ctx); err == nil {
		t.Error("took a domain without roots")
	}
	for _, address := range []string{"", "/run/spire.sock", "http://localhost", "unix://"} {
		if _, err := upstream.New(upstream.Config{Address: address, TrustDomain: domain, Identity: trust.NewIdentity()}); err == nil {
			t.Errorf("%q: taken for an address", address)
		}
	}
}
