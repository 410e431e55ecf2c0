package workload

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust"
)

// Limits on a JWT-SVID, which anybody may have made.
const (
	maxToken   = 16 << 10
	maxID      = 2048 // bytes of a SPIFFE ID (SPIFFE-ID, 2.3)
	minRSABits = 2048
	leeway     = time.Minute // that a signer's clock may be ahead; an end is an end
)

// algorithms are those of JWT-SVID, section 3.1, and no others: above all not "none", and none with a shared secret, for which a public key
// could be taken.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512,
}

// ErrBadToken says that a JWT-SVID was refused. The error that wraps it says why.
var ErrBadToken = errors.New("workload: JWT-SVID refused")

// Token is a JWT-SVID that was verified.
type Token struct {
	ID        spiffeid.ID
	Issued    time.Time // zero when it does not say
	NotAfter  time.Time
	Audiences []string
	Claims    map[string]any
}

// VerifyJWT verifies a JWT-SVID for an audience with the keys of the token's own trust domain and no others, as of now (JWT-SVID, section 5).
// What names a domain, a key or an ID that is unknown or revoked is refused. Errors wrap ErrBadToken.
func VerifyJWT(bundles *trust.Bundles, token, audience string, now time.Time) (*Token, error) {
	t, err := verifyJWT(bundles, token, audience, now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadToken, err)
	}
	return t, nil
}

func verifyJWT(bundles *trust.Bundles, token, audience string, now time.Time) (*Token, error) {
	if len(token) > maxToken {
		return nil, fmt.Errorf("%d bytes, at most %d", len(token), maxToken)
	}
	if audience == "" {
		return nil, errors.New("no audience to verify it for")
	}
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		return nil, fmt.Errorf("malformed: %w", err)
	}
	header := parsed.Headers[0] // the compact form has one
	if typ, there := header.ExtraHeaders[jose.HeaderType]; there && typ != "JWT" && typ != "JOSE" {
		return nil, fmt.Errorf("of type %q, want JWT or JOSE", typ)
	}
	if header.KeyID == "" {
		return nil, errors.New("it names no key (kid)")
	}
	var unproven struct {
		Subject string `json:"sub"`
	}
	if err = parsed.UnsafeClaimsWithoutVerification(&unproven); err != nil {
		return nil, fmt.Errorf("malformed: %w", err)
	}
	id, err := subject(unproven.Subject)
	if err != nil {
		return nil, err
	}
	bundle, ok := bundles.Get(id.TrustDomain())
	if !ok {
		return nil, fmt.Errorf("the trust domain %s is unknown here", id.TrustDomain().Name())
	}
	key, ok := goodKeys(&bundle)[header.KeyID]
	if !ok {
		return nil, fmt.Errorf("%s has no key %q", id.TrustDomain().Name(), header.KeyID)
	}
	t := &Token{ID: id}
	var claims jwt.Claims
	if err = parsed.Claims(key, &claims, &t.Claims); err != nil {
		return nil, fmt.Errorf("of %s, by key %q: %w", id, header.KeyID, err)
	}
	t.Audiences = claims.Audience
	if claims.IssuedAt != nil {
		t.Issued = claims.IssuedAt.Time()
	}
	switch {
	case claims.Expiry == nil:
		return nil, errors.New("it never ends (no exp)")
	case !now.Before(claims.Expiry.Time()):
		return nil, fmt.Errorf("it ended at %s", claims.Expiry.Time().UTC().Format(time.RFC3339))
	case now.Add(leeway).Before(t.Issued):
		return nil, fmt.Errorf("it is of the future: %s", t.Issued.UTC().Format(time.RFC3339))
	case claims.NotBefore != nil && now.Add(leeway).Before(claims.NotBefore.Time()):
		return nil, fmt.Errorf("it begins at %s", claims.NotBefore.Time().UTC().Format(time.RFC3339))
	case !slices.Contains(t.Audiences, audience):
		return nil, fmt.Errorf("it is for %q, not for %q", t.Audiences, audience)
	case bundle.RevokesID(id, t.Issued):
		return nil, fmt.Errorf("what was issued to %s then is revoked", id)
	}
	t.NotAfter = claims.Expiry.Time()
	return t, nil
}

// subject reads whom a token is of: a member, not a trust domain.
func subject(s string) (spiffeid.ID, error) {
	if len(s) > maxID {
		return spiffeid.ID{}, fmt.Errorf("an ID longer than %d bytes", maxID)
	}
	id, err := spiffeid.FromString(s)
	switch {
	case err != nil:
		return id, fmt.Errorf("its subject is no SPIFFE ID: %w", err)
	case id.Path() == "":
		return id, errors.New("its subject is a trust domain, not a member")
	case id.String() != s: // two verifiers must never read two IDs in one token
		return id, fmt.Errorf("its subject %q is not in the normal form %s", s, id)
	}
	return id, nil
}

// goodKeys returns the keys of a domain that sign JWT-SVIDs and are not revoked, by key ID.
func goodKeys(b *trust.Bundle) map[string]crypto.PublicKey {
	out := make(map[string]crypto.PublicKey, len(b.JWTAuthorities))
	for kid, key := range b.JWTAuthorities {
		if k, ok := key.(*rsa.PublicKey); ok && k.N.BitLen() < minRSABits {
			continue
		}
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			continue // not a kind of key that anything could be verified with
		}
		if _, revoked := b.Revoked[sha256.Sum256(der)]; !revoked {
			out[kid] = key
		}
	}
	return out
}
