package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/isthmus-mesh/isthmus/internal/ready"
)

// patience is how long a loaded machine may take; it fails a test, it never makes one pass.
const patience = 60 * time.Second

// standIn answers lists and watches as an API server does that holds one Service, and nothing ever changes. What it does not do is
// proven on real ones (kind-tests).
type standIn struct {
	mu      sync.Mutex
	missing string // guarded by mu: a resource whose CRD is not installed
	away    bool   // guarded by mu
	asked   int    // guarded by mu, while away
}

func (s *standIn) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := filepath.Base(r.URL.Path)
	s.mu.Lock()
	missing, away := s.missing == resource, s.away
	if away {
		s.asked++
	}
	s.mu.Unlock()
	answer := func(code int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(body) // the client may be gone
	}
	query := r.URL.Query()
	switch {
	case away:
		w.WriteHeader(http.StatusServiceUnavailable)
	case missing:
		answer(http.StatusNotFound, apierrors.NewNotFound(schema.GroupResource{Resource: resource}, "").Status())
	case query.Get("sendInitialEvents") == "true": // an older server: the client lists instead
		answer(http.StatusUnprocessableEntity, apierrors.NewInvalid(schema.GroupKind{}, "", nil).Status())
	case query.Get("watch") == "true":
		w.Header().Set("Content-Type", "application/json")
		w.(http.Flusher).Flush()
		for { // until the client goes, or it falls away
			s.mu.Lock()
			away = s.away
			s.mu.Unlock()
			if away || !pause(r.Context(), 10*time.Millisecond) {
				return
			}
		}
	default:
		var items []any
		if resource == "services" {
			items = []any{serviceOf("web", nil, 80)}
		}
		version, kind := listKind(r.URL.Path)
		answer(http.StatusOK, map[string]any{"apiVersion": version, "kind": kind, "metadata": map[string]any{"resourceVersion": "7"}, "items": items})
	}
}

// listKind is what a list at a path is.
func listKind(path string) (version, kind string) {
	resource := filepath.Base(path)
	if resource == "nodes" || resource == "namespaces" {
		return "meta.k8s.io/v1", "PartialObjectMetadataList"
	}
	kinds, err := mapper.KindsFor(schema.GroupVersionResource{Resource: resource})
	if err != nil {
		return "", ""
	}
	return kinds[0].GroupVersion().String(), kinds[0].Kind + "List"
}

// recorder keeps the messages of a log.
type recorder struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *recorder) count(message string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Count(r.b.String(), message)
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("in vain waited: " + what)
		}
	}
}

