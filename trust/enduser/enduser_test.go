package enduser_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/isthmus-mesh/isthmus/trust/access"
	"github.com/isthmus-mesh/isthmus/trust/enduser"
)

const issuerURL = "https://id.test"

// signer is a key of an issuer.
type signer struct {
	id        string
	algorithm jose.SignatureAlgorithm
	key       crypto.Signer
}

var signers = sync.OnceValue(func() map[string]signer {
	all := map[string]signer{}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	for _, a := range []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512} {
		all[string(a)] = signer{"rsa", a, rsaKey}
	}
	for a, curve := range map[jose.SignatureAlgorithm]elliptic.Curve{jose.ES256: elliptic.P256(), jose.ES384: elliptic.P384(), jose.ES512: elliptic.P521()} {
		var key *ecdsa.PrivateKey
		key, err = ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			panic(err)
		}
		all[string(a)] = signer{strings.ToLower(string(a)), a, key}
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	all["EdDSA"] = signer{"ed", jose.EdDSA, edKey}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	all["other"] = signer{"other", jose.ES256, other}
	return all
})

// jwks is the document with the keys of these signers.
func jwks(names ...string) string {
	set := jose.JSONWebKeySet{}
	seen := map[string]bool{}
	for _, name := range names {
		s := signers()[name]
		if !seen[s.id] {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: s.key.Public(), KeyID: s.id, Use: "sig"})
		}
		seen[s.id] = true
	}
	document, err := json.Marshal(set)
	if err != nil {
		panic(err)
	}
	return string(document)
}

// sign makes a token. Header and claims are written as they are, which no library does.
func (s signer) sign(header, claims string) string {
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	return input + "." + base64.RawURLEncoding.EncodeToString(raw(s, []byte(input)))
}

