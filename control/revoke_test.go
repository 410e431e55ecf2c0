package control_test

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"

	"github.com/isthmus-mesh/isthmus/api/admin"
	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

func (c *cluster) revoke(t *testing.T, body string) admin.Revocation {
	t.Helper()
	r, code := ask[admin.Revocation](t, c, http.MethodPost, "/v1/trust/revocations", body)
	if code != http.StatusOK {
		t.Fatalf("%s: revoke %s: %d", c.name, body, code)
	}
	return r
}

func (c *cluster) unrevoke(t *testing.T, subject string) int {
	t.Helper()
	_, code := ask[any](t, c, http.MethodDelete, "/v1/trust/revocations?"+url.Values{"subject": {subject}}.Encode(), "")
	return code
}

// refuses tells why a program refuses what another shows; empty: it doesn't.
func (p *program) refuses(t *testing.T, chainOf *program) string {
	t.Helper()
	svid, err := chainOf.Identity.SVID()
	if err != nil {
		t.Fatal(err)
	}
	return refusal(p, svid.Certificates)
}

func refusal(p *program, chain []*x509.Certificate) string {
	_, err := p.Bundles.Verify(chain, time.Now())
	if err == nil {
		return ""
	}
	if refused, ok := errors.AsType[*trust.VerifyError](err); ok {
		return refused.Reason.String()
	}
	return err.Error()
}

// nobody is a listener that is never served.
type nobody struct{ net.Listener }

func (nobody) Close() error { return nil }

func clusterName(t *testing.T, name string) topology.ClusterName {
	t.Helper()
	n, err := topology.ParseClusterName(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// An identity is revoked: what was issued to it is refused here within a second and at the peer within ten, and its program, which the platform
// vouches for, has a new SVID that is good. Blocked, it has none.
func TestRevokeID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.attestor = platform{"pod checkout-0": {"sidecar", "shop/checkout-0", "checkout", nil}}
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		eu.registry.declare(t, clientManifest+peerOf(t, us))
		us.registry.declare(t, checkoutManifest+peerOf(t, eu))
		synctest.Wait()
		checkout := us.join(t, sidecarHello("shop/checkout-0"), "pod checkout-0")
		gateway := us.join(t, gatewayHello("gateway-0"), us.token(t, `{"gateway":"gateway-0"}`))
		client := eu.join(t, sidecarHello("shop/client"), eu.token(t, `{"workload":"shop/client"}`))
		time.Sleep(time.Minute)
		old, err := checkout.Identity.SVID()
		if err != nil {
			t.Fatal(err)
		}
		const id = "spiffe://us.example/ns/shop/sa/checkout"
		if r := us.revoke(t, `{"subject":"`+id+`","dry_run":true}`); r.Kind != "id" || !r.Told || r.Matches != 1 || !r.DryRun {
			t.Errorf("%+v", r)
		}
		time.Sleep(20 * time.Second)
		if why := client.refuses(t, checkout) + gateway.refuses(t, checkout); why != "" {
			t.Fatalf("refused before anything was revoked: %s", why)
		}
		r := us.revoke(t, `{"subject":"`+id+`","reason":"laptop stolen"}`)
		if r.Ends.IsZero() || r.Matches != 1 || !strings.Contains(r.Bound, "10 s") {
			t.Errorf("%+v", r)
		}
		time.Sleep(time.Second)
		if why := refusal(gateway, old.Certificates); why != "revoked" {
			t.Errorf("here: %q", why)
		}
		time.Sleep(9 * time.Second)
		if why := refusal(client, old.Certificates); why != "revoked" {
			t.Errorf("at the peer: %q", why)
		}
		time.Sleep(time.Minute)
		fresh, err := checkout.Identity.SVID()
		if err != nil || fresh.Certificates[0].Equal(old.Certificates[0]) {
			t.Fatalf("the program has not joined anew: %v", err)
		}
		if why := client.refuses(t, checkout) + gateway.refuses(t, checkout); why != "" {
			t.Errorf("the new SVID is refused: %s", why)
		}
		if !checkout.Stream.Connected() {
			t.Errorf("not connected: %v", checkout.Stream.Problems())
		}
		s := get[admin.Trust](t, eu, "/v1/trust")
		if s.Domains[1].Revoked != 1 || len(s.Domains[1].RevokedIDs) != 1 || len(s.Revocations) != 0 {
			t.Errorf("shown at the peer: %+v", s.Domains[1])
		}
		// A restart forgets nothing; the end is the end.
		us.stop()
		us2 := m.start("us", us.dir, us.registry)
		us.listener.Store(us2.listener.Load())
		time.Sleep(time.Minute)
		if s = get[admin.Trust](t, us2, "/v1/trust"); len(s.Revocations) != 1 || s.Revocations[0].Reason != "laptop stolen" {
			t.Errorf("after a restart: %+v", s.Revocations)
		}
		time.Sleep(70 * time.Minute)
		if s = get[admin.Trust](t, us2, "/v1/trust"); len(s.Revocations) != 0 {
			t.Errorf("when all has ended: %+v", s.Revocations)
		}
		// Blocked.
		us2.revoke(t, `{"subject":"`+id+`","block":true}`)
		time.Sleep(10 * time.Minute)
		if why := client.refuses(t, checkout); why != "revoked" {
			t.Errorf("blocked: %q", why)
		}
		if checkout.Stream.Connected() {
			t.Error("blocked, and connected")
		}
		_, csr, err := trust.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		_, err = us2.call(t, nil).Join(t.Context(), &identityv1.JoinRequest{Token: "pod checkout-0", Csr: csr})
		wantCode(t, "blocked", err, codes.PermissionDenied)
		if code := us2.unrevoke(t, id); code != http.StatusNoContent {
			t.Errorf("undo: %d", code)
		}
		time.Sleep(2 * time.Minute)
		if why := client.refuses(t, checkout); why != "" || !checkout.Stream.Connected() {
			t.Errorf("after it was undone: %q, connected: %v", why, checkout.Stream.Connected())
		}
	})
}

