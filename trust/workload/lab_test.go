//go:build linux

package workload

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/trust"
)

func TestMain(m *testing.M) {
	if does := os.Getenv("WORKLOAD_TEST_CHILD"); does != "" {
		asChild(does)
		return
	}
	goleak.VerifyTestMain(m)
}

var (
	domainA = spiffeid.RequireTrustDomainFromString("a.test")
	domainB = spiffeid.RequireTrustDomainFromString("b.test")
)

// world is one served socket, of a workload of domainA.
type world struct {
	t         *testing.T
	authority *trust.Authority
	identity  *trust.Identity
	bundles   *trust.Bundles
	own       *Own
	socket    string
	logs      logLines
}

func authorityOf(t *testing.T, td spiffeid.TrustDomain) *trust.Authority {
	t.Helper()
	a, err := trust.OpenAuthority(trust.AuthorityConfig{TrustDomain: td, Dir: filepath.Join(t.TempDir(), "authority")})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// newWorld serves the Workload API to this process's user. edit changes the configuration before.
func newWorld(t *testing.T, edit func(*world, *Config)) *world {
	t.Helper()
	w := &world{t: t, authority: authorityOf(t, domainA), identity: trust.NewIdentity(), bundles: trust.NewBundles()}
	w.bundles.Set(domainA, trust.Bundle{Authorities: w.authority.Roots()})
	w.own = &Own{Identity: w.identity, UIDs: []uint32{uint32(os.Getuid())}}
	cfg := Config{Source: w.own, Bundles: w.bundles, Log: w.logs.logger()}
	if edit != nil {
		edit(w, &cfg)
	}
	s, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "wl") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w.socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	if err = os.Chmod(w.socket, 0o777); err != nil {
		t.Fatal(err)
	}
	if err = os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := s.doors.all; n != 0 {
			t.Errorf("%d connections are still counted", n)
		}
	})
	return w
}

// id is one of domainA.
func id(t *testing.T, sa string) spiffeid.ID {
	t.Helper()
	out, err := trust.WorkloadID(domainA, "shop", sa)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// svid issues one.
func (w *world) svid(sa string) *x509svid.SVID {
	w.t.Helper()
	key, csr, err := trust.NewRequest()
	if err != nil {
		w.t.Fatal(err)
	}
	chain, err := w.authority.Issue(csr, id(w.t, sa))
	if err != nil {
		w.t.Fatal(err)
	}
	return &x509svid.SVID{ID: id(w.t, sa), Certificates: chain, PrivateKey: key}
}

func (w *world) address() workloadapi.ClientOption { return workloadapi.WithAddr("unix://" + w.socket) }

// client is go-spiffe's.
func (w *world) client() *workloadapi.Client {
	w.t.Helper()
	c, err := workloadapi.New(w.t.Context(), w.address())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// soon is a context for what should not take long.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// until waits for something to become true.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

type logLines struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logLines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logLines) has(part string) bool { return l.count(part) > 0 }

func (l *logLines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), part)
}
