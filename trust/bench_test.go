package trust

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// chains as the product makes them: SVID, issuing CA, root.
func benchPair(b *testing.B) *pair {
	b.Helper()
	p := newPair(b)
	issuing := func(root *testCA, td spiffeid.TrustDomain) *testCA {
		return root.sub(issuingTemplate(td, time.Now(), 48*time.Hour))
	}
	p.serverID.Set(issuing(p.rootA, domainA).svid(gatewayA))
	p.clientID.Set(issuing(p.rootB, domainB).svid(gatewayB))
	return p
}

func BenchmarkVerify(b *testing.B) {
	p := benchPair(b)
	svid, err := p.clientID.SVID()
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.bundlesA.Verify(svid.Certificates, now); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHandshake(b *testing.B) {
	p := benchPair(b)
	server, client := ServerConfig(p.server), ClientConfig(p.client)
	b.ReportAllocs()
	for b.Loop() {
		near, far := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- greetServer(tls.Server(far, server)) }()
		c := tls.Client(near, client)
		if err := c.Handshake(); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil { // the server has judged us
			b.Fatal(err)
		}
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		_, _ = near.Close(), far.Close()
	}
}

func greetServer(s *tls.Conn) error {
	if err := s.Handshake(); err != nil {
		return err
	}
	_, err := s.Write([]byte("x"))
	return err
}

func BenchmarkIssue(b *testing.B) {
	a := openAuthority(b, AuthorityConfig{Dir: b.TempDir()})
	_, csr, err := NewRequest()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Issue(csr, gatewayA); err != nil {
			b.Fatal(err)
		}
	}
}

// A Recheck of many connections: what a policy change costs.
func BenchmarkGuardRecheck(b *testing.B) {
	p := benchPair(b)
	svid, err := p.clientID.SVID()
	if err != nil {
		b.Fatal(err)
	}
	g := NewGuard(p.bundlesA, nil, nil)
	for range 10_000 {
		g.Watch(stateOf(svid.Certificates), AllowAny(), func(error) {})
	}
	b.ReportAllocs()
	for b.Loop() {
		g.Recheck()
		g.look(true)
	}
}
