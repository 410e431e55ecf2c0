package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Limits on JWT-SVIDs and the keys that sign them.
const (
	// MaxJWTLifetime is how long a JWT-SVID lasts at most: whoever has read one may use it as long.
	MaxJWTLifetime    = 5 * time.Minute
	MaxJWTAuthorities = 16  // keys of one domain
	maxKeyID          = 256 // bytes
	maxAudiences      = 16
	maxAudience       = 512 // bytes of one

	// jwtLinger is how long a key is published after it has signed for the last time: the life of a token, and clocks that are off.
	jwtLinger = 2 * MaxJWTLifetime
)

// jwtFile holds all JWT keys of an authority, so that they are changed in one step.
const jwtFile = "jwt-keys.json"

// jwtKey is a key that signs JWT-SVIDs (ES256), will, or has.
type jwtKey struct {
	ID      string            `json:"key_id"`
	State   jwtKeyState       `json:"state"`
	Since   time.Time         `json:"since"`             // that it is in this state
	Public  []byte            `json:"public_key"`        // PKIX, DER
	Private []byte            `json:"private,omitempty"` // PKCS #8, DER; gone once it has signed for the last time
	public  *ecdsa.PublicKey  // Public, parsed
	private *ecdsa.PrivateKey // Private, parsed
}

type jwtKeyState string

// The states of a JWT key, in their order.
const (
	jwtNext     jwtKeyState = "next" // published, so that everybody knows it before it signs
	jwtActive   jwtKeyState = "active"
	jwtPrevious jwtKeyState = "previous" // published until its last token has ended
)

// jwtKeys is an authority's JWT keys at one moment. Immutable. At most one is active, and one next.
type jwtKeys []jwtKey

func (k jwtKeys) of(s jwtKeyState) *jwtKey {
	for i := range k {
		if k[i].State == s {
			return &k[i]
		}
	}
	return nil
}

// published returns the public keys, by ID.
func (k jwtKeys) published() map[string]crypto.PublicKey {
	out := make(map[string]crypto.PublicKey, len(k))
	for i := range k {
		out[k[i].ID] = k[i].public
	}
	return out
}

// jwtSigner makes JWT-SVIDs, and changes the keys that sign them: a successor is published when half of a key's time is over, and takes over
// when all of it is; the old one stays published until its last token has ended. It has no lock: its owner sees that it steps alone.
type jwtSigner struct {
	path   string
	period time.Duration // that a key signs for
	write  func(path string, data []byte, place placement) error
}

// due is when the next step of keys is.
func (s *jwtSigner) due(keys jwtKeys) time.Time {
	active, next := keys.of(jwtActive), keys.of(jwtNext)
	if active == nil {
		return time.Time{}
	}
	at := active.Since.Add(s.period / 2)
	if next != nil {
		at = s.takeover(active, next)
	}
	for i := range keys {
		if keys[i].State == jwtPrevious {
			at = earlier(at, keys[i].Since.Add(jwtLinger))
		}
	}
	return at
}

// takeover is when next signs: at the end of active's time, and when it was published for a quarter of that.
func (s *jwtSigner) takeover(active, next *jwtKey) time.Time {
	at, heard := active.Since.Add(s.period), next.Since.Add(s.period/4)
	if at.Before(heard) {
		return heard
	}
	return at
}

// step returns the keys after what is due at now, on disk already. On an error nothing has changed.
func (s *jwtSigner) step(keys jwtKeys, now time.Time) (jwtKeys, error) {
	changed := make(jwtKeys, 0, len(keys)+1)
	for _, k := range keys {
		if k.State != jwtPrevious || now.Before(k.Since.Add(jwtLinger)) {
			changed = append(changed, k)
		}
	}
	same := len(changed) == len(keys)
	active, next := changed.of(jwtActive), changed.of(jwtNext)
	switch {
	case active == nil:
		key, err := newJWTKey(jwtActive, now) // the first: nobody has a bundle without it
		if err != nil {
			return keys, err
		}
		changed, same = append(changed, key), false
	case next == nil && !now.Before(active.Since.Add(s.period/2)):
		key, err := newJWTKey(jwtNext, now)
		if err != nil {
			return keys, err
		}
		changed, same = append(changed, key), false
	case next != nil && !now.Before(s.takeover(active, next)):
		active.State, active.Since, active.Private, active.private = jwtPrevious, now, nil, nil
		next.State, next.Since = jwtActive, now
		same = false
	}
	if same {
		return keys, nil
	}
	data, err := json.MarshalIndent(changed, "", "  ")
	if err != nil {
		return keys, err
	}
	if err := s.write(s.path, data, replaceFile); err != nil {
		return keys, err
	}
	return changed, nil
}

