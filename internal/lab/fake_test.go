package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// The tests of this package start this very test binary under the names of the programs: it stands in for them. It binds what the
// configuration says, hands out introductions and tokens, and is ready at once.

func TestMain(m *testing.M) {
	switch name := filepath.Base(os.Args[0]); name {
	case string(Control), string(Gateway), string(Sidecar), "isthmus":
		if err := fake(name, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "fake:", err)
			os.Exit(1)
		}
	default:
		code := m.Run()
		for _, clean := range cleanups {
			clean()
		}
		os.Exit(code)
	}
}

var cleanups []func()

// Cleanup has something done when all tests of the package have ended.
func Cleanup(f func()) { cleanups = append(cleanups, f) }

// fakes returns a folder with the test binary under the names of the programs.
func fakes(t *testing.T) Binaries {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{string(Control), string(Gateway), string(Sidecar), "isthmus"} {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return BinariesIn(dir)
}

type fakeConfig struct {
	Cluster     string `json:"cluster"`
	TrustDomain string `json:"trustDomain"`
	Listen      any    `json:"listen"`
	Admin       struct {
		Socket string `json:"socket"`
		Listen string `json:"listen"`
	} `json:"admin"`
	JoinTokenFile string `json:"joinTokenFile"`
	State         string `json:"state"`
	Manifests     string `json:"manifests"`
}

func fake(name string, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fmt.Println(name, "says hello")
	if name == "isthmus" { // the sample workload: … --http ADDRESS --tcp ADDRESS
		return fakeServe(ctx, args[len(args)-3], http.NewServeMux())
	}
	b, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	var cfg fakeConfig
	if err := yaml.Unmarshal(b, &cfg); err != nil {
		return err
	}
	switch name {
	case string(Control):
		return fakeControl(ctx, cfg)
	default:
		joined := filepath.Join(cfg.State, "joined")
		if _, err := os.Stat(joined); err != nil { // as with the real ones: a token is needed once
			token, err := os.ReadFile(cfg.JoinTokenFile)
			if err != nil || len(token) == 0 {
				return errors.New("no token, no state")
			}
			if err := os.WriteFile(joined, nil, 0o600); err != nil {
				return err
			}
		}
		listen := cfg.Listen.(map[string]any)
		return fakeServe(ctx, listen["admin"].(string), http.NewServeMux())
	}
}

func fakeControl(ctx context.Context, cfg fakeConfig) error {
	_ = os.Remove(cfg.Admin.Socket)
	l, err := net.Listen("unix", cfg.Admin.Socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	answer := func(path string, v any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) })
	}
	answer("/v1/introduction", admin.Introduction{
		Cluster: cfg.Cluster, TrustDomain: cfg.TrustDomain, RootFingerprint: "sha256:" + cfg.Cluster, BusKey: "U" + cfg.Cluster,
		BusURLs: []string{"tls://127.0.0.1:1"},
	})
	mux.HandleFunc("/v1/status", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(fakeStatus(cfg)) })
	answer("/v1/imports", []admin.Import{})
	answer("/v1/exports", []admin.Export{})
	answer("/v1/tokens", admin.Token{Token: "secret", Expires: time.Now().Add(time.Minute)})
	go func() { _ = http.Serve(l, mux) }()
	return fakeServe(ctx, cfg.Admin.Listen, http.NewServeMux())
}

// fakeStatus says that all is well with whom the manifests let in.
func fakeStatus(cfg fakeConfig) admin.Status {
	s := admin.Status{Cluster: cfg.Cluster, Ready: true}
	if os.Getenv("FAKE_UNREAD") != "" {
		return s
	}
	files, _ := filepath.Glob(filepath.Join(cfg.Manifests, "peer-*.yaml"))
	for _, f := range files {
		peer := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "peer-"), ".yaml")
		s.Peers = append(s.Peers, admin.Peer{Cluster: peer, State: "Fresh"})
		for _, gateway := range []string{"gateway-0", "gateway-1"} {
			s.Links = append(s.Links, admin.Link{Gateway: gateway, Cluster: peer, State: "up"})
		}
	}
	return s
}

func fakeServe(ctx context.Context, address string, mux *http.ServeMux) error {
	mux.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(l, mux) }()
	<-ctx.Done()
	return nil
}
