package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
)

func TestBundleRoundTrip(t *testing.T) {
	roots := []*x509.Certificate{rootOf(t, domainA).cert, rootOf(t, domainA).cert}
	keys := map[string]crypto.PublicKey{}
	for i := range MaxJWTAuthorities {
		keys[fmt.Sprint("key ", i)] = newKey(t).Public()
	}
	for _, sequence := range []uint64{0, 1, maxSequence} {
		data, err := MarshalBundle(domainA, Bundle{Authorities: roots, JWTAuthorities: keys}, sequence, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		b, got, err := ParseBundle(domainA, data)
		if err != nil {
			t.Fatal(err)
		}
		again, err := MarshalBundle(domainA, Bundle{Authorities: roots, JWTAuthorities: keys}, sequence, time.Minute)
		if err != nil || !bytes.Equal(data, again) {
			t.Errorf("not the same twice: %v", err)
		}
		if !maps.EqualFunc(b.JWTAuthorities, keys, sameKey) {
			t.Errorf("JWT authorities %v", b.JWTAuthorities)
		}
		if got != sequence || !slices.EqualFunc(b.Authorities, roots, (*x509.Certificate).Equal) {
			t.Errorf("sequence %d, %d authorities; want %d, %d", got, len(b.Authorities), sequence, len(roots))
		}
		theirs, err := spiffebundle.Parse(domainA, data)
		if err != nil {
			t.Fatalf("go-spiffe: %v", err)
		}
		if n, ok := theirs.SequenceNumber(); !ok || n != sequence || len(theirs.X509Authorities()) != 2 {
			t.Errorf("go-spiffe reads sequence %d, %d authorities", n, len(theirs.X509Authorities()))
		}
		if hint, _ := theirs.RefreshHint(); hint != time.Minute || !maps.EqualFunc(theirs.JWTAuthorities(), keys, sameKey) {
			t.Errorf("go-spiffe reads %d JWT authorities, a hint of %s", len(theirs.JWTAuthorities()), hint)
		}
	}
}

func TestMarshalBundleRefuses(t *testing.T) {
	a := rootOf(t, domainA)
	for name, test := range map[string]struct {
		roots    []*x509.Certificate
		sequence uint64
	}{
		"nothing":            {},
		"an SVID":            {roots: a.svid(gatewayA).Certificates[:1]},
		"another domain's":   {roots: []*x509.Certificate{rootOf(t, domainB).cert}},
		"too many":           {roots: slices.Repeat([]*x509.Certificate{a.cert}, MaxAuthorities+1)},
		"too large sequence": {roots: []*x509.Certificate{a.cert}, sequence: maxSequence + 1},
	} {
		if _, err := MarshalBundle(domainA, Bundle{Authorities: test.roots}, test.sequence, 0); err == nil {
			t.Errorf("%s: marshalled", name)
		}
	}
}

// key is one entry of a bundle document.
func jwk(use string, c *x509.Certificate) string {
	k := c.PublicKey.(*ecdsa.PublicKey)
	point, _ := k.Bytes() // 4, x, y
	return fmt.Sprintf(`{"use":%q,"kty":"EC","crv":"P-256","x":%q,"y":%q,"x5c":[%q]}`, use,
		base64.RawURLEncoding.EncodeToString(point[1:33]), base64.RawURLEncoding.EncodeToString(point[33:]), base64.StdEncoding.EncodeToString(c.Raw))
}

func TestParseBundle(t *testing.T) {
	a, other := rootOf(t, domainA), rootOf(t, domainA)
	key := jwk("x509-svid", a.cert)
	weakKey, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	template := caTemplate(t, "a.test")
	template.SerialNumber = big.NewInt(1)
	weakDER, err := x509.CreateCertificate(rand.Reader, template, template, weakKey.Public(), weakKey)
	if err != nil {
		t.Fatal(err)
	}
	weak := fmt.Sprintf(`{"use":"x509-svid","kty":"RSA","n":%q,"e":"AQAB","x5c":[%q]}`,
		base64.RawURLEncoding.EncodeToString(weakKey.N.Bytes()), base64.StdEncoding.EncodeToString(weakDER))
	unnamed := caTemplate(t, "a.test")
	unnamed.URIs = nil
	noSign := caTemplate(t, "a.test")
	noSign.KeyUsage = x509.KeyUsageCRLSign
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, _ := p384.PublicKey.Bytes()
	jwt := fmt.Sprintf(`{"use":"jwt-svid","kid":"k","kty":"EC","crv":"P-384","x":%q,"y":%q}`,
		base64.RawURLEncoding.EncodeToString(point[1:49]), base64.RawURLEncoding.EncodeToString(point[49:]))
	ed25519Key, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	many := func(n int) string {
		var keys []string
		for range n {
			keys = append(keys, jwk("x509-svid", rootOf(t, domainA).cert))
		}
		return strings.Join(keys, ",")
	}
	for _, test := range []struct {
		name     string
		doc      string
		part     string // of the error; none when empty
		sequence uint64
		roots    int
	}{
		{name: "plain", doc: `{"keys":[` + key + `]}`, roots: 1},
		{name: "with sequence and hint", doc: `{"spiffe_sequence":7,"spiffe_refresh_hint":300,"keys":[` + key + `]}`, sequence: 7, roots: 1},
		{name: "with a JWT key", doc: `{"keys":[` + jwt + `,` + key + `]}`, roots: 1},
		{name: "with two JWT keys", doc: `{"keys":[` + jwt + `,` + key + `,` + strings.Replace(jwt, `"k"`, `"l"`, 1) + `]}`, roots: 1},
		{name: "with a key of unknown use", doc: `{"keys":[` + jwk("tomorrow", other.cert) + `,` + key + `]}`, roots: 1},
		{name: "with an unknown member", doc: `{"later":{"a":[1,2]},"keys":[` + key + `]}`, roots: 1},
		{name: "CA without a name", doc: `{"keys":[` + jwk("x509-svid", newRoot(t, unnamed).cert) + `]}`, roots: 1},
		{name: "as many as may be", doc: `{"keys":[` + many(MaxAuthorities) + `]}`, roots: MaxAuthorities},
		{name: "largest sequence", doc: `{"spiffe_sequence":9223372036854775807,"keys":[` + key + `]}`, sequence: maxSequence, roots: 1},

		{name: "two JWT keys of one ID", doc: `{"keys":[` + jwt + `,` + key + `,` + jwt + `]}`, part: "2 keys for JWT-SVIDs, 1 key IDs"},
		{name: "a JWT key without ID", doc: `{"keys":[` + strings.Replace(jwt, `"kid":"k",`, ``, 1) + `,` + key + `]}`, part: "key"},
		{name: "a JWT key's use in another case", doc: `{"keys":[` + strings.Replace(jwt, `"use"`, `"Use"`, 1) + `,` + key + `]}`, part: "1 keys for JWT-SVIDs, 0 key IDs"},
		{name: "a secret as JWT key", doc: `{"keys":[{"use":"jwt-svid","kid":"k","kty":"oct","k":"c2VjcmV0"},` + key + `]}`, part: "secret"},
		{name: "a private JWT key", doc: `{"keys":[` + strings.Replace(jwt, `"x"`, `"d":"`+strings.Repeat("A", 64)+`","x"`, 1) + `,` + key + `]}`, part: "secret"},
		{name: "a weak JWT key", doc: `{"keys":[{"use":"jwt-svid","kid":"k","kty":"RSA","e":"AQAB","n":"` + base64.RawURLEncoding.EncodeToString(weakKey.N.Bytes()) + `"},` + key + `]}`, part: "1024 bits"},
		{name: "a JWT key for no JWT-SVID", doc: `{"keys":[{"use":"jwt-svid","kid":"k","kty":"OKP","crv":"Ed25519","x":"` + base64.RawURLEncoding.EncodeToString(ed25519Key) + `"},` + key + `]}`, part: "ed25519"},
		{name: "too many JWT keys", doc: `{"keys":[` + jwtKeysOf(jwt, MaxJWTAuthorities+1) + key + `]}`, part: "17 JWT authorities"},
		{name: "nothing", doc: ``, part: "EOF"},
		{name: "null", doc: `null`, part: "no authorities"},
		{name: "an array", doc: `[]`, part: "cannot unmarshal"},
		{name: "no keys", doc: `{}`, part: "no authorities"},
		{name: "empty keys", doc: `{"keys":[]}`, part: "no X.509 authority"},
		{name: "JWT keys only", doc: `{"keys":[` + jwt + `]}`, part: "no X.509 authority"},
		{name: "too large", doc: `{"keys":[` + key + `],"x":"` + strings.Repeat(" ", MaxBundleSize) + `"}`, part: "at most 65536"},
		{name: "too many authorities", doc: `{"keys":[` + many(MaxAuthorities+1) + `]}`, part: "at most 16"},
		{name: "too many keys", doc: `{"keys":[` + strings.Repeat(jwt+`,`, maxKeys) + key + `]}`, part: "at most 32"},
		{name: "keys twice", doc: `{"keys":[` + key + `],"keys":[` + jwk("x509-svid", other.cert) + `]}`, part: "comes twice"},
		{name: "keys twice in another case", doc: `{"keys":[` + key + `],"KEYS":[` + jwk("x509-svid", other.cert) + `]}`, part: "comes twice"},
		{name: "keys twice, escaped", doc: `{"keys":[` + key + `],"key\u0073":[]}`, part: "comes twice"},
		{name: "keys twice, with a long s", doc: `{"keys":[` + key + `],"keyſ":[]}`, part: "comes twice"},
		{name: "sequence twice", doc: `{"spiffe_sequence":1,"spiffe_sequence":2,"keys":[` + key + `]}`, part: "comes twice"},
		{name: "twice in a key", doc: `{"keys":[` + strings.Replace(key, `"kty"`, `"use":"x","kty"`, 1) + `]}`, part: "comes twice"},
		{name: "twice in what is not used", doc: `{"later":{"a":1,"a":1},"keys":[` + key + `]}`, part: "comes twice"},
		{name: "sequence too large", doc: `{"spiffe_sequence":9223372036854775808,"keys":[` + key + `]}`, part: "sequence"},
		{name: "sequence of all ones", doc: `{"spiffe_sequence":18446744073709551615,"keys":[` + key + `]}`, part: "sequence"},
		{name: "negative sequence", doc: `{"spiffe_sequence":-1,"keys":[` + key + `]}`, part: "sequence"},
		{name: "fractional sequence", doc: `{"spiffe_sequence":1.5,"keys":[` + key + `]}`, part: "sequence"},
		{name: "sequence in words", doc: `{"spiffe_sequence":"1","keys":[` + key + `]}`, part: "sequence"},
		{name: "negative hint", doc: `{"spiffe_refresh_hint":-1,"keys":[` + key + `]}`, part: "refresh hint"},
		{name: "hint of ages", doc: `{"spiffe_refresh_hint":9223372036854775807,"keys":[` + key + `]}`, part: "refresh hint"},
		{name: "deep", doc: `{"x":` + strings.Repeat(`[`, 100) + strings.Repeat(`]`, 100) + `,"keys":[` + key + `]}`, part: "nested deeper"},
		{name: "too many names", doc: `{` + manyNames() + `"keys":[` + key + `]}`, part: "names"},
		{name: "two documents", doc: `{"keys":[` + key + `]}{"keys":[` + key + `]}`, part: "more than one"},
		{name: "garbage after", doc: `{"keys":[` + key + `]}x`, part: "more than one"},
		{name: "cut off", doc: `{"keys":[` + key + `]`, part: "EOF"},
		{name: "not UTF-8", doc: "{\"x\":\"\xff\",\"keys\":[" + key + `]}`, part: "UTF-8"},
		{name: "an SVID", doc: `{"keys":[` + jwk("x509-svid", a.svid(gatewayA).Certificates[0]) + `]}`, part: "not a CA"},
		{name: "a CA that may not sign", doc: `{"keys":[` + jwk("x509-svid", newRoot(t, noSign).cert) + `]}`, part: "keyCertSign"},
		{name: "another domain's", doc: `{"keys":[` + jwk("x509-svid", rootOf(t, domainB).cert) + `]}`, part: "belongs to"},
		{name: "one of another domain", doc: `{"keys":[` + key + `,` + jwk("x509-svid", rootOf(t, domainB).cert) + `]}`, part: "belongs to"},
		{name: "weak key", doc: `{"keys":[` + weak + `]}`, part: "RSA key"},
		{name: "key of another", doc: `{"keys":[` + strings.Replace(key, key[strings.Index(key, `"x5c"`):], jwk("x509-svid", other.cert)[strings.Index(jwk("x509-svid", other.cert), `"x5c"`):], 1) + `]}`, part: "x5c"},
		{name: "no certificate", doc: `{"keys":[` + key[:strings.Index(key, `,"x5c"`)] + `}]}`, part: "single certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, sequence, err := ParseBundle(domainA, []byte(test.doc))
			if test.part != "" {
				if err == nil || !strings.Contains(err.Error(), test.part) {
					t.Fatalf("error %v, want %q", err, test.part)
				}
				if strings.Count(err.Error(), "trust: ") != 1 {
					t.Errorf("error %q", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if sequence != test.sequence || len(b.Authorities) != test.roots {
				t.Errorf("sequence %d, %d authorities; want %d, %d", sequence, len(b.Authorities), test.sequence, test.roots)
			}
		})
	}
}

func jwtKeysOf(jwt string, n int) string {
	var s strings.Builder
	for i := range n {
		s.WriteString(strings.Replace(jwt, `"k"`, fmt.Sprintf(`"k%d"`, i), 1) + ",")
	}
	return s.String()
}

func manyNames() string {
	var s strings.Builder
	for i := range maxMembers {
		fmt.Fprintf(&s, `"n%d":0,`, i)
	}
	return s.String()
}

// Whatever is accepted holds the limits, verifies without a panic, and means the same to go-spiffe and after a round trip.
func FuzzParseBundle(f *testing.F) {
	a := rootOf(f, domainA)
	key := jwk("x509-svid", a.cert)
	for _, doc := range []string{
		`{"keys":[` + key + `]}`,
		`{"spiffe_sequence":7,"spiffe_refresh_hint":300,"keys":[` + key + `,` + key + `]}`,
		`{"keys":[` + key + `],"KEYS":[]}`,
		`{"keys":[` + key + `],"spiffe_sequence":18446744073709551615}`,
		`{"keys":[{"use":"jwt-svid","kid":"k","kty":"oct","k":"AA"}]}`,
		`{"keys":[{"use":"jwt-svid","kid":"k","kty":"EC"},` + strings.Replace(key, "x509-svid", "jwt-svid", 1) + `,` + key + `]}`,
		`{"keys":[` + strings.Replace(strings.Replace(key, "x509-svid", "jwt-svid", 1), `"kty"`, `"kid":"k","kty"`, 1) + `,` + key + `]}`,
		`{"keys":null}`, `[[[[[[[[[[[]]]]]]]]]]]`, `{"a":{"a":{"a":1,"A":2}}}`,
	} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, sequence, err := ParseBundle(domainA, data)
		if err != nil {
			return
		}
		if n := len(b.Authorities); len(data) > MaxBundleSize || n == 0 || n > MaxAuthorities || sequence > maxSequence {
			t.Fatalf("%d bytes, %d authorities, sequence %d", len(data), n, sequence)
		}
		if !json.Valid(data) {
			t.Fatal("not JSON")
		}
		theirs, err := spiffebundle.Parse(domainA, data)
		if err != nil || !slices.EqualFunc(theirs.X509Authorities(), b.Authorities, (*x509.Certificate).Equal) {
			t.Fatalf("go-spiffe reads something else: %v", err)
		}
		if !maps.EqualFunc(theirs.JWTAuthorities(), b.JWTAuthorities, sameKey) {
			t.Fatalf("go-spiffe reads other JWT authorities: %v", theirs.JWTAuthorities())
		}
		again, err := MarshalBundle(domainA, b, sequence, 0)
		if err != nil {
			t.Fatal(err)
		}
		b2, sequence2, err := ParseBundle(domainA, again)
		if err != nil || sequence2 != sequence || !b2.equal(b) {
			t.Fatalf("round trip: %v", err)
		}
	})
}

// A trust bundle file comes from an operator's hand, or somebody else's.
func FuzzParsePEM(f *testing.F) {
	a := rootOf(f, domainA)
	one := MarshalPEM([]*x509.Certificate{a.cert})
	f.Add(one)
	f.Add(append(slices.Clone(one), one...))
	f.Add(append([]byte("# root of a.test\n"), one...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := ParsePEM(data)
		if err != nil {
			return
		}
		if n := len(certs); n == 0 || n > MaxAuthorities {
			t.Fatalf("%d certificates", n)
		}
		again, err := ParsePEM(MarshalPEM(certs))
		if err != nil || !slices.EqualFunc(certs, again, (*x509.Certificate).Equal) {
			t.Fatalf("round trip: %v", err)
		}
	})
}
