package apiserver

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/kind-tests/child"
)

func start(t *testing.T, name string) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), Config{Binaries: Require(t), Name: name, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

func kubectlOK(t *testing.T, c *Cluster, stdin string, args ...string) string {
	t.Helper()
	out, _, err := c.Kubectl(t.Context(), stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCluster(t *testing.T) {
	c := start(t, "eu")
	t.Run("it is the version that is pinned", func(t *testing.T) {
		var version struct{ GitVersion string }
		data, err := c.Get(t.Context(), "/version")
		if err = errors.Join(err, json.Unmarshal(data, &version)); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(c.config.Binaries), "/"+version.GitVersion+"-") {
			t.Errorf("it says %s, from %s", version.GitVersion, c.config.Binaries)
		}
	})
	t.Run("objects outlive a server that is killed", func(t *testing.T) {
		kubectlOK(t, c, "", "create", "configmap", "kept", "--from-literal=a=b")
		c.KillServer()
		if _, err := c.Get(t.Context(), "/readyz"); err == nil {
			t.Error("a killed server answers")
		}
		if err := c.StartServer(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := kubectlOK(t, c, "", "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); got != "b" {
			t.Errorf("%q", got)
		}
	})
	t.Run("a namespace goes with what is in it", func(t *testing.T) {
		kubectlOK(t, c, "", "create", "namespace", "shop")
		kubectlOK(t, c, "", "create", "service", "clusterip", "web", "--tcp=80", "-n", "shop")
		kubectlOK(t, c, "", "delete", "namespace", "shop", "--timeout=30s")
		if _, err := c.Get(t.Context(), "/api/v1/namespaces/shop/services/web"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v", err)
		}
	})
	t.Run("somebody else may do what RBAC allows", func(t *testing.T) {
		file, err := c.KubeconfigAs("system:serviceaccount:a:b", "system:authenticated")
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = c.Kubectl(t.Context(), "", "--kubeconfig", file, "get", "services")
		if err == nil || !strings.Contains(err.Error(), `User "system:serviceaccount:a:b" cannot list resource "services"`) {
			t.Errorf("%v", err)
		}
	})
}

// TestPortsTaken has somebody else on a port that was chosen: first that is told from other failures, then Start tries others.
func TestPortsTaken(t *testing.T) {
	b := Require(t)
	addresses, err := child.Addresses(4)
	if err != nil {
		t.Fatal(err)
	}
	for i, what := range []string{"the API server's", "etcd's"} {
		squatter, err := net.Listen("tcp4", addresses[2*i+i%2])
		if err != nil {
			t.Fatal(err)
		}
		_, err = startAt(t.Context(), Config{Binaries: b, Name: "eu"}, t.TempDir(), addresses[2*i], addresses[2*i+1])
		if !errors.Is(err, errPortTaken) {
			t.Errorf("%s port: %v", what, err)
		}
		_ = squatter.Close()
	}
}

// TestStopLeavesNothing looks for who still listens, and runs.
func TestStopLeavesNothing(t *testing.T) {
	c := start(t, "eu")
	c.Stop()
	for _, address := range []string{c.server, c.store} {
		if conn, err := net.DialTimeout("tcp4", address, time.Second); err == nil {
			_ = conn.Close()
			t.Errorf("%s still answers", address)
		}
	}
	for _, p := range []*child.Process{c.etcd, c.api, c.controllers} {
		if p.Err() == nil {
			t.Error("a program still runs")
		}
	}
}

func TestMissingBinaries(t *testing.T) {
	dir := t.TempDir()
	_, err := Start(t.Context(), Config{Binaries: Binaries(dir), Name: "eu", Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "make kube-binaries") {
		t.Errorf("%v", err)
	}
	for _, name := range []string{etcd, kubeAPIServer, controllerManager, kubectl} {
		if err := Binaries(dir).Check(); err == nil {
			t.Errorf("nothing is said of %s", name)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Binaries(dir).Check(); err != nil {
		t.Error(err)
	}
}
