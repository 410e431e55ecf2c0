package main

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/trust"
)

// trustWorld is clusters that trust each other, each with a real authority, and the admin API of each as far as `isthmus trust` asks for it.
type trustWorld struct {
	t        *testing.T
	clusters []*trustCluster
}

type trustCluster struct {
	world     *trustWorld
	name      string
	domain    spiffeid.TrustDomain
	authority *trust.Authority
	socket    string

	mu       sync.Mutex
	trust    admin.Trust             // guarded by mu
	proxies  []admin.Proxy           // guarded by mu
	asked    admin.Revocation        // guarded by mu: the last
	rotates  []admin.RotationRequest // guarded by mu: what was asked
	rotation []admin.Rotation        // guarded by mu: what GET shows, one after the other
}

func newTrustWorld(t *testing.T, names ...string) *trustWorld {
	t.Helper()
	alone(t)
	w := &trustWorld{t: t}
	for _, name := range names {
		td := spiffeid.RequireTrustDomainFromString(name + ".test")
		authority, err := trust.OpenAuthority(trust.AuthorityConfig{TrustDomain: td, Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		w.clusters = append(w.clusters, &trustCluster{world: w, name: name, domain: td, authority: authority})
	}
	now := time.Now()
	for i, c := range w.clusters {
		c.trust = admin.Trust{
			Cluster: c.name, TrustDomain: c.domain.Name(), Now: now,
			Authority: admin.Authority{Kind: "builtin", SVIDLifetime: time.Hour},
			Rotation:  admin.Rotation{Phase: admin.RotationIdle, NextStep: now.Add(45 * 24 * time.Hour)},
		}
		for j := range w.clusters {
			o := w.clusters[(i+j)%len(w.clusters)]
			d := admin.TrustedDomain{TrustDomain: o.domain.Name(), Cluster: o.name, Source: "peer", State: "Fresh", Sequence: 7, Issued: now.Add(-12 * time.Second), JWTKeys: []string{"k"}}
			if o == c {
				d.Source = "own"
			}
			for _, root := range o.authority.Roots() {
				d.Roots = append(d.Roots, admin.Certificate{Subject: root.Subject.CommonName, State: "active", KeyID: trust.KeyID(root), NotBefore: root.NotBefore, NotAfter: root.NotAfter})
				d.NotAfter = root.NotAfter
			}
			c.trust.Domains = append(c.trust.Domains, d)
		}
		id, err := trust.WorkloadID(c.domain, "shop", "web")
		if err != nil {
			t.Fatal(err)
		}
		c.proxies = []admin.Proxy{{Program: "sidecar", Name: "shop/web-0", SPIFFEID: id.String(), Connected: true, SVIDEnds: now.Add(40 * time.Minute)}}
		c.socket = serveHandler(t, c.handler())
	}
	return w
}

// serveHandler serves on a Unix socket.
func serveHandler(t *testing.T, h http.Handler) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "isthmus-") //nolint:usetesting // t.TempDir is too long for a Unix socket on some systems
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
		_ = os.RemoveAll(dir)
	})
	return socket
}

// args are the arguments that mean all clusters, after others.
func (w *trustWorld) args(args ...string) []string {
	for _, c := range w.clusters {
		args = append(args, "--control", c.socket)
	}
	return args
}

func (w *trustWorld) cluster(name string) *trustCluster {
	i := slices.IndexFunc(w.clusters, func(c *trustCluster) bool { return c.name == name })
	return w.clusters[i]
}

