package trust

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// What an authority issues (X509-SVID, 3 and 4). Serial numbers are left to crypto/x509: random, as RFC 5280 wants.

// rootTemplate: a root signs issuing CAs, and those sign SVIDs.
func rootTemplate(td spiffeid.TrustDomain, now time.Time, lifetime time.Duration) *x509.Certificate {
	c := authorityTemplate(td, "root", now, lifetime)
	c.MaxPathLen = 1
	return c
}

// issuingTemplate: nothing but SVIDs, and of this domain only.
func issuingTemplate(td spiffeid.TrustDomain, now time.Time, lifetime time.Duration) *x509.Certificate {
	c := authorityTemplate(td, "issuing", now, lifetime)
	c.MaxPathLenZero = true
	c.PermittedURIDomains = []string{td.Name()}
	c.PermittedDNSDomainsCritical = true // of all name constraints, in spite of its name
	return c
}

func authorityTemplate(td spiffeid.TrustDomain, what string, now time.Time, lifetime time.Duration) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"Isthmus"}, CommonName: commonName(td, what)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		URIs:                  []*url.URL{td.ID().URL()},
	}
}

// commonName is for people; X.509 allows 64 characters (RFC 5280, A.1: ub-common-name).
func commonName(td spiffeid.TrustDomain, what string) string {
	const limit = 64
	name := td.Name()
	if over := len(name) + len(what) + 1 - limit; over > 0 {
		name = name[:len(name)-over]
	}
	return name + " " + what
}

// svidTemplate has no subject: the URI SAN, then critical, is the name. It begins after a moment, in whole seconds as X.509 has them.
func svidTemplate(id spiffeid.ID, now time.Time, lifetime time.Duration, after time.Time) *x509.Certificate {
	begins := now.Add(-backdate)
	if earliest := after.Truncate(time.Second).Add(time.Second); !after.IsZero() && begins.Before(earliest) {
		begins = earliest
	}
	return &x509.Certificate{
		NotBefore:             begins,
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id.URL()},
	}
}
