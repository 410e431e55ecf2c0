package apiserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// Files of a cluster, in its folder.
const (
	certDir    = "certs"
	serverCert = "certs/apiserver.crt"
	tokenFile  = "tokens.csv"
	accountKey = "service-account.key"
)

const admin = "admin"

// writeCredentials writes what the API server knows its administrator by, what it signs service accounts' tokens with, and the
// administrator's kubeconfig.
func (c *Cluster) writeCredentials() error {
	c.token = rand.Text()
	if err := c.write(tokenFile, fmt.Appendf(nil, "%s,%s,%s,system:masters\n", c.token, admin, admin)); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err = c.write(accountKey, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})); err != nil {
		return err
	}
	_, err = c.kubeconfig(admin, map[string]any{"token": c.token})
	return err
}

// Kubeconfig returns the file by which the cluster's administrator reaches it.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, admin+".kubeconfig") }

// KubeconfigAs writes a kubeconfig for somebody else, whom the API server takes the bearer for, and who may do what RBAC allows.
func (c *Cluster) KubeconfigAs(user string, groups ...string) (file string, err error) {
	return c.kubeconfig(strings.ReplaceAll(user, ":", "-"), map[string]any{"token": c.token, "as": user, "as-groups": groups})
}

func (c *Cluster) kubeconfig(name string, user map[string]any) (file string, err error) {
	type named map[string]any
	one := func(kind string, value any) []named { return []named{{"name": c.config.Name, kind: value}} }
	data, err := json.Marshal(named{ // JSON is YAML
		"apiVersion": "v1", "kind": "Config", "current-context": c.config.Name,
		"clusters": one("cluster", named{"server": "https://" + c.server, "certificate-authority": filepath.Join(c.dir, serverCert)}),
		"users":    one("user", user),
		"contexts": one("context", named{"cluster": c.config.Name, "user": c.config.Name}),
	})
	if err != nil {
		return "", err
	}
	name += ".kubeconfig"
	return filepath.Join(c.dir, name), c.write(name, data)
}

// trustServer takes the certificate that the API server made itself for the only one to believe. It is not there until the first start.
func (c *Cluster) trustServer() error {
	if c.client != nil {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(c.dir, serverCert))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return fmt.Errorf("no certificate in %s yet", serverCert)
	}
	c.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
		MaxIdleConnsPerHost: 8,
	}}
	return nil
}

func (c *Cluster) write(name string, data []byte) error {
	return os.WriteFile(filepath.Join(c.dir, name), data, 0o600)
}

func split(address string) (host, port string) {
	host, port, _ = net.SplitHostPort(address) // of our own making
	return host, port
}
