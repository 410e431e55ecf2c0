package trust

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bundle is what a trust domain is verified with.
type Bundle struct {
	// Authorities are the domain's root certificates. Without any, nobody of that domain passes.
	Authorities []*x509.Certificate
	// JWTAuthorities are the keys that the domain signs JWT-SVIDs with, by key ID. They say nothing about X.509-SVIDs.
	JWTAuthorities map[string]crypto.PublicKey
	// Revoked holds the SHA-256 of public keys (DER SubjectPublicKeyInfo) that must not pass any more: of an SVID, or of
	// an authority and so of everything below it.
	Revoked map[[sha256.Size]byte]struct{}
	// RevokedIDs ends what was issued to an ID: SVIDs of it whose validity begins at that moment or before don't pass, and none
	// at all where the time is zero.
	RevokedIDs map[spiffeid.ID]time.Time
}

// RevokesID tells whether an SVID of id whose validity begins at begun must not pass.
func (b *Bundle) RevokesID(id spiffeid.ID, begun time.Time) bool {
	until, ok := b.RevokedIDs[id]
	return ok && (until.IsZero() || !begun.After(until))
}

// Fingerprint is the SHA-256 of a certificate's public key (DER SubjectPublicKeyInfo), as Bundle.Revoked and Peer.Key hold it.
func Fingerprint(cert *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

func (b Bundle) clone() Bundle {
	return Bundle{
		Authorities: slices.Clone(b.Authorities), JWTAuthorities: maps.Clone(b.JWTAuthorities),
		Revoked: maps.Clone(b.Revoked), RevokedIDs: maps.Clone(b.RevokedIDs),
	}
}

// equal tells whether both verify alike. Order is of no meaning.
func (b Bundle) equal(o Bundle) bool {
	return containsAll(b.Authorities, o.Authorities) && containsAll(o.Authorities, b.Authorities) &&
		maps.EqualFunc(b.JWTAuthorities, o.JWTAuthorities, sameKey) &&
		maps.Equal(b.Revoked, o.Revoked) && maps.EqualFunc(b.RevokedIDs, o.RevokedIDs, time.Time.Equal)
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

func containsAll(set, certs []*x509.Certificate) bool {
	for _, c := range certs {
		if !slices.ContainsFunc(set, c.Equal) {
			return false
		}
	}
	return true
}

// domainTrust is one domain's bundle, ready to verify with. Immutable: two verifications with the same *domainTrust
// differ by the time alone, which [Guard] builds on.
type domainTrust struct {
	bundle Bundle
	roots  *x509.CertPool
	// shared are the keys of roots that another domain has too: whoever has one could issue SVIDs of either.
	shared map[[sha256.Size]byte]struct{}
}

func newDomainTrust(b Bundle) *domainTrust {
	return &domainTrust{bundle: b.clone(), roots: certificatePool(b.Authorities)}
}

func certificatePool(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

// bundleSet is immutable once stored.
type bundleSet map[spiffeid.TrustDomain]*domainTrust

// Bundles is the live set of trust bundles, by domain. The zero value trusts nobody. Readers see one immutable set;
// a change that changes nothing wakes nobody.
type Bundles struct {
	current atomic.Pointer[bundleSet]

	mu      sync.Mutex    // taken by writers, and for changed
	changed chan struct{} // guarded by mu; closed by the next change
}

// NewBundles returns a set that trusts nobody yet.
func NewBundles() *Bundles { return new(Bundles) }

// Replace makes bundles the whole set: a domain that is absent is no longer trusted.
func (b *Bundles) Replace(bundles map[spiffeid.TrustDomain]Bundle) {
	b.update(func(old bundleSet) bundleSet {
		next := make(bundleSet, len(bundles))
		for td, bundle := range bundles {
			next.put(old, td, bundle)
		}
		return next
	})
}

// Set adds or replaces the bundle of one domain.
func (b *Bundles) Set(td spiffeid.TrustDomain, bundle Bundle) {
	b.update(func(old bundleSet) bundleSet {
		next := maps.Clone(old)
		if next == nil {
			next = make(bundleSet, 1)
		}
		next.put(old, td, bundle)
		return next
	})
}

// Remove ends the trust in a domain.
func (b *Bundles) Remove(td spiffeid.TrustDomain) {
	b.update(func(old bundleSet) bundleSet {
		next := maps.Clone(old)
		delete(next, td)
		return next
	})
}

// put keeps the entry that is there when nothing changed, so that nobody who was verified with it is verified again.
func (s bundleSet) put(old bundleSet, td spiffeid.TrustDomain, bundle Bundle) {
	if td.IsZero() {
		return
	}
	if d, ok := old[td]; ok && d.bundle.equal(bundle) {
		s[td] = d
		return
	}
	s[td] = newDomainTrust(bundle)
}

// markShared replaces the entries of which other roots than before are shared with another domain.
func (s bundleSet) markShared() {
	owner, twice := make(map[[sha256.Size]byte]spiffeid.TrustDomain), make(map[[sha256.Size]byte]struct{})
	for td, d := range s {
		for _, c := range d.bundle.Authorities {
			key := Fingerprint(c)
			if of, known := owner[key]; known && of != td {
				twice[key] = struct{}{}
			}
			owner[key] = td
		}
	}
	for td, d := range s {
		shared := make(map[[sha256.Size]byte]struct{})
		for _, c := range d.bundle.Authorities {
			if _, is := twice[Fingerprint(c)]; is {
				shared[Fingerprint(c)] = struct{}{}
			}
		}
		if !maps.Equal(shared, d.shared) {
			marked := *d
			marked.shared = shared
			s[td] = &marked
		}
	}
}

func (b *Bundles) update(change func(bundleSet) bundleSet) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.load()
	next := change(old)
	next.markShared()
	if maps.Equal(old, next) {
		return
	}
	b.current.Store(&next)
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

func (b *Bundles) load() bundleSet {
	if b == nil {
		return nil
	}
	if s := b.current.Load(); s != nil {
		return *s
	}
	return nil
}

// Get returns a copy of one domain's bundle.
func (b *Bundles) Get(td spiffeid.TrustDomain) (Bundle, bool) {
	d, ok := b.load()[td]
	if !ok {
		return Bundle{}, false
	}
	return d.bundle.clone(), true
}

// Empty tells whether no domain is known.
func (b *Bundles) Empty() bool { return len(b.load()) == 0 }

// All returns a copy of the set.
func (b *Bundles) All() map[spiffeid.TrustDomain]Bundle {
	set := b.load()
	all := make(map[spiffeid.TrustDomain]Bundle, len(set))
	for td, d := range set {
		all[td] = d.bundle.clone()
	}
	return all
}

// Changed returns a channel that the next change closes. To miss nothing: take the channel first, then read, then wait.
func (b *Bundles) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return b.changed
}
