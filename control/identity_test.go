package control_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/trust"
)

// caller speaks to a control, as somebody or as nobody.
type caller struct {
	identityv1.IdentityClient

	config configv1.ConfigClient
}

// call connects to c; svid nil is nobody.
func (c *cluster) call(t *testing.T, svid *x509svid.SVID) *caller {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///control",
		grpc.WithTransportCredentials(credentials.NewTLS(c.clientTLS(t, svid))),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.dial(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &caller{identityv1.NewIdentityClient(conn), configv1.NewConfigClient(conn)}
}

// joined trades a token for an SVID.
func (c *cluster) joined(t *testing.T, token string) *x509svid.SVID {
	t.Helper()
	key, csr, err := trust.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := c.call(t, nil).Join(t.Context(), &identityv1.JoinRequest{Token: token, Csr: csr})
	if err != nil {
		t.Fatal(err)
	}
	return svidOf(t, key, answer)
}

func svidOf(t *testing.T, key crypto.Signer, c *identityv1.Certificate) *x509svid.SVID {
	t.Helper()
	svid := &x509svid.SVID{ID: spiffeid.RequireFromString(c.GetSpiffeId()), PrivateKey: key}
	for _, der := range c.GetChain() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		svid.Certificates = append(svid.Certificates, cert)
	}
	return svid
}

func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%s: %v, want %v (%v)", what, got, want, err)
	}
}

func csrOf(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// A program gets JWT-SVIDs of its own ID, by its SVID; whoever has none gets none, and so does who may not be any more.
func TestSignJWT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newMesh(t).start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		eu.registry.declare(t, checkoutManifest)
		synctest.Wait()
		ask := &identityv1.SignJWTRequest{Audience: []string{"pay"}}
		_, err := eu.call(t, nil).SignJWT(t.Context(), ask)
		wantCode(t, "nobody", err, codes.Unauthenticated)
		svid := eu.joined(t, eu.token(t, `{"workload":"shop/checkout-0"}`))
		checkout := eu.call(t, svid)
		_, err = checkout.SignJWT(t.Context(), &identityv1.SignJWTRequest{})
		wantCode(t, "for nobody", err, codes.InvalidArgument)
		answer, err := checkout.SignJWT(t.Context(), ask)
		if err != nil {
			t.Fatal(err)
		}
		token, err := jwtsvid.ParseInsecure(answer.GetToken(), ask.GetAudience())
		if err != nil || token.ID != svid.ID {
			t.Errorf("%v, %v", token, err)
		}
		eu.registry.declare(t, "")
		synctest.Wait()
		_, err = checkout.SignJWT(t.Context(), ask)
		wantCode(t, "a workload that was removed", err, codes.PermissionDenied)
	})
}

// A thief asks without a pause, on a connection that is open: what is revoked in the midst of a call, and before the connection is closed for it,
// gets nothing that begins after that, and so is good.
func TestRenewWhileRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newMesh(t).start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		eu.registry.declare(t, checkoutManifest)
		synctest.Wait()
		svid := eu.joined(t, eu.token(t, `{"workload":"shop/checkout-0"}`))
		ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{
			State: tls.ConnectionState{HandshakeComplete: true, PeerCertificates: svid.Certificates},
		}})
		_, csr, err := trust.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		thief := eu.Identity(func(ctx context.Context) (trust.Peer, error) {
			p, refused := eu.PeerOf(ctx)
			if e := eu.RevokeUntold(svid.ID.String()); e != nil { // just after the look
				t.Error(e)
			}
			return p, refused
		})
		time.Sleep(time.Minute)
		_, err = thief.Renew(ctx, &identityv1.RenewRequest{Csr: csr})
		wantCode(t, "an SVID", err, codes.Unauthenticated)
		eu.unrevoke(t, svid.ID.String())
		_, err = thief.SignJWT(ctx, &identityv1.SignJWTRequest{Audience: []string{"pay"}})
		wantCode(t, "a token", err, codes.Unauthenticated)
		eu.unrevoke(t, svid.ID.String())
		if _, err = eu.PeerOf(ctx); err != nil {
			t.Errorf("what is revoked no longer: %v", err)
		}
		if err = eu.RevokeUntold(trust.KeyID(svid.Certificates[0])); err != nil {
			t.Fatal(err)
		}
		if _, err = eu.PeerOf(ctx); err == nil {
			t.Error("whose key is revoked is somebody")
		}
	})
}