// A key is revoked: that one SVID is refused, and no other of its ID.
func TestRevokeKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		eu.registry.declare(t, clientManifest+peerOf(t, us))
		us.registry.declare(t, checkoutManifest+peerOf(t, eu))
		synctest.Wait()
		client := eu.join(t, sidecarHello("shop/client"), eu.token(t, `{"workload":"shop/client"}`))
		stolen := us.joined(t, us.token(t, `{"workload":"shop/checkout-0"}`))
		other := us.joined(t, us.token(t, `{"workload":"shop/checkout-0"}`))
		time.Sleep(time.Minute)
		subject := fmt.Sprintf("sha256:%x", trust.Fingerprint(stolen.Certificates[0]))
		if r := us.revoke(t, `{"subject":"`+subject+`"}`); r.Kind != "key" || !r.Told || r.Ends.IsZero() {
			t.Errorf("%+v", r)
		}
		time.Sleep(10 * time.Second)
		if why := refusal(client, stolen.Certificates); why != "revoked" {
			t.Errorf("the key: %q", why)
		}
		if why := refusal(client, other.Certificates); why != "" {
			t.Errorf("another of that ID: %q", why)
		}
		// Who has no SVID any more can't get one by it.
		_, csr, err := trust.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		if _, err = us.call(t, stolen).Renew(t.Context(), &identityv1.RenewRequest{Csr: csr}); err == nil {
			t.Error("renewed by a revoked key")
		}
		if _, err = us.call(t, other).Renew(t.Context(), &identityv1.RenewRequest{Csr: csr}); err != nil {
			t.Errorf("the other: %v", err)
		}
	})
}

// A peer's whole domain, and one of its members, are revoked by this cluster alone, for its own programs.
func TestRevokeForeign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		eu.registry.declare(t, clientManifest+peerOf(t, us))
		us.registry.declare(t, checkoutManifest+peerOf(t, eu))
		synctest.Wait()
		client := eu.join(t, sidecarHello("shop/client"), eu.token(t, `{"workload":"shop/client"}`))
		checkout := us.join(t, sidecarHello("shop/checkout-0"), us.token(t, `{"workload":"shop/checkout-0"}`))
		time.Sleep(time.Minute)
		if why := client.refuses(t, checkout); why != "" {
			t.Fatalf("refused before: %s", why)
		}
		if r := eu.revoke(t, `{"subject":"spiffe://us.example/ns/shop/sa/checkout"}`); r.Told || !r.Uncounted || r.Ends.Sub(r.At) < 24*time.Hour || r.Ends.Sub(r.At) > 25*time.Hour {
			t.Errorf("%+v", r)
		}
		time.Sleep(time.Second)
		if why := client.refuses(t, checkout); why != "revoked" {
			t.Errorf("the member: %q", why)
		}
		if s := get[admin.Trust](t, us, "/v1/trust"); s.Domains[0].Revoked != 0 {
			t.Errorf("the owner was told: %+v", s.Domains[0])
		}
		if code := eu.unrevoke(t, "spiffe://us.example/ns/shop/sa/checkout"); code != http.StatusNoContent {
			t.Errorf("undo: %d", code)
		}
		time.Sleep(time.Second)
		if why := client.refuses(t, checkout); why != "" {
			t.Errorf("undone: %q", why)
		}
		if len(get[[]admin.Import](t, eu, "/v1/imports")) != 1 {
			t.Error("nothing is imported")
		}
		if r := eu.revoke(t, `{"subject":"us.example","reason":"not to be trusted"}`); r.Kind != "domain" || r.Told || r.Affects != "all of cluster us" {
			t.Errorf("%+v", r)
		}
		time.Sleep(time.Second)
		if why := client.refuses(t, checkout); why != "unknown_domain" {
			t.Errorf("the domain: %q", why)
		}
		if len(get[[]admin.Import](t, eu, "/v1/imports")) != 0 {
			t.Error("calls are sent on to where they are refused")
		}
		if p := get[[]admin.Peer](t, eu, "/v1/peers")[0]; p.State != "Revoked" || p.Reason != "not to be trusted" {
			t.Errorf("shown as %+v", p)
		}
		if d := get[admin.Trust](t, eu, "/v1/trust").Domains[1]; d.State != "Revoked" || d.Reason != "not to be trusted" {
			t.Errorf("%+v", d)
		}
		if code := eu.unrevoke(t, "us.example"); code != http.StatusNoContent {
			t.Errorf("undo: %d", code)
		}
		time.Sleep(time.Second)
		if why := client.refuses(t, checkout); why != "" {
			t.Errorf("undone: %q", why)
		}
	})
}

func TestRevokeRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		us := newMesh(t).start("us", filepath.Join(t.TempDir(), "us"), nil)
		us.registry.declare(t, checkoutManifest)
		synctest.Wait()
		s := get[admin.Trust](t, us, "/v1/trust")
		for body, want := range map[string]int{
			`{"subject":""}`:                                                       http.StatusBadRequest,
			`{"subject":"Not A Domain"}`:                                           http.StatusBadRequest,
			`{"subject":"sha256:00"}`:                                              http.StatusBadRequest,
			`{"subject":"sha256:` + strings.Repeat("AB", 32) + `"}`:                http.StatusBadRequest,
			`{"subject":"eu.example","block":true}`:                                http.StatusBadRequest,
			`{"subject":"eu.example","reason":"` + strings.Repeat("x", 300) + `"}`: http.StatusBadRequest,
			`{"subject":"us.example"}`:                                             http.StatusConflict,
			`{"subject":"spiffe://us.example/isthmus/control"}`:                    http.StatusConflict,
			`{"subject":"` + s.Domains[0].Roots[0].KeyID + `"}`:                    http.StatusConflict,
			`{"subject":"` + s.Authority.Issuing.KeyID + `"}`:                      http.StatusConflict,
		} {
			if _, code := ask[any](t, us, http.MethodPost, "/v1/trust/revocations", body); code != want {
				t.Errorf("%s: %d, want %d", body, code, want)
			}
		}
		for subject, want := range map[string]int{"eu.example": http.StatusNotFound, "": http.StatusBadRequest} {
			if code := us.unrevoke(t, subject); code != want {
				t.Errorf("undo %q: %d, want %d", subject, code, want)
			}
		}
		if n := len(get[admin.Trust](t, us, "/v1/trust").Revocations); n != 0 {
			t.Errorf("%d revocations", n)
		}
		// More than peers can be told is refused, not left out.
		refused := 0
		for i := range 400 {
			_, code := ask[any](t, us, http.MethodPost, "/v1/trust/revocations", fmt.Sprintf(`{"subject":"spiffe://us.example/ns/shop/sa/%d","block":true}`, i))
			if code == http.StatusConflict {
				refused++
			}
		}
		if n := len(get[admin.Trust](t, us, "/v1/trust").Revocations); n != 256 || refused != 144 {
			t.Errorf("%d revoked, %d refused", n, refused)
		}
	})
}

// Revocations that can't be read keep control from starting: without them it would let in who was put out.
func TestRevocationsDamaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "us")
		us := newMesh(t).start("us", dir, nil)
		us.revoke(t, `{"subject":"eu.example"}`)
		us.stop()
		revocationsDamaged(t, dir)
	})
}