func (c *trustCluster) handler() http.Handler {
	say := func(v any) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(rw).Encode(v) }
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", say(admin.Status{Cluster: c.name, TrustDomain: c.domain.Name(), Now: c.trust.Now, Ready: true, Started: c.trust.Now}))
	locked := func(h func(http.ResponseWriter, *http.Request) any) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			c.mu.Lock()
			defer c.mu.Unlock()
			v := h(rw, r)
			if err, ok := v.(error); ok {
				rw.WriteHeader(http.StatusConflict)
				v = map[string]string{"error": err.Error()}
			}
			_ = json.NewEncoder(rw).Encode(v)
		}
	}
	mux.HandleFunc("GET /v1/proxies", locked(func(http.ResponseWriter, *http.Request) any { return c.proxies }))
	mux.HandleFunc("GET /v1/trust", locked(func(http.ResponseWriter, *http.Request) any {
		if len(c.rotation) > 0 {
			c.trust.Rotation, c.rotation = c.rotation[0], c.rotation[1:]
		}
		return c.trust
	}))
	mux.HandleFunc("GET /v1/trust/bundles/{domain}", locked(func(_ http.ResponseWriter, r *http.Request) any { return c.bundle(r.PathValue("domain")) }))
	mux.HandleFunc("POST /v1/trust/rotation", locked(func(_ http.ResponseWriter, r *http.Request) any { return c.rotate(r) }))
	mux.HandleFunc("POST /v1/trust/revocations", locked(func(_ http.ResponseWriter, r *http.Request) any { return c.revoke(r) }))
	mux.HandleFunc("DELETE /v1/trust/revocations", locked(func(_ http.ResponseWriter, r *http.Request) any {
		n := len(c.trust.Revocations)
		c.trust.Revocations = slices.DeleteFunc(c.trust.Revocations, func(v admin.Revocation) bool { return v.Subject == r.URL.Query().Get("subject") })
		if len(c.trust.Revocations) == n {
			return fmt.Errorf("%s is not revoked", r.URL.Query().Get("subject"))
		}
		return struct{}{}
	}))
	mux.HandleFunc("POST /v1/trust/svids", locked(func(_ http.ResponseWriter, r *http.Request) any { return c.issue(r) }))
	return mux
}

func (c *trustCluster) bundle(domain string) any {
	for _, o := range c.world.clusters {
		if o.domain.Name() == domain {
			doc, err := trust.MarshalBundle(o.domain, trust.Bundle{Authorities: o.authority.Roots()}, 7, 0)
			if err != nil {
				return err
			}
			return json.RawMessage(doc)
		}
	}
	return fmt.Errorf("no bundle of %s", domain)
}

func (c *trustCluster) rotate(r *http.Request) any {
	var ask admin.RotationRequest
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
		return err
	}
	c.rotates = append(c.rotates, ask)
	if ask.Step == "activate" && !ask.Force && len(c.trust.Rotation.Holds) > 0 {
		return fmt.Errorf("not every member has acknowledged")
	}
	next := c.trust.Rotation
	next.Phase = map[string]string{"start": admin.RotationPublished, "activate": admin.RotationActivated, "abort": admin.RotationIdle}[ask.Step]
	if !ask.DryRun {
		c.trust.Rotation = next
	}
	return next
}

func (c *trustCluster) revoke(r *http.Request) any {
	var v admin.Revocation
	if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
		return err
	}
	v.At, v.Bound, v.Matches = c.trust.Now.Add(-time.Second), "here at once, peers within 10 s", 1
	v.Kind = "domain"
	c.asked = v
	switch {
	case strings.HasPrefix(v.Subject, "spiffe://"):
		v.Kind = "id"
	case strings.HasPrefix(v.Subject, "sha256:"):
		v.Kind = "key"
	}
	if v.DryRun {
		return v
	}
	c.trust.Revocations = append(c.trust.Revocations, v)
	for i := range c.trust.Domains {
		d := &c.trust.Domains[i]
		switch {
		case v.Kind == "domain" && d.TrustDomain == v.Subject:
			d.State, d.Reason = "Revoked", v.Reason
		case v.Kind == "key":
			d.RevokedKeys = append(d.RevokedKeys, v.Subject)
			d.Revoked++
		case v.Kind == "id" && strings.HasPrefix(v.Subject, "spiffe://"+d.TrustDomain+"/"):
			d.RevokedIDs = map[string]time.Time{v.Subject: v.At}
			if v.Block {
				d.RevokedIDs[v.Subject] = time.Time{}
			}
			d.Revoked++
		}
	}
	return v
}