func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newMesh(t).start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		eu.registry.declare(t, checkoutManifest)
		synctest.Wait()
		token := eu.token(t, `{"workload":"shop/checkout-0"}`)
		nobody := eu.call(t, nil)
		_, good, err := trust.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		join := func(token string, csr []byte) error {
			_, refusal := nobody.Join(t.Context(), &identityv1.JoinRequest{Token: token, Csr: csr})
			return refusal
		}

		// A request that is no good leaves the token good.
		p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		weak, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		forged := append([]byte(nil), good...)
		forged[len(forged)-1] ^= 1
		for name, csr := range map[string][]byte{
			"nothing": nil, "noise": []byte("noise"), "P-384": csrOf(t, p384), "RSA": csrOf(t, weak), "a bad signature": forged, "too long": make([]byte, 10_000),
		} {
			wantCode(t, "a request with "+name, join(token, csr), codes.InvalidArgument)
		}
		wantCode(t, "a made-up token", join("isthmus-join-x", good), codes.Unauthenticated)
		wantCode(t, "no token", join("", good), codes.Unauthenticated)

		svid := eu.joined(t, token)
		if svid.ID.String() != "spiffe://eu.example/ns/shop/sa/checkout" {
			t.Errorf("joined as %s", svid.ID)
		}
		wantCode(t, "a token for the second time", join(token, good), codes.Unauthenticated)

		// A token ends, and so does one for a workload that is gone meanwhile.
		late := eu.token(t, `{"gateway":"gateway-0"}`)
		gone := eu.token(t, `{"workload":"shop/checkout-0"}`)
		eu.registry.declare(t, "")
		synctest.Wait()
		wantCode(t, "a token of a workload that is gone", join(gone, good), codes.PermissionDenied)
		time.Sleep(15 * time.Minute)
		wantCode(t, "a token that has ended", join(late, good), codes.Unauthenticated)
	})
}

func TestRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		eu.registry.declare(t, checkoutManifest)
		synctest.Wait()
		_, csr, err := trust.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		renew := func(as *caller) (*identityv1.Certificate, error) {
			return as.Renew(t.Context(), &identityv1.RenewRequest{Csr: csr})
		}
		_, err = renew(eu.call(t, nil))
		wantCode(t, "nobody", err, codes.Unauthenticated)

		workload := eu.joined(t, eu.token(t, `{"workload":"shop/checkout-0"}`))
		gateway := eu.joined(t, eu.token(t, `{"gateway":"gateway-0"}`))
		node := eu.joined(t, eu.token(t, `{"node":"node-0"}`))
		for _, svid := range []*x509svid.SVID{workload, gateway, node} {
			c, refusal := renew(eu.call(t, svid))
			if refusal != nil || c.GetSpiffeId() != svid.ID.String() {
				t.Errorf("%s: %s, %v", svid.ID, c.GetSpiffeId(), refusal)
			}
		}

		// Who is gone gets no more.
		eu.registry.declare(t, "")
		if _, code := ask[any](t, eu, "DELETE", "/v1/proxies/gateway/gateway-0", ""); code != 204 {
			t.Fatalf("removing a gateway: %d", code)
		}
		synctest.Wait()
		_, err = renew(eu.call(t, workload))
		wantCode(t, "a workload that is gone", err, codes.PermissionDenied)
		_, err = renew(eu.call(t, gateway))
		wantCode(t, "a gateway that was removed", err, codes.PermissionDenied)

		// A connection lives no longer than the SVID that it was made with; an SVID that has ended opens none.
		as := eu.call(t, node)
		if _, err = renew(as); err != nil {
			t.Fatal(err)
		}
		time.Sleep(61 * time.Minute)
		_, err = renew(as)
		wantCode(t, "an SVID that has ended", err, codes.Unavailable) // the handshake is refused

		// Somebody of another domain is refused in the handshake.
		us := m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		us.registry.declare(t, checkoutManifest)
		synctest.Wait()
		stranger := us.joined(t, us.token(t, `{"workload":"shop/checkout-0"}`))
		_, err = renew(eu.call(t, stranger))
		wantCode(t, "a stranger", err, codes.Unavailable)

		// A control that has just started can't tell who is gone: come back later.
		eu.stop()
		restarted := m.start("eu", eu.dir, nil)
		fresh := &cluster{name: "eu", dir: eu.dir, listener: restarted.listener}
		restarted.registry.declare(t, checkoutManifest)
		synctest.Wait()
		workload = fresh.joined(t, restarted.token(t, `{"workload":"shop/checkout-0"}`))
		restarted.registry.objects.Store(nil)
		_, err = renew(fresh.call(t, workload))
		wantCode(t, "before the manifests were read", err, codes.Unavailable)
	})
}

