package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func openAuthority(tb testing.TB, cfg AuthorityConfig) *Authority {
	tb.Helper()
	if cfg.TrustDomain.IsZero() {
		cfg.TrustDomain = domainA
	}
	a, err := OpenAuthority(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func issueTo(tb testing.TB, a *Authority, id spiffeid.ID) []*x509.Certificate {
	tb.Helper()
	_, csr, err := NewRequest()
	if err != nil {
		tb.Fatal(err)
	}
	chain, err := a.Issue(csr, id)
	if err != nil {
		tb.Fatal(err)
	}
	return chain
}

func verifyWith(roots []*x509.Certificate, chain []*x509.Certificate) error {
	b := NewBundles()
	b.Set(domainA, Bundle{Authorities: roots})
	_, err := b.Verify(chain, time.Now())
	return err
}

func TestAuthorityFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "authority")
	openAuthority(t, AuthorityConfig{Dir: dir})
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v; want 0700", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want 0600", e.Name(), info.Mode(), err)
		}
	}
	if diff := cmp.Diff([]string{issuingFile, jwtFile, rootFile}, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestAuthorityConfig(t *testing.T) {
	dir := t.TempDir()
	for name, cfg := range map[string]AuthorityConfig{
		"no domain":            {Dir: dir},
		"no directory":         {TrustDomain: domainA},
		"issuing CA too short": {TrustDomain: domainA, Dir: dir, IssuingLifetime: time.Hour, SVIDLifetime: time.Hour},
		"root too short":       {TrustDomain: domainA, Dir: dir, RootLifetime: 72 * time.Hour},
		"negative":             {TrustDomain: domainA, Dir: dir, SVIDLifetime: -time.Hour},
		// A URI name constraint can't be an address, nor have an empty label.
		"domain is an address":  {TrustDomain: spiffeid.RequireTrustDomainFromString("10.0.0.1"), Dir: filepath.Join(dir, "1")},
		"domain has a gap":      {TrustDomain: spiffeid.RequireTrustDomainFromString("a..test"), Dir: filepath.Join(dir, "2")},
		"directory is a file":   {TrustDomain: domainA, Dir: "/dev/null"},
		"directory can't be":    {TrustDomain: domainA, Dir: "/dev/null/authority"},
		"domain ends in a dot?": {TrustDomain: spiffeid.RequireTrustDomainFromString("a.test."), Dir: filepath.Join(dir, "3")},
	} {
		a, err := OpenAuthority(cfg)
		if err == nil {
			t.Errorf("%s: opened", name)
		} else if a != nil || strings.Count(err.Error(), "trust: ") != 1 {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
	for _, td := range []string{"west", "a_b.test", "x." + strings.Repeat("long-", 12) + "name.test"} {
		openAuthority(t, AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString(td), Dir: t.TempDir()})
	}
}

func TestIssueRefuses(t *testing.T) {
	a := openAuthority(t, AuthorityConfig{Dir: t.TempDir()})
	_, sound, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherCurve, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), p384)
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(sound)
	forged[len(forged)-1] ^= 1
	for name, test := range map[string]struct {
		csr []byte
		id  spiffeid.ID
	}{
		"another domain":   {sound, gatewayB},
		"no ID":            {sound, spiffeid.ID{}},
		"the domain":       {sound, domainA.ID()},
		"a long ID":        {sound, spiffeid.RequireFromPath(domainA, "/"+strings.Repeat("x", maxID))},
		"no request":       {nil, gatewayA},
		"no proof of key":  {forged, gatewayA},
		"another curve":    {otherCurve, gatewayA},
		"a large request":  {append(bytes.Clone(sound), make([]byte, maxRequest)...), gatewayA},
		"trailing garbage": {append(bytes.Clone(sound), 0), gatewayA},
	} {
		if chain, err := a.Issue(test.csr, test.id); err == nil {
			t.Errorf("%s: issued %v", name, chain[0].URIs)
		} else if strings.Count(err.Error(), "trust: ") != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// After a revocation an ID gets SVIDs that are good: they begin after it, and not by the usual backdating before.
func TestIssueAfterRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := openAuthority(t, AuthorityConfig{Dir: t.TempDir()})
		_, csr, err := NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		for _, ago := range []time.Duration{0, time.Second, time.Minute, time.Hour} {
			old := issueTo(t, a, gatewayA)
			until := time.Now().Truncate(time.Second)
			time.Sleep(ago)
			chain, err := a.IssueAfter(csr, gatewayA, until)
			if err != nil {
				t.Fatal(err)
			}
			b := NewBundles()
			b.Set(domainA, Bundle{Authorities: a.Roots(), RevokedIDs: map[spiffeid.ID]time.Time{gatewayA: until}})
			if wait := time.Until(chain[0].NotBefore); wait > time.Second {
				t.Errorf("%v after the revocation: good in %v", ago, wait)
			} else {
				time.Sleep(wait)
			}
			if _, err := b.Verify(chain, time.Now()); err != nil {
				t.Errorf("%v after the revocation: %v", ago, err)
			}
			if _, err := b.Verify(old, time.Now()); err == nil {
				t.Errorf("%v after the revocation: what was issued before passes", ago)
			}
		}
	})
}