func (c *trustCluster) issue(r *http.Request) any {
	var ask admin.SVIDRequest
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
		return err
	}
	id, err := spiffeid.FromString(ask.SPIFFEID)
	if err != nil {
		return err
	}
	chain, err := c.authority.Issue(ask.CSR, id)
	if err != nil {
		return err
	}
	out := admin.SVID{SPIFFEID: ask.SPIFFEID}
	for _, cert := range chain {
		out.Chain = append(out.Chain, cert.Raw)
	}
	return out
}

// want fails unless stdout or stderr has every part, and the exit code is that.
func want(t *testing.T, code int, args []string, parts ...string) string {
	t.Helper()
	out, chatter, got := isthmus(t, args...)
	if got != code {
		t.Errorf("isthmus %s: exit %d, want %d\n%s%s", strings.Join(args[:min(3, len(args))], " "), got, code, out, chatter)
	}
	for _, p := range parts {
		if !strings.Contains(out+chatter, p) {
			t.Errorf("isthmus %s: no %q in:\n%s%s", strings.Join(args[:min(3, len(args))], " "), p, out, chatter)
		}
	}
	return out
}

func TestTrustListAndShow(t *testing.T) {
	w := newTrustWorld(t, "eu", "us")
	want(t, exitOK, w.args("trust", "list"), "eu        eu.test        eu   own", "us.test        us   peer", "12s", "in 89d")
	var list []clusterTrust
	if err := json.Unmarshal([]byte(want(t, exitOK, w.args("trust", "list", "-o", "json"))), &list); err != nil || len(list) != 2 || len(list[0].Domains) != 2 {
		t.Errorf("%v: %+v", err, list)
	}
	for _, name := range []string{"us.test", "us", "spiffe://us.test"} {
		want(t, exitOK, w.args("trust", "show", name), "us.test, as eu sees it", "us.test, as us sees it", "authority    builtin", "active", "sha256:")
	}
	want(t, exitUsage, w.args("trust", "show", "us.tset"), "did you mean us.test?")
	want(t, exitUnreachable, []string{"trust", "show", "us", "--control", "/nowhere"})
	// One that does not answer keeps nobody from seeing the others.
	want(t, exitUnreachable, w.args("trust", "list", "--control", "/nowhere"), "us.test")
}

func TestTrustBundle(t *testing.T) {
	w := newTrustWorld(t, "eu", "us")
	certs, err := trust.ParsePEM([]byte(want(t, exitOK, w.args("trust", "bundle", "us"))))
	if err != nil || !certs[0].Equal(w.cluster("us").authority.Roots()[0]) {
		t.Errorf("PEM: %v", err)
	}
	want(t, exitOK, w.args("trust", "bundle", "us", "-o", "spiffe"), `"spiffe_sequence": 7`)
	if out := want(t, exitOK, w.args("trust", "bundle", "us", "-o", "jwks", "--cluster", "eu"), `"x5c"`); strings.Contains(out, "spiffe_sequence") {
		t.Errorf("not a plain JWKS:\n%s", out)
	}
	want(t, exitUsage, w.args("trust", "bundle", "us", "-o", "table"), "want one of pem, jwks, spiffe")
	want(t, exitUsage, w.args("trust", "bundle", "us", "--cluster", "xx"), `no cluster "xx"`)
}

