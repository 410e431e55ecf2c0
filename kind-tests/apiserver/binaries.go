// Package apiserver starts clusters that are all API and no nodes: etcd, kube-apiserver, and of kube-controller-manager what empties
// namespaces and collects garbage, as processes of this machine on loopback. What is declared there is admitted, stored and watched as in
// any cluster; no pod ever runs.
//
// The programs come from kind-tests/kubernetes (make kube-binaries). They end with the test that started them.
package apiserver

import (
	"fmt"
	"os"
	"path/filepath"
)

// Binaries is a folder with the programs, as kind-tests/kubernetes/build makes it.
type Binaries string

const (
	etcd              = "etcd"
	kubeAPIServer     = "kube-apiserver"
	controllerManager = "kube-controller-manager"
	kubectl           = "kubectl"
)

// Check fails when a program is not there.
func (b Binaries) Check() error {
	for _, name := range []string{etcd, kubeAPIServer, controllerManager, kubectl} {
		if info, err := os.Stat(b.path(name)); err != nil || !info.Mode().IsRegular() { //nolint:gosec // G703: it is for whoever runs the tests to say where they are
			return fmt.Errorf("there is no %s in %s: build it with: make kube-binaries", name, string(b))
		}
	}
	return nil
}

// Kubectl returns where kubectl is.
func (b Binaries) Kubectl() string { return b.path(kubectl) }

func (b Binaries) path(name string) string { return filepath.Join(string(b), name) }