// kubeconfigOf writes a kubeconfig with one context, x.
func kubeconfigOf(t *testing.T, server string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\nusers: [{name: u}]\n"+
		"contexts: [{name: x, context: {cluster: c, user: u}}]\n", server)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestNothingCountsBeforeAllWasRead(t *testing.T) {
	api := &standIn{missing: "serviceexports"}
	server := httptest.NewServer(api)
	defer server.Close()
	kubeconfig := kubeconfigOf(t, server.URL)
	checks, said := ready.New(), new(recorder)
	k, err := New(Config{Kubeconfig: kubeconfig, Context: "x", Checks: checks, Log: slog.New(slog.NewTextHandler(said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- k.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-result; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()

	missing := func(word string) bool {
		return slices.ContainsFunc(checks.Missing(), func(s string) bool { return strings.HasPrefix(s, "kubernetes: ") && strings.Contains(s, word) })
	}
	eventually(t, "readiness names what can't be read", func() bool { return missing("serviceexports") })
	if k.Objects().Load() != nil {
		t.Error("objects are published before every kind was read")
	}
	api.set(func() { api.missing = "" })
	eventually(t, "objects", func() bool { return k.Objects().Load() != nil })
	first := k.Objects().Load()
	if len(first.Services) != 1 || first.Source != server.URL || missing("") {
		t.Errorf("objects %+v, missing %v", first, checks.Missing())
	}

	// It falls away: said once, and the last state stays.
	api.set(func() { api.away = true })
	eventually(t, "word of the API server's absence", func() bool { return said.count("API server can't be reached") == 1 })
	if k.Objects().Load() != first || missing("") {
		t.Errorf("without API server: objects %+v, missing %v", k.Objects().Load(), checks.Missing())
	}
	api.set(func() { api.away = false })
	eventually(t, "word of its return", func() bool { return said.count("API server answers again") == 1 })
	if said.count("API server can't be reached") != 1 {
		t.Error("its absence was told more than once")
	}
}

func TestNewNeedsCredentials(t *testing.T) {
	if _, err := New(Config{Kubeconfig: filepath.Join(t.TempDir(), "none")}); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a kubeconfig that is not there: %v", err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "name a kubeconfig") {
		t.Errorf("outside of a cluster: %v", err)
	}
}

func TestLateFailureSaysNothing(t *testing.T) {
	now, said := born.Time, new(recorder)
	cfg := Config{Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(said, nil))}.withDefaults()
	r, err := newReach(cfg, newWatches(cfg))
	if err != nil {
		t.Fatal(err)
	}
	began := now
	now = now.Add(time.Second)
	r.answered()
	r.failed("connection reset", began)
	if said.count("msg") != 0 {
		t.Errorf("told: %s", &said.b)
	}
}

// Reads wait for an API server that is away, so that the informers are not slowed down by failures; writes fail at once.
func TestReadsWait(t *testing.T) {
	api := &standIn{away: true}
	server := httptest.NewServer(api)
	defer server.Close()
	said := new(recorder)
	cfg := Config{Log: slog.New(slog.NewTextHandler(said, nil))}.withDefaults()
	r, err := newReach(cfg, newWatches(cfg))
	if err != nil {
		t.Fatal(err)
	}
	r.every = time.Millisecond
	client := &http.Client{Transport: r.wrap(&http.Transport{DisableKeepAlives: true})}
	ask := func(ctx context.Context, method string) (int, error) {
		request, err := http.NewRequestWithContext(ctx, method, server.URL+"/api/v1/services", nil)
		if err != nil {
			return 0, err
		}
		response, err := client.Do(request)
		if err != nil {
			return 0, err
		}
		return response.StatusCode, response.Body.Close()
	}
	if code, err := ask(t.Context(), http.MethodPut); err != nil || code != http.StatusServiceUnavailable {
		t.Errorf("a write: %d, %v", code, err)
	}
	read := make(chan string, 1)
	go func() {
		code, err := ask(t.Context(), http.MethodGet)
		read <- fmt.Sprint(code, err)
	}()
	eventually(t, "several tries", func() bool {
		asked := 0
		api.set(func() { asked = api.asked })
		return asked > 3
	})
	api.set(func() { api.away = false })
	if got := <-read; got != "200 <nil>" {
		t.Errorf("a read, once the server is back: %s", got)
	}
	if n := said.count("can't be reached"); n != 1 {
		t.Errorf("told %d times that it is lost", n)
	}
	api.set(func() { api.away = true })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if code, err := ask(ctx, http.MethodGet); err == nil && code != http.StatusServiceUnavailable {
		t.Errorf("a read whose time is up: %d", code)
	}
}

func TestWatchesTellOnce(t *testing.T) {
	now, said, checks := born.Time, new(recorder), ready.New()
	w := newWatches(Config{Log: slog.New(slog.NewTextHandler(said, nil)), Checks: checks, Now: func() time.Time { return now }})
	broken := apierrors.NewInternalError(errors.New("etcd"))
	broken.ErrStatus.Details.Kind = "nodes"
	for range 3 {
		w.ended("*v1.PartialObjectMetadata", broken)
		w.ended("*v1.Pod", errors.New("EOF"))
		w.ended("*v1.Pod", apierrors.NewResourceExpired("too old"))
		if !w.refused("pods", http.StatusForbidden) || w.refused("pods", http.StatusOK) || w.refused("pods", http.StatusGone) {
			t.Error("what is missing at the start is waited for, and nothing else is")
		}
	}
	if n, all := said.count("resource=nodes"), said.count("msg="); n != 1 || all != 2 {
		t.Errorf("told %d times of nodes, %d in all; want once, and once of pods", n, all)
	}
	if m := checks.Missing(); len(m) != 1 || m[0] != "kubernetes: pods can't be read: it is forbidden: give control the role of deploy/rbac/control.yaml" {
		t.Errorf("missing %q", m)
	}
	now = now.Add(sayAgain)
	w.ended("*v1.PartialObjectMetadata", broken)
	if n := said.count("resource=nodes"); n != 2 {
		t.Errorf("told %d times; want again after %s", n, sayAgain)
	}
	w.synced()
	w.unreachable("for a moment")
	if m := checks.Missing(); len(m) != 0 {
		t.Errorf("once all was read, missing %v", m)
	}
	if w.refused("pods", http.StatusNotFound) {
		t.Error("later on, an answer is one")
	}
}

// Every kind that is watched has a path, and no discovery is needed to find it.
func TestMapperKnowsEveryKind(t *testing.T) {
	for _, k := range kinds {
		gvk := k.object.GetObjectKind().GroupVersionKind()
		if gvk.Empty() {
			known, _, err := scheme.ObjectKinds(k.object)
			if err != nil {
				t.Fatal(err)
			}
			gvk = known[0]
		}
		if _, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version); err != nil {
			t.Errorf("%s: %v", gvk, err)
		}
	}
}
