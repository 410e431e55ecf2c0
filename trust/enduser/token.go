package enduser

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/isthmus-mesh/isthmus/trust/access"
)

// Limits of what a token says.
const (
	MaxDepth  = 10   // of nested objects and lists
	MaxValues = 1000 // in all
)

// algorithms are those that are taken: signatures of public keys, and neither "none" nor a shared secret.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// Reason is why a token is refused.
type Reason string

// The reasons, as metrics and logs have them.
const (
	Malformed Reason = "malformed"
	Algorithm Reason = "algorithm"
	NoKeys    Reason = "no_keys" // none can be had, or they are too old
	WrongKey  Reason = "unknown_key"
	Signature Reason = "signature"
	Audience  Reason = "audience"
	Expired   Reason = "expired"
	NotYet    Reason = "not_yet_valid"
)

// Refusal is the error of a token that is no good. It never holds the token.
type Refusal struct {
	Reason Reason
	Err    error
}

// Error says why.
func (r *Refusal) Error() string { return fmt.Sprintf("enduser: %s: %v", r.Reason, r.Err) }

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

func refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Err: fmt.Errorf(format, args...)}
}

// verify checks a token. No user and no error: it is of another issuer.
func (s *source) verify(ctx context.Context, text string, sum [sha256.Size]byte, now func() time.Time) (*access.EndUser, error) {
	t, err := parse(text)
	if err != nil {
		return nil, err
	}
	switch iss := t.claims["iss"]; {
	case iss.Kind != access.Text:
		return nil, refuse(Malformed, "it names no issuer (iss)")
	case iss.Text != s.issuer.Issuer:
		return nil, nil
	}
	if err = t.header.check(); err != nil {
		return nil, err
	}
	keys := s.keys.Load()
	if s.load != nil && (keys == nil || !keys.hold(now()) || len(keys.candidates(t.header.key, t.header.algorithm)) == 0) {
		s.refresh(ctx, now, true)
		keys = s.keys.Load() // another may have had them meanwhile
	}
	at := now()
	switch {
	case keys == nil:
		return nil, refuse(NoKeys, "no keys of %s are known", s.issuer.Issuer)
	case !keys.hold(at):
		return nil, refuse(NoKeys, "the keys of %s could not be had for %v", s.issuer.Issuer, MaxAge)
	}
	candidates := keys.candidates(t.header.key, t.header.algorithm)
	if len(candidates) == 0 {
		return nil, refuse(WrongKey, "%s has no key %q for %s", s.issuer.Issuer, t.header.key, t.header.algorithm)
	}
	if err = t.signed(text, candidates); err != nil {
		return nil, err
	}
	user, end, err := t.user(s.issuer.Audiences, at)
	if err != nil {
		return nil, err
	}
	keys.keep(sum, user, len(text), end, at)
	return user, nil
}

// token is what one says, of which nothing is believed yet.
type token struct {
	header header
	claims map[string]access.Value
}

type header struct {
	algorithm, key, kind string
	critical             bool
}

// parse reads a token in compact form.
func parse(text string) (*token, error) {
	if len(text) > MaxToken {
		return nil, refuse(Malformed, "%d bytes, more than %d", len(text), MaxToken)
	}
	parts := strings.SplitN(text, ".", 4)
	if len(parts) != 3 {
		return nil, refuse(Malformed, "%d parts, want three", len(parts))
	}
	var decoded [3][]byte
	for k, part := range parts {
		var err error
		if decoded[k], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil || strings.ContainsAny(part, "\r\n") {
			return nil, refuse(Malformed, "part %d is not base64url", k)
		}
	}
	head, err := parseObject(decoded[0], MaxDepth)
	if err != nil {
		return nil, refuse(Malformed, "its header: %w", err)
	}
	claims, err := parseObject(decoded[1], MaxDepth)
	if err != nil {
		return nil, refuse(Malformed, "its claims: %w", err)
	}
	t := &token{claims: claims}
	for name, into := range map[string]*string{"alg": &t.header.algorithm, "kid": &t.header.key, "typ": &t.header.kind} {
		value, there := head[name]
		if there && value.Kind != access.Text {
			return nil, refuse(Malformed, "%q of its header is no string", name)
		}
		*into = value.Text
	}
	_, crit := head["crit"]
	_, b64 := head["b64"] // means nothing without crit, and something to those who don't look
	t.header.critical = crit || b64
	return t, nil
}

