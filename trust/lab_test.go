package trust

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

var (
	domainA = spiffeid.RequireTrustDomainFromString("a.test")
	domainB = spiffeid.RequireTrustDomainFromString("b.test")
)

// testCA issues whatever a test asks for, sound or not. The product's own Authority refuses most of that.
type testCA struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// chain from this CA up to, without, the root.
	chain []*x509.Certificate
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func uri(tb testing.TB, s string) *url.URL {
	tb.Helper()
	u, err := url.Parse(s)
	if err != nil {
		tb.Fatal(err)
	}
	return u
}

func caTemplate(tb testing.TB, td string) *x509.Certificate {
	tb.Helper()
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: td},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{uri(tb, "spiffe://"+td)},
	}
}

func newRoot(tb testing.TB, template *x509.Certificate) *testCA {
	tb.Helper()
	ca := &testCA{t: tb, key: newKey(tb)}
	ca.cert = ca.create(template, template, ca.key)
	return ca
}

// rootOf returns a root of a trust domain.
func rootOf(tb testing.TB, td spiffeid.TrustDomain) *testCA {
	tb.Helper()
	return newRoot(tb, caTemplate(tb, td.Name()))
}

func (ca *testCA) create(template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	ca.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return c
}

// sub returns a CA below this one.
func (ca *testCA) sub(template *x509.Certificate) *testCA {
	ca.t.Helper()
	s := &testCA{t: ca.t, key: newKey(ca.t)}
	s.cert = ca.create(template, ca.cert, s.key)
	s.chain = append([]*x509.Certificate{s.cert}, ca.chain...)
	return s
}

func leafTemplate(tb testing.TB, uris ...string) *x509.Certificate {
	tb.Helper()
	c := &x509.Certificate{
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, u := range uris {
		c.URIs = append(c.URIs, uri(tb, u))
	}
	return c
}

// issue returns a chain for a template, leaf first.
func (ca *testCA) issue(template *x509.Certificate) ([]*x509.Certificate, *ecdsa.PrivateKey) {
	ca.t.Helper()
	key := newKey(ca.t)
	return append([]*x509.Certificate{ca.create(template, ca.cert, key)}, ca.chain...), key
}

// svid returns a sound SVID.
func (ca *testCA) svid(id spiffeid.ID) *x509svid.SVID {
	ca.t.Helper()
	chain, key := ca.issue(leafTemplate(ca.t, id.String()))
	return &x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}
}

// lived returns a sound SVID that ends at notAfter.
func (ca *testCA) lived(id spiffeid.ID, notAfter time.Time) *x509svid.SVID {
	ca.t.Helper()
	template := leafTemplate(ca.t, id.String())
	template.NotAfter = notAfter
	chain, key := ca.issue(template)
	return &x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}
}

func (ca *testCA) bundle() Bundle { return Bundle{Authorities: []*x509.Certificate{ca.cert}} }

// rawSAN is a subject alternative name extension with these URIs, byte for byte.
func rawSAN(tb testing.TB, uris ...string) pkix.Extension {
	tb.Helper()
	var names []asn1.RawValue
	for _, u := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u)})
	}
	der, err := asn1.Marshal(names)
	if err != nil {
		tb.Fatal(err)
	}
	return pkix.Extension{Id: oidSubjectAltName, Critical: true, Value: der}
}

func identityOf(svid *x509svid.SVID) *Identity {
	i := NewIdentity()
	i.Set(svid)
	return i
}

func bundlesOf(cas map[spiffeid.TrustDomain]*testCA) *Bundles {
	b := NewBundles()
	for td, ca := range cas {
		b.Set(td, ca.bundle())
	}
	return b
}

// logLines collects what was logged, one line each.
type logLines struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logLines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logLines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), part)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// run starts a Run method and returns what ends it and waits.
func run(t *testing.T, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	var once sync.Once
	return func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
}
