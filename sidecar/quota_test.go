package sidecar

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/access"
	"github.com/isthmus-mesh/isthmus/trust/quota"
)

// issuer signs tokens of end users.
type issuer struct {
	key *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{key}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// jwks is the document with the public key.
func (i *issuer) jwks(t *testing.T) string {
	t.Helper()
	point, err := i.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]any{"keys": []any{map[string]any{
		"kty": "EC", "crv": "P-256", "kid": "k", "alg": "ES256", "use": "sig", "x": b64(point[1:33]), "y": b64(point[33:]),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (i *issuer) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	text := b64([]byte(`{"alg":"ES256","kid":"k","typ":"JWT"}`)) + "." + b64(body)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + b64(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// TestEndUsers: a rule about end users asks for a good token, says so to who has none, and tells who has a good one and isn't meant nothing.
func TestEndUsers(t *testing.T) {
	w := newWorld(t)
	corp := newIssuer(t)
	keys := t.TempDir()
	if err := os.WriteFile(filepath.Join(keys, "corp.json"), []byte(corp.jwks(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, here := serveApp(t, answering("eu"))
	last := w.server(eu, "checkout", topology.HTTP, here).snapshots.Load()
	near := w.start(must(trust.WorkloadID(eu, "shop", "checkout")), last, func(c *Config) { c.KeysDir = keys })
	near.police([]access.Policy{{
		Name:    "shop/p",
		Issuers: []access.Issuer{{Name: "corp", Issuer: "https://login.example", Audiences: []string{"shop"}, JWKSFile: "corp.json"}},
		Rules: []access.Rule{{Name: "pay", From: allow("", eu, "web").From, Users: []access.User{
			{Issuer: "corp", Claims: []access.Claim{{Path: []string{"groups"}, Values: exact("pay")}}},
		}}},
	}})
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
	claims := func(change func(map[string]any)) map[string]any {
		m := map[string]any{"iss": "https://login.example", "aud": "shop", "sub": "ann", "exp": time.Now().Add(time.Hour).Unix(), "groups": []string{"pay", "ops"}}
		change(m)
		return m
	}
	for _, x := range []struct {
		name, token, challenge string
		status                 int
	}{
		{"none", "", "Bearer", http.StatusUnauthorized},
		{"good", corp.token(t, claims(func(map[string]any) {})), "", http.StatusOK},
		{"of another group", corp.token(t, claims(func(m map[string]any) { m["groups"] = "ops" })), "", http.StatusForbidden},
		{"expired", corp.token(t, claims(func(m map[string]any) { m["exp"] = time.Now().Add(-time.Hour).Unix() })), `Bearer error="invalid_token"`, http.StatusUnauthorized},
		{"of another key", newIssuer(t).token(t, claims(func(map[string]any) {})), `Bearer error="invalid_token"`, http.StatusUnauthorized},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, checkoutURL, nil)
		if err != nil {
			t.Fatal(err)
		}
		if x.token != "" {
			req.Header.Set("Authorization", "Bearer "+x.token)
		}
		resp, body := do(t, c.client(), req)
		if resp.StatusCode != x.status || resp.Header.Get("Www-Authenticate") != x.challenge || strings.Contains(body, "shop/p") {
			t.Errorf("%s: %s %q %q, want %d %q", x.name, resp.Status, resp.Header.Get("Www-Authenticate"), body, x.status, x.challenge)
		}
	}
	if n := near.counter("isthmus_sidecar_tokens_refused_total", "issuer=https://login.example", "reason=expired"); n != 1 {
		t.Errorf("%v expired tokens are counted", n)
	}
	if log := near.logs.String(); strings.Contains(log, "eyJ") {
		t.Error("a token is in the log")
	}
}

// limit puts quotas in force for what a server serves.
func (s *side) limit(quotas ...topology.Quota) {
	last := s.snapshots.Load()
	spec := topology.SnapshotSpec{Self: last.Self(), Clusters: last.Clusters()}
	for _, in := range last.Inbounds() {
		limited := *in
		limited.Quotas = quotas
		spec.Inbounds = append(spec.Inbounds, &limited)
	}
	s.snapshots.Store(topology.NewSnapshot(spec))
}

// TestQuota: what is above a limit gets 429 and is told when to come again; what is counted apart is; a change of something else fills nothing.
func TestQuota(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	each := topology.Quota{
		Name: "shop/fair/each", Per: topology.PerCaller, Limit: quota.Limit{Name: "each", Rate: 1.0 / 3600, Burst: 3, Window: time.Hour},
		To: []access.Operation{{Methods: []string{"GET"}}},
	}
	watch := topology.Quota{Name: "shop/watch/all", Per: topology.PerService, Audit: true, Limit: quota.Limit{Name: "all", Rate: 1.0 / 3600, Burst: 1, Window: time.Hour}}
	near.limit(each, watch)
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
	admin := w.start(must(trust.WorkloadID(eu, "shop", "admin")), w.snapshot(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}), nil)
	for i, want := range []string{`"each";r=2;t=3600`, `"each";r=1;t=7200`, `"each";r=0;t=3600`} {
		resp, _ := get(t, c.client(), checkoutURL)
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Ratelimit-Policy") != `"each";q=1;w=3600` || resp.Header.Get("Ratelimit") != want {
			t.Errorf("request %d: %s %q %q, want %q", i, resp.Status, resp.Header.Get("Ratelimit-Policy"), resp.Header.Get("Ratelimit"), want)
		}
	}
	near.limit(watch, each) // not a new limit
	resp, body := get(t, c.client(), checkoutURL)
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get(headerError) != string(CodeTooMany) || resp.Header.Get("Retry-After") != "3600" ||
		strings.Contains(body, "shop/fair") {
		t.Errorf("above: %s %v %q", resp.Status, resp.Header, body)
	}
	if resp, _ := get(t, admin.client(), checkoutURL); resp.StatusCode != http.StatusOK {
		t.Errorf("another caller: %s", resp.Status)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL, nil)
	if resp, _ := do(t, c.client(), req); resp.StatusCode != http.StatusOK || resp.Header.Get("Ratelimit") != "" {
		t.Errorf("what the limit is not for: %s %q", resp.Status, resp.Header.Get("Ratelimit"))
	}
	if n := near.counter("isthmus_sidecar_quota_decisions_total", "quota=shop/fair/each", "decision=deny"); n != 1 {
		t.Errorf("%v refused", n)
	}
	if n := near.counter("isthmus_sidecar_quota_decisions_total", "quota=shop/watch/all", "decision=audit-deny"); n != 5 {
		t.Errorf("%v would have been refused, want 5", n)
	}
}

// TestLeases: a sidecar asks for shares of shared quotas, with what was asked of it, and lets through what it hears.
func TestLeases(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	var mu sync.Mutex
	var asked configstream.Demands // guarded by mu
	last := w.server(eu, "checkout", topology.HTTP, here).snapshots.Load()
	near := w.start(must(trust.WorkloadID(eu, "shop", "checkout")), last, func(c *Config) {
		c.Lease = func(_ context.Context, d configstream.Demands) (configstream.Shares, time.Duration, error) {
			mu.Lock()
			defer mu.Unlock()
			out := make(configstream.Shares)
			for name, demands := range d {
				out[name] = nil
				for _, demand := range demands {
					asked = d
					out[name] = append(out[name], quota.Share{Bucket: demand.Bucket, Rate: 100})
				}
			}
			return out, time.Minute, nil
		}
	})
	near.limit(topology.Quota{
		Name: "shop/fair/all", Per: topology.PerService, Limit: quota.Limit{Name: "all", Rate: 100, Burst: 10, Shared: true, Replicas: 10},
	})
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
	get(t, c.client(), checkoutURL)
	waitFor(t, "control is asked", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(asked["shop/fair/all"]) == 1
	})
}

// TestQuotaOfOneSparesThatOfAll: a caller above its own limit uses up nothing of the one that all have together, in whatever order they stand.
func TestQuotaOfOneSparesThatOfAll(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	near := w.server(eu, "checkout", topology.HTTP, here)
	each := topology.Quota{Name: "shop/fair/each", Per: topology.PerCaller, Limit: quota.Limit{Name: "each", Rate: 1.0 / 3600, Burst: 3, Window: time.Hour}}
	all := topology.Quota{Name: "shop/fair/all", Per: topology.PerService, Limit: quota.Limit{Name: "all", Rate: 1.0 / 3600, Burst: 10, Window: time.Hour}}
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
	for k, quotas := range [][]topology.Quota{{each, all}, {all, each}} {
		near.limit(quotas...)
		for i := range 20 {
			want := http.StatusTooManyRequests
			if k == 0 && i < each.Limit.Burst {
				want = http.StatusOK
			}
			if resp, _ := get(t, c.client(), checkoutURL); resp.StatusCode != want {
				t.Fatalf("order %d, request %d: %s, want %d", k, i, resp.Status, want)
			}
		}
	}
	admin := w.start(must(trust.WorkloadID(eu, "shop", "admin")), w.snapshot(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}), nil)
	resp, _ := get(t, admin.client(), checkoutURL)
	if left := resp.Header.Get("Ratelimit"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(left, `"all";r=6;`) || !strings.Contains(left, `"each";r=2;`) {
		t.Errorf("another caller: %s %q", resp.Status, left)
	}
}
