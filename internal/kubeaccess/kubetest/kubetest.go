// Package kubetest is as much of a Kubernetes API server as tests of the CLI need: objects by their path, exec, and what is forbidden.
package kubetest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"sigs.k8s.io/yaml"
)

// Exec is a command that runs in a container: it returns its exit code.
type Exec func(pod string, command []string, stdin io.Reader, stdout, stderr io.Writer) int

// Forward is a connection to a port of a Pod. What it returns is told the client as trouble.
type Forward func(pod, port string, data io.ReadWriter) string

// Server is an API server. Set its fields before the first request.
type Server struct {
	Exec         Exec    // nil: no Pod is there
	Forward      Forward // over SPDY alone; nil: likewise
	NoWebSockets bool    // as proxies that don't let them through
	// Post returns what becomes of an object that is created; nil: it is as it was posted. Nothing is kept.
	Post func(path string, object map[string]any) map[string]any

	http *httptest.Server

	mu       sync.Mutex
	objects  map[string]map[string]any // guarded by mu, by path
	denied   map[string]string         // guarded by mu: "VERB PATH-PREFIX" to what is said
	requests []string                  // guarded by mu
}

// quiet is done once: the server's half of exec logs every connection that ends.
var quiet sync.Once

// New returns a Server that lives until the test ends.
func New(tb testing.TB) *Server {
	tb.Helper()
	quiet.Do(func() { klog.SetLogger(logr.Discard()) })
	s := &Server{objects: map[string]map[string]any{}, denied: map[string]string{}}
	s.http = httptest.NewServer(s)
	tb.Cleanup(s.http.Close)
	return s
}

