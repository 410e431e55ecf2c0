package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAuthorityCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := openAuthority(t, AuthorityConfig{Dir: filepath.Join(t.TempDir(), "new", "authority")})
		now := time.Now()
		chain := issueTo(t, a, gatewayA)
		roots := a.Roots()
		if len(chain) != 2 || len(roots) != 1 {
			t.Fatalf("a chain of %d, %d roots", len(chain), len(roots))
		}
		leaf, issuing, root := chain[0], chain[1], roots[0]
		for _, c := range []struct {
			name     string
			cert     *x509.Certificate
			lifetime time.Duration
			isCA     bool
			path     int
			uri      string
			usage    x509.KeyUsage
		}{
			{"root", root, 90 * 24 * time.Hour, true, 1, "spiffe://a.test", x509.KeyUsageCertSign | x509.KeyUsageCRLSign},
			{"issuing CA", issuing, 48 * time.Hour, true, 0, "spiffe://a.test", x509.KeyUsageCertSign | x509.KeyUsageCRLSign},
			{"SVID", leaf, time.Hour, false, -1, gatewayA.String(), x509.KeyUsageDigitalSignature},
		} {
			if !c.cert.NotBefore.Equal(now.Add(-2*time.Minute)) || !c.cert.NotAfter.Equal(now.Add(c.lifetime)) {
				t.Errorf("%s: from %v to %v", c.name, c.cert.NotBefore.Sub(now), c.cert.NotAfter.Sub(now))
			}
			if !c.cert.BasicConstraintsValid || c.cert.IsCA != c.isCA || c.cert.MaxPathLen != c.path || c.cert.MaxPathLenZero != (c.path == 0) {
				t.Errorf("%s: CA %v, path length %d (%v)", c.name, c.cert.IsCA, c.cert.MaxPathLen, c.cert.MaxPathLenZero)
			}
			if len(c.cert.URIs) != 1 || c.cert.URIs[0].String() != c.uri || c.cert.KeyUsage != c.usage {
				t.Errorf("%s: %v, usage %b", c.name, c.cert.URIs, c.cert.KeyUsage)
			}
			if k, ok := c.cert.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
				t.Errorf("%s: a key of type %T", c.name, c.cert.PublicKey)
			}
			if c.cert.SerialNumber.BitLen() < 64 {
				t.Errorf("%s: serial number of %d bits", c.name, c.cert.SerialNumber.BitLen())
			}
		}
		if diff := cmp.Diff([]string{"a.test"}, issuing.PermittedURIDomains); diff != "" || !issuing.PermittedDNSDomainsCritical {
			t.Errorf("issuing CA permits %v, critical %v", issuing.PermittedURIDomains, issuing.PermittedDNSDomainsCritical)
		}
		if len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 || leaf.Subject.String() != "" {
			t.Errorf("SVID names more than its ID: %v %v", leaf.Subject, leaf.DNSNames)
		}
		if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, leaf.ExtKeyUsage); diff != "" {
			t.Errorf("SVID's extended key usage: %s", diff)
		}
		if err := verifyWith(roots, chain); err != nil {
			t.Error(err)
		}
		if a.TrustDomain() != domainA {
			t.Errorf("authority of %s", a.TrustDomain())
		}
	})
}

// Nothing outlives its issuer, whatever lifetimes are asked for.
func TestSignEndsWithIssuer(t *testing.T) {
	now := time.Now()
	root, err := newSigner(rootTemplate(domainA, now, 3*time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	issuing, err := newSigner(issuingTemplate(domainA, now, 48*time.Hour), root)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := issuing.sign(svidTemplate(gatewayA, now.Add(150*time.Minute), time.Hour, time.Time{}), &newKey(t).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if end := root.certificate.NotAfter; !issuing.certificate.NotAfter.Equal(end) || !leaf.NotAfter.Equal(end) {
		t.Errorf("root ends at %v, issuing CA at %v, SVID at %v", end, issuing.certificate.NotAfter, leaf.NotAfter)
	}
}
