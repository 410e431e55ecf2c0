//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/trust"
)

// childSocket tells a child process where to ask.
const childSocket = "CONTROL_TEST_SOCKET"

// asChild is what the test binary does as another user: it asks who it is.
func asChild() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	svids, err := workloadapi.FetchX509SVIDs(ctx, workloadapi.WithAddr("unix://"+os.Getenv(childSocket)))
	for _, s := range svids {
		fmt.Println(s.ID)
	}
	fmt.Println(status.Code(err))
}

const batch = `apiVersion: isthmus.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: %s}
spec: {serviceAccount: %s, address: 127.0.0.1, unix: {uid: %d}}
---
`

// socketDir is a folder whose paths are short enough for a socket, and that every user may enter.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctl") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err = os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestWorkloadAPI: a process of this machine gets the identities of the Workloads that name its user, by go-spiffe's own client, and loses them
// with the Workload.
func TestWorkloadAPI(t *testing.T) {
	me := os.Getuid()
	socket := filepath.Join(socketDir(t), "w.sock")
	p := startControl(t, t.TempDir(), "eu", true, "workloadAPI: {socket: "+socket+"}\n")
	address := workloadapi.WithAddr("unix://" + socket)
	p.declare(t, "w.yaml", fmt.Sprintf(batch+batch+batch, "batch", "batch", me, "twin", "batch", me, "other", "other", me+1))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p.eventually(t, func() error { _, err := workloadapi.FetchX509SVID(ctx, address); return err })
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(address))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	id := spiffeid.RequireFromString("spiffe://eu.example/ns/shop/sa/batch")
	if svid, e := source.GetX509SVID(); e != nil || svid.ID != id {
		t.Errorf("got %v, %v", svid, e)
	}
	jwts, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(address))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = jwts.Close() }()
	token, err := jwts.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db"})
	if err != nil || token.ID != id {
		t.Fatalf("got %v, %v", token, err)
	}
	if _, err = jwtsvid.ParseAndValidate(token.Marshal(), jwts, []string{"db"}); err != nil {
		t.Error(err)
	}
	if _, err = workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db", Subject: spiffeid.RequireFromString("spiffe://eu.example/ns/shop/sa/other")}, address); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another's JWT-SVID: %v", err)
	}

	// Revoked, it is another SVID; blocked, it is none.
	before, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if _, err = p.client.Revoke(ctx, admin.Revocation{Subject: id.String()}); err != nil {
		t.Fatal(err)
	}
	p.eventually(t, func() error {
		svid, e := source.GetX509SVID()
		if e != nil || svid.Certificates[0].Equal(before.Certificates[0]) {
			return fmt.Errorf("still the old SVID, %w", e)
		}
		if _, e = workloadapi.ValidateJWTSVID(ctx, token.Marshal(), "db", address); status.Code(e) != codes.InvalidArgument {
			return fmt.Errorf("a revoked JWT-SVID: %w", e)
		}
		return nil
	})
	if _, err = p.client.Revoke(ctx, admin.Revocation{Subject: id.String(), Block: true}); err != nil {
		t.Fatal(err)
	}
	p.eventually(t, func() error {
		asking, end := context.WithTimeout(ctx, 10*time.Second) // it is waited for, for 5 s
		defer end()
		if _, e := workloadapi.FetchX509SVID(asking, address); status.Code(e) != codes.Unavailable {
			return fmt.Errorf("a blocked identity: %w", e)
		}
		return nil
	})
	if err = p.client.Unrevoke(ctx, id.String()); err != nil {
		t.Fatal(err)
	}
	// A second identity of the same user is offered beside the first.
	p.declare(t, "x.yaml", fmt.Sprintf(batch, "admin", "admin", me))
	p.eventually(t, func() error {
		svids, e := workloadapi.FetchX509SVIDs(ctx, address)
		if e != nil || len(svids) != 2 || svids[0].Hint != "shop/admin" || svids[1].ID != id {
			return fmt.Errorf("got %v, %w", svids, e)
		}
		return nil
	})
	// Without a Workload that names it, the user is nobody.
	p.declare(t, "w.yaml", fmt.Sprintf(batch, "other", "other", me+1))
	p.declare(t, "x.yaml", "")
	p.eventually(t, func() error {
		if _, e := workloadapi.FetchX509SVID(ctx, address); status.Code(e) != codes.PermissionDenied {
			return fmt.Errorf("got %w", e)
		}
		return nil
	})
}

// TestWorkloadsOfOtherUsers: proven with processes of those users.
func TestWorkloadsOfOtherUsers(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root, to run processes as other users")
		}
		t.Skip("needs root, to run processes as other users: sudo -E go test ./cmd/isthmus-control")
	}
	dir := socketDir(t)
	socket := filepath.Join(dir, "w.sock")
	p := startControl(t, t.TempDir(), "eu", true, "workloadAPI: {socket: "+socket+"}\n")
	p.declare(t, "w.yaml", fmt.Sprintf(batch+batch+batch, "web", "web", 1001, "api", "api", 1002, "jobs", "jobs", 1002))
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	child := filepath.Join(dir, "child")
	if err = os.WriteFile(child, binary, 0o700); err != nil {
		t.Fatal(err)
	}
	if err = os.Chmod(child, 0o755); err != nil { // whatever the umask is: the control that starts changes it for a moment
		t.Fatal(err)
	}
	for uid, want := range map[uint32]string{
		1001: "spiffe://eu.example/ns/shop/sa/web OK",
		1002: "spiffe://eu.example/ns/shop/sa/api spiffe://eu.example/ns/shop/sa/jobs OK",
		1003: "PermissionDenied",
		0:    "PermissionDenied",
	} {
		p.eventually(t, func() error {
			cmd := exec.CommandContext(t.Context(), child)
			cmd.Dir, cmd.Env = "/", []string{childSocket + "=" + socket}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
			out, err := cmd.CombinedOutput()
			if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != want {
				return fmt.Errorf("uid %d got %q, %w; want %q", uid, got, err, want)
			}
			return nil
		})
	}
}