// Kubeconfig writes a kubeconfig with a context for each server, by name; the first by the alphabet is the current one.
func Kubeconfig(tb testing.TB, servers map[string]*Server) string {
	tb.Helper()
	type named map[string]any
	var contexts, clusters []named
	var names []string
	for name, s := range servers {
		names = append(names, name)
		contexts = append(contexts, named{"name": name, "context": named{"cluster": name, "user": "u"}})
		clusters = append(clusters, named{"name": name, "cluster": named{"server": s.http.URL}})
	}
	b, err := yaml.Marshal(named{
		"apiVersion": "v1", "kind": "Config", "current-context": slices.Min(names), "contexts": contexts, "clusters": clusters,
		"users": []named{{"name": "u", "user": named{}}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(tb.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// Put makes an object there at a path like /api/v1/namespaces/shop/pods/web.
func (s *Server) Put(path string, object any) {
	b, err := json.Marshal(object)
	var m map[string]any
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[path] = m
}

// Get returns the object at a path; nil: none.
func (s *Server) Get(path string) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[path]
}

// Forbid makes the Server refuse a method at all paths that begin so.
func (s *Server) Forbid(method, prefix, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[method+" "+prefix] = message
}

// Requests returns "METHOD PATH" of all requests so far.
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// ServeHTTP answers as an API server does.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+path)
	for key, message := range s.denied {
		if strings.HasPrefix(r.Method+" "+path, key) {
			s.mu.Unlock()
			fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, message)
			return
		}
	}
	s.mu.Unlock()
	if pod, ok := strings.CutSuffix(path, "/exec"); ok {
		s.exec(w, r, pod[strings.LastIndex(pod, "/")+1:])
		return
	}
	if pod, ok := strings.CutSuffix(path, "/portforward"); ok {
		s.forward(w, r, pod[strings.LastIndex(pod, "/")+1:])
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.Method {
	case http.MethodGet:
		s.get(w, path)
	case http.MethodPatch, http.MethodPut: // apply: what is applied becomes the object
		var m map[string]any
		b, _ := io.ReadAll(r.Body)
		if err := yaml.Unmarshal(b, &m); err != nil {
			fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
			return
		}
		s.objects[path] = m
		answer(w, http.StatusOK, m)
	case http.MethodPost:
		m, err := posted(r.Body)
		if err != nil {
			fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
			return
		}
		if s.Post != nil {
			m = s.Post(path, m)
		}
		answer(w, http.StatusCreated, m)
	case http.MethodDelete:
		m, ok := s.objects[path]
		if !ok {
			notFound(w, path)
			return
		}
		delete(s.objects, path)
		answer(w, http.StatusOK, m)
	default:
		fail(w, http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, r.Method)
	}
}

// Serve makes a collection there, empty at first: what is put below its path is listed.
func (s *Server) Serve(path, apiVersion, kind string) {
	s.Put(path, map[string]any{"apiVersion": apiVersion, "kind": kind + "List", "metadata": map[string]any{}})
}

// get answers with the object at a path, or with a list of those below it. The caller holds mu.
func (s *Server) get(w http.ResponseWriter, path string) {
	m, ok := s.objects[path]
	if kind, _ := m["kind"].(string); ok && !strings.HasSuffix(kind, "List") {
		answer(w, http.StatusOK, m)
		return
	}
	if !ok {
		notFound(w, path)
		return
	}
	items := []map[string]any{}
	for at, m := range s.objects {
		if below, ok := strings.CutPrefix(at, path+"/"); ok && !strings.Contains(below, "/") {
			items = append(items, m)
		}
	}
	answer(w, http.StatusOK, map[string]any{"apiVersion": m["apiVersion"], "kind": m["kind"], "metadata": m["metadata"], "items": items})
}

// posted reads an object; clients send those that Kubernetes has as protobuf.
func posted(from io.Reader) (map[string]any, error) {
	b, err := io.ReadAll(from)
	if err != nil {
		return nil, err
	}
	o, _, err := scheme.Codecs.UniversalDeserializer().Decode(b, nil, nil)
	if err != nil {
		return nil, err
	}
	return runtime.DefaultUnstructuredConverter.ToUnstructured(o)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func fail(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	answer(w, code, metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
		Reason: reason, Code: int32(code), Message: message, //nolint:gosec // of net/http
	})
}

func notFound(w http.ResponseWriter, path string) {
	fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%q not found", path[strings.LastIndex(path, "/")+1:]))
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request, pod string) {
	if s.Exec == nil {
		notFound(w, pod)
		return
	}
	var streams map[string]io.ReadWriteCloser
	switch {
	case wsstream.IsWebSocketRequest(r) && s.NoWebSockets:
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, "no WebSockets here")
		return
	case wsstream.IsWebSocketRequest(r):
		conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{"v5.channel.k8s.io": {Binary: true, Channels: []wsstream.ChannelType{
			wsstream.ReadChannel, wsstream.WriteChannel, wsstream.WriteChannel, wsstream.WriteChannel, wsstream.IgnoreChannel,
		}}})
		_, channels, err := conn.Open(w, r)
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		streams = map[string]io.ReadWriteCloser{"stdin": channels[0], "stdout": channels[1], "stderr": channels[2], "error": channels[3]}
	default:
		if _, err := httpstream.Handshake(r, w, []string{"v4.channel.k8s.io"}); err != nil {
			return
		}
		arrived := make(chan httpstream.Stream, 4)
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error {
			arrived <- s
			return nil
		})
		if conn == nil {
			return
		}
		defer func() { _ = conn.Close() }()
		if streams = collect(conn, arrived, 4); streams == nil {
			return
		}
	}
	code := s.Exec(pod, r.URL.Query()["command"], streams["stdin"], streams["stdout"], streams["stderr"])
	status := metav1.Status{Status: metav1.StatusSuccess}
	if code != 0 {
		status = metav1.Status{
			Status: metav1.StatusFailure, Reason: "NonZeroExitCode", Message: fmt.Sprintf("exit code %d", code),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "ExitCode", Message: fmt.Sprint(code)}}},
		}
	}
	_ = json.NewEncoder(streams["error"]).Encode(status)
	for _, s := range streams {
		_ = s.Close()
	}
}

// collect waits for so many streams, by their type; nil: the client went.
func collect(conn httpstream.Connection, arrived <-chan httpstream.Stream, n int) map[string]io.ReadWriteCloser {
	streams := map[string]io.ReadWriteCloser{}
	for len(streams) < n {
		select {
		case s := <-arrived:
			streams[s.Headers().Get("streamType")] = s
		case <-conn.CloseChan():
			return nil
		case <-time.After(time.Minute): // a client that is broken
			return nil
		}
	}
	return streams
}

func (s *Server) forward(w http.ResponseWriter, r *http.Request, pod string) {
	switch {
	case s.Forward == nil:
		notFound(w, pod)
		return
	case wsstream.IsWebSocketRequest(r):
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, "no WebSockets here")
		return
	}
	if _, err := httpstream.Handshake(r, w, []string{"portforward.k8s.io"}); err != nil {
		return
	}
	arrived := make(chan httpstream.Stream, 2)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error {
		arrived <- s
		return nil
	})
	if conn == nil {
		return
	}
	defer func() { _ = conn.Close() }()
	byType := map[string]httpstream.Stream{}
	for len(byType) < 2 {
		select {
		case s := <-arrived:
			byType[s.Headers().Get("streamType")] = s
		case <-conn.CloseChan():
			return
		}
	}
	if said := s.Forward(pod, byType["data"].Headers().Get("port"), byType["data"]); said != "" {
		_, _ = io.WriteString(byType["error"], said)
	}
	_ = byType["data"].Close()
	_ = byType["error"].Close()
	<-conn.CloseChan()
}
