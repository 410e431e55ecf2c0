package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust"
)

// TestWebhook calls one as the API server does: by name, knowing the trust domain's roots, over TLS and TCP. Strangers that say nothing
// keep it from nothing.
func TestWebhook(t *testing.T) {
	authority, err := trust.OpenAuthority(trust.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("eu.example"), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMetrics(prometheus.NewRegistry(), func() float64 { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const name = "isthmus-control.isthmus-system.svc"
	c := &Control{authority: authority, metrics: m, cfg: Config{Log: slog.New(slog.DiscardHandler), Webhook: &Webhook{
		Listener: l, Names: []string{name},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }),
	}}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.serveWebhook(ctx) }()

	pool := x509.NewCertPool()
	for _, r := range authority.Roots() {
		pool.AddCert(r)
	}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
		},
		ForceAttemptHTTP2: true, // as the API server does
	}}
	call := func() error {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+name+":7443/", strings.NewReader("a review"))
		if err != nil {
			return err
		}
		response, err := client.Do(r)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		if b, err := io.ReadAll(response.Body); err != nil || string(b) != "a review" || response.TLS.Version != tls.VersionTLS13 {
			return fmt.Errorf("%q over TLS %x, %w", b, response.TLS.Version, err)
		}
		return nil
	}
	for range 3 {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	var silent []net.Conn
	for range maxWebhook + 10 {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, conn)
	}
	if err := call(); err != nil {
		t.Errorf("among strangers: %v", err)
	}
	for _, conn := range silent {
		_ = conn.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("it still listens")
	}
}
