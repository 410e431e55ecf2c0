package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Limits on a bundle document, which comes from another trust domain.
const (
	MaxBundleSize  = 64 << 10             // bytes
	MaxAuthorities = 16                   // root certificates of one domain
	maxKeys        = 32                   // entries of "keys", those we don't use included
	maxDepth       = 8                    // nested objects and arrays; a bundle has four
	maxMembers     = 64                   // names in one object
	maxSequence    = math.MaxInt64        // so that it is a number to everybody
	maxRefreshHint = 365 * 24 * time.Hour // seconds on the wire
)

// MarshalBundle returns the authorities of a bundle, X.509's and JWT's, as a SPIFFE bundle document (JWKS). Sequence grows with each change of
// them; refresh says how often readers should ask for it again, 0: nothing is said. The same gives the same bytes. What is revoked is not in
// it: the standard has no word for that.
func MarshalBundle(td spiffeid.TrustDomain, b Bundle, sequence uint64, refresh time.Duration) ([]byte, error) {
	data, err := marshalBundle(td, b, sequence, refresh)
	if err != nil {
		return nil, fmt.Errorf("trust: marshal bundle of %s: %w", td, err)
	}
	return data, nil
}

func marshalBundle(td spiffeid.TrustDomain, b Bundle, sequence uint64, refresh time.Duration) ([]byte, error) {
	if err := checkBundle(td, b, sequence); err != nil {
		return nil, err
	}
	if refresh < 0 || refresh > maxRefreshHint {
		return nil, fmt.Errorf("refresh hint of %s, want 0 to %s", refresh, maxRefreshHint)
	}
	doc := spiffebundle.FromX509Authorities(td, b.Authorities)
	doc.SetSequenceNumber(sequence)
	if refresh > 0 {
		doc.SetRefreshHint(refresh)
	}
	for id, key := range b.JWTAuthorities {
		if err := doc.AddJWTAuthority(id, key); err != nil {
			return nil, err
		}
	}
	data, err := doc.Marshal()
	if err != nil {
		return nil, err
	}
	if data, err = sortJWTKeys(data, len(doc.X509Authorities())); err != nil {
		return nil, err
	}
	if len(data) > MaxBundleSize {
		return nil, fmt.Errorf("%d bytes, at most %d", len(data), MaxBundleSize)
	}
	return data, nil
}

