package trust

import (
	"crypto/x509"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// NIST's Public Key Interoperability Test Suite (PKITS): 249 certification paths, each with what a verifier that follows RFC 5280 to the
// letter says of it. Go's source tree has them; its own tests read those about policies only.
//
// Where the verifier says otherwise, it is here, with why. Both lists are exact: a difference that comes, or goes, fails the test.

// pkitsStricter are paths that PKITS has pass and the verifier refuses. Refusing more than one must is no hole.
var pkitsStricter = []difference{
	{"DSA is not verified: SVIDs are ECDSA, Ed25519 or RSA", []string{"4.1.4", "4.1.5"}},
	{"names of issuers are compared byte by byte, not with white space and case folded", []string{"4.3.3", "4.3.4", "4.3.5", "4.3.10", "4.3.11"}},
	{"a CA that is issued by itself counts against the path length", []string{"4.6.15", "4.6.17"}},
	{"constraints of directory names are not understood; they are critical, so they refuse", []string{
		"4.13.1", "4.13.4", "4.13.5", "4.13.6", "4.13.11", "4.13.14", "4.13.18", "4.13.19", "4.13.27",
	}},
	{"constraints of e-mail and of URI hosts do not read a leading period as RFC 5280 does", []string{"4.13.25", "4.13.36"}},
	{"distribution points with names relative to the issuer are not read", []string{"4.14.4", "4.14.5", "4.14.29"}},
}

// pkitsLaxer are paths that PKITS has fail and the verifier lets pass.
var pkitsLaxer = []difference{
	// Revocation: CRLs are not fetched. Keys are revoked by their hash, in what the domain's owner signs (Bundle.Revoked); verifyRevoked
	// shows of every chain that passes that its keys can be.
	{"revoked in a CRL, or the CRL that would say so is missing, damaged or old", []string{
		"4.4.1", "4.4.2", "4.4.3", "4.4.4", "4.4.5", "4.4.6", "4.4.8", "4.4.9", "4.4.10", "4.4.11", "4.4.12", "4.4.18", "4.4.20", "4.4.21",
		"4.5.2", "4.5.5", "4.5.7", "4.7.4", "4.7.5",
	}},
	{"likewise, with CRLs for some certificates, for some reasons, or by another issuer", []string{
		"4.14.2", "4.14.3", "4.14.8", "4.14.9", "4.14.11", "4.14.12", "4.14.14", "4.14.15", "4.14.16", "4.14.17", "4.14.20", "4.14.21", "4.14.23",
		"4.14.26", "4.14.27", "4.14.31", "4.14.32", "4.14.34", "4.14.35",
	}},
	{"likewise, with CRLs of changes", []string{"4.15.1", "4.15.3", "4.15.4", "4.15.6", "4.15.9", "4.15.10"}},
	// Policies: SPIFFE has none, so nobody asks the verifier for one. What a CA itself demands (requireExplicitPolicy and the like) is
	// held to: 4.9, 4.11 and 4.12.
	{"passes only because PKITS asks for a policy, forbids mapping or demands one, which no caller of the verifier can", []string{
		"4.8.1", "4.8.2", "4.8.3", "4.8.6", "4.8.14", "4.10.1", "4.10.3", "4.10.5", "4.10.6", "4.10.13", "4.12.3",
	}},
	{"e-mail constraints: an e-mail address names nobody here, the one URI does", []string{"4.13.24"}},
}

type difference struct {
	why   string
	tests []string // numbers, subparts not told apart
}

func differs(list []difference, number string) bool {
	return slices.ContainsFunc(list, func(d difference) bool { return slices.Contains(d.tests, number) })
}

type pkitsVector struct {
	Name           string
	CertPath       []string // the trust anchor first
	ShouldValidate bool
}

// number is "4.10.1" of "4.10.1.2 Valid Policy Mapping Test1 (Subpart 2)".
func (v *pkitsVector) number() string {
	first, _, _ := strings.Cut(v.Name, " ")
	if parts := strings.Split(first, "."); len(parts) > 3 {
		return strings.Join(parts[:3], ".")
	}
	return first
}

func TestPKITS(t *testing.T) {
	dir := pkitsDir(t)
	data, err := os.ReadFile(filepath.Join(dir, "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var vectors []pkitsVector
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) < 249 {
		t.Fatalf("%d vectors, want 249", len(vectors))
	}
	used := map[string]bool{}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			number := v.number()
			accepted, reason := v.run(t, dir)
			switch {
			case accepted == v.ShouldValidate:
			case v.ShouldValidate && differs(pkitsStricter, number), !v.ShouldValidate && differs(pkitsLaxer, number):
				used[number] = true
			default:
				t.Errorf("accepted: %v (%s), PKITS says %v", accepted, reason, v.ShouldValidate)
			}
		})
	}
	for _, list := range [][]difference{pkitsStricter, pkitsLaxer} {
		for _, d := range list {
			for _, number := range d.tests {
				if !used[number] {
					t.Errorf("%s is listed as a difference (%s), and is none", number, d.why)
				}
			}
		}
	}
}

