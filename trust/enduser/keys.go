package enduser

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/isthmus-mesh/isthmus/trust/access"
)

// How keys are had, and for how long they hold.
const (
	MaxJWKS       = 256 << 10 // bytes of a document
	MaxKeys       = 64        // in a document
	FetchTimeout  = 5 * time.Second
	MaxRedirects  = 3               // on the same host
	RefreshEvery  = 5 * time.Minute // a fifth more or less, from a URL
	ReadEvery     = 5 * time.Second // from a file
	RetryEvery    = 10 * time.Second
	UnknownKey    = 30 * time.Second // between fetches for tokens whose key is not known
	MaxAge        = time.Hour        // keys that could not be fetched or read again for that long hold no more: nobody passes
	minRSA        = 2048
	maxRSA        = 8192 // the work of a check grows with it
	maxTries      = 4    // keys for a token that names none
	maxFolderName = 253
)

// keySet is the keys of an issuer, and what was verified with them: it goes with them.
type keySet struct {
	document [sha256.Size]byte
	keys     []key
	fresh    atomic.Int64 // when they were had last, in Unix nanoseconds; 0: they are in the policy, and always fresh
	// mu guards what is below.
	mu       sync.RWMutex
	verified map[[sha256.Size]byte]verified
	bytes    int // of the tokens in it
}

type verified struct {
	user *access.EndUser
	size int
	end  time.Time
}

type key struct {
	id, algorithm string
	public        crypto.PublicKey
}

// hold tells whether the keys are not too old.
func (k *keySet) hold(now time.Time) bool {
	fresh := k.fresh.Load()
	return fresh == 0 || now.Sub(time.Unix(0, fresh)) < MaxAge
}

// candidates are the keys that a token may be signed with.
func (k *keySet) candidates(id, algorithm string) []key {
	var found []key
	for _, key := range k.keys {
		if (id == "" || key.id == id) && (key.algorithm == "" || key.algorithm == algorithm) && fits(key.public, algorithm) {
			found = append(found, key)
		}
	}
	return found[:min(len(found), maxTries)]
}

// fits tells whether the algorithm is one of that kind of key: a public key is never a secret for HMAC.
func fits(public crypto.PublicKey, algorithm string) bool {
	switch public := public.(type) {
	case *rsa.PublicKey:
		return slices.Contains([]string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, algorithm)
	case *ecdsa.PublicKey:
		return public.Curve == elliptic.P256() && algorithm == "ES256" || public.Curve == elliptic.P384() && algorithm == "ES384" ||
			public.Curve == elliptic.P521() && algorithm == "ES512"
	case ed25519.PublicKey:
		return algorithm == "EdDSA"
	default:
		return false
	}
}