func raw(s signer, input []byte) []byte {
	hash := map[byte]crypto.Hash{'2': crypto.SHA256, '3': crypto.SHA384, '5': crypto.SHA512}
	sum := func(h crypto.Hash) []byte {
		w := h.New()
		w.Write(input)
		return w.Sum(nil)
	}
	a := string(s.algorithm)
	switch {
	case a == "EdDSA":
		return must(s.key.Sign(nil, input, crypto.Hash(0)))
	case a[0] == 'E':
		key := s.key.(*ecdsa.PrivateKey)
		r, v, err := ecdsa.Sign(rand.Reader, key, sum(hash[a[2]]))
		if err != nil {
			panic(err)
		}
		size := (key.Params().BitSize + 7) / 8
		out := make([]byte, 2*size)
		r.FillBytes(out[:size])
		v.FillBytes(out[size:])
		return out
	case a[0] == 'P':
		h := hash[a[2]]
		return must(rsa.SignPSS(rand.Reader, s.key.(*rsa.PrivateKey), h, sum(h), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
	default:
		h := hash[a[2]]
		return must(rsa.SignPKCS1v15(nil, s.key.(*rsa.PrivateKey), h, sum(h)))
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// lab is one issuer and a verifier for it.
type lab struct {
	verifier *enduser.Verifier
	group    *enduser.Group
	now      time.Time
	refused  error
}

var theIssuer = access.Issuer{Name: "corp", Issuer: issuerURL, Audiences: []string{"shop", "checkout"}}

func newLab(tb testing.TB, issuers ...access.Issuer) *lab {
	tb.Helper()
	l := &lab{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	l.verifier = enduser.New(enduser.Config{
		Now:     func() time.Time { return l.now },
		Refused: func(_ access.Issuer, err error) { l.refused = err },
	})
	l.group = l.verifier.Use(issuers)[0]
	return l
}

func (l *lab) tokens(values ...string) []access.Token {
	l.refused = nil
	return l.group.Tokens(context.Background(), http.Header{"Authorization": values}, nil)
}

func (l *lab) claims(extra map[string]any) string {
	claims := map[string]any{"iss": issuerURL, "sub": "ada", "aud": "shop", "exp": l.now.Add(time.Minute).Unix(), "iat": l.now.Unix()}
	maps.Copy(claims, extra)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	document, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return string(document)
}

func head(s signer) string { return fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, s.algorithm, s.id) }

func static(names ...string) access.Issuer {
	i := theIssuer
	i.JWKS = jwks(names...)
	return i
}

func TestEveryAlgorithmThatIsTaken(t *testing.T) {
	names := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	l := newLab(t, static(names...))
	for _, name := range names {
		s := signers()[name]
		got := l.tokens("Bearer " + s.sign(head(s), l.claims(nil)))
		if got[0].State != access.TokenValid || got[0].User.Subject != "ada" || got[0].User.Issuer != issuerURL {
			t.Errorf("%s: %+v: %v", name, got[0], l.refused)
		}
	}
}

func TestClaims(t *testing.T) {
	l := newLab(t, static("ES256"))
	s := signers()["ES256"]
	got := l.tokens("bearer " + s.sign(head(s), l.claims(map[string]any{
		"aud": []string{"other", "checkout"}, "groups": []any{"dev", 7, true, nil}, "level": 3.5, "admin": true, "realm": map[string]any{"roles": []string{"reader"}}, "gone": json.RawMessage("null"),
	})))
	if got[0].State != access.TokenValid {
		t.Fatal(l.refused)
	}
	u := got[0].User
	for _, c := range []struct {
		path []string
		want string
	}{
		{[]string{"groups"}, "[dev 7 true null]"},
		{[]string{"level"}, "3.5"},
		{[]string{"admin"}, "true"},
		{[]string{"realm", "roles"}, "[reader]"},
		{[]string{"realm", "roles", "x"}, "null"},
		{[]string{"gone"}, "null"},
		{[]string{"Groups"}, "null"},
	} {
		if got := text(u.Claim(c.path)); got != c.want {
			t.Errorf("%v: %s, want %s", c.path, got, c.want)
		}
	}
}

func text(v access.Value) string {
	switch v.Kind {
	case access.Text, access.Literal:
		return v.Text
	case access.List:
		var parts []string
		for _, e := range v.List {
			parts = append(parts, text(e))
		}
		return fmt.Sprint(parts)
	case access.Object:
		return "object"
	default:
		return "null"
	}
}

func TestRefused(t *testing.T) {
	es, rs, other := signers()["ES256"], signers()["RS256"], signers()["other"]
	l := newLab(t, static("ES256", "RS256"))
	good := es.sign(head(es), l.claims(nil))
	parts := strings.Split(good, ".")
	encode := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	// The public key as a secret: what a verifier that takes the algorithm from the token would check with.
	public := must(x509.MarshalPKIXPublicKey(rs.key.Public()))
	hs256 := func(secret []byte) string {
		input := encode(`{"alg":"HS256","kid":"rsa"}`) + "." + encode(l.claims(nil))
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	}
	embedded := must(json.Marshal(jose.JSONWebKey{Key: other.key.Public(), KeyID: "other"}))
	deep := strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20)
	claim := func(name string, value any) string { return es.sign(head(es), l.claims(map[string]any{name: value})) }
	now := l.now.Unix()
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := len(good) - 1
	for _, c := range []struct {
		name, token string
		reason      enduser.Reason
	}{
		{"none", encode(`{"alg":"none"}`) + "." + parts[1] + ".", enduser.Algorithm},
		{"None", encode(`{"alg":"None","kid":"es256"}`) + "." + parts[1] + "." + parts[2], enduser.Algorithm},
		{"no algorithm", encode(`{"kid":"es256"}`) + "." + parts[1] + "." + parts[2], enduser.Algorithm},
		{"HS256 with the key's DER", hs256(public), enduser.Algorithm},
		{"HS256 with the key's PEM", hs256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})), enduser.Algorithm},
		{"an algorithm of another kind of key", es.sign(`{"alg":"RS256","kid":"es256"}`, l.claims(nil)), enduser.WrongKey},
		{"an algorithm of another curve", es.sign(`{"alg":"ES384","kid":"es256"}`, l.claims(nil)), enduser.WrongKey},
		{"a key that is not known", other.sign(head(other), l.claims(nil)), enduser.WrongKey},
		{"another's signature under a known name", other.sign(head(es), l.claims(nil)), enduser.Signature},
		{"another's signature, no name", other.sign(`{"alg":"ES256"}`, l.claims(nil)), enduser.Signature},
		{"its key in jwk", other.sign(fmt.Sprintf(`{"alg":"ES256","jwk":%s}`, embedded), l.claims(nil)), enduser.Signature},
		{"its key in jwk, under a known name", other.sign(fmt.Sprintf(`{"alg":"ES256","kid":"es256","jwk":%s}`, embedded), l.claims(nil)), enduser.Signature},
		{"its keys in jku", other.sign(`{"alg":"ES256","kid":"es256","jku":"https://evil.test/keys"}`, l.claims(nil)), enduser.Signature},
		{"its key in x5u", other.sign(`{"alg":"ES256","kid":"es256","x5u":"https://evil.test/cert"}`, l.claims(nil)), enduser.Signature},
		{"crit", es.sign(`{"alg":"ES256","kid":"es256","crit":["exp"],"exp":1}`, l.claims(nil)), enduser.Malformed},
		{"an empty crit", es.sign(`{"alg":"ES256","kid":"es256","crit":[]}`, l.claims(nil)), enduser.Malformed},
		{"b64", es.sign(`{"alg":"ES256","kid":"es256","b64":false}`, l.claims(nil)), enduser.Malformed},
		{"two algorithms", es.sign(`{"alg":"none","alg":"ES256","kid":"es256"}`, l.claims(nil)), enduser.Malformed},
		{"another type", es.sign(`{"alg":"ES256","kid":"es256","typ":"logout+jwt"}`, l.claims(nil)), enduser.Malformed},
		{"a type that is none", es.sign(`{"alg":"ES256","kid":"es256","typ":7}`, l.claims(nil)), enduser.Malformed},
		{"a changed payload", parts[0] + "." + encode(l.claims(map[string]any{"sub": "eve"})) + "." + parts[2], enduser.Signature},
		{"a changed signature", good[:len(good)-6] + "AAAAAA", enduser.Signature},
		{"no signature", parts[0] + "." + parts[1] + ".", enduser.Signature},
		{"two parts", parts[0] + "." + parts[1], enduser.Malformed},
		{"four parts", good + ".x", enduser.Malformed},
		{"five parts (encrypted)", good + ".x.y", enduser.Malformed},
		{"padding", parts[0] + "=." + parts[1] + "." + parts[2], enduser.Malformed},
		{"base64, not base64url", "+/" + good, enduser.Malformed},
		{"a line break", parts[0] + ".\n" + parts[1] + "." + parts[2], enduser.Malformed},
		{"another spelling of the same signature", good[:last] + string(alphabet[strings.IndexByte(alphabet, good[last])^1]), enduser.Malformed},
		{"an algorithm of elliptic curves, and an RSA key", es.sign(`{"alg":"ES256","kid":"rsa"}`, l.claims(nil)), enduser.WrongKey},
		{"no JSON", encode("x") + "." + parts[1] + "." + parts[2], enduser.Malformed},
		{"a list", es.sign(head(es), `[]`), enduser.Malformed},
		{"JSON twice", es.sign(head(es), l.claims(nil)+"{}"), enduser.Malformed},
		{"not UTF-8", es.sign(head(es), "{\"iss\":\"\xff\"}"), enduser.Malformed},
		{"no issuer", claim("iss", nil), enduser.Malformed},
		{"claims twice", es.sign(head(es), strings.Replace(l.claims(nil), `{`, `{"sub":"root",`, 1)), enduser.Malformed},
		{"claims twice, below", claim("x", json.RawMessage(`{"a":1,"a":2}`)), enduser.Malformed},
		{"claims twice, by escape", es.sign(head(es), strings.Replace(l.claims(nil), `{`, `{"s\u0075b":"root",`, 1)), enduser.Malformed},
		{"nested deep", claim("x", json.RawMessage(deep)), enduser.Malformed},
		{"too many values", claim("x", make([]int, enduser.MaxValues)), enduser.Malformed},
		{"huge", claim("x", strings.Repeat("x", enduser.MaxToken)), enduser.Malformed},
		{"ended", claim("exp", now-30), enduser.Expired},
		{"no end", claim("exp", nil), enduser.Malformed},
		{"an end that is a string", claim("exp", fmt.Sprint(now+60)), enduser.Malformed},
		{"an end beyond all time", claim("exp", json.RawMessage("1e300")), enduser.Malformed},
		{"an end before all time", claim("exp", -1), enduser.Malformed},
		{"an end that is true", claim("exp", true), enduser.Malformed},
		{"to come", claim("nbf", now+31), enduser.NotYet},
		{"issued in the future", claim("iat", now+31), enduser.NotYet},
		{"for another", claim("aud", "shop.evil"), enduser.Audience},
		{"for others", claim("aud", []string{"a", "b"}), enduser.Audience},
		{"for nobody", claim("aud", nil), enduser.Audience},
		{"for a number", claim("aud", 7), enduser.Audience},
		{"a subject that is a list", claim("sub", []string{"ada"}), enduser.Malformed},
	} {
		got := l.tokens("Bearer " + c.token)
		var refusal *enduser.Refusal
		if got[0].State != access.TokenInvalid || got[0].User != nil || !errors.As(l.refused, &refusal) || refusal.Reason != c.reason {
			t.Errorf("%s: %+v, %v; want it refused as %s", c.name, got[0], l.refused, c.reason)
		}
		if l.refused != nil && strings.Contains(l.refused.Error(), parts[1]) {
			t.Errorf("%s: the error holds the token", c.name)
		}
	}
	// And what is good stays good.
	for name, token := range map[string]string{
		"as it is": good, "within the leeway": claim("exp", now-29), "nearly begun": claim("nbf", now+30), "of a fraction of a second": claim("exp", float64(now)+0.5),
		"at+jwt": es.sign(`{"alg":"ES256","kid":"es256","typ":"application/at+jwt"}`, l.claims(nil)), "no name of a key": es.sign(`{"alg":"ES256"}`, l.claims(nil)),
		"its key in jwk": es.sign(fmt.Sprintf(`{"alg":"ES256","kid":"es256","jwk":%s}`, embedded), l.claims(nil)),
	} {
		if got := l.tokens("Bearer " + token); got[0].State != access.TokenValid {
			t.Errorf("%s: refused: %v", name, l.refused)
		}
	}
}