// run verifies one path: as it is, by the whole verifier, which must refuse it, for it is no SVID's; then by the part of the verifier that
// judges paths.
func (v *pkitsVector) run(t *testing.T, dir string) (accepted bool, reason Reason) {
	t.Helper()
	var chain []*x509.Certificate // leaf first
	for _, name := range v.CertPath {
		der, err := os.ReadFile(filepath.Join(dir, "certs", name))
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return false, BadChain // no handshake gets as far as the verifier
		}
		chain = slices.Insert(chain, 0, c)
	}
	anchor, path := chain[len(chain)-1:], chain[:len(chain)-1]
	bundle := Bundle{Authorities: anchor}
	id := spiffeid.RequireFromString(shop)
	// Validity of the certificates is 2010 to 2030, but for those that test it.
	now := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

	whole := NewBundles()
	whole.Set(id.TrustDomain(), bundle)
	if p, err := whole.Verify(path, now); err == nil || reasonOf(t, err) != BadSVID {
		t.Errorf("verified as %s (%v): it has no SPIFFE ID", p.ID, err)
	}

	d := newDomainTrust(bundle)
	_, err := d.verify(id, path, now)
	paths, stdlib := path[0].Verify(x509.VerifyOptions{
		Roots: certificatePool(anchor), Intermediates: certificatePool(path[1:]), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err == nil && stdlib != nil {
		t.Errorf("accepted what crypto/x509 refuses: %v", stdlib)
	}
	if err == nil {
		verifyRevoked(t, id, path, anchor, paths, now)
		return true, 0
	}
	return false, reasonOf(t, err)
}

// verifyRevoked: what passes does not once a key is revoked that every path to the anchor has.
func verifyRevoked(t *testing.T, id spiffeid.ID, chain, anchor []*x509.Certificate, paths [][]*x509.Certificate, now time.Time) {
	t.Helper()
	for _, c := range slices.Concat(chain, anchor) {
		needed := !slices.ContainsFunc(paths, func(path []*x509.Certificate) bool {
			return !slices.ContainsFunc(path, func(o *x509.Certificate) bool { return Fingerprint(o) == Fingerprint(c) })
		})
		d := newDomainTrust(Bundle{Authorities: anchor, Revoked: map[[32]byte]struct{}{Fingerprint(c): {}}})
		if _, err := d.verify(id, chain, now); (reasonOf(t, err) == Revoked) != needed {
			t.Errorf("the key of %s is revoked, and needed: %v; refused: %v", c.Subject, needed, err)
		}
	}
}

// pkitsDir is where Go's source tree has the vectors.
func pkitsDir(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	dir := filepath.Join(strings.TrimSpace(string(out)), "src", "crypto", "x509", "testdata", "nist-pkits")
	if err == nil {
		_, err = os.Stat(dir)
	}
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("PKITS is in Go's source tree: %v", err)
		}
		t.Skipf("PKITS is in Go's source tree (a toolchain from go.dev has it): %v", err)
	}
	return dir
}
