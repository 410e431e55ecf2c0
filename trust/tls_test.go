package trust

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
)

// testDeadline ends what hangs. No test depends on its length.
const testDeadline = 30 * time.Second

var (
	gatewayA = spiffeid.RequireFromPath(domainA, "/isthmus/gateway/0")
	gatewayB = spiffeid.RequireFromPath(domainB, "/isthmus/gateway/0")
)

// pair is two domains that trust each other: a serves, b calls.
type pair struct {
	rootA, rootB   *testCA
	bundlesA       *Bundles // of the server
	bundlesB       *Bundles // of the client
	serverID       *Identity
	clientID       *Identity
	server, client TLS
}

func newPair(tb testing.TB) *pair {
	tb.Helper()
	p := &pair{rootA: rootOf(tb, domainA), rootB: rootOf(tb, domainB)}
	both := map[spiffeid.TrustDomain]*testCA{domainA: p.rootA, domainB: p.rootB}
	p.bundlesA, p.bundlesB = bundlesOf(both), bundlesOf(both)
	p.serverID, p.clientID = identityOf(p.rootA.svid(gatewayA)), identityOf(p.rootB.svid(gatewayB))
	p.server = TLS{Identity: p.serverID, Bundles: p.bundlesA, Policy: AllowGateways(domainB), Protocols: []string{"isthmus-test/1"}}
	p.client = TLS{Identity: p.clientID, Bundles: p.bundlesB, Policy: AllowIDs(gatewayA), Protocols: []string{"isthmus-test/1"}, ServerName: "a"}
	return p
}

// shake makes a TLS connection over TCP, through one byte each way, so that both sides have judged and the client has
// read what the server sends after the handshake (tickets, were there any).
func shake(tb testing.TB, server, client *tls.Config) (s, c *tls.Conn, serverErr, clientErr error) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	s, c = tls.Server(accepted, server), tls.Client(raw, client)
	tb.Cleanup(func() { _, _ = accepted.Close(), raw.Close() })
	_ = accepted.SetDeadline(time.Now().Add(testDeadline))
	_ = raw.SetDeadline(time.Now().Add(testDeadline))
	done := make(chan error, 1)
	go func(s *tls.Conn) { done <- greet(s) }(s)
	clientErr = greet(c)
	if clientErr != nil {
		_ = raw.Close() // before TLS would, which tells the server why
	}
	serverErr = <-done
	return s, c, serverErr, clientErr
}

