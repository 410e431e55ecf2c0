package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/install"
	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/lab/kindlab"
	"github.com/isthmus-mesh/isthmus/internal/version"
)

// What a cluster of a playground may be.
const (
	runtimeLocal = string(lab.Local)
	runtimeNetns = string(lab.Netns)
	runtimeKind  = "kind"
)

// envKindImage names the node image where no flag does.
const envKindImage = "ISTHMUS_KIND_IMAGE"

// kindFolder is where a playground on kind has its kubeconfig, beside the default folder of the other kind.
const kindFolder = "playground-kind"

// kindPlayground is a playground whose clusters are kind's.
type kindPlayground struct {
	*playground
	nodeImage string
	images    string
	say       func(string)
}

func (k *kindPlayground) flags(c *cobra.Command) {
	c.Flags().StringVar(&k.nodeImage, "node-image", os.Getenv(envKindImage), "kind: `image` of the nodes; kind's own by default ("+envKindImage+")")
	c.Flags().StringVar(&k.images, "images", "", "kind: `archive` with the images of Isthmus (make images); by default bin/images.tar beside a program that is no release, and the registry for one that is")
}

func (k *kindPlayground) open(ctx context.Context) (*kindlab.Lab, error) {
	dir := k.dir
	if dir == "" {
		std, err := lab.DefaultDir()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(filepath.Dir(std), kindFolder)
	}
	l, err := kindlab.New(ctx, dir, k.say)
	if err != nil {
		return nil, advised{err, "Without Docker: isthmus playground up, whose clusters are processes of this machine"}
	}
	return l, nil
}

// archive returns the archive of images to load; empty: the nodes pull them.
func (k *kindPlayground) archive() (string, error) {
	if k.images != "" {
		_, err := os.Stat(k.images)
		return k.images, err
	}
	if version.Release() != "" {
		return "", nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	archive := filepath.Join(filepath.Dir(self), "images.tar")
	if _, err := os.Stat(archive); err != nil {
		return "", advised{fmt.Errorf("this program is no release, so no registry has its images, and there is no archive: %w", err), "Make one: make images"}
	}
	return archive, nil
}

// up makes the clusters, puts the mesh into each, links them, and opens the shop.
func (k *kindPlayground) up(c *cobra.Command, clusters int) error {
	begun := time.Now()
	archive, err := k.archive()
	if err != nil {
		return err
	}
	spec, err := lab.Sample(clusters)
	if err != nil {
		return usage{err}
	}
	l, err := k.open(c.Context())
	if err != nil {
		return err
	}
	names := make([]string, len(spec.Clusters))
	for i, s := range spec.Clusters {
		names[i] = s.Name
	}
	up, err := l.Up(c.Context(), names, k.nodeImage)
	if err != nil {
		return advised{err, "What is there stays. End it with: isthmus playground down --runtime kind\n" +
			"Where no node image can be pulled: make kind-image, and --node-image with what it prints"}
	}
	if archive != "" {
		k.say("loading the images of " + archive)
		if err := l.Load(c.Context(), archive, up); err != nil {
			return err
		}
	}
	if err := k.mesh(c, l, up, spec); err != nil {
		return err
	}
	if err := k.shop(c.Context(), l, up); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c.OutOrStdout(), "The playground is up: %s on kind, in %.0f s.\n", count(len(up), "cluster"), time.Since(begun).Seconds()); err != nil {
		return err
	}
	return k.next(c.OutOrStdout(), l, up)
}

// in returns what the verbs for Kubernetes clusters know, for one of ours.
func (k *kindPlayground) in(l *kindlab.Lab, c kindlab.Cluster) *global {
	return &global{contexts: []string{c.Context}, kubeconfig: l.Kubeconfig(), namespace: k.namespace, timeout: k.timeout}
}