func revocationsDamaged(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "revocations.json")
	for _, content := range []string{"", "{", `[{"subject":"Not A Domain"}]`} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := control.New(control.Config{
			Cluster: clusterName(t, "us"), Domain: spiffeid.RequireTrustDomainFromString("us.example"), StateDir: dir,
			Registry: &registry{objects: new(live.Value[*control.Objects])}, Courier: &courier{newMesh(t), "us"}, GRPC: nobody{},
		})
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// An operator gets an SVID for a key of their own, of any member but control.
func TestSVIDForOperators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		us := newMesh(t).start("us", filepath.Join(t.TempDir(), "us"), nil)
		us.registry.declare(t, checkoutManifest)
		synctest.Wait()
		key, csr, err := trust.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		svid := func(id string, csr []byte) (admin.SVID, int) {
			body, err := json.Marshal(admin.SVIDRequest{SPIFFEID: id, CSR: csr})
			if err != nil {
				t.Fatal(err)
			}
			return ask[admin.SVID](t, us, http.MethodPost, "/v1/trust/svids", string(body))
		}
		const id = "spiffe://us.example/ns/ops/sa/prober"
		got, code := svid(id, csr)
		if code != http.StatusOK || got.SPIFFEID != id || len(got.Chain) != 2 {
			t.Fatalf("%d, %+v", code, got)
		}
		issued := svidOf(t, key, &identityv1.Certificate{SpiffeId: got.SPIFFEID, Chain: got.Chain})
		for _, bad := range []struct {
			id  string
			csr []byte
		}{{"spiffe://us.example/isthmus/control", csr}, {"spiffe://eu.example/a", csr}, {"us.example", csr}, {"spiffe://us.example", csr}, {id, csr[:20]}, {id, nil}} {
			if got, code := svid(bad.id, bad.csr); code < 400 {
				t.Errorf("%s: %d, %+v", bad.id, code, got)
			}
		}
		us.revoke(t, `{"subject":"`+id+`","block":true}`)
		if _, code := svid(id, csr); code != http.StatusConflict {
			t.Errorf("of a blocked identity: %d", code)
		}
		if _, err := us.call(t, issued).SignJWT(t.Context(), &identityv1.SignJWTRequest{Audience: []string{"pay"}}); err == nil {
			t.Error("a token for a blocked identity")
		}
	})
}

// A key of another domain: peers are told nothing of it, of an SVID's it ends with that, and the key of a peer's root is its whole domain.
func TestRevokeForeignKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		eu.registry.declare(t, clientManifest+peerOf(t, us))
		us.registry.declare(t, checkoutManifest+peerOf(t, eu))
		synctest.Wait()
		checkout := us.joined(t, us.token(t, `{"workload":"shop/checkout-0"}`))
		time.Sleep(time.Minute)
		ends := checkout.Certificates[0].NotAfter
		r := eu.revoke(t, fmt.Sprintf(`{"subject":%q,"trust_domain":"us.example","ends":%q}`, trust.KeyID(checkout.Certificates[0]), ends.Format(time.RFC3339)))
		if r.Told || !r.Uncounted || r.TrustDomain != "us.example" || r.Ends.Before(ends) || r.Ends.After(ends.Add(time.Hour)) {
			t.Errorf("an SVID's: %+v", r)
		}
		unknown := "sha256:" + strings.Repeat("0a", 32)
		if r = eu.revoke(t, `{"subject":"`+unknown+`"}`); !r.Told || !r.Ends.IsZero() || !r.Uncounted || !strings.Contains(r.Bound, "until it is undone") {
			t.Errorf("nobody knows whose: %+v", r)
		}
		time.Sleep(20 * time.Second)
		if d := get[admin.Trust](t, us, "/v1/trust").Domains[1]; len(d.RevokedKeys) != 1 || d.RevokedKeys[0] != unknown {
			t.Errorf("the peer was told %q", d.RevokedKeys)
		}
		root := get[admin.Trust](t, us, "/v1/trust").Domains[0].Roots[0].KeyID
		if r = eu.revoke(t, fmt.Sprintf(`{"subject":%q,"ends":%q}`, root, ends.Format(time.RFC3339))); r.Told || !r.Ends.IsZero() || r.Affects != "all of cluster us" {
			t.Errorf("a root's: %+v", r)
		}
		time.Sleep(time.Second)
		if p := get[[]admin.Peer](t, eu, "/v1/peers")[0]; p.State != "Revoked" {
			t.Errorf("shown as %+v", p)
		}
		time.Sleep(2 * time.Hour)
		if left := get[admin.Trust](t, eu, "/v1/trust").Revocations; len(left) != 2 {
			t.Errorf("after the SVID has ended: %+v", left)
		}
		for _, id := range []string{
			"spiffe://eu.example", "spiffe://eu.example/isthmus/gateway/g", "spiffe://eu.example/isthmus/control", "spiffe://us.example/ns/shop/sa/checkout",
		} {
			_, csr, err := trust.NewRequest()
			if err != nil {
				t.Fatal(err)
			}
			data, err := json.Marshal(admin.SVIDRequest{SPIFFEID: id, CSR: csr})
			if err != nil {
				t.Fatal(err)
			}
			if _, code := ask[admin.SVID](t, eu, http.MethodPost, "/v1/trust/svids", string(data)); code != http.StatusBadRequest {
				t.Errorf("%s: %d", id, code)
			}
		}
	})
}