func newJWTKey(state jwtKeyState, now time.Time) (jwtKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return jwtKey{}, err
	}
	k := jwtKey{State: state, Since: now, private: key, public: &key.PublicKey}
	if k.Private, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return jwtKey{}, err
	}
	if k.Public, err = x509.MarshalPKIXPublicKey(k.public); err != nil {
		return jwtKey{}, err
	}
	sum := sha256.Sum256(k.Public)
	k.ID = hex.EncodeToString(sum[:16])
	return k, nil
}

// load reads the keys: none when there is no file.
func (s *jwtSigner) load() (jwtKeys, error) {
	data, err := readSecret(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var keys jwtKeys
	if err = json.Unmarshal(data, &keys); err == nil {
		err = keys.parse()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; move it away to have new keys made, which peers need minutes to hear of", s.path, err)
	}
	return keys, nil
}

func (k jwtKeys) parse() error {
	states, ids := map[jwtKeyState]int{}, map[string]bool{}
	for i := range k {
		e := &k[i]
		public, err := x509.ParsePKIXPublicKey(e.Public)
		if err != nil {
			return fmt.Errorf("key %d: %w", i+1, err)
		}
		var ok bool
		if e.public, ok = public.(*ecdsa.PublicKey); !ok || e.public.Curve != elliptic.P256() {
			return fmt.Errorf("key %d: not ECDSA P-256", i+1)
		}
		if e.State == jwtPrevious {
			e.Private = nil
		} else {
			private, err := x509.ParsePKCS8PrivateKey(e.Private)
			if err != nil {
				return fmt.Errorf("key %d: %w", i+1, err)
			}
			if e.private, ok = private.(*ecdsa.PrivateKey); !ok || !e.private.PublicKey.Equal(e.public) {
				return fmt.Errorf("key %d: its two halves don't belong together", i+1)
			}
		}
		if e.ID == "" || len(e.ID) > maxKeyID || ids[e.ID] {
			return fmt.Errorf("key %d: its ID %q is empty, long, or another's too", i+1, e.ID)
		}
		ids[e.ID] = true
		states[e.State]++
	}
	if n := len(k); n > MaxJWTAuthorities || states[jwtActive] != 1 || states[jwtNext] > 1 || states[jwtActive]+states[jwtNext]+states[jwtPrevious] != n {
		return fmt.Errorf("%d keys, %d active and %d next: want one active, and one next at most", n, states[jwtActive], states[jwtNext])
	}
	return nil
}

// sign makes a JWT-SVID (JWT-SVID, 2 and 3): RFC 7515 compact serialization, ES256.
func (k jwtKeys) sign(td spiffeid.TrustDomain, id spiffeid.ID, audience []string, ttl time.Duration, now time.Time) (string, error) {
	key := k.of(jwtActive)
	switch {
	case key == nil:
		return "", errors.New("there is no key yet")
	case !id.MemberOf(td):
		return "", fmt.Errorf("not a member of %s", td)
	case id.Path() == "":
		return "", errors.New("the ID has no path")
	case len(id.String()) > maxID:
		return "", fmt.Errorf("the ID is longer than %d bytes", maxID)
	case ttl <= 0 || ttl > MaxJWTLifetime:
		return "", fmt.Errorf("for %s: want at most %s", ttl, MaxJWTLifetime)
	}
	if err := CheckAudience(audience); err != nil {
		return "", err
	}
	header, err := json.Marshal(map[string]string{"alg": "ES256", "typ": "JWT", "kid": key.ID})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{"sub": id.String(), "aud": audience, "iat": now.Unix(), "exp": now.Add(ttl).Unix()})
	if err != nil {
		return "", err
	}
	signed := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key.private, digest[:])
	if err != nil {
		return "", err
	}
	const size = 32 // of each of the two numbers (RFC 7518, 3.4)
	signature := make([]byte, 2*size)
	r.FillBytes(signature[:size])
	s.FillBytes(signature[size:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// CheckAudience checks whom a JWT-SVID is asked for: one at least, and none that would read in two ways.
func CheckAudience(audience []string) error {
	if n := len(audience); n == 0 || n > maxAudiences {
		return fmt.Errorf("%d audiences: want 1 to %d", n, maxAudiences)
	}
	for _, a := range audience {
		if a == "" || len(a) > maxAudience || !utf8.ValidString(a) {
			return fmt.Errorf("audience %q: want 1 to %d bytes of UTF-8", a, maxAudience)
		}
	}
	return nil
}

// checkJWTKeys checks the JWT keys of a bundle: what would verify nothing, or anything, is refused.
func checkJWTKeys(keys map[string]crypto.PublicKey) error {
	if n := len(keys); n > MaxJWTAuthorities {
		return fmt.Errorf("%d JWT authorities, at most %d", n, MaxJWTAuthorities)
	}
	for id, key := range keys {
		if id == "" || len(id) > maxKeyID || !utf8.ValidString(id) {
			return fmt.Errorf("JWT authority with a key ID of %d bytes: want 1 to %d of UTF-8", len(id), maxKeyID)
		}
		switch k := key.(type) {
		case *ecdsa.PublicKey:
			if !usableCurve(k.Curve) {
				return fmt.Errorf("JWT authority %q: curve %s", id, k.Params().Name)
			}
		case *rsa.PublicKey:
			if k.N.BitLen() < minRSABits {
				return fmt.Errorf("JWT authority %q: an RSA key of %d bits, at least %d", id, k.N.BitLen(), minRSABits)
			}
		default: // JWT-SVID, 3: no other algorithms. A secret in a bundle is none any more.
			return fmt.Errorf("JWT authority %q: a key of type %T", id, key)
		}
	}
	return nil
}

func usableCurve(c elliptic.Curve) bool {
	return c == elliptic.P256() || c == elliptic.P384() || c == elliptic.P521()
}

// openJWT reads the JWT keys of the authority.
func (a *Authority) openJWT() error {
	a.jwt = jwtSigner{path: filepath.Join(a.cfg.Dir, jwtFile), period: a.cfg.IssuingLifetime, write: func(_ string, data []byte, place placement) error {
		return a.write(jwtFile, data, place)
	}}
	keys, err := a.jwt.load()
	if err != nil {
		return err
	}
	a.jwtKeys.Store(&keys)
	return nil
}

// JWTKeys returns the public keys to publish, by key ID: the one that signs JWT-SVIDs, the next, and those of which tokens live.
func (a *Authority) JWTKeys() map[string]crypto.PublicKey { return a.jwtKeys.Load().published() }

// SignJWT makes a JWT-SVID for an ID that the caller has established. It lasts MaxJWTLifetime when ttl is 0, and no longer.
func (a *Authority) SignJWT(id spiffeid.ID, audience []string, ttl time.Duration) (string, error) {
	if ttl == 0 {
		ttl = MaxJWTLifetime
	}
	now := a.cfg.Now()
	failed := a.maintain(now)
	token, err := a.jwtKeys.Load().sign(a.cfg.TrustDomain, id, audience, ttl, now)
	if err != nil {
		return "", fmt.Errorf("trust: JWT-SVID of %s: %w", id, errors.Join(err, failed))
	}
	return token, nil
}

func sameKeys(a, b jwtKeys) bool {
	return maps.EqualFunc(a.published(), b.published(), sameKey)
}

// JWTKeyDue returns the ID of the key that signs JWT-SVIDs, since when it does, and when the next one is to take over.
func (a *Authority) JWTKeyDue() (id string, since, due time.Time) {
	active := a.jwtKeys.Load().of(jwtActive)
	if active == nil {
		return "", time.Time{}, time.Time{}
	}
	return active.ID, active.Since, active.Since.Add(a.jwt.period)
}