// sortJWTKeys puts the JWT keys in order: go-spiffe writes them after those of X.509, in the random order of a map.
func sortJWTKeys(data []byte, from int) ([]byte, error) {
	var doc struct {
		Keys     []json.RawMessage `json:"keys"`
		Sequence *uint64           `json:"spiffe_sequence,omitempty"`
		Hint     *int64            `json:"spiffe_refresh_hint,omitempty"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	slices.SortFunc(doc.Keys[min(from, len(doc.Keys)):], func(a, b json.RawMessage) int { return bytes.Compare(a, b) })
	return json.Marshal(doc)
}

// ParseBundle reads a SPIFFE bundle document of td and its sequence (0 when it has none). Keys for other uses than
// X.509-SVIDs and JWT-SVIDs are skipped, as the standard wants; what could be read in two ways is refused.
func ParseBundle(td spiffeid.TrustDomain, data []byte) (Bundle, uint64, error) {
	b, sequence, err := parseBundle(td, data)
	if err != nil {
		return Bundle{}, 0, fmt.Errorf("trust: parse bundle of %s: %w", td, err)
	}
	return b, sequence, nil
}

func parseBundle(td spiffeid.TrustDomain, data []byte) (Bundle, uint64, error) {
	if len(data) > MaxBundleSize {
		return Bundle{}, 0, fmt.Errorf("%d bytes, at most %d", len(data), MaxBundleSize)
	}
	if err := checkJSON(data); err != nil {
		return Bundle{}, 0, err
	}
	// Before go-spiffe's parser, which takes a hint of minus a century and any number of keys.
	var outline struct {
		Keys     []json.RawMessage `json:"keys"`
		Sequence *uint64           `json:"spiffe_sequence"`
		Hint     *int64            `json:"spiffe_refresh_hint"`
	}
	if err := json.Unmarshal(data, &outline); err != nil {
		return Bundle{}, 0, err
	}
	if n := len(outline.Keys); n > maxKeys {
		return Bundle{}, 0, fmt.Errorf("%d keys, at most %d", n, maxKeys)
	}
	jwtKeys := 0
	for i, raw := range outline.Keys {
		// As lax in upper and lower case as encoding/json is: what it reads otherwise than go-spiffe's parser is refused below.
		var key struct {
			Use string `json:"use"`
			D   *any   `json:"d"`
			K   *any   `json:"k"`
		}
		if err := json.Unmarshal(raw, &key); err != nil {
			return Bundle{}, 0, fmt.Errorf("key %d: %w", i+1, err)
		}
		if key.D != nil || key.K != nil {
			return Bundle{}, 0, fmt.Errorf("key %d: it is a secret, which is none any more", i+1)
		}
		if key.Use == "jwt-svid" {
			jwtKeys++
		}
	}
	if h := outline.Hint; h != nil && (*h < 0 || *h > int64(maxRefreshHint/time.Second)) {
		return Bundle{}, 0, fmt.Errorf("refresh hint of %d s, want 0 to %d", *h, int64(maxRefreshHint/time.Second))
	}
	parsed, err := spiffebundle.Parse(td, data)
	if err != nil {
		return Bundle{}, 0, err
	}
	var sequence uint64
	if outline.Sequence != nil {
		sequence = *outline.Sequence
	}
	b := Bundle{Authorities: parsed.X509Authorities()}
	if keys := parsed.JWTAuthorities(); len(keys) > 0 {
		b.JWTAuthorities = keys
	}
	if n := len(b.JWTAuthorities); n != jwtKeys {
		return Bundle{}, 0, fmt.Errorf("%d keys for JWT-SVIDs, %d key IDs", jwtKeys, n)
	}
	if err := checkBundle(td, b, sequence); err != nil {
		return Bundle{}, 0, err
	}
	return b, sequence, nil
}

func checkBundle(td spiffeid.TrustDomain, b Bundle, sequence uint64) error {
	if err := checkJWTKeys(b.JWTAuthorities); err != nil {
		return err
	}
	roots := b.Authorities
	switch n := len(roots); {
	case td.IsZero():
		return errors.New("no trust domain")
	case sequence > maxSequence:
		return fmt.Errorf("sequence %d, at most %d", sequence, int64(maxSequence))
	case n == 0:
		return errors.New("no X.509 authority")
	case n > MaxAuthorities:
		return fmt.Errorf("%d X.509 authorities, at most %d", n, MaxAuthorities)
	}
	for i, c := range roots {
		if err := checkAuthority(c); err != nil {
			return fmt.Errorf("authority %d: %w", i+1, err)
		}
		for _, u := range c.URIs {
			if of, err := spiffeid.FromURI(u); err != nil || of.TrustDomain() != td {
				return fmt.Errorf("authority %d: belongs to %q", i+1, u)
			}
		}
	}
	return nil
}

// checkAuthority: a trust anchor that is no CA would let one SVID vouch for itself (and it alone for others, in laxer verifiers).
func checkAuthority(c *x509.Certificate) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return errors.New("not a CA certificate")
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("its key usage has no keyCertSign")
	}
	switch k := c.PublicKey.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSABits {
			return fmt.Errorf("an RSA key of %d bits, at least %d", k.N.BitLen(), minRSABits)
		}
	default:
		return fmt.Errorf("a key of type %T", k)
	}
	return nil
}

// checkJSON refuses JSON that two parsers may read as two things: names that come twice (also when they differ by case
// only, which encoding/json folds), invalid UTF-8 (which it replaces), more than one value, deep nesting.
func checkJSON(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := checkValue(d, 0); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

func checkValue(d *json.Decoder, depth int) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	open, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	if depth == maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	var names []string
	for d.More() {
		if open == '{' {
			token, err = d.Token()
			if err != nil {
				return err
			}
			n, _ := token.(string) // the decoder lets nothing else be a name
			if len(names) == maxMembers {
				return fmt.Errorf("more than %d names in an object", maxMembers)
			}
			if slices.ContainsFunc(names, func(o string) bool { return strings.EqualFold(o, n) }) {
				return fmt.Errorf("the name %q comes twice", n)
			}
			names = append(names, n)
		}
		if err = checkValue(d, depth+1); err != nil {
			return err
		}
	}
	_, err = d.Token() // the closing delimiter
	return err
}
