package bundleendpoint

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	ours   = spiffeid.RequireTrustDomainFromString("ours.test")
	theirs = spiffeid.RequireTrustDomainFromString("theirs.test")
)

// domain is a trust domain with an authority and a server's identity.
type domain struct {
	t         *testing.T
	name      spiffeid.TrustDomain
	authority *trust.Authority
	identity  *trust.Identity
	id        spiffeid.ID

	mu       sync.Mutex
	sequence uint64       // guarded by mu
	bundle   trust.Bundle // guarded by mu
}

func newDomain(t *testing.T, td spiffeid.TrustDomain) *domain {
	t.Helper()
	a, err := trust.OpenAuthority(trust.AuthorityConfig{TrustDomain: td, Dir: filepath.Join(t.TempDir(), "authority")})
	if err != nil {
		t.Fatal(err)
	}
	id, err := trust.ControlID(td)
	if err != nil {
		t.Fatal(err)
	}
	d := &domain{t: t, name: td, authority: a, identity: trust.NewIdentity(), id: id, sequence: 1}
	key, csr, err := trust.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Issue(csr, id)
	if err != nil {
		t.Fatal(err)
	}
	d.identity.Set(&x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key})
	d.bundle = trust.Bundle{Authorities: a.Roots(), JWTAuthorities: a.JWTKeys()}
	return d
}

// document is what the domain serves now.
func (d *domain) document() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return trust.MarshalBundle(d.name, d.bundle, d.sequence, RefreshHint)
}

func (d *domain) doc() []byte {
	d.t.Helper()
	b, err := d.document()
	if err != nil {
		d.t.Fatal(err)
	}
	return b
}

// rotate adds a root, under that number.
func (d *domain) rotate(sequence uint64) {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bundle.Authorities = append(slices.Clip(d.bundle.Authorities), newDomain(d.t, d.name).authority.Roots()...)
	d.sequence = sequence
}

// serve serves h over TLS and returns the URL.
func serve(t *testing.T, c *tls.Config, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	done := make(chan error, 1)
	go func() { done <- s.Serve(tls.NewListener(l, c)) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return "https://" + l.Addr().String() + "/"
}

// webRoot is an authority of the web.
type webRoot struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newWebRoot(t *testing.T) *webRoot {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the web"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &webRoot{c, key}
}

// files writes a certificate of 127.0.0.1 and its key.
func (r *webRoot) files(t *testing.T, dir string) (chain, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, r.cert, k.Public(), r.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	chain, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	if err := os.WriteFile(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600); err != nil {
		t.Fatal(err)
	}
	return chain, key
}

// memStore is a Store that forgets when the test ends.
type memStore struct {
	mu   sync.Mutex
	kept map[spiffeid.TrustDomain]Kept // guarded by mu
	err  error                         // guarded by mu; of the next Save
}

func newMemStore() *memStore { return &memStore{kept: make(map[spiffeid.TrustDomain]Kept)} }

func (m *memStore) Load(td spiffeid.TrustDomain) (Kept, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if td.Name() == "broken.test" {
		return Kept{}, errors.New("the disk is broken")
	}
	return m.kept[td], nil
}

func (m *memStore) Save(td spiffeid.TrustDomain, k Kept) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.kept[td] = k
	return nil
}

func (m *memStore) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

type logLines struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logLines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), part)
}