// What a request says about its maker is of no interest.
func TestIssueIgnoresClaims(t *testing.T) {
	a := openAuthority(t, AuthorityConfig{Dir: t.TempDir()})
	claims := x509.CertificateRequest{DNSNames: []string{"control"}, URIs: leafTemplate(t, "spiffe://a.test/isthmus/control").URIs}
	claims.Subject.CommonName = "control"
	csr, err := x509.CreateCertificateRequest(rand.Reader, &claims, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Issue(csr, gatewayA)
	if err != nil {
		t.Fatal(err)
	}
	if c := chain[0]; len(c.DNSNames) > 0 || c.Subject.CommonName != "" || len(c.URIs) != 1 || c.URIs[0].String() != gatewayA.String() {
		t.Errorf("issued %v %v %v", c.Subject, c.DNSNames, c.URIs)
	}
}

func TestAuthorityRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		first := openAuthority(t, AuthorityConfig{Dir: dir})
		before := issueTo(t, first, gatewayA)
		second := openAuthority(t, AuthorityConfig{Dir: dir})
		after := issueTo(t, second, gatewayA)
		if !slices.EqualFunc(first.Roots(), second.Roots(), (*x509.Certificate).Equal) || !before[1].Equal(after[1]) {
			t.Error("another root or issuing CA after a restart")
		}
		for _, chain := range [][]*x509.Certificate{before, after} {
			if err := verifyWith(second.Roots(), chain); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(5 * 24 * time.Hour) // off for longer than the issuing CA lives
		third := openAuthority(t, AuthorityConfig{Dir: dir})
		if err := verifyWith(first.Roots(), issueTo(t, third, gatewayA)); err != nil {
			t.Errorf("after a long pause: %v", err)
		}
	})
}