func TestHeaders(t *testing.T) {
	s := signers()["ES256"]
	custom := static("ES256")
	custom.Header = "x-user-token"
	another := static("ES256")
	another.Issuer = "https://another.test"
	l := newLab(t, static("ES256"), custom, another)
	token := s.sign(head(s), l.claims(nil))
	const absent, invalid, valid = access.TokenAbsent, access.TokenInvalid, access.TokenValid
	for _, c := range []struct {
		name   string
		header http.Header
		want   [3]access.TokenState
	}{
		{"nothing", http.Header{}, [3]access.TokenState{absent, absent, absent}},
		{"a token", http.Header{"Authorization": {"Bearer " + token}}, [3]access.TokenState{valid, absent, absent}},
		{"spaces", http.Header{"Authorization": {"bEaReR   " + token + " "}}, [3]access.TokenState{valid, absent, absent}},
		{"in its header", http.Header{"X-User-Token": {token}}, [3]access.TokenState{absent, valid, absent}},
		{"in its header, with the scheme", http.Header{"X-User-Token": {"Bearer " + token}}, [3]access.TokenState{absent, valid, absent}},
		{"another scheme", http.Header{"Authorization": {"Basic YTpi"}}, [3]access.TokenState{absent, absent, absent}},
		{"another scheme that begins like it", http.Header{"Authorization": {"Bearers " + token}}, [3]access.TokenState{absent, absent, absent}},
		{"a tab for a space", http.Header{"Authorization": {"bearer\t" + token}}, [3]access.TokenState{invalid, absent, invalid}},
		{"a comma before the space", http.Header{"Authorization": {"Bearer, " + token}}, [3]access.TokenState{invalid, absent, invalid}},
		{"no scheme", http.Header{"Authorization": {token}}, [3]access.TokenState{absent, absent, absent}},
		{"no token", http.Header{"Authorization": {"Bearer"}}, [3]access.TokenState{invalid, absent, invalid}},
		{"an empty token", http.Header{"Authorization": {"Bearer "}}, [3]access.TokenState{invalid, absent, invalid}},
		{"an empty header", http.Header{"X-User-Token": {""}}, [3]access.TokenState{absent, invalid, absent}},
		{"no JWT", http.Header{"Authorization": {"Bearer abc"}}, [3]access.TokenState{invalid, absent, invalid}},
		{"two", http.Header{"Authorization": {"Bearer " + token, "Bearer " + token}}, [3]access.TokenState{invalid, absent, invalid}},
	} {
		got := l.group.Tokens(t.Context(), c.header, nil)
		if states := [3]access.TokenState{got[0].State, got[1].State, got[2].State}; states != c.want {
			t.Errorf("%s: %v, want %v (%v)", c.name, states, c.want, l.refused)
		}
	}
}

