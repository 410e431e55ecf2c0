//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/ready"
)

func TestMain(m *testing.M) {
	if os.Getenv(childSocket) != "" {
		asChild()
		return
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a loaded machine may take; it fails a test, it never makes one pass.
const patience = 60 * time.Second

func TestHelpAndVersion(t *testing.T) {
	for arg, want := range map[string]string{"--help": "clusterSetCIDR: 241.0.0.0/8", "--version": "isthmus-control "} {
		var stdout, stderr bytes.Buffer
		if err := run(t.Context(), []string{arg}, nil, &stdout, &stderr); err != nil || !strings.Contains(stdout.String(), want) || stderr.Len() > 0 {
			t.Errorf("%s: %v\n%s\n%s", arg, err, &stdout, &stderr)
		}
	}
}

// Every key of the file stands in the help.
func TestHelpNamesEveryKey(t *testing.T) {
	for _, key := range []string{
		"cluster:", "trustDomain:", "region:", "zone:", "manifests:", "kubernetes:", "kubeconfig:", "context:", "state:", "listen:", "bus:", "advertise:", "admin:", "socket:",
		"clusterSetCIDR:", "podCIDRs:", "peerPodCIDRs:", "nodeProxies:", "log:", "level:", "format:", "injection:", "names:", "settings:", "webhook:",
		"workloadAPI:", "federationEndpoint:", "profile:", "certificate:", "key:",
	} {
		if !strings.Contains(help, "  "+key) {
			t.Errorf("--help does not name %s", key)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"--config"}, {"--what"}, {"--config", "x.yaml", "more"}, {"--config", "/nowhere/x.yaml"}} {
		err := run(t.Context(), args, nil, new(bytes.Buffer), new(bytes.Buffer))
		if exitCode(err) != 2 {
			t.Errorf("%q: %v, exit code %d; want 2", args, err, exitCode(err))
		}
	}
	if exitCode(nil) != 0 || exitCode(errors.New("x")) != 1 {
		t.Error("exit codes of nothing and of anything")
	}
}

func TestConfigIsRefusedWithItsLine(t *testing.T) {
	const good = `cluster: eu
trustDomain: eu.example
manifests: m
state: s
listen: 127.0.0.1:0
bus: {listen: "127.0.0.1:4222"}
`
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c, err := readConfig(write(good))
	if err != nil {
		t.Fatal(err)
	}
	if c.Admin.Socket != filepath.Join("s", "control.sock") || len(c.Bus.Advertise) != 1 || c.Bus.Advertise[0] != "tls://127.0.0.1:4222" {
		t.Errorf("defaults: %+v", c)
	}
	for text, want := range map[string]string{
		"":                                   "empty",
		good + "what: ever\n":                "c.yaml:7: what: unknown field",
		good + "cluster: us\n":               `c.yaml:7: key "cluster" already set`,
		"cluster: eu\n":                      "c.yaml:1: trustDomain: is missing",
		good + "clusterSetCIDR: 241.0.0.0\n": "c.yaml:7: clusterSetCIDR: ",
		good + "podCIDRs: [10.1.0.0]\n":      "c.yaml:7: podCIDRs: ",
		good + "peerPodCIDRs: [10.0.0.0/8, ten]\n":                                                "c.yaml:7: peerPodCIDRs: entry 2",
		good + "nodeProxies: [a, a]\n":                                                            "c.yaml:7: nodeProxies: ",
		good + "admin: {listen: here}\n":                                                          `c.yaml:7: admin.listen: "here": want host:port`,
		good + "log:\n  level: verbose\n":                                                         `c.yaml:8: log.level: "verbose": want debug`,
		good + "log:\n  format: xml\n":                                                            `c.yaml:8: log.format: "xml": want text`,
		strings.Replace(good, "127.0.0.1:0", "7400", 1):                                           "c.yaml:5: listen: is a number, want host:port",
		strings.Replace(good, "127.0.0.1:4222", "127.0.0.1:99999", 1):                             "c.yaml:6: bus.listen: ",
		good + "region: " + strings.Repeat("x", 64) + "\n":                                        "c.yaml:7: region: ",
		strings.Replace(good, "manifests: m\n", "", 1):                                            "manifests: is missing; for a Kubernetes cluster: kubernetes: {}",
		good + "kubernetes: {}\n":                                                                 "c.yaml:7: kubernetes: stands beside manifests",
		good + "kubernetes: {kubeConfig: x}\n":                                                    "c.yaml:7: kubernetes.kubeConfig: unknown field",
		strings.Replace(good, "manifests: m", "kubernetes: {context: x}", 1):                      "c.yaml:3: kubernetes.context: is one of a kubeconfig's",
		strings.Replace(good, "manifests: m", "kubernetes: {injection: {listen: x}}", 1):          `c.yaml:3: kubernetes.injection.listen: "x": want host:port`,
		strings.Replace(good, "manifests: m", "kubernetes: {injection: {}}", 1):                   "c.yaml:3: kubernetes.injection.settings: is missing",
		strings.Replace(good, "manifests: m", "kubernetes: {}\nworkloadAPI: {socket: w.sock}", 1): "c.yaml:4: workloadAPI.socket: is for processes of this machine",
		good + "federationEndpoint: {}\n":                                                         "c.yaml:7: federationEndpoint.listen: is missing",
		good + "federationEndpoint: {listen: ':1', profile: https}\n":                             `c.yaml:7: federationEndpoint.profile: "https": want https_spiffe or https_web`,
		good + "federationEndpoint: {listen: ':1', profile: https_web, key: k}\n":                 "c.yaml:7: federationEndpoint.certificate: certificate and key are needed",
		good + "federationEndpoint: {listen: ':1', profile: https_spiffe, key: k}\n":              "c.yaml:7: federationEndpoint.certificate: certificate and key are for the profile https_web",
		strings.Replace(good, "eu\n", "Not_A_Name\n", 1):                                          "c.yaml:1: cluster: ",
		strings.Replace(good, "eu.example", "spiffe://eu.example", 1):                             "c.yaml:2: trustDomain: want the name alone",
		strings.Replace(good, "state: s", "state: m/s", 1):                                        "c.yaml:4: state: is inside",
		strings.Replace(good, `{listen: "`, `{advertise: [x], listen: "`, 1):                      "c.yaml:6: bus.advertise: entry 1",
	} {
		if _, err := readConfig(write(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v; want %q", text, err, want)
		}
	}
}

func TestKubernetesIsAskedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	text := "cluster: eu\ntrustDomain: eu.example\nkubernetes: {kubeconfig: %s/none}\nstate: %[1]s/state\nlisten: 127.0.0.1:0\nbus: {listen: \"127.0.0.1:0\"}\n"
	if err := os.WriteFile(path, fmt.Appendf(nil, text, t.TempDir()), 0o600); err != nil {
		t.Fatal(err)
	}
	err := run(t.Context(), []string{"--config", path}, nil, new(bytes.Buffer), new(bytes.Buffer))
	if exitCode(err) != 1 || !strings.Contains(err.Error(), "kubeconfig") || !strings.Contains(err.Error(), "none") {
		t.Errorf("a kubeconfig that is not there: %v", err)
	}
}

// process is a control that runs in this process, with real NATS, sockets and files.
type process struct {
	dir    string
	client *admin.Client
	probe  string
	stderr *lines
	stop   func() error
}

func startControl(t *testing.T, dir, cluster string, manifests bool, more ...string) *process {
	t.Helper()
	p := &process{dir: dir, client: admin.NewClient(filepath.Join(dir, "state", "control.sock")), stderr: new(lines)}
	p.probe = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	if manifests {
		if err := os.Mkdir(filepath.Join(dir, "manifests"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := fmt.Sprintf("cluster: %s\ntrustDomain: %[1]s.example\nmanifests: %[2]s/manifests\nstate: %[2]s/state\nlisten: 127.0.0.1:0\n"+
		"bus: {listen: \"127.0.0.1:%[3]d\"}\nadmin: {listen: %[4]q}\nnodeProxies: [node-0]\n", cluster, dir, freePort(t), p.probe) + strings.Join(more, "")
	path := filepath.Join(dir, "control.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- run(ctx, []string{"--config", path}, nil, new(bytes.Buffer), p.stderr) }()
	p.stop = sync.OnceValue(func() error { cancel(); return <-result })
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("%s: %v\n%s", cluster, err, p.stderr)
		}
	})
	return p
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal("no TCP address")
	}
	return a.Port
}

func (p *process) eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v\n%s", err, p.stderr)
		}
		time.Sleep(20 * time.Millisecond) // for another process' work; check decides
	}
}