func TestWhereAGatewayMayBe(t *testing.T) {
	for address, want := range map[string]bool{
		"10.0.0.1:7443": true, "127.0.0.1:7443": true, "[::1]:7443": true, "[2001:db8::1]:7443": true, "[fd00::1]:1": true,
		"gateway-0.example.net:7443": true, "gateway-0:7443": true, "gateway.example.net.:65535": true, "1password.example:1": true,
		"10.0.0.1": false, "10.0.0.1:0": false, "10.0.0.1:65536": false, "10.0.0.1:-1": false, ":7443": false, ".:7443": false,
		"0.0.0.0:1": false, "[::]:1": false, "169.254.169.254:80": false, "[::ffff:169.254.169.254]:80": false, "[fe80::1]:1": false,
		"[fe80::1%eth0]:1": false, "224.0.0.1:1": false, "[ff02::1]:1": false, "[ff0e::1]:1": false, "255.255.255.255:1": false,
		"2852039166:80": false, "0xa9fea9fe:80": false, "169.254.43518:80": false, "169.254.169.254.:80": false, "[evil:x]:1": false,
		"evil host:1": false,
	} {
		if got := control.IsHostPort(address); got != want {
			t.Errorf("%s: %t, want %t", address, got, want)
		}
	}
}

// The stream is for whom the SVID is of, and for nobody else.
func TestStreamIsBoundToTheIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newMesh(t).start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		eu.registry.declare(t, checkoutManifest+"---"+clientManifest)
		synctest.Wait()
		svids := map[string]*x509svid.SVID{
			"checkout": eu.joined(t, eu.token(t, `{"workload":"shop/checkout-0"}`)),
			"client":   eu.joined(t, eu.token(t, `{"workload":"shop/client"}`)),
			"gateway":  eu.joined(t, eu.token(t, `{"gateway":"gateway-0"}`)),
			"node":     eu.joined(t, eu.token(t, `{"node":"node-0"}`)),
			"nobody":   nil,
		}
		gatewayAt := func(id, address, quic string) *configv1.Hello {
			return &configv1.Hello{Program: "gateway", Gateway: &configv1.Gateway{Id: id, Address: address, QuicAddress: quic}}
		}
		node := func(name, inbound string) *configv1.Hello {
			return &configv1.Hello{Program: "node", Workload: name, InboundAddress: inbound}
		}
		for _, c := range []struct {
			as    string
			hello *configv1.Hello
			want  codes.Code
		}{
			{"checkout", sidecarHello("shop/checkout-0"), codes.OK},
			{"client", sidecarHello("shop/client"), codes.OK},
			{"gateway", gatewayHello("gateway-0"), codes.OK},
			{"node", node("node-0", "10.0.0.5:9443"), codes.OK},
			{"nobody", sidecarHello("shop/checkout-0"), codes.Unauthenticated},
			{"checkout", sidecarHello("shop/client"), codes.PermissionDenied},
			{"checkout", sidecarHello("shop/nobody"), codes.PermissionDenied},
			{"checkout", gatewayHello("gateway-0"), codes.PermissionDenied},
			{"gateway", sidecarHello("shop/checkout-0"), codes.PermissionDenied},
			{"gateway", gatewayHello("gateway-1"), codes.PermissionDenied},
			{"gateway", gatewayAt("gateway-0", "", "192.0.2.1:1"), codes.PermissionDenied},
			{"gateway", gatewayAt("gateway-0", "10.0.0.1:0", "192.0.2.1:1"), codes.PermissionDenied},
			{"gateway", gatewayAt("gateway-0", "10.0.0.1:1", "no port"), codes.PermissionDenied},
			{"gateway", gatewayAt("gateway-0", "169.254.169.254:80", "192.0.2.1:1"), codes.PermissionDenied},
			{"gateway", gatewayAt("gateway-0", "10.0.0.1:1", "[::ffff:169.254.169.254]:80"), codes.PermissionDenied},
			{"node", node("node-0", "169.254.169.254:80"), codes.PermissionDenied},
			{"node", node("node-1", "10.0.0.5:9443"), codes.PermissionDenied},
			{"node", node("node-0", "0.0.0.0:9443"), codes.PermissionDenied},
			{"node", node("node-0", "host:9443"), codes.PermissionDenied},
			{"node", &configv1.Hello{Program: "control", Workload: "node-0"}, codes.InvalidArgument},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			stream, err := eu.call(t, svids[c.as]).config.Stream(ctx)
			if err != nil {
				t.Fatal(err)
			}
			// When it is refused at once, sending may fail already; receiving says why.
			_ = stream.Send(&configv1.Request{Message: &configv1.Request_Hello{Hello: c.hello}})
			_, err = stream.Recv()
			wantCode(t, fmt.Sprintf("%s as %v", c.as, c.hello), err, c.want)
			cancel()
		}
	})
}