// TestAudiencesOfOneIssuer: who is believed for one audience is not for another, known or not.
func TestAudiencesOfOneIssuer(t *testing.T) {
	other := static("ES256")
	other.Audiences = []string{"pay"}
	l := newLab(t, static("ES256"), other)
	s := signers()["ES256"]
	token := "Bearer " + s.sign(head(s), l.claims(nil))
	for range 2 {
		if got := l.tokens(token); got[0].State != access.TokenValid || got[1].State != access.TokenInvalid {
			t.Errorf("%+v", got)
		}
	}
}

// TestNoAudience: where a policy names no audience, nobody passes.
func TestNoAudience(t *testing.T) {
	i := static("ES256")
	i.Audiences = nil
	l := newLab(t, i)
	s := signers()["ES256"]
	for _, aud := range []any{nil, "", "shop", []string{}} {
		if got := l.tokens("Bearer " + s.sign(head(s), l.claims(map[string]any{"aud": aud}))); got[0].State == access.TokenValid {
			t.Errorf("a token for %v passes", aud)
		}
	}
}

func TestVerifiedTokensAreKept(t *testing.T) {
	l := newLab(t, static("ES256"))
	s := signers()["ES256"]
	header := http.Header{"Authorization": {"Bearer " + s.sign(head(s), l.claims(nil))}}
	first := l.group.Tokens(t.Context(), header, nil)
	second := l.group.Tokens(t.Context(), header, nil)
	if first[0].User == nil || first[0].User != second[0].User {
		t.Error("a token was verified twice")
	}
	buf := make([]access.Token, 0, 1)
	if n := testing.AllocsPerRun(100, func() { l.group.Tokens(t.Context(), header, buf) }); n > 0 {
		t.Errorf("a token that is known allocates %v times", n)
	}
	l.now = l.now.Add(time.Minute + enduser.Leeway)
	if got := l.tokens(header.Get("Authorization")); got[0].State != access.TokenInvalid {
		t.Error("a kept token outlives its end")
	}
	// Another use of the same issuer has the same keys and tokens; an issuer that is not used any more is forgotten.
	again := l.verifier.Use([]access.Issuer{static("ES256")}, nil)
	if len(again) != 2 || again[1].Tokens(t.Context(), header, nil) != nil {
		t.Error("groups are not in order")
	}
}