func TestTrustRotate(t *testing.T) {
	w := newTrustWorld(t, "eu", "us")
	us := w.cluster("us")
	want(t, exitUsage, w.args("trust", "rotate"), "whose root?")
	want(t, exitUsage, w.args("trust", "rotate", "us", "--status", "--abort"), "one of --status")
	want(t, exitUsage, w.args("trust", "rotate", "us", "--force"), "--force goes with --activate")
	want(t, exitUsage, w.args("trust", "rotate", "us", "--cluster", "eu"), "not of eu")
	want(t, exitOK, w.args("trust", "rotate", "us", "--status"), "idle")
	want(t, exitOK, w.args("trust", "rotate", "us", "--dry-run"), "would be done: start")
	if us.trust.Rotation.Phase != admin.RotationIdle {
		t.Fatal("a dry run has done something")
	}

	held := admin.Rotation{
		Phase: admin.RotationPublished, Since: time.Now(), Holds: []string{"sidecar shop/web-0 has not acknowledged"},
		Members: []admin.RotationMember{{Name: "cluster eu", Acknowledged: true}, {Name: "sidecar shop/web-0", Reason: "not connected for 3m"}},
	}
	free := held
	free.Holds = nil
	us.rotation = []admin.Rotation{{Phase: admin.RotationIdle}, held, held, free}
	want(t, exitOK, w.args("trust", "rotate", "us", "--wait"), "1 of 2 have the next root in force", "waiting for sidecar shop/web-0 (not connected for 3m)", "the new root signs")
	if last := us.rotates[len(us.rotates)-1]; last.Force || last.Step != "activate" {
		t.Errorf("asked for %+v", last)
	}
	us.trust.Rotation = admin.Rotation{Phase: admin.RotationIdle}
	us.rotation = []admin.Rotation{held}
	want(t, exitFinding, w.args("trust", "rotate", "us", "--status"), "sidecar shop/web-0", "not connected for 3m", "held:")
	want(t, exitTimeout, w.args("trust", "rotate", "us", "--status", "--wait", "--patience", "700ms"), "published, and not activated", "It stays published", "--activate", "--status")
	two := held
	two.Retires = us.trust.Now.Add(time.Hour)
	us.rotation = []admin.Rotation{two}
	if out, chatter, code := isthmus(t, w.args("trust", "rotate", "us", "--activate")...); code != exitFinding || !strings.Contains(out+chatter, "The root before the last still") ||
		strings.Contains(out+chatter, "--activate --force") {
		t.Errorf("exit %d: %s%s", code, out, chatter)
	}
	want(t, exitUnreachable, []string{"trust", "rotate", "us", "--status", "--control", w.cluster("eu").socket, "--control", "/nowhere"}, "us.test: its own control plane is none of those that answered")
	want(t, exitUsage, w.args("trust", "show"), "DOMAIN is missing: isthmus trust show us.example.org")
	want(t, exitUsage, w.args("trust", "show", "us", "eu"), `unexpected argument "eu"`)
	us.rotation = []admin.Rotation{held}
	want(t, exitFinding, w.args("trust", "rotate", "us", "--activate"), "Held by: sidecar shop/web-0", "--activate --force")
	us.rotation = []admin.Rotation{held}
	want(t, exitOK, w.args("trust", "rotate", "us", "--activate", "--force", "-o", "json"), `"phase": "activated"`)
	if last := us.rotates[len(us.rotates)-1]; !last.Force || last.Step != "activate" {
		t.Errorf("asked for %+v", last)
	}
	want(t, exitOK, w.args("trust", "rotate", "us", "--abort"), "the rotation is undone")
	if n := len(w.cluster("eu").rotates); n != 0 {
		t.Errorf("%d requests to another cluster", n)
	}
}

