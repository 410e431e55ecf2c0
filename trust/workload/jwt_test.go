//go:build linux

package workload

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	workloadv1 "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/trust"
)

// signing serves JWT-SVIDs too, which the authority itself makes, and counts them.
func signing(t *testing.T) (*world, *counter) {
	t.Helper()
	count := new(counter)
	w := newWorld(t, func(w *world, _ *Config) {
		w.bundles.Set(domainA, trust.Bundle{Authorities: w.authority.Roots(), JWTAuthorities: w.authority.JWTKeys()})
		w.own.Sign = func(_ context.Context, audience []string) (string, error) {
			if err := count.add(); err != nil {
				return "", err
			}
			return w.authority.SignJWT(id(t, "web"), audience, 0)
		}
	})
	w.identity.Set(w.svid("web"))
	return w, count
}

type counter struct {
	mu  sync.Mutex
	n   int   // guarded by mu
	err error // guarded by mu; of the next
}

func (c *counter) add() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.err
}

func (c *counter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *counter) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// TestJWTSource: go-spiffe's own source gets JWT-SVIDs and the keys for them; the server's validation and go-spiffe's agree.
func TestJWTSource(t *testing.T) {
	w, _ := signing(t)
	source, err := workloadapi.NewJWTSource(soon(t), workloadapi.WithClientOptions(w.address()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	svid, err := source.FetchJWTSVID(soon(t), jwtsvid.Params{Audience: "db", ExtraAudiences: []string{"cache"}})
	if err != nil {
		t.Fatal(err)
	}
	if svid.ID != id(t, "web") || strings.Join(svid.Audience, " ") != "cache db" || time.Until(svid.Expiry) > trust.MaxJWTLifetime {
		t.Errorf("got %+v", svid)
	}
	if _, err = jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{"db"}); err != nil {
		t.Error(err)
	}
	for _, audience := range []string{"db", "cache"} {
		got, e := w.client().ValidateJWTSVID(soon(t), svid.Marshal(), audience)
		if e != nil || got.ID != id(t, "web") {
			t.Errorf("got %v, %v", got, e)
		}
	}
	r, err := w.raw().ValidateJWTSVID(w.called(), &workloadv1.ValidateJWTSVIDRequest{Svid: svid.Marshal(), Audience: "db"})
	if err != nil || r.GetSpiffeId() != id(t, "web").String() || r.GetClaims().GetFields()["sub"].GetStringValue() != id(t, "web").String() {
		t.Errorf("got %v, %v", r, err)
	}

	// A key that is revoked vanishes, and so does what it signed; so does a whole domain.
	b := authorityOf(t, domainB)
	w.bundles.Set(domainB, trust.Bundle{Authorities: b.Roots(), JWTAuthorities: b.JWTKeys()})
	keys := func(td spiffeid.TrustDomain) int {
		got, e := source.GetJWTBundleForTrustDomain(td)
		if e != nil {
			return -1
		}
		return len(got.JWTAuthorities())
	}
	until(t, "the other domain's keys", func() bool { return keys(domainB) == 1 })
	w.bundles.Remove(domainB)
	until(t, "the end of the other domain", func() bool { return keys(domainB) == -1 })
	revoked := trust.Bundle{Authorities: w.authority.Roots(), JWTAuthorities: w.authority.JWTKeys(), Revoked: map[[32]byte]struct{}{}}
	for _, k := range revoked.JWTAuthorities {
		der, e := x509.MarshalPKIXPublicKey(k)
		if e != nil {
			t.Fatal(e)
		}
		revoked.Revoked[sha256.Sum256(der)] = struct{}{}
	}
	w.bundles.Set(domainA, revoked)
	until(t, "the end of a revoked key", func() bool { return keys(domainA) == 0 })
	if _, e := w.client().ValidateJWTSVID(soon(t), svid.Marshal(), "db"); status.Code(e) != codes.InvalidArgument {
		t.Errorf("got %v", e)
	}
	if _, e := source.FetchJWTSVID(soon(t), jwtsvid.Params{Audience: "db"}); status.Code(e) != codes.Unavailable {
		t.Errorf("a token that nobody takes was handed out: %v", e)
	}
}

// jwtWatcher keeps what it is told.
type jwtWatcher struct{ updates chan *jwtbundle.Set }

func (j jwtWatcher) OnJWTBundlesUpdate(s *jwtbundle.Set) { j.updates <- s }
func (jwtWatcher) OnJWTBundlesWatchError(error)          {}

// TestWatchJWT: a watcher hears of changes of keys, and of those alone.
func TestWatchJWT(t *testing.T) {
	w, _ := signing(t)
	ctx, cancel := context.WithCancel(t.Context())
	watcher := jwtWatcher{make(chan *jwtbundle.Set, 100)}
	done := make(chan error, 1)
	c := w.client()
	go func() { done <- c.WatchJWTBundles(ctx, watcher) }()
	if got := (<-watcher.updates).Len(); got != 1 {
		t.Errorf("%d domains first", got)
	}
	all := trust.Bundle{Authorities: w.authority.Roots(), JWTAuthorities: w.authority.JWTKeys()}
	for i := range 9 {
		all.JWTAuthorities[fmt.Sprint(i)] = newECKey(t).Public()
	}
	for i := range 5 { // roots, and no keys
		b := all
		if i%2 == 1 {
			b.Authorities = append(authorityOf(t, domainA).Roots(), b.Authorities...)
		}
		b.JWTAuthorities = maps.Clone(all.JWTAuthorities)
		w.bundles.Set(domainA, b)
	}
	until(t, "the new keys", func() bool {
		got, ok := (<-watcher.updates).Get(domainA)
		return ok && len(got.JWTAuthorities()) == 10
	})
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Errorf("the watch ended with %v", err)
	}
	if n := len(watcher.updates); n != 0 {
		t.Errorf("%d updates too many", n)
	}
}

func newECKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestFetchJWTRefused: what is asked for badly, or is another's.
func TestFetchJWTRefused(t *testing.T) {
	w, _ := signing(t)
	for what, c := range map[string]struct {
		r    *workloadv1.JWTSVIDRequest
		want codes.Code
	}{
		"no audience":     {&workloadv1.JWTSVIDRequest{}, codes.InvalidArgument},
		"empty audience":  {&workloadv1.JWTSVIDRequest{Audience: []string{"a", ""}}, codes.InvalidArgument},
		"many audiences":  {&workloadv1.JWTSVIDRequest{Audience: strings.Split(strings.Repeat("a,", 40)+"a", ",")}, codes.InvalidArgument},
		"long audience":   {&workloadv1.JWTSVIDRequest{Audience: []string{strings.Repeat("a", 2000)}}, codes.InvalidArgument},
		"another's":       {&workloadv1.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: id(t, "api").String()}, codes.PermissionDenied},
		"another domain":  {&workloadv1.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "spiffe://b.test/ns/shop/sa/web"}, codes.PermissionDenied},
		"no ID":           {&workloadv1.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "web"}, codes.InvalidArgument},
		"too long to say": {&workloadv1.JWTSVIDRequest{Audience: []string{strings.Repeat("a", maxRequest)}}, codes.ResourceExhausted},
		"its own":         {&workloadv1.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: id(t, "web").String()}, codes.OK},
	} {
		if _, err := w.raw().FetchJWTSVID(w.called(), c.r); status.Code(err) != c.want {
			t.Errorf("%s: got %v, want %v", what, err, c.want)
		}
	}
	for what, r := range map[string]*workloadv1.ValidateJWTSVIDRequest{
		"no audience": {Svid: "x"}, "no token": {Audience: "a"}, "no JWT": {Svid: "a.b.c", Audience: "a"},
	} {
		if _, err := w.raw().ValidateJWTSVID(w.called(), r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

// TestTokenCache: a token serves until half of its life, and to its end while no new one is to be had; never once it would be refused.
func TestTokenCache(t *testing.T) {
	authority := authorityOf(t, domainA)
	bundles := trust.NewBundles()
	whole := trust.Bundle{Authorities: authority.Roots(), JWTAuthorities: authority.JWTKeys()}
	bundles.Set(domainA, whole)
	var mu sync.Mutex
	at := time.Now().Truncate(time.Second)
	start := at
	now := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return at
	}
	move := func(to time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		at = start.Add(to)
	}
	key := newECKey(t)
	whole.JWTAuthorities["k"] = key.Public()
	bundles.Set(domainA, whole)
	count := new(counter)
	sign := func(_ context.Context, audience []string) (string, error) {
		if err := count.add(); err != nil {
			return "", err
		}
		return token(t, jose.ES256, key, "k", map[string]any{
			"sub": id(t, "web").String(), "aud": audience, "iat": now().Unix(), "exp": now().Add(4 * time.Minute).Unix(), "jti": fmt.Sprint(count.count()),
		}), nil
	}
	cache := newTokens(&Own{Sign: sign}, bundles, now)
	get := func(audience ...string) string {
		t.Helper()
		got, err := cache.get(t.Context(), id(t, "web"), audience)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := get("db")
	if get("db") != first || count.count() != 1 {
		t.Errorf("signed %d times", count.count())
	}
	if get("cache") == first || get("cache", "db") == first || count.count() != 3 {
		t.Error("one token for several audiences")
	}
	if get("a", "b", "c") == get("a", "b\x01c") || get("a", "b 1:c") == get("a", "b", "c") {
		t.Error("one token for audiences that are cut otherwise")
	}
	move(119 * time.Second)
	if get("db") != first {
		t.Error("renewed before its time")
	}
	move(121 * time.Second)
	second := get("db")
	if second == first {
		t.Error("not renewed at half of its life")
	}
	count.fail(status.Error(codes.Unavailable, "away"))
	move(121*time.Second + 3*time.Minute)
	if get("db") != second {
		t.Error("no token while the signer is away, though there is a good one")
	}
	move(121*time.Second + 4*time.Minute)
	if _, err := cache.get(t.Context(), id(t, "web"), []string{"db"}); status.Code(err) != codes.Unavailable {
		t.Errorf("one that has ended: %v", err)
	}
	count.fail(nil)
	third := get("db")
	// Revoked: the ID, up to now; then it is made anew, later than that.
	revoked := whole
	revoked.RevokedIDs = map[spiffeid.ID]time.Time{id(t, "web"): now()}
	bundles.Set(domainA, revoked)
	if got, err := cache.get(t.Context(), id(t, "web"), []string{"db"}); err == nil {
		t.Errorf("a revoked token: %v", got == third)
	}
	move(10 * time.Minute)
	if get("db") == third {
		t.Error("a revoked token, later")
	}
	// Refused by the signer: what is cached is not for who lost the identity.
	count.fail(status.Error(codes.PermissionDenied, "gone"))
	move(13 * time.Minute)
	if _, err := cache.get(t.Context(), id(t, "web"), []string{"db"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v", err)
	}
}

// TestTokenCacheIsBounded: however many audiences there are, so much is kept; and so much is signed in a second.
func TestTokenCacheIsBounded(t *testing.T) {
	at := time.Now()
	cache := newTokens(&Own{}, trust.NewBundles(), func() time.Time { return at })
	for i := range 3 * maxCached {
		c := cache.entry(fmt.Sprint(i))
		if i%2 == 0 {
			c.notAfter = at.Add(time.Minute)
		}
	}
	if n := len(cache.cached); n > maxCached {
		t.Errorf("%d are kept", n)
	}
	limited := 0
	for i := range 2 * signsAtOnce {
		if _, err := cache.get(t.Context(), id(t, "web"), []string{fmt.Sprint(i)}); status.Code(err) == codes.ResourceExhausted {
			limited++
		}
	}
	if limited != signsAtOnce {
		t.Errorf("%d of %d were refused", limited, 2*signsAtOnce)
	}
	if _, err := cache.get(t.Context(), id(t, "db"), []string{"x"}); status.Code(err) == codes.ResourceExhausted {
		t.Error("one identity has used up what another needs")
	}
}

// token signs claims, sound or not.
func token(t *testing.T, alg jose.SignatureAlgorithm, key any, kid string, claims map[string]any, headers ...string) string {
	t.Helper()
	opts := new(jose.SignerOptions)
	if kid != "" {
		opts.WithHeader("kid", kid)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, "=")
		opts.WithHeader(jose.HeaderKey(name), value)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestVerifyJWT: each way to be no good.
func TestVerifyJWT(t *testing.T) {
	now := time.Now()
	key, other := newECKey(t), newECKey(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	revokedKey := newECKey(t)
	der, err := x509.MarshalPKIXPublicKey(revokedKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	bundles := trust.NewBundles()
	bundles.Set(domainA, trust.Bundle{
		JWTAuthorities: map[string]crypto.PublicKey{"k": key.Public(), "rsa": rsaKey.Public(), "weak": weak.Public(), "p384": p384.Public(), "revoked": revokedKey.Public()},
		Revoked:        map[[32]byte]struct{}{sha256.Sum256(der): {}},
		RevokedIDs:     map[spiffeid.ID]time.Time{id(t, "stolen"): now, id(t, "blocked"): {}},
	})
	bundles.Set(domainB, trust.Bundle{JWTAuthorities: map[string]crypto.PublicKey{"b": other.Public()}})
	good := func(edit ...any) map[string]any {
		c := map[string]any{"sub": id(t, "web").String(), "aud": []string{"db", "cache"}, "exp": now.Add(time.Minute).Unix(), "iat": now.Unix()}
		for i := 0; i < len(edit); i += 2 {
			if edit[i+1] == nil {
				delete(c, edit[i].(string))
			} else {
				c[edit[i].(string)] = edit[i+1]
			}
		}
		return c
	}
	hmac := []byte(strings.Repeat("k", 64))
	sound := token(t, jose.ES256, key, "k", good())
	parts := strings.Split(sound, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"k"}`)) + "." + parts[1] + "."
	for what, c := range map[string]struct{ token, want string }{
		"sound":                    {sound, ""},
		"RS256":                    {token(t, jose.RS256, rsaKey, "rsa", good()), ""},
		"PS512":                    {token(t, jose.PS512, rsaKey, "rsa", good()), ""},
		"ES384":                    {token(t, jose.ES384, p384, "p384", good()), ""},
		"audience as a string":     {token(t, jose.ES256, key, "k", good("aud", "db")), ""},
		"typ JWT":                  {token(t, jose.ES256, key, "k", good(), "typ=JWT"), ""},
		"no iat":                   {token(t, jose.ES256, key, "k", good("iat", nil)), ""},
		"another typ":              {token(t, jose.ES256, key, "k", good(), "typ=at+jwt"), "of type"},
		"unsigned":                 {none, "malformed"},
		"HMAC by the public key":   {token(t, jose.HS256, hmac, "k", good()), "malformed"},
		"no key ID":                {token(t, jose.ES256, key, "", good()), "names no key"},
		"unknown key":              {token(t, jose.ES256, key, "x", good()), "has no key"},
		"another key":              {token(t, jose.ES256, other, "k", good()), "by key"},
		"another domain's key":     {token(t, jose.ES256, other, "b", good()), "a.test has no key"},
		"weak key":                 {token(t, jose.RS256, weak, "weak", good()), "has no key"},
		"revoked key":              {token(t, jose.ES256, revokedKey, "revoked", good()), "has no key"},
		"revoked ID":               {token(t, jose.ES256, key, "k", good("sub", id(t, "stolen").String())), "revoked"},
		"revoked ID, no iat":       {token(t, jose.ES256, key, "k", good("sub", id(t, "stolen").String(), "iat", nil)), "revoked"},
		"issued after":             {token(t, jose.ES256, key, "k", good("sub", id(t, "stolen").String(), "iat", now.Unix()+2)), ""},
		"blocked ID":               {token(t, jose.ES256, key, "k", good("sub", id(t, "blocked").String(), "iat", now.Unix()+2)), "revoked"},
		"unknown domain":           {token(t, jose.ES256, key, "k", good("sub", "spiffe://c.test/ns/shop/sa/web")), "unknown here"},
		"domain below":             {token(t, jose.ES256, key, "k", good("sub", "spiffe://x.a.test/ns/shop/sa/web")), "unknown here"},
		"domain in upper case":     {token(t, jose.ES256, key, "k", good("sub", "spiffe://A.test/ns/shop/sa/web")), "no SPIFFE ID"},
		"the domain itself":        {token(t, jose.ES256, key, "k", good("sub", "spiffe://a.test")), "not a member"},
		"no subject":               {token(t, jose.ES256, key, "k", good("sub", nil)), "no SPIFFE ID"},
		"ended":                    {token(t, jose.ES256, key, "k", good("exp", now.Unix()-1)), "it ended at"},
		"ends now":                 {token(t, jose.ES256, key, "k", good("exp", now.Unix())), "it ended at"},
		"no end":                   {token(t, jose.ES256, key, "k", good("exp", nil)), "never ends"},
		"issued in the future":     {token(t, jose.ES256, key, "k", good("iat", now.Unix()+90)), "of the future"},
		"begins in the future":     {token(t, jose.ES256, key, "k", good("nbf", now.Unix()+90)), "it begins at"},
		"another audience":         {token(t, jose.ES256, key, "k", good("aud", []string{"DB"})), "not for"},
		"no audience":              {token(t, jose.ES256, key, "k", good("aud", nil)), "not for"},
		"a character changed":      {parts[0] + "." + parts[1] + "." + flip(parts[2]), "by key"},
		"claims changed":           {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"spiffe://a.test/ns/shop/sa/api","aud":"db","exp":9999999999}`)) + "." + parts[2], "by key"},
		"a name twice":             {signedRaw(t, key, "k", `{"sub":"spiffe://a.test/ns/shop/sa/web","sub":"spiffe://a.test/ns/shop/sa/api","aud":"db","exp":9999999999}`), "malformed"},
		"JSON serialization":       {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, "malformed"},
		"long":                     {sound + strings.Repeat("a", maxToken), "at most"},
		"critical header":          {token(t, jose.ES256, key, "k", good(), "crit=x"), ""},
		"empty":                    {"", "malformed"},
		"ES256 with the P-384 key": {strings.Split(token(t, jose.ES256, key, "p384", good()), ".")[0] + "." + parts[1] + "." + parts[2], "by key"},
	} {
		got, err := VerifyJWT(bundles, c.token, "db", now)
		switch {
		case what == "critical header":
			if err == nil {
				t.Errorf("%s: taken", what)
			}
		case c.want == "":
			if err != nil || got.ID.TrustDomain() != domainA {
				t.Errorf("%s: got %v, %v", what, got, err)
			}
		case !errors.Is(err, ErrBadToken) || !strings.Contains(fmt.Sprint(err), c.want):
			t.Errorf("%s: got %v, want %q", what, err, c.want)
		}
	}
	if _, err := VerifyJWT(bundles, sound, "", now); !errors.Is(err, ErrBadToken) {
		t.Errorf("for nobody: %v", err)
	}
}

func flip(s string) string {
	if s[3] == 'A' {
		return s[:3] + "B" + s[4:]
	}
	return s[:3] + "A" + s[4:]
}

// signedRaw signs bytes as they are.
func signedRaw(t *testing.T, key *ecdsa.PrivateKey, kid, payload string) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, new(jose.SignerOptions).WithHeader("kid", kid))
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// FuzzVerifyJWT: nothing that go-spiffe's own validation refuses is taken, and nothing panics.
func FuzzVerifyJWT(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	bundles := trust.NewBundles()
	bundles.Set(domainA, trust.Bundle{JWTAuthorities: map[string]crypto.PublicKey{"k": key.Public()}})
	theirs := jwtbundle.NewSet(jwtbundle.FromJWTAuthorities(domainA, map[string]crypto.PublicKey{"k": key.Public()}))
	sign := func(header, claims string) string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, new(jose.SignerOptions).WithHeader("kid", "k").WithHeader("typ", jose.ContentType(header)))
		if err != nil {
			return ""
		}
		jws, err := s.Sign([]byte(claims))
		if err != nil {
			return ""
		}
		out, _ := jws.CompactSerialize()
		return out
	}
	f.Add("JWT", `{"sub":"spiffe://a.test/ns/shop/sa/web","aud":"db","exp":9999999999,"iat":1}`, "")
	f.Add("JWT", `{"sub":"spiffe://a.test/w","aud":["x","db"],"exp":9999999999.5,"nbf":1e3}`, "")
	f.Add("JOSE", `{"sub":"spiffe://A.test/w","aud":{},"exp":"9"}`, "a.b.c")
	f.Add("", `{}`, "eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, header, claims, raw string) {
		for _, s := range []string{sign(header, claims), raw} {
			got, err := VerifyJWT(bundles, s, "db", time.Now())
			if err != nil {
				continue
			}
			if want, e := jwtsvid.ParseAndValidate(s, theirs, []string{"db"}); e != nil || want.ID != got.ID {
				t.Errorf("%q is taken as of %s; go-spiffe says %v", s, got.ID, e)
			}
		}
	})
}
