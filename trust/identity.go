package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Identity is the live X.509-SVID of this program: replaced by renewal, read by every handshake.
type Identity struct {
	current atomic.Pointer[identityState]

	mu      sync.Mutex
	changed chan struct{} // guarded by mu; closed by the next Set
}

// identityState is immutable.
type identityState struct {
	svid        *x509svid.SVID
	certificate *tls.Certificate
}

// NewIdentity returns an Identity that holds no SVID yet.
func NewIdentity() *Identity { return new(Identity) }

// SVID returns the present SVID, not to be modified, or [ErrNoIdentity] before the first.
func (i *Identity) SVID() (*x509svid.SVID, error) {
	s := i.current.Load()
	if s == nil {
		return nil, ErrNoIdentity
	}
	return s.svid, nil
}

// Set replaces the SVID: new handshakes show the new one, open connections stay as they are. The SVID must not be
// modified afterwards. Set(nil) takes the identity away.
func (i *Identity) Set(svid *x509svid.SVID) {
	var s *identityState
	if svid != nil && len(svid.Certificates) > 0 {
		s = &identityState{svid: svid, certificate: tlsCertificate(svid)}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.current.Store(s)
	if i.changed != nil {
		close(i.changed)
		i.changed = nil
	}
}

// Changed returns a channel that the next Set closes. To miss nothing: take the channel first, then the SVID, then wait.
func (i *Identity) Changed() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.changed == nil {
		i.changed = make(chan struct{})
	}
	return i.changed
}

// tlsCertificate returns what a handshake shows, or ErrNoIdentity.
func (i *Identity) tlsCertificate() (*tls.Certificate, error) {
	s := i.current.Load()
	if s == nil {
		return nil, ErrNoIdentity
	}
	return s.certificate, nil
}

func tlsCertificate(svid *x509svid.SVID) *tls.Certificate {
	c := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, cert := range svid.Certificates {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}

// NewRequest makes an ECDSA P-256 key and a certificate request for it (PKCS #10, DER). The request names nobody: who
// asks is for the authority to establish, never for the asker to claim.
func NewRequest() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("trust: new key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), key)
	if err != nil {
		return nil, nil, fmt.Errorf("trust: certificate request: %w", err)
	}
	return key, csr, nil
}