func TestTrustRevoke(t *testing.T) {
	w := newTrustWorld(t, "eu", "us", "ap")
	want(t, exitOK, w.args("trust", "revoke", "us", "--dry-run"), "would be", "it is this cluster's own domain")
	if n := len(w.cluster("eu").trust.Revocations); n != 0 {
		t.Fatal("a dry run has done something")
	}
	want(t, exitOK, w.args("trust", "revoke", "us.test", "--reason", "its key was copied"), "peers within 10 s", "isthmus trust revoke us.test --undo")
	want(t, exitFinding, w.args("trust", "peers"), "eu: us: revoked here, its key was copied", "x")
	want(t, exitOK, w.args("trust", "show", "us"), "its key was copied", "when undone")
	want(t, exitOK, w.args("trust", "revoke", "us.test", "--undo"), "undone")
	if n := len(w.cluster("ap").trust.Revocations) + len(w.cluster("eu").trust.Revocations); n != 0 {
		t.Errorf("%d revocations are left", n)
	}
	want(t, exitFinding, w.args("trust", "revoke", "us.test", "--undo"), "nothing was done: it is not revoked here")
	want(t, exitFinding, []string{"trust", "revoke", "us", "--control", w.cluster("us").socket}, "own domain")

	want(t, exitUsage, w.args("trust", "revoke", "us.tst"), "did you mean us.test?")
	want(t, exitUsage, w.args("trust", "revoke", "spiffe://us.tst/ns/shop/sa/web"), "did you mean us.test?")
	want(t, exitUsage, w.args("trust", "revoke", "us", "--block"), "--block is for SPIFFE IDs")
	want(t, exitUsage, w.args("trust", "revoke", "sha256:abc"), "64 lower-case hex digits")
	want(t, exitUsage, w.args("trust", "revoke", "us", "--undo", "--reason", "x"), "don't go with")

	want(t, exitOK, w.args("trust", "revoke", "spiffe://us.test/ns/shop/sa/web", "--block"), "id", "revoked")
	var out []revokedIn
	file := filepath.Join(t.TempDir(), "root.pem")
	root := w.cluster("eu").authority.Roots()[0]
	if err := os.WriteFile(file, trust.MarshalPEM([]*x509.Certificate{root}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want(t, exitOK, w.args("trust", "revoke", file, "-o", "json"))), &out); err != nil || len(out) != 3 || out[0].Subject != trust.KeyID(root) {
		t.Errorf("%v: %+v", err, out)
	}
	if ask := w.cluster("us").asked; ask.TrustDomain != "eu.test" || !ask.Ends.IsZero() {
		t.Errorf("of the key of an authority it says %+v", ask)
	}
	want(t, exitFinding, w.args("trust", "peers"), "us: eu: revoked here, the key of every root it has")
	want(t, exitUnreachable, w.args("trust", "revoke", "ap", "--control", "/nowhere"), "revoked")
}

