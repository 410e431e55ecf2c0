package kindtests

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/kind-tests/apiserver"
	"github.com/isthmus-mesh/isthmus/kind-tests/child"
)

// member is one cluster of the mesh.
type member struct {
	name     string
	dir      string
	programs string // folder of our own programs
	mutant   string // takes the place of isthmus-control; none when empty
	cluster  *apiserver.Cluster
	api      api // of the cluster

	control, gateway *child.Process
	socket           string // of control
	join             string // where gateways join control

	node string // the container of a cluster that kind made, in which control and gateways are Pods; none of those that are all API
}

// api is what a scenario does in a cluster, wherever that runs.
type api interface {
	Get(ctx context.Context, path string) ([]byte, error)
	Kubectl(ctx context.Context, stdin string, args ...string) (stdout, stderr string, err error)
}

const control = "isthmus-control"

// build builds some of our own programs.
func build(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-o", dir + string(filepath.Separator)}, args...)...)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

func (c *member) startCluster(ctx context.Context, binaries apiserver.Binaries) (err error) {
	c.cluster, err = apiserver.Start(ctx, apiserver.Config{Binaries: binaries, Name: c.name, Dir: filepath.Join(c.dir, "cluster")})
	if err != nil {
		return err
	}
	c.api = c.cluster
	for _, what := range []func() (string, error){crds, role} {
		var text string
		if text, err = what(); err != nil {
			return err
		}
		if _, _, err = c.api.Kubectl(ctx, text, "create", "-f", "-"); err != nil {
			return err
		}
	}
	_, _, err = c.api.Kubectl(ctx, "", "wait", "crd", "--all", "--for=condition=Established", "--timeout=60s")
	return err
}

func (c *member) makeNamespace(ctx context.Context, name string) error {
	_, _, err := c.api.Kubectl(ctx, "", "create", "namespace", name)
	return err
}

const controlConfig = `cluster: %[1]s
trustDomain: %[1]s.example
kubernetes: {kubeconfig: %[2]q}
state: %[3]q
listen: %[4]s
bus: {listen: %[5]s}
admin: {socket: %[6]q, listen: %[7]s}
log: {level: debug}
`

// startControl starts the control plane and returns when it can be asked.
func (c *member) startControl(ctx context.Context) error {
	addresses, err := child.Addresses(3)
	if err != nil {
		return err
	}
	// A path of a socket is short, and that of a temporary folder need not be.
	sockets, err := os.MkdirTemp("", "isthmus-")
	if err != nil {
		return err
	}
	c.socket, c.join = filepath.Join(sockets, "control.sock"), addresses[0]
	// It may do what deploy/rbac lets it, and no more.
	const namespace = "isthmus-system"
	account, err := c.cluster.KubeconfigAs("system:serviceaccount:"+namespace+":isthmus-control",
		"system:serviceaccounts", "system:serviceaccounts:"+namespace, "system:authenticated")
	if err != nil {
		return err
	}
	err = c.write("control.yaml", fmt.Sprintf(controlConfig, c.name, account, filepath.Join(c.dir, "control"),
		addresses[0], addresses[1], c.socket, addresses[2]))
	if err != nil {
		return err
	}
	return c.runControl(ctx)
}

// runControl starts the control plane with what it has on disk.
func (c *member) runControl(ctx context.Context) (err error) {
	if c.control, err = c.run(control, "control"); err != nil {
		return err
	}
	return poll(ctx, patience, func() error {
		if ended := c.control.Err(); ended != nil {
			return ended
		}
		_, err := c.isthmus(ctx, "introduction")
		return err
	})
}

const gatewayConfig = `id: gateway-0
control: %[1]s
trustDomain: %[2]s.example
state: %[3]q
joinTokenFile: %[4]q
trustBundleFile: %[5]q
listen: {streams: %[6]s, quic: %[7]s, admin: %[8]s}
advertise: {streams: %[6]s, quic: %[7]s}
`

// startGateway starts the cluster's gateway. No call goes through it here; without one an export is not Ready.
func (c *member) startGateway(ctx context.Context) error {
	addresses, err := child.Addresses(3)
	if err != nil {
		return err
	}
	token, err := c.isthmus(ctx, "join-token", "--gateway", "gateway-0")
	if err != nil {
		return err
	}
	if err = c.write("gateway.token", token); err != nil {
		return err
	}
	err = c.write("gateway.yaml", fmt.Sprintf(gatewayConfig, c.join, c.name, filepath.Join(c.dir, "gateway"),
		filepath.Join(c.dir, "gateway.token"), filepath.Join(c.dir, "control", "trust-bundle.pem"), addresses[0], addresses[1], addresses[2]))
	if err != nil {
		return err
	}
	c.gateway, err = c.run("isthmus-gateway", "gateway")
	return err
}

func (c *member) run(program, name string) (*child.Process, error) {
	path := filepath.Join(c.programs, program)
	if program == control && c.mutant != "" {
		path = c.mutant
	}
	return child.Start(child.Config{
		Path: path, Args: []string{"--config", filepath.Join(c.dir, name+".yaml")},
		Log: filepath.Join(c.dir, name+".log"),
	})
}

// isthmus asks the cluster's control plane.
func (c *member) isthmus(ctx context.Context, args ...string) (string, error) {
	return isthmus(ctx, []*member{c}, args...)
}

// isthmus asks the control planes of several clusters at once.
func isthmus(ctx context.Context, in []*member, args ...string) (string, error) {
	args = slices.Clip(args)
	for _, c := range in {
		if c.node != "" {
			args = append(args, "--context", c.name)
		} else {
			args = append(args, "--control", c.socket)
		}
	}
	cmd := exec.CommandContext(ctx, filepath.Join(in[0].programs, "isthmus"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("isthmus %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), err
}

func (c *member) write(name, text string) error {
	return os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600)
}

func (c *member) close() {
	for _, p := range []*child.Process{c.gateway, c.control} {
		if p != nil {
			p.Stop(5 * time.Second)
		}
	}
	if c.cluster != nil {
		c.cluster.Stop()
	}
	if c.socket != "" {
		_ = os.RemoveAll(filepath.Dir(c.socket))
	}
}