func (p *process) declare(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, "manifests", name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTwoControlsOverNATS(t *testing.T) {
	eu, us := startControl(t, t.TempDir(), "eu", true), startControl(t, t.TempDir(), "us", true)
	introduce := func(to, who *process) {
		var i admin.Introduction
		who.eventually(t, func() (err error) { i, err = who.client.Introduction(t.Context()); return err })
		to.declare(t, "peer.yaml", fmt.Sprintf("apiVersion: isthmus.dev/v1alpha1\nkind: ClusterPeer\nmetadata: {name: %s}\n"+
			"spec: {trustDomain: %s, rootFingerprint: %q, bus: {key: %s, urls: [%q]}}\n", i.Cluster, i.TrustDomain, i.RootFingerprint, i.BusKey, i.BusURLs[0]))
	}
	introduce(eu, us)
	introduce(us, eu)
	us.declare(t, "web.yaml", "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: web}\nspec: {ports: [{port: 80}]}\n---\n"+
		"apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {namespace: shop, name: web}\n")
	eu.eventually(t, func() error {
		imports, err := eu.client.Imports(t.Context())
		if err != nil || len(imports) != 1 || len(imports[0].IPs) != 1 {
			return fmt.Errorf("imports: %+v, %w", imports, err)
		}
		return nil
	})
	// The records may have come the other way: what we dial is up on its own time.
	eu.eventually(t, func() error {
		status, askErr := eu.client.Status(t.Context())
		if askErr != nil || !status.Ready || len(status.Peers) != 1 || status.Peers[0].Bus != "connected" {
			return fmt.Errorf("status: %+v, %w", status, askErr)
		}
		return nil
	})
	// The file that the folder gets to know all of it from.
	us.eventually(t, func() error {
		data, readErr := os.ReadFile(filepath.Join(us.dir, "manifests", ".status", "exports.yaml"))
		if readErr != nil || !strings.Contains(string(data), "reason: Valid") {
			return fmt.Errorf("status of the exports: %s, %w", data, readErr)
		}
		return nil
	})
	// A mistake is told with its line.
	us.declare(t, "bad.yaml", "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: web2}\nspec:\n  ports: [{port: 0}]\n")
	us.eventually(t, func() error {
		problems, askErr := us.client.Status(t.Context())
		if p := problems.Manifests.Problems; askErr != nil || !slices.ContainsFunc(p, func(p admin.Problem) bool { return p.File == "bad.yaml" && p.Line == 5 }) {
			return fmt.Errorf("problems: %+v, %w", p, askErr)
		}
		return nil
	})

	for path, want := range map[string]string{"/metrics": "isthmus_control_imports 1", "/livez": `"ready":true`, "/readyz": `"ready":true`} {
		body, code := fetch(t, "http://"+eu.probe+path)
		if code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d, want %q in\n%s", path, code, want, body)
		}
	}
	info, err := os.Stat(filepath.Join(eu.dir, "state", "control.sock"))
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != fs.ModeSocket {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
	// One state, one control.
	err = run(t.Context(), []string{"--config", filepath.Join(eu.dir, "control.yaml")}, nil, new(bytes.Buffer), new(bytes.Buffer))
	if err == nil || !strings.Contains(err.Error(), "another isthmus-control") {
		t.Errorf("a second control over the same state: %v", err)
	}
}

func TestNotReadyWithoutManifests(t *testing.T) {
	p := startControl(t, t.TempDir(), "eu", false)
	p.eventually(t, func() error {
		_, err := p.client.Introduction(t.Context())
		return err
	})
	body, code := fetch(t, "http://"+p.probe+"/readyz")
	var answer ready.Answer
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatal(err)
	}
	if code != http.StatusServiceUnavailable || len(answer.Missing) != 1 || !strings.HasPrefix(answer.Missing[0], "manifests: ") {
		t.Errorf("%d: %s", code, body)
	}
	p.eventually(t, func() error {
		if !strings.Contains(p.stderr.String(), "no such file or directory") {
			return errors.New("nothing is said of the folder that is not there")
		}
		return nil
	})
}

func fetch(t *testing.T, url string) (string, int) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var body bytes.Buffer
	if _, err := body.ReadFrom(response.Body); err != nil {
		t.Fatal(err)
	}
	return body.String(), response.StatusCode
}

func TestSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.sock")
	first, err := listenSocket(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = listenSocket(path, 0o600); err == nil || !strings.Contains(err.Error(), "another process answers") {
		t.Errorf("while somebody answers there: %v", err)
	}
	// As a process leaves it that was killed.
	if u, ok := first.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	if err = first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := listenSocket(path, 0o600)
	if err != nil {
		t.Fatalf("over a socket that a dead process left: %v", err)
	}
	_ = second.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenSocket(path, 0o600); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("over a file: %v", err)
	}
	if _, err := listenSocket(filepath.Join(dir, strings.Repeat("long/", 30), "s"), 0o600); exitCode(err) != 2 {
		t.Errorf("a path that is too long: %v", err)
	}
}

// lines is a writer that several goroutines may use.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