// TestWhatIsKeptIsBounded: many tokens, and long ones, push others out; what is pushed out is verified again.
func TestWhatIsKeptIsBounded(t *testing.T) {
	s := signers()["EdDSA"]
	for _, c := range []struct{ tokens, filler int }{{enduser.MaxCached + 50, 1}, {enduser.MaxCachedBytes/5000 + 50, 3500}} {
		l := newLab(t, static("EdDSA"))
		first := "Bearer " + s.sign(head(s), l.claims(map[string]any{"jti": "first"}))
		l.tokens(first)
		for k := range c.tokens {
			token := s.sign(head(s), l.claims(map[string]any{"jti": k, "x": strings.Repeat("x", c.filler)}))
			if got := l.tokens("Bearer " + token); got[0].State != access.TokenValid {
				t.Fatal(l.refused)
			}
		}
		if n, size, counted := l.group.Kept(); n > enduser.MaxCached || size > enduser.MaxCachedBytes || size != counted || n < 500 {
			t.Errorf("%d tokens of %d bytes (%d) are kept", n, size, counted)
		}
		if got := l.tokens(first); got[0].State != access.TokenValid {
			t.Error(l.refused)
		}
	}
}

// web is an issuer's server.
type web struct {
	answer  func(*http.Request) (int, string)
	fetches atomic.Int64
}

func (w *web) RoundTrip(r *http.Request) (*http.Response, error) {
	w.fetches.Add(1)
	status, body := w.answer(r)
	if status == 0 {
		return nil, errors.New("no such host")
	}
	resp := &http.Response{StatusCode: status, Status: fmt.Sprint(status), Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}
	if status == http.StatusFound {
		resp.Header.Set("Location", body)
	}
	return resp, nil
}

func fromURL(url string) access.Issuer {
	i := theIssuer
	i.JWKSURL = url
	return i
}