// TestFederationEndpoint: two clusters that are no peers follow each other's bundles, in both profiles; go-spiffe's client follows them too.
func TestFederationEndpoint(t *testing.T) {
	eu, us := freePort(t), freePort(t)
	dir := t.TempDir()
	root := webCertificate(t, dir)
	socket := filepath.Join(socketDir(t), "w.sock")
	a := startControl(t, t.TempDir(), "eu", true, fmt.Sprintf("federationEndpoint: {listen: \"127.0.0.1:%d\", profile: https_spiffe}\n", eu))
	b := startControl(t, t.TempDir(), "us", true, fmt.Sprintf("workloadAPI: {socket: %s}\nfederationEndpoint: {listen: \"127.0.0.1:%d\", profile: https_web, certificate: %s, key: %s}\n",
		socket, us, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	domain := func(name string) spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString(name) }
	rootsOf := func(p *process) []*x509.Certificate {
		var certs []*x509.Certificate
		p.eventually(t, func() error {
			pemBytes, err := os.ReadFile(filepath.Join(p.dir, "state", "trust-bundle.pem"))
			if err == nil {
				certs, err = trust.ParsePEM(pemBytes)
			}
			return err
		})
		return certs
	}
	// go-spiffe as the client of both. What it gets is what an operator would put into spec.bundle.
	var document []byte
	a.eventually(t, func() error {
		got, err := federation.FetchBundle(ctx, domain("eu.example"), fmt.Sprintf("https://127.0.0.1:%d", eu),
			federation.WithSPIFFEAuth(x509bundle.FromX509Authorities(domain("eu.example"), rootsOf(a)), spiffeid.RequireFromString("spiffe://eu.example/isthmus/control")))
		if err != nil {
			return err
		}
		n, ok := got.SequenceNumber()
		if !ok || n == 0 || len(got.X509Authorities()) != 1 || len(got.JWTAuthorities()) != 1 {
			return fmt.Errorf("got sequence %d, %d roots", n, len(got.X509Authorities()))
		}
		document, err = got.Marshal()
		return err
	})
	pool := x509.NewCertPool()
	pool.AddCert(root)
	b.eventually(t, func() error {
		_, err := federation.FetchBundle(ctx, domain("us.example"), fmt.Sprintf("https://127.0.0.1:%d/bundle", us), federation.WithWebPKIRoots(pool))
		return err
	})
	// Each other.
	b.declare(t, "eu.yaml", fmt.Sprintf(`apiVersion: isthmus.dev/v1alpha1
kind: FederatedTrustDomain
metadata: {name: eu}
spec:
  trustDomain: eu.example
  bundleEndpoint: {url: "https://127.0.0.1:%d", profile: https_spiffe, spiffeID: "spiffe://eu.example/isthmus/control"}
  bundle: '%s'
---
`+batch, eu, document, "me", "me", os.Getuid()))
	a.declare(t, "us.yaml", fmt.Sprintf(`apiVersion: isthmus.dev/v1alpha1
kind: FederatedTrustDomain
metadata: {name: us}
spec:
  trustDomain: us.example
  bundleEndpoint:
    url: "https://127.0.0.1:%d"
    profile: https_web
    caBundle: |
      %s
`, us, strings.ReplaceAll(strings.TrimSpace(string(trust.MarshalPEM([]*x509.Certificate{root}))), "\n", "\n      ")))
	for p, td := range map[*process]string{a: "us.example", b: "eu.example"} {
		p.eventually(t, func() error {
			if log := p.stderr.String(); !strings.Contains(log, "bundle of a federated trust domain taken") && !strings.Contains(log, "state=Fresh") {
				return errors.New(td + " is not followed")
			}
			return nil
		})
	}
	// The workloads are told.
	b.eventually(t, func() error {
		set, err := workloadapi.FetchX509Bundles(ctx, workloadapi.WithAddr("unix://"+socket))
		if err != nil {
			return err
		}
		got, ok := set.Get(domain("eu.example"))
		if !ok || !got.HasX509Authority(rootsOf(a)[0]) {
			return fmt.Errorf("got %d bundles", set.Len())
		}
		return nil
	})
	b.declare(t, "eu.yaml", fmt.Sprintf(batch, "me", "me", os.Getuid()))
	b.eventually(t, func() error {
		set, err := workloadapi.FetchX509Bundles(ctx, workloadapi.WithAddr("unix://"+socket))
		if err != nil || set.Len() != 1 {
			return fmt.Errorf("%d bundles, %w", set.Len(), err)
		}
		return nil
	})
}

// webCertificate writes a certificate of 127.0.0.1 and its key, and returns its root.
func webCertificate(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: der}, "tls.key": {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err = os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
