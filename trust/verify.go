package trust

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Limits on what a peer shows.
const (
	maxChain   = 8    // certificates in one handshake; each costs signature checks
	maxID      = 2048 // bytes of a SPIFFE ID (SPIFFE-ID, 2.3)
	minRSABits = 2048
)

// Reason is why a peer was refused. The words are stable: metrics and the CLI show them.
type Reason uint8

// Why a peer was refused.
const (
	_             Reason = iota
	UnknownDomain        // we have no bundle of its trust domain
	BadChain             // its certificate does not lead to a root of its own trust domain
	BadSVID              // the certificate is not an X.509-SVID: no or several URI SANs, a CA, wrong usage
	Revoked              // its key, its ID, or the key of an authority above it was revoked
	Expired              // outside of its validity, or that of an authority above it
	NotAllowed           // it is who it says; the policy does not let it in
)

// String returns the reason as one snake_case word.
func (r Reason) String() string {
	switch r {
	case UnknownDomain:
		return "unknown_domain"
	case BadChain:
		return "bad_chain"
	case BadSVID:
		return "bad_svid"
	case Revoked:
		return "revoked"
	case Expired:
		return "expired"
	case NotAllowed:
		return "not_allowed"
	default:
		return fmt.Sprintf("reason_%d", uint8(r))
	}
}

// VerifyError tells why a peer was refused.
type VerifyError struct {
	Reason Reason
	ID     spiffeid.ID // who it says it is; zero when that can't be read. Proven only with Revoked and NotAllowed
	Err    error       // the evidence; may be nil
}

// Error says who was refused, why, and by what evidence.
func (e *VerifyError) Error() string {
	who := "peer"
	if !e.ID.IsZero() {
		who = e.ID.String()
	}
	if e.Err == nil {
		return fmt.Sprintf("trust: %s refused: %s", who, e.Reason)
	}
	return fmt.Sprintf("trust: %s refused: %s: %v", who, e.Reason, e.Err)
}

// Unwrap returns the evidence.
func (e *VerifyError) Unwrap() error { return e.Err }

// Peer is somebody whose SVID was verified.
type Peer struct {
	ID spiffeid.ID
	// NotAfter is when the proof ends: the SVID's end, or that of an authority above it when that is sooner.
	NotAfter time.Time
	// Key is the SHA-256 of the SVID's public key, as in Bundle.Revoked.
	Key [sha256.Size]byte
}

// Verify verifies a chain, leaf first, with the roots of the leaf's own trust domain and no others, as of now.
// Errors are of type *VerifyError.
func (b *Bundles) Verify(chain []*x509.Certificate, now time.Time) (Peer, error) {
	p, _, err := b.verify(chain, now)
	return p, err
}

// verify also returns what it verified with: nil when the domain is unknown or the SVID has no readable one.
func (b *Bundles) verify(chain []*x509.Certificate, now time.Time) (Peer, *domainTrust, error) {
	p, err := inspect(chain)
	if err != nil {
		return Peer{}, nil, err
	}
	d, ok := b.load()[p.ID.TrustDomain()]
	if !ok {
		return Peer{}, nil, &VerifyError{Reason: UnknownDomain, ID: p.ID}
	}
	p.NotAfter, err = d.verify(p.ID, chain, now)
	if err != nil {
		return Peer{}, d, err
	}
	return p, d, nil
}

// inspect reads who a leaf says it is, and refuses what is no X.509-SVID whoever signed it (X509-SVID, 4 and 5.2).
func inspect(chain []*x509.Certificate) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, &VerifyError{Reason: BadSVID, Err: ErrNoPeer}
	}
	leaf := chain[0]
	id, err := readID(leaf)
	if err != nil {
		return Peer{}, &VerifyError{Reason: BadSVID, Err: err}
	}
	bad := func(evidence string) (Peer, error) {
		return Peer{}, &VerifyError{Reason: BadSVID, ID: id, Err: errors.New(evidence)}
	}
	switch {
	case len(chain) > maxChain:
		return Peer{}, &VerifyError{Reason: BadChain, ID: id, Err: fmt.Errorf("%d certificates, at most %d", len(chain), maxChain)}
	case id.Path() == "":
		return bad("the ID has no path: it names a trust domain, not a member")
	case leaf.IsCA:
		return bad("a CA certificate")
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return bad("its key usage lets it sign certificates")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return bad("its key usage has no digitalSignature")
	case !usableForTLS(leaf):
		return bad("its extended key usage lacks serverAuth or clientAuth")
	}
	if k, ok := leaf.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < minRSABits {
		return bad("a weak RSA key")
	}
	return Peer{ID: id, NotAfter: leaf.NotAfter, Key: Fingerprint(leaf)}, nil
}

// usableForTLS: where extended key usage is present, both sides of TLS must be in it (X509-SVID, 4.4).
func usableForTLS(leaf *x509.Certificate) bool {
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0 || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return true
	}
	return slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// readID returns the SPIFFE ID in the one URI SAN. The SAN's bytes must be the ID's: crypto/x509 hands out a parsed URL,
