package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// webPair writes a certificate for a name, self-signed, and its key.
func webPair(t *testing.T, dir, name string) *x509.Certificate {
	t.Helper()
	template := caTemplate(t, "web.test")
	template.URIs, template.DNSNames = nil, []string{name}
	ca := newRoot(t, template)
	pair, err := marshalKeyPair([]*x509.Certificate{ca.cert}, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	i := strings.Index(string(pair), "-----BEGIN PRIVATE KEY")
	for file, data := range map[string][]byte{"tls.crt": pair[:i], "tls.key": pair[i:]} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return ca.cert
}

// TestWebFiles: what the files say is shown, what they say next too, and what can't be used leaves the last.
func TestWebFiles(t *testing.T) {
	dir, logs := t.TempDir(), new(logLines)
	chain, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	if _, err := OpenWebFiles(chain, key, nil, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	first := webPair(t, dir, "first.test")
	now := time.Now()
	w, err := OpenWebFiles(chain, key, func() time.Time { return now }, logs.logger())
	if err != nil {
		t.Fatal(err)
	}
	shown := func() *x509.Certificate {
		t.Helper()
		now = now.Add(2 * time.Second)
		here, there := net.Pipe()
		defer func() { _, _ = here.Close(), there.Close() }()
		server, client := tls.Server(here, w.Config()), tls.Client(there, &tls.Config{InsecureSkipVerify: true, ServerName: "x.test"})
		done := make(chan error, 1)
		go func() { done <- server.HandshakeContext(t.Context()) }()
		if err := client.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		return client.ConnectionState().PeerCertificates[0]
	}
	if !shown().Equal(first) {
		t.Error("not the first")
	}
	if err := os.WriteFile(key, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	shown()
	if !shown().Equal(first) || logs.count("can't be renewed") != 1 {
		t.Errorf("with a key that is none: %s", logs)
	}
	second := webPair(t, dir, "second.test")
	if !shown().Equal(second) {
		t.Error("not the second")
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if !shown().Equal(second) || logs.count("everybody on this machine") != 1 {
		t.Errorf("with a key that everybody can read: %s", logs)
	}
	c := w.Config()
	if c.MinVersion != tls.VersionTLS12 || !c.SessionTicketsDisabled || c.ClientAuth != tls.NoClientCert {
		t.Errorf("%+v", c)
	}
}

// TestPublicServer: everybody is let in and asked for nothing; the server shows its SVID.
func TestPublicServer(t *testing.T) {
	ca := rootOf(t, domainA)
	id, err := ControlID(domainA)
	if err != nil {
		t.Fatal(err)
	}
	for what, i := range map[string]*Identity{"one": identityOf(ca.svid(id)), "none yet": NewIdentity(), "nil": nil} {
		here, there := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- tls.Server(here, PublicServerConfig(i, "http/1.1")).HandshakeContext(t.Context()) }()
		client := tls.Client(there, ClientConfig(TLS{Bundles: bundlesOf(map[spiffeid.TrustDomain]*testCA{domainA: ca}), Policy: AllowIDs(id), Protocols: []string{"http/1.1"}}))
		err := client.HandshakeContext(t.Context())
		serverErr := <-done
		if good := what == "one"; good != (err == nil) || !good && !errors.Is(serverErr, ErrNoIdentity) {
			t.Errorf("%s: %v, %v", what, err, serverErr)
		}
		_, _ = here.Close(), there.Close()
	}
	if c := WebClientConfig(nil); c.RootCAs != nil || c.InsecureSkipVerify || c.MinVersion != tls.VersionTLS12 {
		t.Errorf("%+v", c)
	}
}
