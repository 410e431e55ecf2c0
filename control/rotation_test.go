package control_test

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/trust"
)

// step asks control to move its rotation, and returns the error if it doesn't.
func (c *cluster) step(t *testing.T, body string) (admin.Rotation, int) {
	t.Helper()
	return ask[admin.Rotation](t, c, http.MethodPost, "/v1/trust/rotation", body)
}

func (c *cluster) rotated(t *testing.T, body, phase string) admin.Rotation {
	t.Helper()
	r, code := c.step(t, body)
	if code != http.StatusOK || r.Phase != phase {
		t.Fatalf("%s: %s: %d, %+v", c.name, body, code, r)
	}
	return r
}

// waiting are the members who have not acknowledged.
func waiting(r admin.Rotation) string {
	var out []string
	for _, m := range r.Members {
		if !m.Acknowledged {
			out = append(out, m.Name)
		}
	}
	return strings.Join(out, ", ")
}

// roots are the roots of a domain in a program.
func (p *program) roots(td spiffeid.TrustDomain) []*x509.Certificate {
	b, _ := p.Bundles.Get(td)
	return b.Authorities
}

// A root is changed by hand under way: it signs only when every program of the own cluster and of the peer has it in force, whoever is away is
// named, and nothing that anybody holds is ever refused.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		eu.registry.declare(t, clientManifest+peerOf(t, us))
		us.registry.declare(t, checkoutManifest+peerOf(t, eu))
		synctest.Wait()
		gateway := us.join(t, gatewayHello("gateway-0"), us.token(t, `{"gateway":"gateway-0"}`))
		client := eu.join(t, sidecarHello("shop/client"), eu.token(t, `{"workload":"shop/client"}`))
		checkout := us.join(t, sidecarHello("shop/checkout-0"), us.token(t, `{"workload":"shop/checkout-0"}`))
		programs := []*program{gateway, client, checkout}
		stop := make(chan struct{})
		defer close(stop)
		go func() { // whoever speaks with whom, at any time
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Second):
				}
				for _, from := range programs {
					svid, err := from.Identity.SVID()
					if err != nil {
						continue
					}
					for _, to := range programs {
						if len(to.roots(svid.ID.TrustDomain())) == 0 {
							continue // has not been told of the domain yet
						}
						if _, err := to.Bundles.Verify(svid.Certificates, time.Now()); err != nil {
							t.Errorf("handshake: %v", err)
						}
					}
				}
			}
		}()
		time.Sleep(time.Minute)
		if r := get[admin.Trust](t, us, "/v1/trust").Rotation; r.Phase != "idle" || len(r.Members) != 0 || r.NextStep.IsZero() {
			t.Errorf("%+v", r)
		}
		for body, want := range map[string]int{
			`{"step":"publish"}`: http.StatusConflict, `{"step":"activate"}`: http.StatusConflict, `{"step":"abort"}`: http.StatusConflict,
			`{"step":"jump"}`: http.StatusBadRequest, `{"step":"prepare","force":true}`: http.StatusBadRequest, `{"pace":1}`: http.StatusBadRequest,
			`{"step":"start","dry_run":true}`: http.StatusOK, `{"step":"publish","dry_run":true}`: http.StatusConflict, `{"step":"jump","dry_run":true}`: http.StatusBadRequest,
		} {
			if r, code := us.step(t, body); code != want || code == http.StatusOK && r.Phase != "idle" {
				t.Errorf("%s: %d, want %d", body, code, want)
			}
		}
		us.rotated(t, `{"step":"prepare"}`, "prepared")
		if n := len(get[admin.Trust](t, us, "/v1/trust").Domains[0].Roots); n != 1 {
			t.Errorf("%d roots are told of, and one is only prepared", n)
		}
		eu.stop() // nobody there hears
		us.rotated(t, `{"step":"start"}`, "published")
		time.Sleep(time.Minute)
		r := get[admin.Trust](t, us, "/v1/trust").Rotation
		if waiting(r) != "cluster eu" || len(r.Members) != 3 {
			t.Errorf("waits for %q of %+v", waiting(r), r.Members)
		}
		if _, code := us.step(t, `{"step":"activate"}`); code != http.StatusConflict {
			t.Errorf("activated without eu: %d", code)
		}
		us.revoke(t, `{"subject":"eu.example"}`)
		if r = get[admin.Trust](t, us, "/v1/trust").Rotation; waiting(r) != "" {
			t.Errorf("waits for %q, of which nobody is let in", waiting(r))
		}
		us.unrevoke(t, "eu.example")
		before := eu
		eu = m.start("eu", eu.dir, eu.registry)
		time.Sleep(3 * time.Minute)
		r = get[admin.Trust](t, us, "/v1/trust").Rotation
		if waiting(r) != "cluster eu" {
			t.Errorf("waits for %q, and the client has not come back to its control", waiting(r))
		}
		before.listener.Store(eu.listener.Load())
		time.Sleep(time.Minute)
		r = get[admin.Trust](t, us, "/v1/trust").Rotation
		if waiting(r) != "" || len(r.Holds) > 0 {
			t.Fatalf("waits for %q: %v", waiting(r), r.Holds)
		}
		old := client.roots(us.domain())[0]
		if r = us.rotated(t, `{"step":"activate","dry_run":true}`, "published"); len(r.Members) != 3 {
			t.Errorf("%+v", r)
		}
		r = us.rotated(t, `{"step":"activate"}`, "activated")
		if _, code := us.step(t, `{"step":"abort"}`); code != http.StatusConflict {
			t.Errorf("undone after the old key is gone: %d", code)
		}
		time.Sleep(50 * time.Minute) // everybody has renewed
		for _, p := range []*program{gateway, checkout} {
			svid, err := p.Identity.SVID()
			if err != nil {
				t.Fatal(err)
			}
			if verifies(t, old, svid.Certificates) {
				t.Errorf("%s lives under the old root still", svid.ID)
			}
		}
		if n := len(client.roots(us.domain())); n != 2 {
			t.Errorf("%d roots of us in eu, want both", n)
		}
		// Whose key is revoked is told to nobody as a root: not everybody who follows the bundle is told what is revoked.
		us.revoke(t, `{"subject":"`+trust.KeyID(old)+`"}`)
		time.Sleep(10 * time.Second)
		if roots := client.roots(us.domain()); len(roots) != 1 || roots[0].Equal(old) {
			t.Errorf("%d roots of us in eu, want the one that is not revoked", len(roots))
		}
		if pem, err := os.ReadFile(filepath.Join(us.dir, "trust-bundle.pem")); err != nil || string(pem) != string(trust.MarshalPEM(client.roots(us.domain()))) {
			t.Errorf("trust-bundle.pem has others: %v", err)
		}
		time.Sleep(time.Until(r.Retires) + time.Minute)
		if roots := client.roots(us.domain()); len(roots) != 1 || roots[0].Equal(old) {
			t.Errorf("%d roots of us in eu, want the new one alone", len(roots))
		}
		if r = get[admin.Trust](t, us, "/v1/trust").Rotation; r.Phase != "idle" {
			t.Errorf("%+v", r)
		}
	})
}

