package natsbus

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// TestMembers joins two members over real servers, one of which dials the other.
func TestMembers(t *testing.T) {
	type side struct {
		keys   *federation.Keys
		member *federation.Member
		server *Server
		spec   federation.PeerSpec
	}
	who := new(allowed)
	var sides [2]side
	for i, name := range []string{"eu", "us"} {
		s := &sides[i]
		cluster, err := topology.ParseClusterName(name)
		if err != nil {
			t.Fatal(err)
		}
		if s.keys, err = federation.OpenKeys(t.TempDir()); err != nil {
			t.Fatal(err)
		}
		who.add(s.keys.BusKey())
		if s.server, err = StartServer(ServerConfig{Listen: "127.0.0.1:0", Key: s.keys.BusPrivateKey(), Clients: who.list}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.server.Close() }()
		domain := spiffeid.RequireTrustDomainFromString(name + ".example.org")
		s.member, err = federation.NewMember(federation.MemberConfig{Cluster: cluster, Domain: domain, Keys: s.keys, StateDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.member.SetOwn(federation.Own{Roots: []*x509.Certificate{newRoot(t)}}); err != nil {
			t.Fatal(err)
		}
		s.spec = federation.PeerSpec{Cluster: cluster, Domain: domain, RootFingerprint: s.keys.Fingerprint()}
	}
	eu, us := sides[0], sides[1]
	dialled, err := Dial(DialConfig{URLs: []string{"tls://" + us.server.Addr()}, Key: eu.keys.BusPrivateKey(), Pin: us.keys.BusKey()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dialled.Close() }()
	eu.member.SetBuses(map[string]federation.Bus{"own": eu.server.Bus(), "us": dialled})
	us.member.SetBuses(map[string]federation.Bus{"own": us.server.Bus()})
	for _, p := range []struct{ of, to side }{{eu, us}, {us, eu}} {
		if err := p.to.member.SetPeers([]federation.PeerSpec{p.of.spec}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.to.member.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
	}
	deadline := time.After(patience)
	for _, p := range []struct{ of, to side }{{eu, us}, {us, eu}} {
		for {
			changed := p.to.member.Changed()
			if v := p.to.member.Views().Cluster(p.of.spec.Cluster); v.Freshness == federation.Fresh && len(v.Bundle.Authorities) == 1 {
				break
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("%s never heard of %s", p.to.spec.Cluster, p.of.spec.Cluster)
			}
		}
	}
}

func newRoot(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