// check refuses what no key is looked for: jku, x5u, jwk and x5c are not even read.
func (h header) check() error {
	if h.critical {
		return refuse(Malformed, "its header wants extensions understood (crit), which none are")
	}
	if !slices.Contains(algorithms, jose.SignatureAlgorithm(h.algorithm)) {
		return refuse(Algorithm, "%q is not taken: want one of %v", h.algorithm, algorithms)
	}
	// A token of another kind is not for this use, though the same key signs it (RFC 8725, section 3.11).
	switch kind := strings.TrimPrefix(strings.ToLower(h.kind), "application/"); kind {
	case "", "jwt", "at+jwt":
		return nil
	default:
		return refuse(Malformed, "a token of type %q", h.kind)
	}
}

// signed checks the signature.
func (t *token) signed(text string, candidates []key) error {
	jws, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(t.header.algorithm)})
	if err != nil {
		return refuse(Malformed, "%w", err)
	}
	for _, key := range candidates {
		if _, err = jws.Verify(key.public); err == nil {
			return nil
		}
	}
	return refuse(Signature, "%w", err)
}

// user is whom a signed token speaks of, and until when.
func (t *token) user(audiences []string, now time.Time) (*access.EndUser, time.Time, error) {
	exp, there, err := t.moment("exp")
	switch {
	case err != nil:
		return nil, exp, err
	case !there:
		return nil, exp, refuse(Malformed, "it has no end (exp)")
	case !now.Before(exp.Add(Leeway)):
		return nil, exp, refuse(Expired, "it has ended at %s", exp.UTC().Format(time.RFC3339))
	}
	for _, name := range []string{"nbf", "iat"} {
		from, has, err := t.moment(name)
		if err != nil {
			return nil, exp, err
		}
		if has && now.Add(Leeway).Before(from) {
			return nil, exp, refuse(NotYet, "it begins at %s (%s)", from.UTC().Format(time.RFC3339), name)
		}
	}
	if !addressed(t.claims["aud"], audiences) {
		return nil, exp, refuse(Audience, "it is for none of %q", audiences)
	}
	sub, there := t.claims["sub"]
	if there && sub.Kind != access.Text {
		return nil, exp, refuse(Malformed, "its subject is no string")
	}
	return &access.EndUser{Issuer: t.claims["iss"].Text, Subject: sub.Text, Claims: t.claims}, exp.Add(Leeway), nil
}

// addressed tells whether one of the audiences is among those of the token. Where a policy names none, no token is for it.
func addressed(aud access.Value, audiences []string) bool {
	switch aud.Kind {
	case access.Text:
		return slices.Contains(audiences, aud.Text)
	case access.List:
		return slices.ContainsFunc(aud.List, func(v access.Value) bool { return v.Kind == access.Text && slices.Contains(audiences, v.Text) })
	default:
		return false
	}
}

// moment reads a claim that is a NumericDate.
func (t *token) moment(name string) (at time.Time, there bool, err error) {
	value, there := t.claims[name]
	if !there {
		return at, false, nil
	}
	seconds, err := strconv.ParseFloat(value.Text, 64)
	if value.Kind != access.Literal || err != nil || seconds < 0 || seconds > maxMoment {
		return at, true, refuse(Malformed, "%q is no moment", name)
	}
	whole, part := math.Modf(seconds)
	return time.Unix(int64(whole), int64(part*1e9)), true, nil
}

const maxMoment = 1e11 // seconds: the year 5138