func TestTrustVerify(t *testing.T) {
	w := newTrustWorld(t, "eu", "us")
	eu, us := w.cluster("eu"), w.cluster("us")
	dir := filepath.Join(t.TempDir(), "probe")
	id := "spiffe://us.test/ns/ops/sa/probe"

	want(t, exitUsage, w.args("trust", "svid", "issue", id), "--out DIR")
	want(t, exitUsage, w.args("trust", "svid", "issue", "spiffe://uss.test/x", "--out", dir), "did you mean us.test?")
	want(t, exitOK, w.args("trust", "svid", "issue", id, "--out", dir, "--dry-run"), "svid.pem")
	if _, err := os.Stat(dir); err == nil {
		t.Fatal("a dry run has made something")
	}
	want(t, exitOK, w.args("trust", "svid", "issue", id, "--out", dir), "svid.pem", "in 59m")
	if info, err := os.Stat(filepath.Join(dir, "key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info.Mode(), err)
	}
	want(t, exitFinding, w.args("trust", "svid", "issue", id, "--out", dir), "svid.pem is there already")
	want(t, exitOK, w.args("trust", "svid", "issue", id, "--out", dir, "--force"), "svid.pem")
	want(t, exitUsage, w.args("trust", "svid", "issue", "spiffe://us.test", "--out", dir), "name a member of it")
	want(t, exitUsage, w.args("trust", "svid", "issue", "spiffe://us.test/isthmus/gateway/g", "--out", dir), "reserved")
	want(t, exitOK, w.args("trust", "svid", "show"), "shop/web-0", "in 40m")
	want(t, exitOK, w.args("trust", "svid", "show", "eu/shop/web-0"), "spiffe://eu.test/ns/shop/sa/web")
	want(t, exitUsage, w.args("trust", "svid", "show", "shop/wbe-0"), "did you mean shop/web-0?")

	svid := filepath.Join(dir, "svid.pem")
	want(t, exitOK, w.args("trust", "verify", svid), "by the bundles of eu:", "by the bundles of us:", "is signed by the root \"us.test root\"", "passes, until")
	want(t, exitOK, []string{"trust", "verify", svid, "--bundle", filepath.Join(dir, "bundle.pem")}, "passes, until", "not known: a bundle in a file")
	if doc, err := trust.MarshalBundle(us.domain, trust.Bundle{Authorities: eu.authority.Roots()}, 1, 0); err == nil {
		t.Errorf("a bundle of another's root: %s", doc)
	}
	want(t, exitFinding, []string{"trust", "verify", svid, "--bundle", filepath.Join(dir, "bundle.pem"), "--trust-domain", "eu.test"}, "refused: unknown_domain")
	want(t, exitUsage, []string{"trust", "verify", svid, "--trust-domain", "eu.test"}, "goes with --bundle")
	want(t, exitUsage, w.args("trust", "verify", "nothing"), "no file", "no HOST:PORT")
	want(t, exitUsage, w.args("trust", "verify", "spiffe://US.test/x"), "no SPIFFE ID")
	want(t, exitUnreachable, w.args("trust", "verify", "127.0.0.1:1"), "127.0.0.1:1")

	// By ID: who holds it, and whether it would pass.
	held := "spiffe://us.test/ns/shop/sa/web"
	want(t, exitOK, w.args("trust", "verify", held), "shop/web-0, connected: yes, its SVID ends in")
	want(t, exitOK, w.args("trust", "revoke", id, "--reason", "gone"))
	want(t, exitFinding, w.args("trust", "verify", svid), "refused: revoked", "what was issued to this ID up to")
	want(t, exitFinding, w.args("trust", "verify", id), "what is issued now is not", "held by nobody here")
	want(t, exitOK, w.args("trust", "revoke", "us.test"))
	var out []verified
	text := want(t, exitFinding, w.args("trust", "verify", held, "-o", "json"))
	if err := json.Unmarshal([]byte(text), &out); err != nil || len(out) != 2 || out[0].Reason != "unknown_domain" || !strings.Contains(text, "it is Revoked here") || !out[1].Passes {
		t.Errorf("%v: %s", err, text)
	}

	// What a control counts and does not name is not passed over.
	eu.trust.Domains[0].Revoked = 3
	want(t, exitFinding, w.args("trust", "verify", "spiffe://eu.test/x"), "3 keys and IDs are revoked, and names 0")
}

// A server is asked for what it shows, and that is explained.
func TestTrustVerifyServer(t *testing.T) {
	w := newTrustWorld(t, "eu", "us")
	us := w.cluster("us")
	identity, bundles := trust.NewIdentity(), trust.NewBundles()
	id, err := trust.GatewayID(us.domain, "gateway-0")
	if err != nil {
		t.Fatal(err)
	}
	identity.Set(svidOf(t, us, id))
	bundles.Set(us.domain, trust.Bundle{Authorities: us.authority.Roots()})
	address := serveTLS(t, trust.ServerConfig(trust.TLS{Identity: identity, Bundles: bundles, Policy: trust.AllowGateways(us.domain), Protocols: []string{"isthmus-test/1"}}))
	want(t, exitOK, w.args("trust", "verify", address), id.String(), "passes, until")
	want(t, exitOK, w.args("trust", "verify", address, "--alpn", "isthmus-test/1", "--sni", "x"), "passes, until")
	want(t, exitFinding, w.args("trust", "verify", address, "--alpn", "h2"), "TLS handshake", "h2")
	key := trust.Fingerprint(mustSVID(t, identity).Certificates[0])
	want(t, exitOK, w.args("trust", "revoke", "sha256:"+hex.EncodeToString(key[:])))
	want(t, exitFinding, w.args("trust", "verify", address), "refused: revoked", "the key of certificate 1")
}

// Ten clusters fit into a hundred columns, whatever is the matter with them.
func TestTrustPeersOfTen(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var names []string
	for i := range 10 {
		names = append(names, fmt.Sprintf("region-%d", i))
	}
	domain := func(i int) admin.TrustedDomain {
		return admin.TrustedDomain{
			TrustDomain: names[i] + ".test", Cluster: names[i], Source: "peer", State: "Fresh", Sequence: 1772366400000, Issued: now.Add(-12 * time.Second),
			Roots: []admin.Certificate{{Subject: "root"}}, NotAfter: now.Add(89*24*time.Hour + time.Minute),
		}
	}
	var all []asked[admin.Trust]
	for i, name := range names {
		tr := admin.Trust{Cluster: name, TrustDomain: name + ".test", Now: now}
		for j := range names {
			d := domain(j)
			switch {
			case j == i:
				d.Source = "own"
				if i == 3 {
					d.Sequence++ // nobody has the newest of 3, but 4
				}
			case i == 4 && j == 3:
				d.Sequence++
			case i == 1 && j == 2: // one way: 2 trusts 1
				continue
			case i == 5 && j == 6:
				d.State, d.Reason, d.Roots, d.Revoked = "Revoked", "key copied", nil, 0
			case i == 7 && j == 8:
				d.State, d.Reason, d.Issued = "Stale", "no word for 90 min", now.Add(-90*time.Minute)
			case i == 8 && j == 7:
				d.State, d.Roots = "Waiting", nil
			case i == 9 && j == 0:
				d.NotAfter = now.Add(20 * time.Hour)
			case i == 9 && j == 1:
				d.NotAfter = now.Add(9 * 365 * 24 * time.Hour)
			case i == 9 && j == 2:
				d.NotAfter = now.Add(2 * 365 * 24 * time.Hour)
			}
			tr.Domains = append(tr.Domains, d)
		}
		if i == 0 {
			tr.Domains = append(tr.Domains, admin.TrustedDomain{
				TrustDomain: "spire.test", Source: "endpoint", State: "Fresh", Sequence: 3, Issued: now.Add(-4 * time.Minute), Roots: []admin.Certificate{{}}, NotAfter: now.Add(100 * time.Hour),
			})
		}
		all = append(all, asked[admin.Trust]{answer: tr})
	}
	for file, rename := range map[string]func(string) string{
		"trust_peers_ten.txt":      func(s string) string { return s },
		"trust_peers_ten_long.txt": func(s string) string { return "a-long-name-of-" + s + "-somewhere" },
	} {
		renamed := slices.Clone(all)
		for i := range renamed {
			tr := renamed[i].answer
			tr.Cluster, tr.Domains = rename(tr.Cluster), slices.Clone(tr.Domains)
			for j := range tr.Domains {
				if tr.Domains[j].Cluster != "" {
					tr.Domains[j].Cluster = rename(tr.Domains[j].Cluster)
				}
			}
			renamed[i].answer = tr
		}
		m := matrixOf(renamed)
		var b strings.Builder
		if err := m.write(&b, "table"); err != nil {
			t.Fatal(err)
		}
		matrix, _, _ := strings.Cut(b.String(), "FINDINGS")
		for line := range strings.Lines(matrix) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 100 {
				t.Errorf("%s: a line of %d letters: %s", file, n, line)
			}
		}
		golden := filepath.Join("testdata", file)
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(golden, []byte(b.String()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(text), b.String()); d != "" {
			t.Errorf("%s (-want +got; UPDATE=1 rewrites it):\n%s", file, d)
		}
	}
}

func TestTrustPeers(t *testing.T) {
	w := newTrustWorld(t, "eu", "us")
	want(t, exitOK, w.args("trust", "peers"), "=12s/89d", `FROM\TO`)
	want(t, exitOK, w.args("trust", "peers", "-o", "wide"), "CURRENT", "us.test")
	var m trustMatrix
	if err := json.Unmarshal([]byte(want(t, exitOK, w.args("trust", "peers", "-o", "json"))), &m); err != nil || len(m.Pairs) != 2 || m.Pairs[0].Current != 7 {
		t.Errorf("%v: %+v", err, m)
	}
	// One of them alone: whom it trusts is shown all the same.
	want(t, exitOK, []string{"trust", "peers", "--control", w.cluster("eu").socket}, "ALSO TRUSTED", "us.test")
}

func TestDidYouMean(t *testing.T) {
	names := []string{"us.example.org", "eu.example.org", "ap.example.org"}
	for typed, want := range map[string]string{
		"us.exmaple.org": "; did you mean us.example.org?", "EU.example.org": "; did you mean eu.example.org?",
		"completely-else": "; there are: ap.example.org, eu.example.org, us.example.org",
	} {
		if got := didYouMean(typed, names); got != want {
			t.Errorf("%s: %q, want %q", typed, got, want)
		}
	}
	if got := didYouMean("x", nil); got != "" {
		t.Errorf("of none: %q", got)
	}
}

// status finds what was not renewed: a note at a third of its life, a finding at a sixth.
func TestStatusOfTrust(t *testing.T) {
	w := newTrustWorld(t, "eu", "us")
	eu := w.cluster("eu")
	want(t, exitOK, w.args("status"))
	now := eu.trust.Now
	eu.trust.Authority.Issuing = &admin.Certificate{NotBefore: now.Add(-33 * time.Hour), NotAfter: now.Add(15 * time.Hour)}
	eu.trust.Revocations = []admin.Revocation{{Subject: "us.test", Kind: "domain", At: now, Reason: "copied"}}
	if out := want(t, exitOK, w.args("status"), "NOTES\neu: the issuing CA ends in 15h", "eu: revoked until it is undone: us.test, copied"); strings.Contains(out, "FINDINGS") {
		t.Errorf("a note is a finding:\n%s", out)
	}
	id := eu.proxies[0].SPIFFEID
	away := admin.Status{Now: now, Proxies: []admin.Proxy{
		{Program: "sidecar", Name: "shop/web-0", SPIFFEID: id, SVIDEnds: now.Add(40 * time.Minute)}, {Program: "sidecar", Name: "shop/old-0", SVIDEnds: now.Add(-time.Hour)},
	}}
	for block, why := range map[bool]string{false: "its identity was revoked 60s ago, stolen: it needs a new join token", true: "its identity is revoked and blocked, stolen"} {
		revoked := &admin.Trust{Now: now, Authority: admin.Authority{SVIDLifetime: time.Hour}, Revocations: []admin.Revocation{{Subject: id, Kind: "id", Block: block, At: now.Add(-time.Minute), Reason: "stolen"}}}
		got := findingsOf(away, nil, revoked)
		if len(got) != 3 || !strings.Contains(got[1], why) || !strings.Contains(got[2], "its SVID has ended") {
			t.Errorf("%q", got)
		}
		back := away
		back.Proxies = []admin.Proxy{{Program: "sidecar", Name: "shop/web-0", SPIFFEID: id, SVIDEnds: now.Add(time.Hour)}}
		if got = findingsOf(back, nil, revoked); !block && strings.Contains(got[1], "revoked") {
			t.Errorf("of one that has joined since: %q", got)
		}
	}
	eu.trust.Authority.Issuing.NotAfter = now.Add(5 * time.Hour)
	want(t, exitFinding, w.args("status"), "FINDINGS\neu: the issuing CA ends in 5h", "1 finding(s)")
	eu.trust.Rotation = admin.Rotation{Phase: admin.RotationPublished, Since: now.Add(-25 * time.Hour), Holds: []string{"cluster us: is Stale"}}
	want(t, exitFinding, w.args("status"), "the next root is published for 25h, and held: cluster us: is Stale", "2 finding(s)")
}