// TestWhoWasRemovedHearsNothingMore: an open config stream ends with what it rests on.
func TestWhoWasRemovedHearsNothingMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newMesh(t).start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		eu.registry.declare(t, checkoutManifest)
		synctest.Wait()
		for name, c := range map[string]struct {
			token  string
			hello  *configv1.Hello
			remove func()
		}{
			"a gateway": {`{"gateway":"gateway-0"}`, gatewayHello("gateway-0"), func() {
				if _, code := ask[any](t, eu, "DELETE", "/v1/proxies/gateway/gateway-0", ""); code != 204 {
					t.Errorf("DELETE: %d", code)
				}
			}},
			"a workload": {`{"workload":"shop/checkout-0"}`, sidecarHello("shop/checkout-0"), func() { eu.registry.declare(t, "") }},
		} {
			stream, err := eu.call(t, eu.joined(t, eu.token(t, c.token))).config.Stream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err = stream.Send(&configv1.Request{Message: &configv1.Request_Hello{Hello: c.hello}}); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() {
				for {
					if _, err := stream.Recv(); err != nil {
						ended <- err
						return
					}
				}
			}()
			time.Sleep(time.Minute)
			select {
			case err := <-ended:
				t.Errorf("%s: ended before it was removed: %v", name, err)
				continue
			default:
			}
			c.remove()
			select {
			case err := <-ended:
				wantCode(t, name, err, codes.PermissionDenied)
			case <-time.After(5 * time.Second):
				t.Errorf("%s: still open", name)
			}
			eu.registry.declare(t, checkoutManifest)
			synctest.Wait()
		}
	})
}
