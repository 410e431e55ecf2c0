package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// maxAnswer bounds what is read of an answer.
const maxAnswer = 16 << 20

// ErrNotFound is what Get returns for what is not there.
var ErrNotFound = errors.New("not found")

// Get reads a path of the API as the administrator. Much cheaper than kubectl, for whoever asks again and again.
func (c *Cluster) Get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.server+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+c.token)
	response, err := c.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	switch {
	case err != nil:
		return nil, err
	case response.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%s of cluster %s: %w", path, c.config.Name, ErrNotFound)
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s of cluster %s: %s: %s", path, c.config.Name, response.Status, body)
	}
	return body, nil
}

// Kubectl runs kubectl as the administrator and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (stdout, stderr string, err error) {
	cmd := exec.CommandContext(ctx, c.config.Binaries.Kubectl(), append([]string{"--kubeconfig", c.Kubeconfig()}, args...)...) //nolint:gosec // G204: it is for the test to say what to run
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	// Its cache of what kinds there are is the cluster's own: ports, by which it tells clusters apart, come back.
	cmd.Env = append(os.Environ(), "KUBECACHEDIR="+filepath.Join(c.dir, "kubectl"))
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("kubectl %s, in cluster %s: %w: %s", strings.Join(args, " "), c.config.Name, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), errs.String(), err
}
