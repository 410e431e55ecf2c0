package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers on a Unix socket until the test ends.
func serve(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "admin-") //nolint:usetesting // t.TempDir is too long for a Unix socket on some systems
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
		_ = os.RemoveAll(dir)
	})
	return NewClient(l.Addr().String())
}

func TestClientAsks(t *testing.T) {
	var asked []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		switch r.URL.Path {
		case "/v1/status", "/v1/introduction":
			_, _ = w.Write([]byte(`{"cluster": "us"}`))
		case "/v1/tokens":
			var ask TokenRequest
			if err := json.NewDecoder(r.Body).Decode(&ask); err != nil || ask.Gateway != "gateway-0" {
				t.Errorf("asked for %+v, %v", ask, err)
			}
			_, _ = w.Write([]byte(`{"token": "secret"}`))
		default:
			_, _ = w.Write([]byte(`[{}]`))
		}
	})
	ctx := t.Context()
	if st, err := c.Status(ctx); err != nil || st.Cluster != "us" {
		t.Errorf("status: %+v, %v", st, err)
	}
	if in, err := c.Introduction(ctx); err != nil || in.Cluster != "us" {
		t.Errorf("introduction: %+v, %v", in, err)
	}
	if tok, err := c.Token(ctx, TokenRequest{Gateway: "gateway-0"}); err != nil || tok.Token != "secret" {
		t.Errorf("token: %+v, %v", tok, err)
	}
	lists := func(n int, err error) {
		t.Helper()
		if n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	services, err := c.Services(ctx)
	lists(len(services), err)
	endpoints, err := c.Endpoints(ctx)
	lists(len(endpoints), err)
	peers, err := c.Peers(ctx)
	lists(len(peers), err)
	exports, err := c.Exports(ctx)
	lists(len(exports), err)
	imports, err := c.Imports(ctx)
	lists(len(imports), err)
	proxies, err := c.Proxies(ctx)
	lists(len(proxies), err)
	want := []string{
		"GET /v1/status", "GET /v1/introduction", "POST /v1/tokens", "GET /v1/services", "GET /v1/endpoints", "GET /v1/peers",
		"GET /v1/exports", "GET /v1/imports", "GET /v1/proxies",
	}
	if d := cmp.Diff(want, asked); d != "" {
		t.Errorf("asked (-want +got):\n%s", d)
	}
}

func TestClientErrors(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/tokens":
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"error": "no workload shop/web"}`))
		case "/v1/peers":
			w.WriteHeader(http.StatusBadGateway)
			_, _ = w.Write([]byte(`<html>`))
		default:
			_, _ = w.Write([]byte(`not JSON`))
		}
	})
	_, err := c.Token(t.Context(), TokenRequest{Workload: "shop/web"})
	if said, ok := errors.AsType[*Error](err); !ok || said.Status != http.StatusNotFound || said.Message != "no workload shop/web" {
		t.Errorf("an error with words: %v", err)
	}
	_, err = c.Peers(t.Context())
	if said, ok := errors.AsType[*Error](err); !ok || said.Message != "Bad Gateway" {
		t.Errorf("an error without: %v", err)
	}
	if _, err = c.Services(t.Context()); err == nil || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "/v1/services") {
		t.Errorf("no JSON: %v", err)
	}

	nobody := NewClient(filepath.Join(t.TempDir(), "nobody"))
	if _, err = nobody.Status(t.Context()); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), nobody.Where()) {
		t.Errorf("nobody there: %v", err)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = c.Status(done); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody waits any more: %v", err)
	}
}