// which has lost what net/url normalises away, and two verifiers must never read two IDs in one certificate.
func readID(cert *x509.Certificate) (spiffeid.ID, error) {
	switch n := len(cert.URIs); {
	case n == 0:
		return spiffeid.ID{}, errors.New("no URI SAN")
	case n > 1:
		return spiffeid.ID{}, fmt.Errorf("%d URI SANs, want one", n)
	}
	id, err := spiffeid.FromURI(cert.URIs[0])
	if err != nil {
		return spiffeid.ID{}, err
	}
	if len(id.String()) > maxID {
		return spiffeid.ID{}, fmt.Errorf("an ID longer than %d bytes", maxID)
	}
	raw, err := rawURI(cert)
	if err != nil {
		return spiffeid.ID{}, err
	}
	if raw != id.String() {
		return spiffeid.ID{}, fmt.Errorf("the URI SAN %q is not in the normal form %s", raw, id)
	}
	return id, nil
}

// rawURI returns the bytes of the only URI in the subject alternative names (RFC 5280, 4.2.1.6: context tag 6).
func rawURI(cert *x509.Certificate) (string, error) {
	for _, e := range cert.Extensions {
		if !e.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 {
			return "", errors.New("malformed subject alternative names")
		}
		for _, n := range names {
			if n.Class == asn1.ClassContextSpecific && n.Tag == 6 {
				return string(n.Bytes), nil
			}
		}
	}
	return "", errors.New("no URI SAN")
}

// verify checks chain against this domain's roots and returns when the proof ends.
func (d *domainTrust) verify(id spiffeid.ID, chain []*x509.Certificate, now time.Time) (time.Time, error) {
	path, err := d.path(id, chain, now)
	if err != nil {
		return time.Time{}, err
	}
	return earliestEnd(path), nil
}

// path returns the way from chain's leaf to a root that holds longest.
func (d *domainTrust) path(id spiffeid.ID, chain []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	paths, err := chain[0].Verify(x509.VerifyOptions{
		Roots: d.roots, Intermediates: certificatePool(chain[1:]), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return nil, &VerifyError{Reason: d.chainReason(chain, now, err), ID: id, Err: err}
	}
	var best []*x509.Certificate
	var refused *VerifyError
	for _, path := range paths {
		if err := d.acceptPath(id, path); err != nil {
			refused = err
			continue
		}
		if best == nil || earliestEnd(path).After(earliestEnd(best)) {
			best = path
		}
	}
	switch {
	case best == nil:
		return nil, refused
	case d.bundle.RevokesID(id, chain[0].NotBefore): // last, so that the ID is proven
		return nil, &VerifyError{Reason: Revoked, ID: id, Err: d.whyRevoked(id)}
	}
	return best, nil
}

func (d *domainTrust) whyRevoked(id spiffeid.ID) error {
	if until := d.bundle.RevokedIDs[id]; !until.IsZero() {
		return fmt.Errorf("what was issued to this ID up to %s", until.UTC().Format(time.RFC3339))
	}
	return errors.New("the ID is blocked")
}

// errSharedRoot: below a root that two domains have, a CA could sign for either, if it doesn't say whose it is.
var errSharedRoot = errors.New("its root is another trust domain's too, and no CA in between has the domain as its URI")

// acceptPath checks, leaf to root, what crypto/x509 doesn't.
func (d *domainTrust) acceptPath(id spiffeid.ID, path []*x509.Certificate) *VerifyError {
	if len(path) < 2 { // crypto/x509 accepts a leaf that is itself among the roots
		return &VerifyError{Reason: BadChain, ID: id, Err: errors.New("the certificate is its own authority")}
	}
	named := false // a CA says that it is of this domain
	for _, ca := range path[1:] {
		named = named || len(ca.URIs) > 0
		for _, u := range ca.URIs {
			if of, err := spiffeid.FromURI(u); err != nil || of.TrustDomain() != id.TrustDomain() {
				return &VerifyError{Reason: BadChain, ID: id, Err: fmt.Errorf("signed by an authority of %q", u)}
			}
		}
	}
	if _, shared := d.shared[Fingerprint(path[len(path)-1])]; shared && !named {
		return &VerifyError{Reason: BadChain, ID: id, Err: errSharedRoot}
	}
	for _, c := range path {
		if _, ok := d.bundle.Revoked[Fingerprint(c)]; ok {
			return &VerifyError{Reason: Revoked, ID: id, Err: fmt.Errorf("key of certificate %x", c.SerialNumber)}
		}
	}
	return nil
}

func earliestEnd(path []*x509.Certificate) time.Time {
	end := path[0].NotAfter
	for _, c := range path[1:] {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// chainReason tells an expired chain from a wrong one, so that a person looks at clocks and renewal, not at roots.
func (d *domainTrust) chainReason(chain []*x509.Certificate, now time.Time, err error) Reason {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return Expired
	}
	outside := func(c *x509.Certificate) bool { return now.Before(c.NotBefore) || now.After(c.NotAfter) }
	if slices.ContainsFunc(chain, outside) {
		return Expired
	}
	inside := func(c *x509.Certificate) bool { return !outside(c) }
	if len(d.bundle.Authorities) > 0 && !slices.ContainsFunc(d.bundle.Authorities, inside) {
		return Expired
	}
	return BadChain
}