func verifies(t *testing.T, root *x509.Certificate, chain []*x509.Certificate) bool {
	t.Helper()
	b := trust.NewBundles()
	b.Set(spiffeid.RequireFromURI(chain[0].URIs[0]).TrustDomain(), trust.Bundle{Authorities: []*x509.Certificate{root}})
	_, err := b.Verify(chain, time.Now())
	return err == nil
}

// A program that is away holds the next root as long as its SVID may live, and is named.
func TestRotationWaitsForPrograms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		us := newMesh(t).start("us", filepath.Join(t.TempDir(), "us"), nil)
		us.registry.declare(t, checkoutManifest)
		synctest.Wait()
		gateway := us.join(t, gatewayHello("gateway-0"), us.token(t, `{"gateway":"gateway-0"}`))
		checkout := us.join(t, sidecarHello("shop/checkout-0"), us.token(t, `{"workload":"shop/checkout-0"}`))
		time.Sleep(10 * time.Second)
		r := us.rotated(t, `{"step":"start"}`, "published")
		if len(r.Holds) == 0 || !strings.Contains(r.Holds[0], "just started") {
			t.Errorf("holds: %q", r.Holds)
		}
		time.Sleep(time.Minute)
		checkout.stop()
		time.Sleep(time.Minute)
		us.rotated(t, `{"step":"abort"}`, "idle")
		us.rotated(t, `{"step":"start"}`, "published")
		time.Sleep(time.Second)
		r = get[admin.Trust](t, us, "/v1/trust").Rotation
		if waiting(r) != "sidecar shop/checkout-0" || !strings.Contains(r.Holds[0], "is not connected") {
			t.Errorf("waits for %q: %q", waiting(r), r.Holds)
		}
		gateway.stop()
		time.Sleep(time.Second)
		if r = get[admin.Trust](t, us, "/v1/trust").Rotation; waiting(r) != "gateway gateway-0, sidecar shop/checkout-0" {
			t.Errorf("waits for %q", waiting(r))
		}
		time.Sleep(61 * time.Minute)
		if r = get[admin.Trust](t, us, "/v1/trust").Rotation; len(r.Members) > 0 || len(r.Holds) > 0 {
			t.Errorf("waits for %+v: %q, and nothing that was issued to them lives", r.Members, r.Holds)
		}
		us.rotated(t, `{"step":"activate","force":true}`, "activated")
	})
}

func TestTrustIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		if s := get[admin.Trust](t, eu, "/v1/trust"); len(s.Domains) != 1 {
			t.Errorf("before anything was read: %+v", s)
		}
		eu.registry.declare(t, clientManifest+peerOf(t, us))
		us.registry.declare(t, checkoutManifest+peerOf(t, eu))
		time.Sleep(time.Minute)
		s := get[admin.Trust](t, eu, "/v1/trust")
		if s.Cluster != "eu" || s.TrustDomain != "eu.example" || s.Authority.Kind != "builtin" || s.Authority.SVIDLifetime != time.Hour ||
			s.Authority.Issuing == nil || s.Authority.Problem != "" || len(s.Domains) != 2 {
			t.Fatalf("%+v", s)
		}
		own, peer := s.Domains[0], s.Domains[1]
		if own.Source != "own" || own.Sequence == 0 || own.State != "Fresh" || len(own.Roots) != 1 || own.Roots[0].State != "active" || len(own.JWTKeys) != 1 {
			t.Errorf("%+v", own)
		}
		if peer.Source != "peer" || peer.TrustDomain != "us.example" || peer.Sequence == 0 || peer.State != "Fresh" || len(peer.Roots) != 1 ||
			peer.NotAfter.IsZero() || peer.Acknowledged != own.Sequence {
			t.Errorf("%+v of %d", peer, own.Sequence)
		}
		for _, d := range s.Domains {
			raw, code := ask[admin.BundleDocument](t, eu, http.MethodGet, "/v1/trust/bundles/"+d.TrustDomain, "")
			b, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(d.TrustDomain), raw)
			if err != nil || code != http.StatusOK {
				t.Fatalf("%s: %d, %v", d.TrustDomain, code, err)
			}
			if n, _ := b.SequenceNumber(); n != d.Sequence || len(b.X509Authorities()) != 1 || len(b.JWTAuthorities()) != 1 {
				t.Errorf("%s: sequence %d, %d roots, %d keys", d.TrustDomain, n, len(b.X509Authorities()), len(b.JWTAuthorities()))
			}
		}
		if _, code := ask[any](t, eu, http.MethodGet, "/v1/trust/bundles/nowhere.example", ""); code != http.StatusNotFound {
			t.Errorf("a domain that is not trusted: %d", code)
		}
		if _, code := ask[any](t, eu, http.MethodGet, "/v1/trust/bundles/Not-A-Domain", ""); code != http.StatusBadRequest {
			t.Errorf("no domain at all: %d", code)
		}
		if !slices.ContainsFunc(s.Domains, func(d admin.TrustedDomain) bool { return d.TrustDomain == fmt.Sprint(us.domain()) }) {
			t.Errorf("%+v", s.Domains)
		}
	})
}