func greet(c *tls.Conn) error {
	if err := c.Handshake(); err != nil {
		_ = c.Close()
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func TestHandshake(t *testing.T) {
	p := newPair(t)
	s, c, serverErr, clientErr := shake(t, ServerConfig(p.server), ClientConfig(p.client))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	for _, side := range []struct {
		conn *tls.Conn
		peer spiffeid.ID
	}{{s, gatewayB}, {c, gatewayA}} {
		cs := side.conn.ConnectionState()
		peer, err := PeerOf(cs)
		if err != nil || peer.ID != side.peer {
			t.Errorf("peer %v, %v; want %s", peer.ID, err, side.peer)
		}
		if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "isthmus-test/1" {
			t.Errorf("version %#x, protocol %q", cs.Version, cs.NegotiatedProtocol)
		}
		if cs.CurveID != tls.X25519MLKEM768 {
			t.Errorf("key exchange %v, want the hybrid one", cs.CurveID)
		}
	}
	if name := s.ConnectionState().ServerName; name != "a" {
		t.Errorf("server name %q", name)
	}
}

func TestHandshakeRefused(t *testing.T) {
	gatewayC := spiffeid.RequireFromString("spiffe://c.test/isthmus/gateway/0")
	for _, test := range []struct {
		name   string
		change func(p *pair)
		config func(server, client *tls.Config)
		server Reason // why the server refuses
		client Reason // why the client refuses
		err    error  // of either side
	}{
		{name: "client of an unknown domain", change: func(p *pair) { p.bundlesA.Remove(domainB) }, server: UnknownDomain},
		{name: "server of an unknown domain", change: func(p *pair) { p.bundlesB.Remove(domainA) }, client: UnknownDomain},
		{name: "wrong trust domain", change: func(p *pair) { p.clientID.Set(rootOf(t, gatewayC.TrustDomain()).svid(gatewayC)) }, server: UnknownDomain},
		{name: "wrong path", change: func(p *pair) {
			p.clientID.Set(p.rootB.svid(spiffeid.RequireFromPath(domainB, "/ns/shop/sa/checkout")))
		}, server: NotAllowed},
		{name: "other gateway than expected", change: func(p *pair) {
			p.serverID.Set(p.rootA.svid(spiffeid.RequireFromPath(domainA, "/isthmus/gateway/1")))
		}, client: NotAllowed},
		{name: "foreign root, right name", change: func(p *pair) { p.clientID.Set(rootOf(t, domainB).svid(gatewayB)) }, server: BadChain},
		{name: "own domain's name under the other's root", change: func(p *pair) { p.clientID.Set(p.rootB.svid(gatewayA)) }, server: BadChain},
		{name: "expired client", change: func(p *pair) { p.clientID.Set(p.rootB.lived(gatewayB, time.Now().Add(-time.Second))) }, server: Expired},
		{name: "expired server", change: func(p *pair) { p.serverID.Set(p.rootA.lived(gatewayA, time.Now().Add(-time.Second))) }, client: Expired},
		{name: "revoked client", change: func(p *pair) {
			svid, _ := p.clientID.SVID()
			p.bundlesA.Set(domainB, Bundle{Authorities: p.rootB.bundle().Authorities, Revoked: map[[32]byte]struct{}{Fingerprint(svid.Certificates[0]): {}}})
		}, server: Revoked},
		{name: "server without policy", change: func(p *pair) { p.server.Policy = nil }, server: NotAllowed},
		{name: "client without policy", change: func(p *pair) { p.client.Policy = nil }, client: NotAllowed},
		{name: "server without bundles", change: func(p *pair) { p.server.Bundles = nil }, server: UnknownDomain},
		{name: "client without bundles", change: func(p *pair) { p.client.Bundles = nil }, client: UnknownDomain},
		{name: "by the server's clock", change: func(p *pair) {
			p.server.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
		}, server: Expired},
		{name: "server has no identity", change: func(p *pair) { p.server.Identity = nil }, err: ErrNoIdentity},
		{name: "server has no SVID yet", change: func(p *pair) { p.server.Identity = NewIdentity() }, err: ErrNoIdentity},
		{name: "server's SVID was taken away", change: func(p *pair) { p.serverID.Set(nil) }, err: ErrNoIdentity},
		{name: "client has no SVID yet", change: func(p *pair) { p.client.Identity = NewIdentity() }, err: ErrNoIdentity},
		{name: "client offers no protocol", change: func(p *pair) { p.client.Protocols = nil }, err: ErrNoProtocol},
		{name: "server knows no protocol", change: func(p *pair) { p.server.Protocols = nil }, err: ErrNoProtocol},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPair(t)
			test.change(p)
			_, _, serverErr, clientErr := shake(t, ServerConfig(p.server), ClientConfig(p.client))
			if serverErr == nil || clientErr == nil {
				t.Fatalf("admitted: server %v, client %v", serverErr, clientErr)
			}
			if test.server != 0 && reasonOf(t, serverErr) != test.server {
				t.Errorf("server: %v, want %q", serverErr, test.server)
			}
			if test.client != 0 && reasonOf(t, clientErr) != test.client {
				t.Errorf("client: %v, want %q", clientErr, test.client)
			}
			if test.err != nil && !errors.Is(serverErr, test.err) && !errors.Is(clientErr, test.err) {
				t.Errorf("server: %v, client: %v, want %v", serverErr, clientErr, test.err)
			}
		})
	}
}

func TestOtherProtocolRefused(t *testing.T) {
	p := newPair(t)
	p.client.Protocols = []string{"other/1"}
	if _, _, serverErr, clientErr := shake(t, ServerConfig(p.server), ClientConfig(p.client)); serverErr == nil || clientErr == nil {
		t.Fatalf("admitted: server %v, client %v", serverErr, clientErr)
	}
}

