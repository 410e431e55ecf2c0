package kindtests

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/kind-tests/apiserver"
)

// kubeCluster is a cluster that a context of a kubeconfig leads to.
type kubeCluster struct {
	context string
	server  string
	client  *http.Client
}

// readKubeconfig reads a file with everything in it, as kind writes them.
func readKubeconfig(path, contextName string) (*kubeCluster, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Contexts []struct {
			Name    string
			Context struct{ Cluster, User string }
		}
		Clusters []struct {
			Name    string
			Cluster struct {
				Server string
				CA     []byte `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			Name string
			User struct {
				Certificate []byte `json:"client-certificate-data"`
				Key         []byte `json:"client-key-data"`
			}
		}
	}
	if err = yaml.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	k, config := &kubeCluster{context: contextName}, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	for _, c := range file.Contexts {
		if c.Name != contextName {
			continue
		}
		for _, o := range file.Clusters {
			if o.Name == c.Context.Cluster {
				k.server = o.Cluster.Server
				config.RootCAs.AppendCertsFromPEM(o.Cluster.CA)
			}
		}
		for _, u := range file.Users {
			if u.Name != c.Context.User {
				continue
			}
			pair, err := tls.X509KeyPair(u.User.Certificate, u.User.Key)
			if err != nil {
				return nil, fmt.Errorf("%s: user %s: %w", path, u.Name, err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
	}
	if k.server == "" || config.Certificates == nil {
		return nil, fmt.Errorf("%s: no context %s with a cluster, and a user with a certificate", path, contextName)
	}
	k.client = &http.Client{Transport: &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 8}}
	return k, nil
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 16 << 20

func (k *kubeCluster) Get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.server+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := k.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	switch {
	case err != nil:
		return nil, err
	case response.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%s of cluster %s: %w", path, k.context, apiserver.ErrNotFound)
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s of cluster %s: %s: %s", path, k.context, response.Status, body)
	}
	return body, nil
}

func (k *kubeCluster) Kubectl(ctx context.Context, stdin string, args ...string) (stdout, stderr string, err error) {
	return run(ctx, stdin, "kubectl", append([]string{"--context", k.context}, args...)...)
}

// run runs a program and returns what it printed.
func run(ctx context.Context, stdin, name string, args ...string) (stdout, stderr string, err error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), errors.Join(ctx.Err(), err), strings.TrimSpace(errs.String()))
	}
	return out.String(), errs.String(), err
}
