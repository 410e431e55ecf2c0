// Kindnet stands in for kind's network daemon: it tells containerd how pods of its node are connected (a ptp plugin and addresses of the
// node's range), keeps routes to the pods of other nodes, and gives the node's address to what leaves the networks of NO_MASQ.
// Within a cluster alone: the pods of two clusters have no way to each other, as in most installations.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	configDir  = "/etc/cni/net.d"
	every      = 2 * time.Second
)

const config = `{"cniVersion": "0.4.0", "name": "kindnet", "plugins": [
 {"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state",
  "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "%s"}]]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
`

func main() {
	var last string
	for ; ; time.Sleep(every) {
		// What went wrong is said once, and tried again.
		if err := keep(); err == nil {
			last = ""
		} else if last != err.Error() {
			last = err.Error()
			slog.Error("not connected", "error", err)
		}
	}
}

func keep() error {
	nodes, err := listNodes()
	if err != nil {
		return err
	}
	errs := []error{masquerade(os.Getenv("POD_SUBNET"), strings.Split(os.Getenv("NO_MASQ"), ","))}
	for _, n := range nodes {
		switch {
		case n.Spec.PodCIDR == "":
		case n.Metadata.Name == os.Getenv("NODE_NAME"):
			errs = append(errs, writeConfig(n.Spec.PodCIDR))
		default:
			for _, a := range n.Status.Addresses {
				if a.Type == "InternalIP" {
					errs = append(errs, run("ip", "route", "replace", n.Spec.PodCIDR, "via", a.Address))
				}
			}
		}
	}
	return errors.Join(errs...)
}

type node struct {
	Metadata struct{ Name string }
	Spec     struct{ PodCIDR string }
	Status   struct {
		Addresses []struct{ Type, Address string }
	}
}

// listNodes asks the API server, as the pod's service account.
func listNodes() ([]node, error) {
	token, err := os.ReadFile(accountDir + "/token")
	if err != nil {
		return nil, err
	}
	root, err := os.ReadFile(accountDir + "/ca.crt")
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	server := os.Getenv("CONTROL_PLANE_ENDPOINT") // by name: before kube-proxy runs, the address of the Service leads nowhere
	if server == "" {
		server = net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	}
	request, err := http.NewRequest(http.MethodGet, "https://"+server+"/api/v1/nodes?resourceVersion=0", nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+string(token))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}
	client := http.Client{Timeout: 10 * time.Second, Transport: transport}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("list nodes: %s", response.Status)
	}
	var list struct{ Items []node }
	return list.Items, json.NewDecoder(response.Body).Decode(&list)
}

// writeConfig replaces the configuration as a whole: containerd reads it as soon as it is there.
func writeConfig(subnet string) error {
	text, name := fmt.Sprintf(config, subnet), filepath.Join(configDir, "10-kindnet.conflist")
	if old, err := os.ReadFile(name); err == nil && string(old) == text {
		return nil
	}
	part := filepath.Join(configDir, ".10-kindnet.part")
	if err := os.WriteFile(part, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(part, name)
}

func masquerade(from string, but []string) error {
	const chain = "KINDNET-MASQ"
	table := []string{"iptables", "-w", "-t", "nat"}
	in := func(args ...string) error { return run(append(table, args...)...) }
	if in("-n", "-L", chain) != nil {
		if err := in("-N", chain); err != nil {
			return err
		}
		for _, to := range but {
			if err := in("-A", chain, "-d", to, "-j", "RETURN"); err != nil {
				return err
			}
		}
		if err := in("-A", chain, "-j", "MASQUERADE"); err != nil {
			return err
		}
	}
	rule := []string{"POSTROUTING", "-s", from, "-m", "addrtype", "!", "--dst-type", "LOCAL", "-j", chain}
	if in(append([]string{"-C"}, rule...)...) == nil {
		return nil
	}
	return in(append([]string{"-A"}, rule...)...)
}

func run(command ...string) error {
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