// parseJWKS reads a JSON Web Key Set (RFC 7517). Keys that can't verify a token are left out; a set without any other is none.
func parseJWKS(document []byte) (*keySet, error) {
	if len(document) > MaxJWKS {
		return nil, fmt.Errorf("a key set of more than %d bytes", MaxJWKS)
	}
	value, err := parseObject(document, maxJWKSDepth)
	if err != nil {
		return nil, fmt.Errorf("the key set: %w", err)
	}
	if value["keys"].Kind != access.List {
		return nil, errors.New("the key set has no list of keys")
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(document, &set); err != nil {
		return nil, fmt.Errorf("the key set: %w", err)
	}
	if len(set.Keys) > MaxKeys {
		return nil, fmt.Errorf("a key set of %d keys, more than %d", len(set.Keys), MaxKeys)
	}
	k := &keySet{document: sha256.Sum256(document), verified: map[[sha256.Size]byte]verified{}}
	var skipped []error
	for n, raw := range set.Keys {
		one, unfit := parseKey(raw)
		if unfit != nil {
			skipped = append(skipped, fmt.Errorf("key %d: %w", n, unfit))
			continue
		}
		k.keys = append(k.keys, one)
	}
	if len(k.keys) == 0 {
		return nil, fmt.Errorf("the key set has no key that can verify a token: %w", errors.Join(skipped...))
	}
	return k, nil
}

const maxJWKSDepth = 8

func parseKey(raw []byte) (key, error) {
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(raw); err != nil {
		return key{}, err
	}
	switch {
	case !jwk.IsPublic():
		return key{}, errors.New("not a public key")
	case !jwk.Valid():
		return key{}, errors.New("not a sound key")
	case jwk.Use != "" && jwk.Use != "sig":
		return key{}, fmt.Errorf("for %q", jwk.Use)
	}
	if public, ok := jwk.Key.(*rsa.PublicKey); ok {
		if bits := public.N.BitLen(); bits < minRSA || bits > maxRSA {
			return key{}, fmt.Errorf("an RSA key of %d bits: %d to %d", bits, minRSA, maxRSA)
		}
	}
	if !slices.ContainsFunc(algorithms, func(a jose.SignatureAlgorithm) bool {
		return (jwk.Algorithm == "" || jwk.Algorithm == string(a)) && fits(jwk.Key, string(a))
	}) {
		return key{}, fmt.Errorf("for no algorithm that is taken (%q)", jwk.Algorithm)
	}
	return key{jwk.KeyID, jwk.Algorithm, jwk.Key}, nil
}

// source is an issuer and where its keys come from.
type source struct {
	issuer access.Issuer
	header string
	log    *slog.Logger
	load   func(context.Context) ([]byte, error) // nil: the document is in the policy
	every  time.Duration

	keys atomic.Pointer[keySet] // nil: none yet

	// mu guards what is below.
	mu      sync.Mutex
	next    time.Time     // when they are to be had again
	unknown time.Time     // when they may be fetched for a token again
	flight  chan struct{} // closed when the fetch that runs has ended; nil: none runs
	failing bool
}

func newSource(issuer access.Issuer, folder string, client *http.Client, logger *slog.Logger) *source {
	issuer.Name = ""
	issuer.Audiences = slices.Clone(issuer.Audiences)
	s := &source{issuer: issuer, header: headerOf(issuer), log: logger.With("issuer", issuer.Issuer)}
	switch {
	case issuer.JWKS != "":
		keys, err := parseJWKS([]byte(issuer.JWKS))
		if err != nil {
			s.log.Error("keys of an issuer in a policy can't be read: its users are refused", "error", err)
			return s
		}
		s.keys.Store(keys)
	case issuer.JWKSFile != "":
		s.every, s.load = ReadEvery, func(context.Context) ([]byte, error) { return readFile(folder, issuer.JWKSFile) }
	case issuer.JWKSURL != "":
		s.every, s.load = RefreshEvery, func(ctx context.Context) ([]byte, error) { return fetch(ctx, client, issuer.JWKSURL) }
	default:
		s.log.Error("an issuer in a policy has no keys: its users are refused")
	}
	return s
}

// is tells whether i is the same issuer, whatever a policy calls it.
func (s *source) is(i access.Issuer) bool {
	o := s.issuer
	return o.Issuer == i.Issuer && o.JWKS == i.JWKS && o.JWKSFile == i.JWKSFile && o.JWKSURL == i.JWKSURL && s.header == headerOf(i) &&
		slices.Equal(o.Audiences, i.Audiences)
}

// due tells whether it is time to have the keys again.
func (s *source) due(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.load != nil && s.flight == nil && !now.Before(s.next)
}

// refresh has the keys again; if that is going on, it waits for it. What fails leaves those that are there, until they are too old.
// For a token, it does so once in a while only.
func (s *source) refresh(ctx context.Context, now func() time.Time, forToken bool) {
	s.mu.Lock()
	if running := s.flight; running != nil {
		s.mu.Unlock()
		select {
		case <-running:
		case <-ctx.Done():
		}
		return
	}
	if forToken {
		if now().Before(s.unknown) {
			s.mu.Unlock()
			return
		}
		s.unknown = now().Add(UnknownKey)
	}
	done := make(chan struct{})
	s.flight = done
	s.mu.Unlock()

	// Others wait for it: it does not end with the request that needed it first.
	fetching, cancel := context.WithTimeout(context.WithoutCancel(ctx), FetchTimeout)
	defer cancel()
	err := s.reload(fetching, now)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.flight = nil
	close(done)
	every := s.every
	switch {
	case err != nil && ctx.Err() == nil:
		if !s.failing {
			s.log.WarnContext(ctx, "keys of an issuer can't be had; those that are known hold until they are too old", "error", err, "max_age", MaxAge)
		}
		s.failing, every = true, min(every, RetryEvery)
	case err == nil && s.failing:
		s.log.InfoContext(ctx, "keys of an issuer are to be had again")
		s.failing = false
	}
	s.next = now().Add(jitter(every))
}

// jitter is a fifth more or less, so that sidecars that started together do not ask together for ever.
func jitter(d time.Duration) time.Duration {
	return d - d/5 + rand.N(2*d/5+1) //nolint:gosec // spreads load, keeps no secret
}

func (s *source) reload(ctx context.Context, now func() time.Time) error {
	began := now()
	document, err := s.load(ctx)
	if err != nil {
		return err
	}
	if have := s.keys.Load(); have != nil && have.document == sha256.Sum256(document) {
		have.fresh.Store(began.UnixNano())
		return nil
	}
	keys, err := parseJWKS(document)
	if err != nil {
		return err
	}
	keys.fresh.Store(began.UnixNano())
	s.keys.Store(keys)
	return nil
}

func readFile(folder, name string) ([]byte, error) {
	if folder == "" {
		return nil, fmt.Errorf("the file %s: no folder of key files is configured", name)
	}
	if len(name) > maxFolderName || name != filepath.Base(name) || !filepath.IsLocal(name) {
		return nil, fmt.Errorf("the file %q: want the name of a file in the folder of key files, no path", name)
	}
	file, err := os.Open(filepath.Join(folder, name)) //nolint:gosec // a plain name, checked above
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("the file %s is no regular file", name)
	}
	return read(file)
}

// read reads a document, and one byte more than may be, so that a longer one is seen.
func read(r io.Reader) ([]byte, error) {
	document, err := io.ReadAll(io.LimitReader(r, MaxJWKS+1))
	return bytes.TrimSpace(document), err
}

func newClient(transport http.RoundTripper) *http.Client {
	return &http.Client{
		Transport: transport,
		Timeout:   FetchTimeout,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > MaxRedirects {
				return fmt.Errorf("more than %d redirects", MaxRedirects)
			}
			if first := via[0].URL; req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
				return fmt.Errorf("a redirect to %s://%s, another host: name that one in the policy", req.URL.Scheme, req.URL.Host)
			}
			return nil
		},
	}
}

// CheckURL tells whether keys may be fetched from there: with https, or from this machine.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return fmt.Errorf("enduser: %w", err)
	}
	host := u.Hostname()
	ip := net.ParseIP(host)
	switch {
	case host == "" || u.User != nil || u.Fragment != "":
		return fmt.Errorf("enduser: %q: want https://host/path, without user and fragment", u.Redacted())
	case u.Scheme == "https", u.Scheme == "http" && (host == "localhost" || ip != nil && ip.IsLoopback()):
		return nil
	default:
		return fmt.Errorf("enduser: %q: keys are fetched with https alone, or with http from this machine", text)
	}
}

func fetch(ctx context.Context, client *http.Client, from string) ([]byte, error) {
	if err := CheckURL(from); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", from, resp.Status)
	}
	return read(resp.Body)
}