// Damaged and foreign files are named, and left as they are.
func TestAuthorityDamagedFiles(t *testing.T) {
	read := func(path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	other := t.TempDir()
	openAuthority(t, AuthorityConfig{Dir: other})
	foreign := t.TempDir()
	openAuthority(t, AuthorityConfig{TrustDomain: domainB, Dir: foreign})
	certificateOnly := func(data []byte) []byte {
		block, _ := pem.Decode(data)
		return pem.EncodeToMemory(block)
	}
	keyOnly := func(data []byte) []byte {
		_, rest := pem.Decode(data)
		return rest
	}
	for _, test := range []struct {
		name   string
		file   string
		damage func(dir string, data []byte) []byte
		part   string
	}{
		{"empty", rootFile, func(string, []byte) []byte { return nil }, "no certificate"},
		{"empty", issuingFile, func(string, []byte) []byte { return nil }, "no certificate"},
		{"cut off", rootFile, func(_ string, b []byte) []byte { return b[:len(b)-20] }, "not PEM"},
		{"cut off", issuingFile, func(_ string, b []byte) []byte { return b[:len(b)/2] }, "not PEM"},
		{"zeroed", rootFile, func(_ string, b []byte) []byte { return make([]byte, len(b)) }, "not PEM"},
		{"text before", rootFile, func(_ string, b []byte) []byte { return append([]byte("hello\n"), b...) }, "not PEM"},
		{"huge", rootFile, func(_ string, b []byte) []byte { return append(b, make([]byte, maxFile)...) }, "larger than"},
		{"certificate only", rootFile, func(_ string, b []byte) []byte { return certificateOnly(b) }, "no ECDSA key"},
		{"key only", rootFile, func(_ string, b []byte) []byte { return keyOnly(b) }, "no certificate"},
		{"another's key", rootFile, func(_ string, b []byte) []byte {
			return append(certificateOnly(b), keyOnly(read(filepath.Join(other, rootFile)))...)
		}, "don't belong together"},
		{"two certificates", rootFile, func(_ string, b []byte) []byte { return append(certificateOnly(b), b...) }, "2 certificates"},
		{"two keys", rootFile, func(_ string, b []byte) []byte { return append(b, keyOnly(b)...) }, "more than one key"},
		{"another block", rootFile, func(_ string, b []byte) []byte {
			return append(b, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{1}})...)
		}, "EC PRIVATE KEY"},
		{"issuing CA as root", rootFile, func(dir string, _ []byte) []byte { return read(filepath.Join(dir, issuingFile)) }, "not a root"},
		{"root as issuing CA", issuingFile, func(dir string, _ []byte) []byte { return read(filepath.Join(dir, rootFile)) }, "not limited"},
		{"another authority's", issuingFile, func(string, []byte) []byte { return read(filepath.Join(other, issuingFile)) }, "not signed by"},
		{"another authority's", rootFile, func(string, []byte) []byte { return read(filepath.Join(other, rootFile)) }, "not signed by"},
		{"another domain's", rootFile, func(string, []byte) []byte { return read(filepath.Join(foreign, rootFile)) }, "belongs to"},
		{"another domain's", issuingFile, func(string, []byte) []byte { return read(filepath.Join(foreign, issuingFile)) }, "belongs to"},
		{"another domain's", nextRootFile, func(string, []byte) []byte { return read(filepath.Join(foreign, rootFile)) }, "belongs to"},
		{"another domain's", previousRootFile, func(string, []byte) []byte { return certificateOnly(read(filepath.Join(foreign, rootFile))) }, "belongs to"},
		{"with a key", previousRootFile, func(dir string, _ []byte) []byte { return read(filepath.Join(dir, rootFile)) }, "private key"},
		{"empty", nextRootFile, func(string, []byte) []byte { return nil }, "no certificate"},
	} {
		t.Run(test.file+" "+test.name, func(t *testing.T) {
			dir := t.TempDir()
			openAuthority(t, AuthorityConfig{Dir: dir})
			path := filepath.Join(dir, test.file)
			var data []byte
			if test.file == rootFile || test.file == issuingFile {
				data = read(path)
			}
			damaged := test.damage(dir, data)
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			before := contents(t, dir)
			_, err := OpenAuthority(AuthorityConfig{TrustDomain: domainA, Dir: dir})
			if err == nil {
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), test.part) || !strings.Contains(err.Error(), dir) {
				t.Errorf("error %q names not both %q and the file", err, test.part)
			}
			if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
				t.Errorf("files changed:\n%s", diff)
			}
		})
	}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(data)
	}
	return all
}

func TestAuthorityLostRoot(t *testing.T) {
	dir := t.TempDir()
	openAuthority(t, AuthorityConfig{Dir: dir})
	if err := os.Remove(filepath.Join(dir, rootFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(AuthorityConfig{TrustDomain: domainA, Dir: dir}); err == nil {
		t.Error("made a new root beside the remains of the old one")
	}
	if _, err := os.Stat(filepath.Join(dir, rootFile)); err == nil {
		t.Error("a root was made")
	}
}

func TestAuthorityReadableKey(t *testing.T) {
	dir := t.TempDir()
	openAuthority(t, AuthorityConfig{Dir: dir})
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o660: true, 0o644: false, 0o606: false} {
		if err := os.Chmod(filepath.Join(dir, rootFile), mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenAuthority(AuthorityConfig{TrustDomain: domainA, Dir: dir}); (err == nil) != ok {
			t.Errorf("mode %#o: %v, want opened: %v", mode, err, ok)
		}
	}
}

func TestAuthorityWrongClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		openAuthority(t, AuthorityConfig{Dir: dir})
		before := contents(t, dir)
		for offset, part := range map[time.Duration]string{-time.Hour: "is the clock right", 91 * 24 * time.Hour: "ended at"} {
			_, err := OpenAuthority(AuthorityConfig{TrustDomain: domainA, Dir: dir, Now: func() time.Time { return time.Now().Add(offset) }})
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("clock off by %v: %v, want %q", offset, err, part)
			}
		}
		if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
			t.Errorf("files changed:\n%s", diff)
		}
	})
}
