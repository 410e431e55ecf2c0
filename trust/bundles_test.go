package trust

import (
	"crypto"
	"crypto/x509"
	"maps"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestBundles(t *testing.T) {
	a, b := rootOf(t, domainA), rootOf(t, domainB)
	s, at := NewBundles(), time.Now()
	isClosed := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	for _, step := range []struct {
		name    string
		act     func()
		changes bool
		domains []spiffeid.TrustDomain
	}{
		{"set", func() { s.Set(domainA, a.bundle()) }, true, []spiffeid.TrustDomain{domainA}},
		{"the same again", func() { s.Set(domainA, a.bundle()) }, false, []spiffeid.TrustDomain{domainA}},
		{"another", func() { s.Set(domainB, b.bundle()) }, true, []spiffeid.TrustDomain{domainA, domainB}},
		{"no domain", func() { s.Set(spiffeid.TrustDomain{}, b.bundle()) }, false, []spiffeid.TrustDomain{domainA, domainB}},
		{"the same set", func() { s.Replace(s.All()) }, false, []spiffeid.TrustDomain{domainA, domainB}},
		{"more roots", func() { s.Set(domainB, Bundle{Authorities: []*x509.Certificate{b.cert, a.cert}}) }, true, []spiffeid.TrustDomain{domainA, domainB}},
		{"other order", func() { s.Set(domainB, Bundle{Authorities: []*x509.Certificate{a.cert, b.cert}}) }, false, []spiffeid.TrustDomain{domainA, domainB}},
		{"a revocation", func() {
			s.Set(domainB, Bundle{Authorities: []*x509.Certificate{a.cert, b.cert}, Revoked: map[[32]byte]struct{}{{1}: {}}})
		}, true, []spiffeid.TrustDomain{domainA, domainB}},
		{"a revoked ID", func() {
			s.Set(domainB, Bundle{Authorities: []*x509.Certificate{a.cert}, RevokedIDs: map[spiffeid.ID]time.Time{gatewayA: at}})
		}, true, []spiffeid.TrustDomain{domainA, domainB}},
		{"the same moment", func() {
			s.Set(domainB, Bundle{Authorities: []*x509.Certificate{a.cert}, RevokedIDs: map[spiffeid.ID]time.Time{gatewayA: at.UTC()}})
		}, false, []spiffeid.TrustDomain{domainA, domainB}},
		{"another moment", func() {
			s.Set(domainB, Bundle{Authorities: []*x509.Certificate{a.cert}, RevokedIDs: map[spiffeid.ID]time.Time{gatewayA: {}}})
		}, true, []spiffeid.TrustDomain{domainA, domainB}},
		{"a JWT key", func() {
			s.Set(domainB, Bundle{Authorities: []*x509.Certificate{a.cert}, JWTAuthorities: map[string]crypto.PublicKey{"key": a.cert.PublicKey}})
		}, true, []spiffeid.TrustDomain{domainA, domainB}},
		{"another key of that ID", func() {
			s.Set(domainB, Bundle{Authorities: []*x509.Certificate{a.cert}, JWTAuthorities: map[string]crypto.PublicKey{"key": b.cert.PublicKey}})
		}, true, []spiffeid.TrustDomain{domainA, domainB}},
		{"remove", func() { s.Remove(domainA) }, true, []spiffeid.TrustDomain{domainB}},
		{"remove what isn't there", func() { s.Remove(domainA) }, false, []spiffeid.TrustDomain{domainB}},
		{"replace", func() { s.Replace(map[spiffeid.TrustDomain]Bundle{domainA: a.bundle()}) }, true, []spiffeid.TrustDomain{domainA}},
		{"replace by nothing", func() { s.Replace(nil) }, true, nil},
	} {
		changed := s.Changed()
		step.act()
		if got := isClosed(changed); got != step.changes {
			t.Errorf("%s: changed %v, want %v", step.name, got, step.changes)
		}
		all := s.All()
		for _, td := range step.domains {
			if _, ok := s.Get(td); !ok {
				t.Errorf("%s: no bundle of %s", step.name, td)
			}
			delete(all, td)
		}
		if len(all) > 0 {
			t.Errorf("%s: left over: %v", step.name, maps.Keys(all))
		}
	}
}

// What is handed in and out is a copy.
func TestBundlesAreCopies(t *testing.T) {
	a := rootOf(t, domainA)
	svid := a.svid(gatewayA)
	given := a.bundle()
	given.Revoked, given.RevokedIDs = map[[32]byte]struct{}{}, map[spiffeid.ID]time.Time{}
	s := NewBundles()
	s.Set(domainA, given)
	given.RevokedIDs[gatewayA] = time.Time{}
	given.Authorities[0] = rootOf(t, domainA).cert
	given.Revoked[Fingerprint(a.cert)] = struct{}{}
	got, _ := s.Get(domainA)
	got.Authorities[0] = given.Authorities[0]
	got.Revoked[Fingerprint(a.cert)] = struct{}{}
	got.RevokedIDs[gatewayA] = time.Time{}
	if _, err := s.Verify(svid.Certificates, time.Now()); err != nil {
		t.Errorf("changed from outside: %v", err)
	}
}
