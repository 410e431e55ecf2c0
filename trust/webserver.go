package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"
)

// webLifetime is how long a WebServer's certificate lasts at most; the issuing CA may end before.
const webLifetime = 24 * time.Hour

// WebServer is who a program is to clients that know nothing of SPIFFE and look for a DNS name: the API server of Kubernetes, when it calls
// a webhook. Such a client is given the authority's roots.
//
// Its certificate is no SVID: it has no URI, is for servers only, and no peer of the mesh takes it. Key and certificate live in memory, are
// made at the first handshake, and anew at half-life, in the handshake that finds them too old.
type WebServer struct {
	issuer WebIssuer
	names  []string
	now    func() time.Time

	mu      sync.Mutex
	current *tls.Certificate // guarded by mu; nil before the first handshake
	renewAt time.Time        // guarded by mu
}

// WebIssuer is an authority that certifies DNS names, too.
type WebIssuer interface {
	IssueWeb(names []string) (*tls.Certificate, error)
	State() AuthorityState
}

// NewWebServer returns a WebServer of those DNS names. A nil now is time.Now.
func NewWebServer(issuer WebIssuer, now func() time.Time, names ...string) (*WebServer, error) {
	if len(names) == 0 {
		return nil, errors.New("trust: web server: no name")
	}
	w := &WebServer{issuer: issuer, names: names, now: clock(now)}
	if _, err := w.certificate(); err != nil { // what can't be issued now is told now
		return nil, err
	}
	return w, nil
}

// Config returns a server's configuration for HTTP/1.1. Clients show no certificate: who they are is not known, and nothing may be told
// to them that is not public.
func (w *WebServer) Config() *tls.Config {
	c := TLS{Protocols: []string{"http/1.1"}}.base()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return w.certificate() }
	return c
}

func (w *WebServer) certificate() (*tls.Certificate, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if w.current != nil && now.Before(w.renewAt) && w.issuedBy(w.issuer.State().Issuing) {
		return w.current, nil
	}
	next, err := w.issuer.IssueWeb(w.names)
	switch {
	case err == nil:
		w.current = next
		w.renewAt = now.Add(next.Leaf.NotAfter.Sub(now) / 2)
	case w.current == nil || !now.Before(w.current.Leaf.NotAfter):
		return nil, fmt.Errorf("trust: certificate for %s: %w", w.names[0], err)
	}
	return w.current, nil
}

// issuedBy tells whether the present certificate is of that CA: the root above another one may be gone soon.
func (w *WebServer) issuedBy(issuing *x509.Certificate) bool {
	return issuing == nil || len(w.current.Certificate) > 1 && bytes.Equal(w.current.Certificate[1], issuing.Raw)
}

// IssueWeb makes a key and a server's certificate for DNS names, which ends with the issuing CA at the latest.
func (a *Authority) IssueWeb(names []string) (*tls.Certificate, error) {
	now := a.cfg.Now()
	failed := a.maintain(now)
	certificate, err := a.state.Load().issuing.issueWeb(names, now)
	if err != nil {
		return nil, errors.Join(err, failed)
	}
	return certificate, nil
}

func (s *signer) issueWeb(names []string, now time.Time) (*tls.Certificate, error) {
	if !now.Before(s.certificate.NotAfter) {
		return nil, fmt.Errorf("the issuing CA ended at %s", s.certificate.NotAfter.Format(time.RFC3339))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, err := s.sign(&x509.Certificate{
		NotBefore: now.Add(-backdate), NotAfter: now.Add(webLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, DNSNames: names,
	}, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	out := &tls.Certificate{Certificate: [][]byte{leaf.Raw, s.certificate.Raw}, PrivateKey: key, Leaf: leaf}
	for _, c := range s.above {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}
