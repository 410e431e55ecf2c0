package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// cluster is one that kind makes. Its context in the kubeconfig is called like itself.
type cluster struct{ name, pods, services string }

// prefix keeps our clusters apart from others of the same daemon.
const prefix = "isthmus-"

// clusters do not share ranges of addresses, and have no way into each other's pods.
var clusters = []cluster{{"eu", "10.1.0.0/16", "10.101.0.0/16"}, {"us", "10.2.0.0/16", "10.102.0.0/16"}}

const clusterConfig = `kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
name: %s
networking: {podSubnet: %s, serviceSubnet: %s, ipFamily: ipv4}
nodes: [{role: control-plane, image: %q}]
`

const (
	// readyTime bounds the wait for a node. It is long because a machine may be busy; nothing depends on its length.
	readyTime = 3 * time.Minute
	// createTries is how often a cluster is made anew that has not become ready. What is tested in it is never tried again.
	createTries = 2
)

// isUp reports whether clusters were made that have not been removed.
func (l *lab) isUp() bool {
	_, err := os.Stat(l.kubeconfig())
	return err == nil
}

// up makes the clusters; those that are there get the present images of the tests.
func (l *lab) up(ctx context.Context) (err error) {
	if err = l.connect(ctx); err != nil {
		return err
	}
	if l.isUp() {
		return l.loadTestImages(ctx)
	}
	if err = l.create(ctx); err != nil {
		return errors.Join(err, l.down())
	}
	return nil
}

func (l *lab) create(ctx context.Context) error {
	image, err := l.nodeImage(ctx)
	if err != nil {
		return err
	}
	kind, err := l.kind(ctx)
	if err != nil {
		return err
	}
	l.say("clusters of %s", image)
	if err = each(func(c cluster) error { return l.createCluster(ctx, kind, image, c) }); err != nil {
		return err
	}
	if err = l.loadTestImages(ctx); err != nil {
		return err
	}
	if err = l.mergeKubeconfigs(ctx); err != nil {
		return err
	}
	l.say("clusters are ready: go run ./kind-tests/kindlab exec kubectl --context eu get pods -A")
	return nil
}

// each does something for all clusters at once.
func each(do func(cluster) error) error {
	errs := make([]error, len(clusters))
	var group sync.WaitGroup
	for i, c := range clusters {
		group.Go(func() {
			if err := do(c); err != nil {
				errs[i] = fmt.Errorf("cluster %s: %w", c.name, err)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

func (l *lab) createCluster(ctx context.Context, kind, image string, c cluster) (err error) {
	config := l.file(c.name + ".yaml")
	if err = os.WriteFile(config, fmt.Appendf(nil, clusterConfig, prefix+c.name, c.pods, c.services, image), 0o600); err != nil {
		return err
	}
	for try := range createTries {
		if try > 0 {
			l.say("cluster %s was not made, trying again: %v", c.name, err)
			_ = l.deleteNodes(ctx, c)
		}
		if err = l.runKind(ctx, kind, "create", "cluster", "--config", config, "--kubeconfig", l.file(c.name+".kubeconfig"), "--wait", readyTime.String()); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return err
}

func (l *lab) runKind(ctx context.Context, kind string, args ...string) error {
	command := append(append([]string{}, l.docker.enter...), append([]string{kind}, args...)...)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), l.docker.env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("kind %s: %w: %s", strings.Join(args, " "), err, tail(string(out)))
	}
	return nil
}

// mergeKubeconfigs makes one file of all, with short names for the contexts. It is there when everything is.
func (l *lab) mergeKubeconfigs(ctx context.Context) error {
	kubectl, err := l.linkKubectl(ctx)
	if err != nil {
		return err
	}
	var files []string
	for _, c := range clusters {
		f := l.file(c.name + ".kubeconfig")
		if _, err = output(ctx, nil, kubectl, "--kubeconfig", f, "config", "rename-context", "kind-"+prefix+c.name, c.name); err != nil {
			return err
		}
		files = append(files, f)
	}
	text, err := output(ctx, []string{"KUBECONFIG=" + strings.Join(files, ":")}, kubectl, "config", "view", "--flatten")
	if err != nil {
		return err
	}
	return os.WriteFile(l.kubeconfig(), []byte(text), 0o600)
}

// linkKubectl puts kubectl where exec finds it: that of the same release as the nodes; where their image was given, whichever there is.
func (l *lab) linkKubectl(ctx context.Context) (string, error) {
	from, err := exec.LookPath("kubectl")
	if os.Getenv("ISTHMUS_KIND_IMAGE") == "" || err != nil {
		dir, err := l.build(ctx)
		if err != nil {
			return "", err
		}
		from = dir + "/kubectl"
	}
	to := l.file("bin/kubectl")
	return to, os.Symlink(from, to)
}

// load gives the images of archives to all nodes.
func (l *lab) load(ctx context.Context, archives ...string) error {
	if err := l.connect(ctx); err != nil {
		return err
	}
	return each(func(c cluster) error {
		for _, a := range archives {
			if err := l.loadInto(ctx, c, a); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *lab) loadInto(ctx context.Context, c cluster, archive string) error {
	in, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	cmd := exec.CommandContext(ctx, "docker", "exec", "--interactive", c.node(), "ctr", "--namespace", "k8s.io", "images", "import", "--digests", "-")
	cmd.Env, cmd.Stdin = append(os.Environ(), l.docker.env...), in
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load %s: %w: %s", archive, err, tail(string(out)))
	}
	return nil
}

// node is the container that a cluster is.
func (c cluster) node() string { return prefix + c.name + "-control-plane" }

// exec runs a command where the clusters can be reached.
func (l *lab) exec(ctx context.Context, command []string) error {
	if !l.isUp() {
		return errors.New("there are no clusters: make them with: make kind-up")
	}
	if err := l.connect(ctx); err != nil {
		return err
	}
	return l.inside(ctx, ".", nil, command...)
}

func (l *lab) inside(ctx context.Context, dir string, env []string, command ...string) error {
	env = append(env, "KUBECONFIG="+l.kubeconfig(), "PATH="+l.file("bin")+":"+os.Getenv("PATH"))
	command = append(append([]string{}, l.docker.enter...), command...)
	return through(ctx, dir, append(env, l.docker.env...), command[0], command[1:]...)
}

// down removes the clusters, and our daemon where there is one. It runs to its end also when we are told to stop.
func (l *lab) down() error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTime)
	defer cancel()
	if l.daemonPID() != 0 {
		l.docker = l.ours()
	} else if d, ok := reach(ctx); ok {
		l.docker = d
	} else {
		return l.stopDaemon() // it has been killed, and left things behind
	}
	err := each(func(c cluster) error { return l.deleteNodes(ctx, c) })
	if err != nil {
		return err
	}
	if l.daemonPID() == 0 {
		return os.RemoveAll(l.run)
	}
	if _, err = l.docker.do(ctx, "network", "prune", "--force"); err != nil {
		return err
	}
	return l.stopDaemon()
}

// deleteNodes removes a cluster, paused or not.
func (l *lab) deleteNodes(ctx context.Context, c cluster) error {
	ids, err := l.docker.do(ctx, "ps", "--all", "--quiet", "--filter", "label=io.x-k8s.kind.cluster="+prefix+c.name)
	if err != nil || ids == "" {
		return err
	}
	_, err = l.docker.do(ctx, append([]string{"rm", "--force", "--volumes"}, strings.Fields(ids)...)...)
	return err
}
