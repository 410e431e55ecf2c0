package trust

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// upstream is a CA as a company has one: its roots name no trust domain.
func upstreamRoot(tb testing.TB) *testCA {
	tb.Helper()
	template := caTemplate(tb, "a.test")
	template.URIs = nil
	return newRoot(tb, template)
}

// intermediate is what an upstream gives to a.test.
func (ca *testCA) intermediate(lives time.Duration, change func(*x509.Certificate)) *testCA {
	template := caTemplate(ca.t, "a.test")
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(lives)
	if change != nil {
		change(template)
	}
	return ca.sub(template)
}

// upstreamFiles writes what cert-manager does.
func upstreamFiles(tb testing.TB, dir string, ca *testCA, roots ...*testCA) FileConfig {
	tb.Helper()
	der, err := x509.MarshalECPrivateKey(ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	var bundle []*x509.Certificate
	for _, r := range roots {
		bundle = append(bundle, r.cert)
	}
	cfg := FileConfig{
		TrustDomain: domainA, Dir: filepath.Join(filepath.Dir(dir), "state"),
		Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), Bundle: filepath.Join(dir, "ca.crt"),
	}
	for path, data := range map[string][]byte{
		cfg.Certificate: MarshalPEM(ca.chain),
		cfg.Key:         pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		cfg.Bundle:      MarshalPEM(bundle),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return cfg
}

func openFiles(tb testing.TB, cfg FileConfig) *FileAuthority {
	tb.Helper()
	a, err := OpenFileAuthority(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func (a *FileAuthority) issueTo(tb testing.TB, id spiffeid.ID) []*x509.Certificate {
	tb.Helper()
	_, csr, err := NewRequest()
	if err != nil {
		tb.Fatal(err)
	}
	chain, err := a.IssueAfter(csr, id, time.Time{})
	if err != nil {
		tb.Fatal(err)
	}
	return chain
}

// The CA is renewed while it runs; files that are no good leave the one before in use, and say so.
func TestFileAuthorityRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, root := t.TempDir(), upstreamRoot(t)
		first, second := root.intermediate(48*time.Hour, nil), root.intermediate(72*time.Hour, nil)
		var log logLines
		cfg := upstreamFiles(t, dir, first, root)
		cfg.Log = log.logger()
		a := openFiles(t, cfg)
		defer run(t, a.Run)()
		before := a.issueTo(t, gatewayA)
		if err := verifyWith(a.Roots(), before); err != nil || len(before) != 2 {
			t.Fatalf("%d certificates: %v", len(before), err)
		}
		if s := a.State(); s.Kind != KindFiles || !s.Issuing.Equal(first.cert) || s.Problem != nil {
			t.Errorf("%+v", s)
		}
		// A key that is not the certificate's, as between two writes.
		good := contents(t, dir)
		if err := os.WriteFile(cfg.Certificate, MarshalPEM(second.chain), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if s := a.State(); s.Problem == nil || !strings.Contains(s.Problem.Error(), "don't belong together") || !s.Issuing.Equal(first.cert) {
			t.Errorf("%+v", s)
		}
		if n := log.count("can't be used"); n != 1 {
			t.Errorf("told %d times, want once", n)
		}
		a.issueTo(t, gatewayA)
		for name, content := range good {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		if s := a.State(); s.Problem != nil {
			t.Errorf("all is well again, and it says %v", s.Problem)
		}
		upstreamFiles(t, dir, second, root)
		time.Sleep(10 * time.Second)
		after := a.issueTo(t, gatewayA)
		if !after[1].Equal(second.cert) {
			t.Error("the new CA is not in use")
		}
		for _, chain := range [][]*x509.Certificate{before, after} {
			if err := verifyWith(a.Roots(), chain); err != nil {
				t.Error(err)
			}
		}
		if len(a.Roots()) != 1 {
			t.Errorf("%d roots", len(a.Roots()))
		}
		token, err := a.SignJWT(gatewayA, []string{"pay"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = readJWT(token, a.JWTKeys(), "pay"); err != nil {
			t.Error(err)
		}
		w, err := NewWebServer(a, nil, webName)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.certificate(); err != nil {
			t.Error(err)
		}
	})
}

// A new root of the upstream is published before its CA signs, and the old one until nothing lives under it; also over a restart.
func TestFileAuthorityNewRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, old, next := t.TempDir(), upstreamRoot(t), upstreamRoot(t)
		var heard atomic.Bool
		cfg := upstreamFiles(t, dir, old.intermediate(48*time.Hour, nil), old)
		cfg.Holds = func(root *x509.Certificate) []string {
			if !root.Equal(next.cert) {
				t.Error("asked for another root")
			}
			if heard.Load() {
				return nil
			}
			return []string{"cluster us"}
		}
		a := openFiles(t, cfg)
		stop := run(t, a.Run)
		upstreamFiles(t, dir, next.intermediate(48*time.Hour, nil), next)
		changed := a.Changed()
		time.Sleep(time.Minute)
		select {
		case <-changed:
		default:
			t.Error("nobody is told of the new root")
		}
		before := a.issueTo(t, gatewayA)
		if r := a.Rotation(); r.Phase != RotationPublished || !r.Next.Equal(next.cert) || len(a.Roots()) != 2 || r.Since.IsZero() || time.Since(r.Since) > time.Minute {
			t.Fatalf("%+v, %d roots", r, len(a.Roots()))
		}
		if err := verifyWith([]*x509.Certificate{old.cert}, before); err != nil {
			t.Errorf("signed by the new CA, and not everybody has its root: %v", err)
		}
		heard.Store(true)
		time.Sleep(time.Minute)
		after := a.issueTo(t, gatewayA)
		if err := verifyWith([]*x509.Certificate{next.cert}, after); err != nil {
			t.Error(err)
		}
		stop()
		a = openFiles(t, cfg)
		stop = run(t, a.Run)
		defer func() { stop() }()
		if err := errors.Join(verifyWith(a.Roots(), before), verifyWith(a.Roots(), after)); err != nil {
			t.Errorf("after a restart: %v", err)
		}
		time.Sleep(2 * time.Hour)
		if roots := a.Roots(); len(roots) != 1 || !roots[0].Equal(next.cert) {
			t.Errorf("%d roots two hours later", len(roots))
		}
		// Whoever never answers does not keep it past the end of the CA before.
		third := upstreamRoot(t)
		cfg.Holds = func(*x509.Certificate) []string { return []string{"cluster us"} }
		stop()
		a = openFiles(t, cfg)
		stop = run(t, a.Run)
		upstreamFiles(t, dir, third.intermediate(96*time.Hour, nil), third)
		time.Sleep(40 * time.Hour)
		if !slices.ContainsFunc(a.Roots(), third.cert.Equal) || a.Rotation().Phase != RotationPublished {
			t.Error("used though it is held")
		}
		time.Sleep(6 * time.Hour)
		if err := verifyWith([]*x509.Certificate{third.cert}, a.issueTo(t, gatewayA)); err != nil {
			t.Errorf("after the CA before it: %v", err)
		}
	})
}

func TestFileAuthorityRefuses(t *testing.T) {
	root, other := upstreamRoot(t), upstreamRoot(t)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		ca   *testCA
		more func(FileConfig) error
		part string
	}{
		"a CA of another root":   {ca: other.intermediate(time.Hour, nil), part: "what peers would take"},
		"no CA":                  {ca: root.intermediate(time.Hour, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature }), part: "not a CA"},
		"a CA of another domain": {ca: root.intermediate(time.Hour, func(c *x509.Certificate) { c.URIs[0].Host = "b.test" }), part: "authority of"},
		"a CA that has ended":    {ca: root.intermediate(-time.Second, nil), part: "ended"},
		"a CA for other names": {ca: root.intermediate(time.Hour, func(c *x509.Certificate) {
			c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"x.test"}, true
		}), part: "what peers would take"},
		"no certificate":        {more: func(c FileConfig) error { return os.WriteFile(c.Certificate, nil, 0o600) }, part: "tls.crt: it holds no certificate"},
		"no roots":              {more: func(c FileConfig) error { return os.WriteFile(c.Bundle, nil, 0o600) }, part: "ca.crt"},
		"no key":                {more: func(c FileConfig) error { return os.Remove(c.Key) }, part: "tls.key"},
		"a key for everybody":   {more: func(c FileConfig) error { return os.Chmod(c.Key, 0o644) }, part: "lets everybody"},
		"something else as key": {more: func(c FileConfig) error { return os.WriteFile(c.Key, []byte("hello"), 0o600) }, part: "tls.key: want one private key"},
		"a weak key": {more: func(c FileConfig) error {
			return os.WriteFile(c.Key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(weak)}), 0o600)
		}, part: "1024 bits"},
		"a root of somebody else": {more: func(c FileConfig) error {
			return os.WriteFile(c.Bundle, MarshalPEM([]*x509.Certificate{rootOf(t, domainB).cert}), 0o600)
		}, part: "belongs to"},
	} {
		t.Run(name, func(t *testing.T) {
			ca := test.ca
			if ca == nil {
				ca = root.intermediate(time.Hour, nil)
			}
			cfg := upstreamFiles(t, t.TempDir(), ca, root)
			if test.more != nil {
				if err := test.more(cfg); err != nil {
					t.Fatal(err)
				}
			}
			a, err := OpenFileAuthority(cfg)
			if err == nil || a != nil || !strings.Contains(err.Error(), test.part) {
				t.Errorf("%v, want %q", err, test.part)
			}
		})
	}
}

// Other files come while nobody looks: what was issued under the root before passes until it has ended.
func TestFileAuthorityChangedWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, root, other := t.TempDir(), upstreamRoot(t), upstreamRoot(t)
		a := openFiles(t, upstreamFiles(t, dir, root.intermediate(48*time.Hour, nil), root))
		chain := a.issueTo(t, gatewayA)
		cfg := upstreamFiles(t, dir, other.intermediate(48*time.Hour, nil), other)
		for range 2 { // and again, a moment later
			b := openFiles(t, cfg)
			for _, chain := range [][]*x509.Certificate{chain, b.issueTo(t, gatewayA)} {
				if err := verifyWith(b.Roots(), chain); err != nil {
					t.Error(err)
				}
			}
			if n := len(b.Roots()); n != 2 {
				t.Errorf("%d roots", n)
			}
		}
		b := openFiles(t, cfg)
		defer run(t, b.Run)()
		time.Sleep(time.Hour + retireMargin + time.Minute)
		if n := len(b.Roots()); n != 1 {
			t.Errorf("%d roots, when all under the old one has ended", n)
		}
	})
}
