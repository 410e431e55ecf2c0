package trust

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
)

// What TestRemovedDomainDoesNotResume shows of Go's client, with somebody else's: openssl s_client with an SVID of a trust domain that was
// removed is refused, whether it resumes a session or not.
func TestRemovedDomainOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("no openssl: apt-get install openssl")
	}
	for _, test := range []struct {
		name    string
		weaken  func(server *tls.Config, trusts *Bundles)
		resumes bool // before the removal
		admits  bool // after it, with a session
	}{
		{name: "as it is"},
		{name: "with tickets", weaken: func(c *tls.Config, _ *Bundles) { c.SessionTicketsDisabled = false }, resumes: true},
		// This case shows that the session of openssl would do, were only the certificates of a full handshake verified.
		{name: "with tickets and VerifyPeerCertificate", weaken: func(c *tls.Config, trusts *Bundles) {
			c.SessionTicketsDisabled, c.VerifyConnection = false, nil
			c.VerifyPeerCertificate = tlsconfig.VerifyPeerCertificate(bundleSource{trusts}, tlsconfig.AuthorizeAny())
		}, resumes: true, admits: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPair(t)
			server := ServerConfig(p.server)
			if test.weaken != nil {
				test.weaken(server, p.bundlesA)
			}
			s := &opensslPeer{path: openssl, dir: t.TempDir(), server: server}
			s.write(t, p)
			if err, _ := s.dial(t, "-sess_out"); err != nil {
				t.Fatalf("before: %v", err)
			}
			kept := true
			if _, err := os.Stat(s.file("session.pem")); err != nil {
				kept = false
			}
			if kept != test.resumes {
				t.Fatalf("openssl was given a session: %v, want %v", kept, test.resumes)
			}
			if kept {
				if err, resumed := s.dial(t, "-sess_in"); err != nil || !resumed {
					t.Fatalf("before, with a session: %v, resumed %v", err, resumed)
				}
			}
			p.bundlesA.Remove(domainB)
			if err, _ := s.dial(t, ""); err == nil {
				t.Error("after: admitted")
			} else if !test.admits && reasonOf(t, err) != UnknownDomain {
				t.Errorf("after: %v, want %q", err, UnknownDomain)
			}
			if !kept {
				return
			}
			if err, resumed := s.dial(t, "-sess_in"); (err == nil) != test.admits {
				t.Errorf("after, with a session: %v (resumed %v), want it admitted: %v", err, resumed, test.admits)
			}
		})
	}
}

// opensslPeer dials a server with openssl s_client.
type opensslPeer struct {
	path, dir string
	server    *tls.Config
}

func (o *opensslPeer) file(name string) string { return filepath.Join(o.dir, name) }

// write writes the client's SVID where openssl reads it.
func (o *opensslPeer) write(t *testing.T, p *pair) {
	t.Helper()
	svid := mustSVID(t, p.clientID)
	chain, key, err := svid.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"svid.pem": chain, "key.pem": key} {
		if err := os.WriteFile(o.file(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if block, _ := pem.Decode(key); block == nil {
		t.Fatal("no key")
	}
}

// dial makes one connection and tells what the server made of it: an error when it refused. session is "", or the option for session.pem.
func (o *opensslPeer) dial(t *testing.T, session string) (refused error, resumed bool) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), testDeadline)
	defer cancel()
	args := []string{
		"s_client", "-connect", l.Addr().String(), "-cert", o.file("svid.pem"), "-cert_chain", o.file("svid.pem"), "-key", o.file("key.pem"),
		"-alpn", "isthmus-test/1", "-tls1_3", "-quiet",
	}
	if session != "" {
		args = append(args, session, o.file("session.pem"))
	}
	client := exec.CommandContext(ctx, o.path, args...)
	client.Stdin = strings.NewReader("x")
	var said bytes.Buffer
	client.Stdout, client.Stderr = &said, &said
	if err = client.Start(); err != nil {
		t.Fatal(err)
	}
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.SetDeadline(time.Now().Add(testDeadline))
	s := tls.Server(raw, o.server)
	refused = opensslGreet(s)
	_ = raw.Close()
	if failed := client.Wait(); ctx.Err() != nil {
		t.Fatalf("openssl: %v\n%s", failed, said.String())
	}
	return refused, s.ConnectionState().DidResume
}

// opensslGreet reads a byte: only then has the client what the server sends after the handshake.
func opensslGreet(s *tls.Conn) error {
	if err := s.Handshake(); err != nil {
		return err
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		return err
	}
	if _, err := io.WriteString(s, "admitted\n"); err != nil {
		return err
	}
	return s.CloseWrite()
}