// TestKeysFromURL is in virtual time: rotation, failure, age.
func TestKeysFromURL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		document := atomic.Pointer[string]{}
		set := func(text string) { document.Store(&text) }
		set(jwks("ES256"))
		w := &web{answer: func(*http.Request) (int, string) {
			if d := *document.Load(); d != "" {
				return http.StatusOK, d
			}
			return http.StatusInternalServerError, ""
		}}
		var refused error
		v := enduser.New(enduser.Config{Transport: w, Refused: func(_ access.Issuer, err error) { refused = err }})
		group := v.Use([]access.Issuer{fromURL("https://id.test/keys")})[0]
		token := func(name string) access.TokenState {
			s := signers()[name]
			claims := fmt.Sprintf(`{"iss":%q,"aud":"shop","exp":%d,"jti":%q}`, issuerURL, time.Now().Add(time.Minute).Unix(), rand.Text())
			return group.Tokens(t.Context(), http.Header{"Authorization": {"Bearer " + s.sign(head(s), claims)}}, nil)[0].State
		}
		// Before anything runs, the first token has them fetched; many at once, once.
		var wait sync.WaitGroup
		for range 20 {
			wait.Go(func() {
				if token("ES256") != access.TokenValid {
					t.Error("the first token is refused")
				}
			})
		}
		wait.Wait()
		if n := w.fetches.Load(); n != 1 {
			t.Errorf("%d fetches for the first tokens, want one", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- v.Run(ctx) }()
		time.Sleep(time.Minute)
		fetched := w.fetches.Load()
		// A key that is not known: once, and not again for a while.
		for range 100 {
			if token("other") != access.TokenInvalid {
				t.Error("a token of no key passes")
			}
		}
		if n := w.fetches.Load() - fetched; n != 1 {
			t.Errorf("%d fetches for tokens of unknown keys, want one", n)
		}
		// The issuer changes its keys.
		set(jwks("other"))
		if token("ES256") != access.TokenValid {
			t.Error("a key went before anybody heard of it")
		}
		time.Sleep(enduser.UnknownKey)
		if token("other") != access.TokenValid {
			t.Errorf("a new key is not fetched: %v", refused)
		}
		if token("ES256") != access.TokenInvalid {
			t.Error("a key that is gone holds")
		}
		// What is no key set changes nothing; the last good keys hold, and then nobody passes.
		for _, bad := range []string{"", "{", `{"keys":[]}`, `{"keys":{}}`, `{"keys":[],"keys":[]}`, strings.Repeat(" ", 100) + strings.Repeat("x", enduser.MaxJWKS)} {
			set(bad)
			time.Sleep(8 * time.Minute)
			if token("other") != access.TokenValid {
				t.Errorf("the last good keys went with %.20q", bad)
			}
		}
		time.Sleep(20 * time.Minute)
		var refusal *enduser.Refusal
		if token("other") != access.TokenInvalid || !errors.As(refused, &refusal) || refusal.Reason != enduser.NoKeys {
			t.Errorf("keys that are too old hold: %v", refused)
		}
		set(jwks("other"))
		time.Sleep(enduser.UnknownKey)
		if token("other") != access.TokenValid {
			t.Errorf("the issuer is back: %v", refused)
		}
		// Kept tokens go with the keys that they were verified with.
		s := signers()["other"]
		kept := http.Header{"Authorization": {"Bearer " + s.sign(head(s), fmt.Sprintf(`{"iss":%q,"aud":"shop","exp":%d}`, issuerURL, time.Now().Add(time.Hour).Unix()))}}
		if group.Tokens(t.Context(), kept, nil)[0].State != access.TokenValid {
			t.Error("refused")
		}
		set(jwks("ES256"))
		time.Sleep(2 * enduser.RefreshEvery)
		if group.Tokens(t.Context(), kept, nil)[0].State != access.TokenInvalid {
			t.Error("a kept token outlives its key")
		}
		// Nothing is fetched for what nobody uses.
		v.Use()
		time.Sleep(time.Minute)
		fetched = w.fetches.Load()
		time.Sleep(time.Hour)
		if n := w.fetches.Load() - fetched; n != 0 {
			t.Errorf("%d fetches for an issuer that nobody uses", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWhereKeysAreFetched(t *testing.T) {
	for url, ok := range map[string]bool{
		"https://id.test/keys": true, "http://127.0.0.1:80/keys": true, "http://localhost/k": true, "http://[::1]/k": true,
		"http://id.test/keys": false, "http://10.0.0.1/keys": false, "http://localhost.evil.test/": false, "file:///etc/passwd": false, "": false, "https://": false,
		"https://user:secret@id.test/": false, "https://id.test/#x": false, "gopher://127.0.0.1/": false, "%": false,
	} {
		err := enduser.CheckURL(url)
		if (err == nil) != ok {
			t.Errorf("%q: %v", url, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells a password: %v", err)
		}
	}
	for _, c := range []struct {
		to string
		ok bool
	}{{"https://id.test/other", true}, {"/relative", true}, {"https://evil.test/keys", false}, {"http://id.test/keys", false}, {"https://id.test:8443/keys", false}} {
		w := &web{answer: func(r *http.Request) (int, string) {
			if r.URL.String() == "https://id.test/keys" {
				return http.StatusFound, c.to
			}
			return http.StatusOK, jwks("ES256")
		}}
		v := enduser.New(enduser.Config{Transport: w})
		s := signers()["ES256"]
		l := &lab{now: time.Now()}
		got := v.Use([]access.Issuer{fromURL("https://id.test/keys")})[0].Tokens(t.Context(), http.Header{"Authorization": {"Bearer " + s.sign(head(s), l.claims(nil))}}, nil)
		if (got[0].State == access.TokenValid) != c.ok {
			t.Errorf("a redirect to %s: %+v", c.to, got[0])
		}
	}
	w := &web{answer: func(*http.Request) (int, string) { return http.StatusFound, "/keys" }}
	v := enduser.New(enduser.Config{Transport: w})
	s := signers()["ES256"]
	l := &lab{now: time.Now()}
	v.Use([]access.Issuer{fromURL("https://id.test/keys")})[0].Tokens(t.Context(), http.Header{"Authorization": {"Bearer " + s.sign(head(s), l.claims(nil))}}, nil)
	if n := w.fetches.Load(); n > enduser.MaxRedirects+1 {
		t.Errorf("%d requests in a circle of redirects", n)
	}
}

func TestKeysFromFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		folder := t.TempDir()
		write := func(text string) {
			if err := os.WriteFile(filepath.Join(folder, "corp.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(filepath.Dir(folder), "outside.json"), []byte(jwks("ES256")), 0o600); err != nil {
			t.Fatal(err)
		}
		write(jwks("ES256"))
		v := enduser.New(enduser.Config{Folder: folder})
		from := func(name string) *enduser.Group {
			i := theIssuer
			i.JWKSFile = name
			return v.Use([]access.Issuer{i})[0]
		}
		token := func(g *enduser.Group, name string) access.TokenState {
			s := signers()[name]
			claims := fmt.Sprintf(`{"iss":%q,"aud":"shop","exp":%d,"jti":%q}`, issuerURL, time.Now().Add(time.Minute).Unix(), rand.Text())
			return g.Tokens(t.Context(), http.Header{"Authorization": {"Bearer " + s.sign(head(s), claims)}}, nil)[0].State
		}
		for _, name := range []string{"../outside.json", "/etc/passwd", "none.json", ".", "..", "", "a/../corp.json"} {
			if token(from(name), "ES256") == access.TokenValid {
				t.Errorf("keys are read from %q", name)
			}
		}
		g := from("corp.json")
		if token(g, "ES256") != access.TokenValid {
			t.Error("keys in a file are not read")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- v.Run(ctx) }()
		write(jwks("other"))
		time.Sleep(2 * enduser.ReadEvery)
		if token(g, "other") != access.TokenValid || token(g, "ES256") != access.TokenInvalid {
			t.Error("a changed file is not read")
		}
		write("half a fi")
		time.Sleep(enduser.MaxAge - time.Minute)
		if token(g, "other") != access.TokenValid {
			t.Error("a bad file took the last good keys away")
		}
		time.Sleep(2 * time.Minute)
		if token(g, "other") != access.TokenInvalid {
			t.Error("keys that are too old hold")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestKeysThatAreNone: what can't verify a token is left out of a set, and the rest holds.
func TestKeysThatAreNone(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatalf("a short RSA key can't be made: %v", err)
	}
	es := signers()["ES256"]
	key := func(k jose.JSONWebKey) string { return string(must(json.Marshal(k))) }
	bad := []string{
		key(jose.JSONWebKey{Key: small.Public(), KeyID: "small"}), key(jose.JSONWebKey{Key: []byte("a secret for HMAC that is long enough"), KeyID: "oct"}),
		key(jose.JSONWebKey{Key: es.key, KeyID: "private"}), key(jose.JSONWebKey{Key: es.key.Public(), KeyID: "enc", Use: "enc"}),
		key(jose.JSONWebKey{Key: es.key.Public(), KeyID: "alg", Algorithm: "HS256"}), `{"kty":"XYZ"}`, `{}`, `7`,
	}
	i := theIssuer
	i.JWKS = fmt.Sprintf(`{"keys":[%s]}`, strings.Join(bad, ","))
	l := newLab(t, i)
	short := signer{"small", jose.RS256, small}
	if got := l.tokens("Bearer " + short.sign(head(short), l.claims(nil))); got[0].State == access.TokenValid {
		t.Error("a short RSA key verifies")
	}
	for _, id := range []string{"enc", "private", "alg", "oct"} {
		if got := l.tokens("Bearer " + es.sign(fmt.Sprintf(`{"alg":"ES256","kid":%q}`, id), l.claims(nil))); got[0].State == access.TokenValid {
			t.Errorf("the key %s verifies", id)
		}
	}
	i.JWKS = fmt.Sprintf(`{"keys":[%s]}`, strings.Join(append(bad, key(jose.JSONWebKey{Key: es.key.Public(), KeyID: "es256", Algorithm: "ES256"})), ","))
	l = newLab(t, i)
	if got := l.tokens("Bearer " + es.sign(head(es), l.claims(nil))); got[0].State != access.TokenValid {
		t.Errorf("a good key among bad ones does not hold: %v", l.refused)
	}
	many := strings.Repeat(key(jose.JSONWebKey{Key: es.key.Public()})+",", enduser.MaxKeys)
	i.JWKS = fmt.Sprintf(`{"keys":[%s%s]}`, many, key(jose.JSONWebKey{Key: es.key.Public()}))
	l = newLab(t, i)
	if got := l.tokens("Bearer " + es.sign(head(es), l.claims(nil))); got[0].State == access.TokenValid {
		t.Error("a set of too many keys holds")
	}
}

func FuzzToken(f *testing.F) {
	l := newLab(f, static("ES256"))
	s := signers()["ES256"]
	good := s.sign(head(s), l.claims(nil))
	// Seeds with the parts decoded, so that what is inside them is what changes.
	f.Add([]byte(head(s)), []byte(l.claims(nil)), []byte("x"), true)
	f.Add([]byte(`{"alg":"none"}`), []byte(l.claims(nil)), []byte(""), true)
	f.Add([]byte(`{"alg":"HS256","kid":"es256","crit":["b64"],"b64":false}`), []byte(`{"iss":"https://id.test","aud":["shop"],"exp":1e9}`), []byte{0}, true)
	f.Add([]byte(good), []byte("a.b"), []byte("c.."), false)
	f.Fuzz(func(t *testing.T, a, b, c []byte, encode bool) {
		token := string(bytes.Join([][]byte{a, b, c}, []byte(".")))
		if encode {
			e := base64.RawURLEncoding.EncodeToString
			token = e(a) + "." + e(b) + "." + e(c)
		}
		got := l.tokens("Bearer " + token)
		if got[0].State == access.TokenValid && token != good {
			t.Fatalf("%q passes, whom nobody has signed", token)
		}
	})
}

func FuzzJWKS(f *testing.F) {
	f.Add([]byte(jwks("ES256", "RS256", "EdDSA")))
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"},7,null]}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		i := theIssuer
		i.JWKS = string(document)
		l := newLab(t, i)
		input := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(l.claims(nil)))
		if l.tokens("Bearer " + input + ".")[0].State == access.TokenValid {
			t.Fatal("a token without a signature passes")
		}
	})
}

func BenchmarkTokens(b *testing.B) {
	for _, name := range []string{"known", "ES256", "RS256"} {
		b.Run(name, func(b *testing.B) {
			l := newLab(b, static("ES256", "RS256"))
			algorithm := name
			if name == "known" {
				algorithm = "ES256"
			}
			s := signers()[algorithm]
			header := http.Header{"Authorization": {"Bearer " + s.sign(head(s), l.claims(nil))}}
			buf := make([]access.Token, 0, 1)
			b.ReportAllocs()
			for b.Loop() {
				if name != "known" {
					l.group = enduser.New(enduser.Config{Now: func() time.Time { return l.now }}).Use([]access.Issuer{static(algorithm)})[0]
				}
				if l.group.Tokens(b.Context(), header, buf)[0].State != access.TokenValid {
					b.Fatal("refused")
				}
			}
		})
	}
}