func TestOldTLSRefused(t *testing.T) {
	p := newPair(t)
	for name, old := range map[string]func(server, client *tls.Config){
		"client": func(_, c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"server": func(s, _ *tls.Config) { s.MinVersion, s.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
	} {
		server, client := ServerConfig(p.server), ClientConfig(p.client)
		old(server, client)
		if _, _, serverErr, clientErr := shake(t, server, client); serverErr == nil || clientErr == nil {
			t.Errorf("%s with TLS 1.2 admitted: server %v, client %v", name, serverErr, clientErr)
		}
	}
}

func TestAnonymousClient(t *testing.T) {
	p := newPair(t)
	p.client.Identity = nil
	if _, _, serverErr, clientErr := shake(t, ServerConfig(p.server), ClientConfig(p.client)); serverErr == nil || clientErr == nil {
		t.Fatalf("admitted where a certificate is required: server %v, client %v", serverErr, clientErr)
	}
	p.server.AllowAnonymous = true
	s, _, serverErr, clientErr := shake(t, ServerConfig(p.server), ClientConfig(p.client))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	if _, err := PeerOf(s.ConnectionState()); !errors.Is(err, ErrNoPeer) {
		t.Errorf("PeerOf: %v, want ErrNoPeer", err)
	}
	// Being optional does not make a bad certificate good.
	p.client.Identity = identityOf(rootOf(t, domainB).svid(gatewayB))
	if _, _, serverErr, _ = shake(t, ServerConfig(p.server), ClientConfig(p.client)); reasonOf(t, serverErr) != BadChain {
		t.Errorf("server: %v, want %q", serverErr, BadChain)
	}
	// A good one is known.
	p.client.Identity = p.clientID
	s, _, serverErr, clientErr = shake(t, ServerConfig(p.server), ClientConfig(p.client))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	if peer, err := PeerOf(s.ConnectionState()); err != nil || peer.ID != gatewayB {
		t.Errorf("peer %v, %v", peer.ID, err)
	}
}

func TestPeerOfBeforeHandshake(t *testing.T) {
	if _, err := PeerOf(tls.ConnectionState{}); !errors.Is(err, ErrNoPeer) {
		t.Errorf("PeerOf: %v, want ErrNoPeer", err)
	}
	svid := rootOf(t, domainA).svid(gatewayA)
	if _, err := PeerOf(tls.ConnectionState{PeerCertificates: svid.Certificates}); !errors.Is(err, ErrNoPeer) {
		t.Errorf("PeerOf of an unfinished handshake: %v, want ErrNoPeer", err)
	}
}

// One configuration serves for long: it shows the SVID and believes the bundles of the moment.
func TestLiveConfig(t *testing.T) {
	p := newPair(t)
	server, client := ServerConfig(p.server), ClientConfig(p.client)
	try := func() (*tls.Conn, *tls.Conn, error) {
		s, c, serverErr, clientErr := shake(t, server, client)
		return s, c, errors.Join(serverErr, clientErr)
	}
	if _, _, err := try(); err != nil {
		t.Fatal(err)
	}
	renewedA, renewedB := p.rootA.svid(gatewayA), p.rootB.svid(gatewayB)
	p.serverID.Set(renewedA)
	p.clientID.Set(renewedB)
	s, c, err := try()
	if err != nil {
		t.Fatal(err)
	}
	if !s.ConnectionState().PeerCertificates[0].Equal(renewedB.Certificates[0]) || !c.ConnectionState().PeerCertificates[0].Equal(renewedA.Certificates[0]) {
		t.Error("handshake after a renewal showed the old SVID")
	}
	other := rootOf(t, domainB)
	p.bundlesA.Set(domainB, other.bundle())
	if _, _, err := try(); err == nil {
		t.Error("admitted under a root that was replaced")
	}
	p.clientID.Set(other.svid(gatewayB))
	if _, _, err := try(); err != nil {
		t.Errorf("refused under the new root: %v", err)
	}
}

// A peer whose trust domain was removed must not come back in on a session ticket. Each layer holds alone.
func TestRemovedDomainDoesNotResume(t *testing.T) {
	for _, test := range []struct {
		name    string
		weaken  func(server *tls.Config, trusts *Bundles)
		resumes bool // before the removal
		admits  bool // after it
	}{
		{name: "as it is"},
		{name: "with tickets", weaken: func(c *tls.Config, _ *Bundles) { c.SessionTicketsDisabled = false }, resumes: true},
		// What go-spiffe's defaults come to. This case keeps the test honest: it shows that the attempt is a real one.
		{name: "with tickets and VerifyPeerCertificate", weaken: func(c *tls.Config, trusts *Bundles) {
			c.SessionTicketsDisabled, c.VerifyConnection = false, nil
			c.VerifyPeerCertificate = tlsconfig.VerifyPeerCertificate(bundleSource{trusts}, tlsconfig.AuthorizeAny())
		}, resumes: true, admits: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPair(t)
			server, client := ServerConfig(p.server), ClientConfig(p.client)
			if client.ClientSessionCache != nil || server.ClientSessionCache != nil {
				t.Error("a session cache is set")
			}
			// The peer is not bound to our configuration.
			client.SessionTicketsDisabled, client.ClientSessionCache = false, tls.NewLRUClientSessionCache(4)
			if test.weaken != nil {
				test.weaken(server, p.bundlesA)
			}
			for i := range 2 {
				_, c, serverErr, clientErr := shake(t, server, client)
				if serverErr != nil || clientErr != nil {
					t.Fatalf("before: server %v, client %v", serverErr, clientErr)
				}
				if got, want := c.ConnectionState().DidResume, i > 0 && test.resumes; got != want {
					t.Fatalf("handshake %d resumed: %v, want %v", i+1, got, want)
				}
			}
			p.bundlesA.Remove(domainB)
			_, c, serverErr, clientErr := shake(t, server, client)
			if admitted := serverErr == nil && clientErr == nil; admitted != test.admits {
				t.Fatalf("after: admitted %v (resumed %v): server %v, client %v", admitted, c.ConnectionState().DidResume, serverErr, clientErr)
			}
			if !test.admits && reasonOf(t, serverErr) != UnknownDomain {
				t.Errorf("server: %v, want %q", serverErr, UnknownDomain)
			}
		})
	}
}

// Removing a trust domain closes its open connections, and no others.
func TestRemovedDomainIsClosed(t *testing.T) {
	p := newPair(t)
	p.server.Policy = AllowAnyGateway()
	g := NewGuard(p.bundlesA, nil, nil)
	defer run(t, g.Run)()
	open := func(id *Identity) (client *tls.Conn, closed chan error) {
		p.client.Identity = id
		s, c, serverErr, clientErr := shake(t, ServerConfig(p.server), ClientConfig(p.client))
		if serverErr != nil || clientErr != nil {
			t.Fatalf("server %v, client %v", serverErr, clientErr)
		}
		closed = make(chan error, 2)
		t.Cleanup(g.Watch(s.ConnectionState(), p.server.Policy, func(err error) {
			_ = s.Close()
			closed <- err
		}))
		return c, closed
	}
	foreign, foreignClosed := open(p.clientID)
	own, ownClosed := open(identityOf(p.rootA.svid(spiffeid.RequireFromPath(domainA, "/isthmus/gateway/1"))))
	p.bundlesA.Remove(domainB)
	select {
	case err := <-foreignClosed:
		if reasonOf(t, err) != UnknownDomain {
			t.Errorf("closed with %v, want %q", err, UnknownDomain)
		}
	case <-time.After(testDeadline):
		t.Fatal("connection of a removed domain stays open")
	}
	if _, err := foreign.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the peer reads %v, want the end", err)
	}
	if g.Watched() != 1 || len(ownClosed) > 0 {
		t.Error("the connection of another domain was closed too")
	}
	_ = own.Close()
}