// mesh installs Isthmus in every cluster, and lets each into every other.
func (k *kindPlayground) mesh(c *cobra.Command, l *kindlab.Lab, up []kindlab.Cluster, spec lab.Spec) error {
	for i, cluster := range up {
		g := k.in(l, cluster)
		s := spec.Clusters[i]
		f := &installFlags{wait: true, timeout: k.patience * 3}
		o := install.Options{Values: install.Values{"cluster": s.Name, "trustDomain": s.TrustDomain, "region": s.Region, "zone": s.Zone}}
		if err := g.install(c, f, o); err != nil {
			return err
		}
	}
	for i, a := range up {
		for _, b := range up[i+1:] {
			if err := k.link(c.Context(), l, a, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// link does what "peer invite | peer accept | peer accept" does.
func (k *kindPlayground) link(ctx context.Context, l *kindlab.Lab, a, b kindlab.Cluster) error {
	ga, gb := k.in(l, a), k.in(l, b)
	defer ga.close()
	defer gb.close()
	_, self, _, err := ga.selfOf(ctx, "")
	if err != nil {
		return err
	}
	var chatter, answer bytes.Buffer
	accept := func(g *global, wait bool, in io.Reader, out io.Writer) error {
		a := acceptance{global: g, wait: wait, patience: k.patience}
		if err := a.run(ctx, "-", in, out, &chatter); err != nil {
			return fmt.Errorf("%w\n%s", err, chatter.String())
		}
		return nil
	}
	if err := accept(gb, false, bytes.NewBufferString(invitation{Introduction: self}.String()), &answer); err != nil {
		return err
	}
	if answer.Len() > 0 { // else they are linked already
		if err := accept(ga, true, &answer, io.Discard); err != nil {
			return err
		}
	}
	k.say(fmt.Sprintf("%s and %s have let each other in", a.Name, b.Name))
	return nil
}

// shop opens the shop in every cluster; the first has the caller too.
func (k *kindPlayground) shop(ctx context.Context, l *kindlab.Lab, up []kindlab.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, k.patience*3)
	defer cancel()
	image := "ghcr.io/isthmus-mesh/control:" + cmp.Or(version.Release(), "dev")
	for i, c := range slices.Backward(up) { // the caller last: what it calls is there then
		cluster, err := k.in(l, c).source().Cluster(c.Context)
		if err != nil {
			return err
		}
		k.say("opening the shop in " + c.Name)
		err = kindlab.Shop{Cluster: c.Name, Image: image, Caller: i == 0}.Open(ctx, cluster.Config)
		if errors.Is(err, context.DeadlineExceeded) {
			return advised{err, "Look with: kubectl --kubeconfig " + shellQuote(l.Kubeconfig()) + " --context " + c.Context + " get pods -A"}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (k *kindPlayground) next(w io.Writer, l *kindlab.Lab, up []kindlab.Cluster) error {
	first, other, all := up[0].Context, up[len(up)-1].Context, ""
	for i, c := range up {
		if i > 0 {
			all += ","
		}
		all += c.Context
	}
	_, err := fmt.Fprintf(w, `
Try:
  export KUBECONFIG=%[1]s ISTHMUS_CONTEXT=%[4]s
  kubectl --context %[2]s -n shop logs deploy/web -c web -f
      web calls checkout.shop.svc.clusterset.local, and says who answers.
  kubectl --context %[2]s -n shop scale deploy/checkout --replicas=0
      The other cluster answers from now on; no call fails.
  kubectl --context %[2]s -n outside logs deploy/web -f
      The same from a Pod without a sidecar.
  kubectl --context %[3]s get serviceexport,serviceimport -A
  isthmus status
  isthmus check
  isthmus playground down --runtime kind%[5]s
      Ends it all.
`, shellQuote(l.Kubeconfig()), first, other, all, k.dirFlag())
	return err
}

// down removes the clusters.
func (k *kindPlayground) down(c *cobra.Command) error {
	l, err := k.open(c.Context())
	if err != nil {
		return err
	}
	were, err := l.Down(c.Context())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "Removed: %s.\n", count(len(were), "cluster"))
	return err
}
