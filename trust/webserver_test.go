package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

const webName = "isthmus-control.isthmus-system.svc"

// webClient verifies as the API server does: by the roots, and by name.
func webClient(roots []*x509.Certificate, name string) *tls.Config {
	pool := x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	return &tls.Config{RootCAs: pool, ServerName: name}
}

func TestWebServer(t *testing.T) {
	a := openAuthority(t, AuthorityConfig{Dir: t.TempDir()})
	w, err := NewWebServer(a, nil, webName)
	if err != nil {
		t.Fatal(err)
	}
	_, c, serverErr, clientErr := shake(t, w.Config(), webClient(a.Roots(), webName))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server %v, client %v", serverErr, clientErr)
	}
	chain := c.ConnectionState().PeerCertificates
	// It is nobody in the mesh.
	var refused *VerifyError
	if err = verifyWith(a.Roots(), chain); !errors.As(err, &refused) {
		t.Errorf("taken for an SVID: %v", err)
	}
	if _, _, _, err = shake(t, w.Config(), webClient(a.Roots(), "kubernetes.default.svc")); err == nil {
		t.Error("it passes for another name")
	}
	other := openAuthority(t, AuthorityConfig{Dir: t.TempDir()})
	if _, _, _, err = shake(t, w.Config(), webClient(other.Roots(), webName)); err == nil {
		t.Error("it passes under another's roots")
	}
	if _, err = NewWebServer(a, nil); err == nil {
		t.Error("a web server without a name")
	}
}

// TestWebServerRenews: at any time, over all changes of issuing CA and root, what it shows is good under the roots of that moment, and
// under those of a day before.
func TestWebServerRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := openAuthority(t, AuthorityConfig{Dir: t.TempDir()})
		w, err := NewWebServer(a, nil, webName)
		if err != nil {
			t.Fatal(err)
		}
		before := a.Roots()
		seen := make(map[string]bool)
		for range 100 { // days: a root lasts 90
			c, err := w.certificate()
			if err != nil {
				t.Fatal(err)
			}
			seen[c.Leaf.SerialNumber.String()] = true
			issuing, err := x509.ParseCertificate(c.Certificate[1])
			if err != nil {
				t.Fatal(err)
			}
			for _, roots := range [][]*x509.Certificate{a.Roots(), before} {
				options := x509.VerifyOptions{DNSName: webName, Roots: webClient(roots, "").RootCAs, Intermediates: x509.NewCertPool(), CurrentTime: time.Now()}
				options.Intermediates.AddCert(issuing)
				if _, err := c.Leaf.Verify(options); err != nil {
					t.Fatalf("%v: %v", time.Now(), err)
				}
			}
			before = a.Roots()
			time.Sleep(24 * time.Hour)
		}
		if len(seen) < 100 {
			t.Errorf("%d certificates in 100 days, want one a day at least", len(seen))
		}
		c1, _ := w.certificate()
		if c2, _ := w.certificate(); c1 != c2 {
			t.Error("a certificate for each handshake")
		}
	})
}