// Others' configurations work with ours.
func TestHandshakeWithGoSPIFFE(t *testing.T) {
	p := newPair(t)
	svidA, _ := p.serverID.SVID()
	svidB, _ := p.clientID.SVID()
	client := tlsconfig.MTLSClientConfig(svidB, bundleSource{p.bundlesB}, tlsconfig.AuthorizeID(gatewayA))
	client.NextProtos = p.client.Protocols
	if _, _, serverErr, clientErr := shake(t, ServerConfig(p.server), client); serverErr != nil || clientErr != nil {
		t.Errorf("its client: server %v, client %v", serverErr, clientErr)
	}
	server := tlsconfig.MTLSServerConfig(svidA, bundleSource{p.bundlesA}, tlsconfig.AuthorizeID(gatewayB))
	server.NextProtos = p.server.Protocols
	if _, _, serverErr, clientErr := shake(t, server, ClientConfig(p.client)); serverErr != nil || clientErr != nil {
		t.Errorf("its server: server %v, client %v", serverErr, clientErr)
	}
}

// bundleSource lends Bundles to go-spiffe.
type bundleSource struct{ b *Bundles }

func (s bundleSource) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	b, ok := s.b.Get(td)
	if !ok {
		return nil, errors.New("unknown domain " + td.String())
	}
	return x509bundle.FromX509Authorities(td, b.Authorities), nil
}

func TestErrorText(t *testing.T) {
	p := newPair(t)
	p.bundlesA.Remove(domainB)
	_, _, serverErr, _ := shake(t, ServerConfig(p.server), ClientConfig(p.client))
	const want = "trust: spiffe://b.test/isthmus/gateway/0 refused: unknown_domain"
	if serverErr == nil || !strings.Contains(serverErr.Error(), want) || strings.Count(serverErr.Error(), "trust: ") != 1 {
		t.Errorf("error %q, want %q in it", serverErr, want)
	}
}
