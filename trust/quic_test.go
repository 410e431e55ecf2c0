package trust

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/testutils/simnet"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
)

// closedByGuard is the QUIC application error that a guarded server closes with.
const closedByGuard = 7

// quicPair is a server and a client in one virtual network, 20 ms apart. The server greets each connection on a
// unidirectional stream: a client that was greeted was admitted.
type quicPair struct {
	t      *testing.T
	server net.Addr
	client *quic.Transport
}

// newQUICPair must be called in a synctest bubble. Each accepted connection is watched by g.
func newQUICPair(t *testing.T, server *tls.Config, g *Guard, policy Policy, closed chan<- error) *quicPair {
	t.Helper()
	n := &simnet.Simnet{Router: &simnet.PerfectRouter{}}
	link := simnet.NodeBiDiLinkSettings{Latency: 20 * time.Millisecond}
	clientSocket := n.NewEndpoint(&net.UDPAddr{IP: net.IPv4(1, 0, 0, 1), Port: 9001}, link)
	serverSocket := n.NewEndpoint(&net.UDPAddr{IP: net.IPv4(1, 0, 0, 2), Port: 9002}, link)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	st, ct := &quic.Transport{Conn: serverSocket}, &quic.Transport{Conn: clientSocket}
	l, err := st.Listen(server, new(quic.Config))
	if err != nil {
		t.Fatal(err)
	}
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			c, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			release := g.Watch(c.ConnectionState().TLS, policy, func(err error) {
				closed <- err
				_ = c.CloseWithError(closedByGuard, err.Error())
			})
			context.AfterFunc(c.Context(), release)
			if s, err := c.OpenUniStream(); err == nil {
				_, _ = s.Write([]byte("welcome"))
				_ = s.Close()
			}
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-accepting
		for _, c := range []io.Closer{ct, st, clientSocket, serverSocket} {
			_ = c.Close()
		}
		_ = n.Close()
	})
	return &quicPair{t: t, server: serverSocket.LocalAddr(), client: ct}
}

// dial returns a connection once it was greeted, and what it looked like to be refused otherwise.
func (p *quicPair) dial(client *tls.Config) (*quic.Conn, error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), testDeadline)
	defer cancel()
	c, err := p.client.Dial(ctx, p.server, client, new(quic.Config))
	if err != nil {
		return nil, err
	}
	s, err := c.AcceptUniStream(ctx)
	if err != nil {
		_ = c.CloseWithError(0, "")
		return nil, err
	}
	if _, err := io.ReadAll(s); err != nil {
		return nil, err
	}
	time.Sleep(100 * time.Millisecond) // virtual: a session ticket arrives, were there one
	return c, nil
}

func (p *quicPair) mustDial(client *tls.Config) *quic.Conn {
	p.t.Helper()
	c, err := p.dial(client)
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// The same as over TCP: a removed domain is out for good, also for those who kept a ticket, and also for those who are in.
func TestRemovedDomainOverQUIC(t *testing.T) {
	for _, test := range []struct {
		name    string
		weaken  func(server *tls.Config, trusts *Bundles)
		resumes bool
		admits  bool
	}{
		{name: "as it is"},
		{name: "with tickets", weaken: func(c *tls.Config, _ *Bundles) { c.SessionTicketsDisabled = false }, resumes: true},
		{name: "with tickets and VerifyPeerCertificate", weaken: func(c *tls.Config, trusts *Bundles) {
			c.SessionTicketsDisabled, c.VerifyConnection = false, nil
			c.VerifyPeerCertificate = tlsconfig.VerifyPeerCertificate(bundleSource{trusts}, tlsconfig.AuthorizeAny())
		}, resumes: true, admits: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t)
				server, client := ServerConfig(p.server), ClientConfig(p.client)
				client.SessionTicketsDisabled, client.ClientSessionCache = false, tls.NewLRUClientSessionCache(4)
				if test.weaken != nil {
					test.weaken(server, p.bundlesA)
				}
				g := NewGuard(p.bundlesA, nil, nil)
				t.Cleanup(run(t, g.Run))
				closed := make(chan error, 8)
				net := newQUICPair(t, server, g, p.server.Policy, closed)

				first, second := net.mustDial(client), net.mustDial(client)
				if got := second.ConnectionState().TLS.DidResume; got != test.resumes {
					t.Fatalf("second connection resumed: %v, want %v", got, test.resumes)
				}
				if second.ConnectionState().Used0RTT {
					t.Error("used 0-RTT")
				}
				synctest.Wait()
				if g.Watched() != 2 || len(closed) != 0 {
					t.Fatalf("%d watched, %d closed, want 2 and 0", g.Watched(), len(closed))
				}

				p.bundlesA.Remove(domainB)
				for _, c := range []*quic.Conn{first, second} {
					<-c.Context().Done()
					gone, ok := errors.AsType[*quic.ApplicationError](context.Cause(c.Context()))
					if !ok || gone.ErrorCode != closedByGuard || !gone.Remote {
						t.Errorf("open connection ended with %v, want the guard's word", context.Cause(c.Context()))
					}
					if err := <-closed; reasonOf(t, err) != UnknownDomain {
						t.Errorf("closed with %v, want %q", err, UnknownDomain)
					}
				}

				third, err := net.dial(client)
				if test.admits { // weak as it is; the guard still throws it out
					if err == nil {
						<-third.Context().Done()
					}
					if refused := <-closed; reasonOf(t, refused) != UnknownDomain {
						t.Errorf("closed with %v, want %q", refused, UnknownDomain)
					}
					return
				}
				if _, ok := errors.AsType[*quic.TransportError](err); !ok {
					t.Fatalf("dialled after the removal: %v, want the handshake refused", err)
				}
				synctest.Wait()
				if g.Watched() != 0 || len(closed) != 0 {
					t.Errorf("%d watched, %d closed again", g.Watched(), len(closed))
				}
			})
		})
	}
}

// A link over QUIC ends with the SVID that opened it; by then both sides have newer ones and it is dialled anew.
func TestExpiryOverQUIC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		g := NewGuard(p.bundlesA, nil, nil)
		t.Cleanup(run(t, g.Run))
		closed := make(chan error, 8)
		net := newQUICPair(t, ServerConfig(p.server), g, p.server.Policy, closed)
		end := time.Now().Add(10 * time.Second)
		p.clientID.Set(p.rootB.lived(gatewayB, end))
		c := net.mustDial(ClientConfig(p.client))
		p.clientID.Set(p.rootB.svid(gatewayB))
		if err := <-closed; reasonOf(t, err) != Expired {
			t.Errorf("closed with %v, want %q", err, Expired)
		}
		if late := time.Since(end); late < 0 || late > time.Second {
			t.Errorf("closed %v after the end of the SVID", late)
		}
		<-c.Context().Done()
		if _, err := net.dial(ClientConfig(p.client)); err != nil {
			t.Errorf("dialled with the new SVID: %v", err)
		}
	})
}
