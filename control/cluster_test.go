package control_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc/test/bufconn"

	"github.com/isthmus-mesh/isthmus/api/admin"
	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/federation/membus"
	"github.com/isthmus-mesh/isthmus/internal/agent"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is controls of several clusters in one process and in virtual time, with their programs.
type mesh struct {
	t    *testing.T
	mu   sync.Mutex
	hubs map[string]*membus.Hub // guarded by mu: by cluster, each its own broker

	attestor control.Attestor // of every cluster
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	return &mesh{t: t, hubs: make(map[string]*membus.Hub)}
}

func (m *mesh) hub(cluster string) *membus.Hub {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hubs[cluster] == nil {
		m.hubs[cluster] = membus.NewHub(membus.Faults{})
	}
	return m.hubs[cluster]
}

// courier is control.Courier over memory: each cluster has a hub.
type courier struct {
	mesh    *mesh
	cluster string
}

func (c *courier) Serve(context.Context, ed25519.PrivateKey, func() []string) (control.Line, error) {
	return &memoryLine{c.mesh.hub(c.cluster).Bus(c.cluster)}, nil
}

func (c *courier) Dial(_ ed25519.PrivateKey, to control.Neighbour) (control.Line, error) {
	return &memoryLine{c.mesh.hub(to.Cluster).Bus(c.cluster)}, nil
}

type memoryLine struct{ *membus.Bus }

func (l *memoryLine) State() string { return "connected" }
func (l *memoryLine) Close()        { _ = l.Bus.Close() }

// registry is control.Registry in memory.
type registry struct {
	objects *live.Value[*control.Objects]

	mu     sync.Mutex
	status []*control.Status // guarded by mu: all that were written
}

func (r *registry) Objects() *live.Value[*control.Objects] { return r.objects }

func (r *registry) PutStatus(_ context.Context, s *control.Status) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = append(r.status, s)
	return nil
}

// statuses returns all that were written.
func (r *registry) statuses() []*control.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// declare replaces all objects by those of a manifest.
func (r *registry) declare(t *testing.T, text string) {
	t.Helper()
	o := new(control.Objects)
	addManifest(t, o, txtar.File{Name: "all.yaml", Data: []byte(text)})
	order(o)
	r.objects.Store(o)
}

// cluster is one cluster's control.
type cluster struct {
	*control.Control

	mesh     *mesh
	name     string
	dir      string
	registry *registry
	checks   *ready.Checks
	metrics  *prometheus.Registry
	listener *live.Value[*bufconn.Listener] // of the control that runs now
	stop     func()
}

// start runs a control; a second start in the same dir is a restart.
func (m *mesh) start(name, dir string, r *registry) *cluster {
	m.t.Helper()
	if r == nil {
		r = &registry{objects: new(live.Value[*control.Objects])}
	}
	c := &cluster{mesh: m, name: name, dir: dir, registry: r, checks: ready.New(), metrics: prometheus.NewRegistry(), listener: live.NewValue(bufconn.Listen(64 << 10))}
	clusterName, err := topology.ParseClusterName(name)
	if err != nil {
		m.t.Fatal(err)
	}
	c.Control, err = control.New(control.Config{
		Cluster: clusterName, Domain: spiffeid.RequireTrustDomainFromString(name + ".example"), Region: "region-" + name,
		StateDir: dir, Registry: r, Courier: &courier{m, name}, BusURLs: []string{"tls://" + name + ":4222"},
		NodeProxies: []string{"node-0"}, GRPC: c.listener.Load(), Checks: c.checks, Attestor: m.attestor, Metrics: c.metrics,
	})
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(m.t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			m.t.Errorf("%s: %v", name, err)
		}
	})
	c.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	m.t.Cleanup(c.stop)
	return c
}

// ask calls the admin API.
func ask[T any](t *testing.T, c *cluster, method, path, body string) (answer T, code int) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	w := httptest.NewRecorder()
	c.API().ServeHTTP(w, r)
	if w.Code < 300 && w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, w.Body)
		}
	}
	return answer, w.Code
}

func get[T any](t *testing.T, c *cluster, path string) T {
	t.Helper()
	a, code := ask[T](t, c, http.MethodGet, path, "")
	if code != http.StatusOK {
		t.Fatalf("GET %s: %d", path, code)
	}
	return a
}

func (c *cluster) token(t *testing.T, request string) string {
	t.Helper()
	token, code := ask[admin.Token](t, c, http.MethodPost, "/v1/tokens", request)
	if code != http.StatusOK {
		t.Fatalf("token %s: %d", request, code)
	}
	return token.Token
}

// peerOf is the manifest that lets another cluster in.
func peerOf(t *testing.T, o *cluster) string {
	t.Helper()
	i := get[admin.Introduction](t, o, "/v1/introduction")
	return fmt.Sprintf(`---
apiVersion: isthmus.dev/v1alpha1
kind: ClusterPeer
metadata: {name: %s}
spec: {trustDomain: %s, rootFingerprint: "%s", bus: {key: %s, urls: ["%s"]}}
`, i.Cluster, i.TrustDomain, i.RootFingerprint, i.BusKey, i.BusURLs[0])
}

// program is a gateway, a sidecar or a node proxy, as far as control knows one.
type program struct {
	*agent.Agent

	stop func()
}

// join starts a program that has a join token.
func (c *cluster) join(t *testing.T, hello *configv1.Hello, token string, prepare ...func(*agent.Agent)) *program {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(agent.Config{
		Control: c.name + ":7400", TrustDomain: spiffeid.RequireTrustDomainFromString(c.name + ".example"), StateDir: filepath.Join(dir, "state"),
		JoinTokenFile: filepath.Join(dir, "token"), TrustBundleFile: filepath.Join(c.dir, "trust-bundle.pem"), Hello: hello,
		Dial: func(ctx context.Context, _ string) (net.Conn, error) { return c.dial(ctx) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range prepare {
		p(a)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = a.Run(ctx) })
	p := &program{Agent: a, stop: sync.OnceFunc(func() { cancel(); running.Wait() })}
	t.Cleanup(p.stop)
	return p
}

var errDown = errors.New("control is down")

// dial connects to the control that runs now under the cluster's name.
func (c *cluster) dial(ctx context.Context) (net.Conn, error) {
	conn, err := c.listener.Load().DialContext(ctx)
	if err != nil {
		return nil, errors.Join(errDown, err)
	}
	return conn, nil
}

func gatewayHello(id string) *configv1.Hello {
	return &configv1.Hello{
		Program: "gateway", Version: "test", AdminAddress: "127.0.0.1:1",
		Gateway: &configv1.Gateway{Id: id, Address: "10.0.0.2:7443", QuicAddress: "192.0.2.1:7443", Zone: "a"},
	}
}

func sidecarHello(workload string) *configv1.Hello {
	return &configv1.Hello{Program: "sidecar", Version: "test", Workload: workload}
}

// eventually waits, in virtual time, until check returns nil.
func eventually(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", within, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// remotes returns the clusters that a program may call a service in, as "name" or "name (stale)".
func (p *program) remotes(s *topology.Snapshot, name topology.ServiceName) string {
	if s == nil || s.Service(name) == nil {
		return "no service"
	}
	var out []string
	for _, r := range s.Service(name).Remotes {
		text := r.Cluster.String()
		if r.Stale {
			text += " (stale)"
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

var _ federation.Bus = (*memoryLine)(nil)
