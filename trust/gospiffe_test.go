package trust

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// goSPIFFE is a file of go-spiffe's own test data, in its module.
func goSPIFFE(t *testing.T, parts ...string) []byte {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/spiffe/go-spiffe/v2").Output()
	if err != nil || len(strings.TrimSpace(string(dir))) == 0 {
		t.Fatalf("where is go-spiffe's module? %v", err)
	}
	data, err := os.ReadFile(filepath.Join(append([]string{strings.TrimSpace(string(dir))}, parts...)...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// What go-spiffe's tests hold to be no SVID is none here, even if it is what we trust. Most have a single certificate, which vouches for
// itself; those with a wrong intermediate are tried with that as the root, too.
func TestGoSPIFFESVIDs(t *testing.T) {
	for _, test := range []struct {
		file string
		want Reason // 0: the file can't even be read
	}{
		{"wrong-leaf-ca-true.pem", BadSVID},
		{"wrong-leaf-cert-sign.pem", BadSVID},
		{"wrong-leaf-crl-sign.pem", BadSVID},
		{"wrong-leaf-empty-id.pem", BadSVID},
		{"wrong-leaf-no-digital-signature.pem", BadSVID},
		{"wrong-intermediate-no-ca.pem", BadChain},
		{"wrong-intermediate-no-key-cert-sign.pem", BadChain},
		{"corrupt-cert.pem", 0},
		{"not-pem", 0},
	} {
		t.Run(test.file, func(t *testing.T) {
			data := goSPIFFE(t, "svid", "x509svid", "testdata", test.file)
			var chain []*x509.Certificate
			for {
				block, rest := pem.Decode(data)
				if block == nil {
					break
				}
				data = rest
				if c, err := x509.ParseCertificate(block.Bytes); err == nil {
					chain = append(chain, c)
				}
			}
			if len(chain) == 0 {
				if test.want != 0 {
					t.Fatal("no certificate")
				}
				return
			}
			td := spiffeid.RequireTrustDomainFromString("example.org")
			if len(chain[0].URIs) > 0 {
				if id, err := spiffeid.FromURI(chain[0].URIs[0]); err == nil {
					td = id.TrustDomain()
				}
			}
			now := chain[0].NotBefore
			for _, c := range chain {
				if c.NotBefore.After(now) {
					now = c.NotBefore
				}
			}
			for i := range chain {
				b := NewBundles()
				b.Set(td, Bundle{Authorities: chain[i:]})
				_, err := b.Verify(chain, now)
				if got := reasonOf(t, err); got != test.want {
					t.Errorf("certificate %d and on are the roots: refused for %q (%v), want %q", i+1, got, err, test.want)
				}
			}
		})
	}
}

// Of go-spiffe's bundle documents, what it refuses is refused, and what it reads is read alike.
func TestGoSPIFFEBundles(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("local") // as their certificates say
	for file, good := range map[string]bool{
		"spiffebundle_valid_1.json": true, "spiffebundle_valid_2.json": true, "spiffebundle_valid_with_wit.json": true,
		"spiffebundle_missing_kid.json": false, "spiffebundle_multiple_x509.json": false, "spiffebundle_no_keys.json": false,
	} {
		t.Run(file, func(t *testing.T) {
			data := goSPIFFE(t, "bundle", "spiffebundle", "testdata", file)
			b, sequence, err := ParseBundle(td, data)
			if (err == nil) != good {
				t.Fatalf("error %v, want one: %v", err, !good)
			}
			if _, _, err := ParseBundle(domainA, data); err == nil {
				t.Error("taken for another domain's") // go-spiffe does
			}
			theirs, theirErr := spiffebundle.Parse(td, data)
			if theirErr != nil {
				if good {
					t.Fatalf("go-spiffe refuses: %v", theirErr)
				}
				return
			}
			theirSequence, _ := theirs.SequenceNumber()
			if good && (sequence != theirSequence || !slices.EqualFunc(theirs.X509Authorities(), b.Authorities, (*x509.Certificate).Equal)) {
				t.Error("go-spiffe reads something else")
			}
		})
	}
}

// A bundle document that is damaged in one place is refused, or means what it would to go-spiffe: wherever it is cut off, and whatever
// stands in the place of any value in it.
func TestDamagedBundles(t *testing.T) {
	a := rootOf(t, domainA)
	whole, err := MarshalBundle(domainA, Bundle{
		Authorities:    []*x509.Certificate{a.cert, rootOf(t, domainA).cert},
		JWTAuthorities: map[string]crypto.PublicKey{"k": newKey(t).Public()},
	}, 7, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if _, _, err := ParseBundle(domainA, whole[:n]); err == nil {
			t.Fatalf("read when cut off after %d of %d bytes", n, len(whole))
		}
	}
	var doc any
	if err := json.Unmarshal(whole, &doc); err != nil {
		t.Fatal(err)
	}
	tried, read := 0, 0
	eachValue(doc, "$", func(path string, set func(any)) {
		for _, junk := range []any{
			nil, true, false, -1, 0.5, 1e300, "", "x", "AAAA", strings.Repeat("A", 1000), "\x00",
			[]any{},
			[]any{nil},
			[]any{[]any{}},
			map[string]any{},
			map[string]any{"x": map[string]any{}},
		} {
			set(junk)
			data, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			tried++
			b, sequence, err := ParseBundle(domainA, data)
			if err != nil {
				if !strings.HasPrefix(err.Error(), "trust: parse bundle of a.test: ") {
					t.Errorf("%s = %v: error %q", path, junk, err)
				}
				continue
			}
			read++
			theirs, err := spiffebundle.Parse(domainA, data)
			if err != nil || len(b.Authorities) == 0 || !slices.EqualFunc(theirs.X509Authorities(), b.Authorities, (*x509.Certificate).Equal) {
				t.Errorf("%s = %v: read as %d authorities, sequence %d; go-spiffe: %v", path, junk, len(b.Authorities), sequence, err)
			}
		}
	})
	if tried < 100 || read == 0 || read > tried/3 {
		t.Errorf("%d documents, %d of them read: are they damaged?", tried, read)
	}
}

// eachValue calls visit for every value below v, with what sets it; it is put back after that.
func eachValue(v any, path string, visit func(path string, set func(any))) {
	switch v := v.(type) {
	case map[string]any:
		for name, old := range v {
			visit(path+"."+name, func(n any) { v[name] = n })
			v[name] = old
			eachValue(old, path+"."+name, visit)
		}
	case []any:
		for i, old := range v {
			at := fmt.Sprintf("%s[%d]", path, i)
			visit(at, func(n any) { v[i] = n })
			v[i] = old
			eachValue(old, at, visit)
		}
	}
}
