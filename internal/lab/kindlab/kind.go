// Package kindlab starts real Kubernetes clusters for the playground: kind's, a container each, on this machine's Docker.
//
// The clusters can't reach each other's pods, only each other's nodes: as clusters of different regions do. Their kubeconfig is a file of
// the playground's own; the user's is left alone.
//
// Source: https://kind.sigs.k8s.io, whose library does the work.
package kindlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	"sigs.k8s.io/kind/pkg/cluster"
	"sigs.k8s.io/kind/pkg/cluster/nodeutils"
	kindlog "sigs.k8s.io/kind/pkg/log"
)

// prefix is what the playground's clusters are known by among all of kind's.
const prefix = "isthmus-"

// MaxClusters bounds how many there may be: each has pods and services in a /16 of its own, and wants half a GiB.
const MaxClusters = 8

// readyWithin is how long the nodes of a new cluster may take.
const readyWithin = 3 * time.Minute

// Lab is a playground's clusters.
type Lab struct {
	dir      string
	say      func(string)
	provider *cluster.Provider
}

// Cluster is one that runs.
type Cluster struct {
	Name    string // as the mesh knows it, "eu"
	Context string // in Lab.Kubeconfig
}

// New makes a lab that keeps its files in dir, and says what it does to say. It fails where there is no Docker that answers.
func New(ctx context.Context, dir string, say func(string)) (*Lab, error) {
	if _, err := exec.LookPath("docker"); err != nil {
		return nil, fmt.Errorf("kind needs Docker, and there is no docker command: %w", err)
	}
	out, err := exec.CommandContext(ctx, "docker", "version", "--format", "{{.Server.Version}}").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("kind needs a Docker that answers (DOCKER_HOST says which): docker version: %s", strings.TrimSpace(string(out)))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &Lab{dir: dir, say: say, provider: cluster.NewProvider(cluster.ProviderWithDocker(), cluster.ProviderWithLogger(kindlog.NoopLogger{}))}, nil
}

// Kubeconfig is the file that reaches all clusters.
func (l *Lab) Kubeconfig() string { return filepath.Join(l.dir, "kubeconfig") }

// Clusters returns those that run, in the order in which they were named when they were made.
func (l *Lab) Clusters() ([]Cluster, error) {
	names, err := l.provider.List()
	if err != nil {
		return nil, fmt.Errorf("kind: %w", err)
	}
	var clusters []Cluster
	for _, name := range names {
		if own, ok := strings.CutPrefix(name, prefix); ok {
			clusters = append(clusters, Cluster{Name: own, Context: "kind-" + name})
		}
	}
	return clusters, nil
}

// Up makes the clusters that are not there yet. image is the node image; empty: kind's own. On an error, what was made stays, for Down.
func (l *Lab) Up(ctx context.Context, names []string, image string) ([]Cluster, error) {
	if len(names) > MaxClusters {
		return nil, fmt.Errorf("at most %d clusters", MaxClusters)
	}
	there, err := l.Clusters()
	if err != nil {
		return nil, err
	}
	var clusters []Cluster
	for i, name := range names {
		c := Cluster{Name: name, Context: "kind-" + prefix + name}
		clusters = append(clusters, c)
		if slices.Contains(there, c) {
			if err := l.provider.ExportKubeConfig(prefix+name, l.Kubeconfig(), false); err != nil {
				return clusters, fmt.Errorf("kind: cluster %s: %w", prefix+name, err)
			}
			continue
		}
		l.say(fmt.Sprintf("making the kind cluster %s%s", prefix, name))
		if err := l.create(ctx, i, name, image); err != nil {
			return clusters, err
		}
	}
	return clusters, nil
}

func (l *Lab) create(ctx context.Context, i int, name, image string) error {
	config := &v1alpha4.Cluster{
		Networking: v1alpha4.Networking{
			PodSubnet:     fmt.Sprintf("10.%d.0.0/16", 1+i),
			ServiceSubnet: fmt.Sprintf("10.%d.0.0/16", 101+i),
		},
		Nodes: []v1alpha4.Node{{Role: v1alpha4.ControlPlaneRole, Image: image}},
	}
	err := l.provider.Create(prefix+name,
		cluster.CreateWithV1Alpha4Config(config), cluster.CreateWithKubeconfigPath(l.Kubeconfig()), cluster.CreateWithWaitForReady(readyWithin),
		cluster.CreateWithDisplayUsage(false), cluster.CreateWithDisplaySalutation(false))
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), l.provider.Delete(prefix+name, l.Kubeconfig()))
	}
	if err != nil {
		return fmt.Errorf("kind: cluster %s%s: %w", prefix, name, err)
	}
	return nil
}

// Load puts the images of an archive (docker save, make images) into the nodes of clusters.
func (l *Lab) Load(ctx context.Context, archive string, clusters []Cluster) error {
	for _, c := range clusters {
		nodes, err := l.provider.ListInternalNodes(strings.TrimPrefix(c.Context, "kind-"))
		if err != nil {
			return fmt.Errorf("kind: nodes of %s: %w", c.Name, err)
		}
		for _, node := range nodes {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := load(archive, func(r io.Reader) error { return nodeutils.LoadImageArchive(node, r) }); err != nil {
				return fmt.Errorf("images of %s into node %s: %w", archive, node, err)
			}
		}
	}
	return nil
}

func load(archive string, into func(io.Reader) error) error {
	f, err := os.Open(archive) //nolint:gosec // G304: the user names it
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	return into(f)
}

// Down removes all clusters of the playground, and the kubeconfig. It returns those that there were.
func (l *Lab) Down(ctx context.Context) ([]Cluster, error) {
	clusters, err := l.Clusters()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, c := range clusters {
		if ctx.Err() != nil {
			return clusters, ctx.Err()
		}
		l.say("removing the kind cluster " + prefix + c.Name)
		errs = append(errs, l.provider.Delete(prefix+c.Name, l.Kubeconfig()))
	}
	if err = errors.Join(errs...); err != nil {
		return clusters, fmt.Errorf("kind: %w", err)
	}
	return clusters, os.RemoveAll(l.Kubeconfig())
}
