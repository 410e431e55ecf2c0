package kindtests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/mcs-api/config/crd"

	"github.com/isthmus-mesh/isthmus/kind-tests/apiserver"
)

const (
	// patience bounds what the mesh is given to start. It is long because a machine may be busy; nothing depends on its length.
	patience = 2 * time.Minute
	// deadline bounds what a scenario waits for: what the conformance suite of the MCS API gives imports, conditions and deletions.
	deadline = 20 * time.Second
	// pause is between two looks.
	pause = 100 * time.Millisecond
)

// clusterNames are the clusters of the mesh. Of exports made in one second the first by name is the oldest.
var clusterNames = []string{"ap", "eu", "us"}

// mesh is three clusters that have let each other in: of each its API, its control plane and one gateway.
type mesh struct {
	dir      string
	members  []*member // as clusterNames
	programs string    // folder of our own programs
	deadline time.Duration
}

// shared is the mesh that all scenarios act on, started when the first needs it.
var shared struct {
	sync.Mutex
	mesh *mesh
	err  error
}

// theMesh returns the shared mesh, or skips the test where it can't be had.
func theMesh(t *testing.T) *mesh {
	t.Helper()
	binaries := apiserver.Require(t)
	shared.Lock()
	defer shared.Unlock()
	if shared.mesh == nil {
		begun := time.Now()
		shared.mesh = &mesh{deadline: deadline}
		ctx, cancel := context.WithTimeout(context.Background(), patience) // it outlives this test
		defer cancel()
		shared.err = shared.mesh.start(ctx, binaries)
		t.Logf("a mesh of %s in %s, after %s", strings.Join(clusterNames, ", "), shared.mesh.dir, time.Since(begun).Round(time.Millisecond))
	}
	if shared.err != nil {
		t.Fatalf("there is no mesh: %v", shared.err)
	}
	return shared.mesh
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.mesh != nil {
		shared.mesh.close(code != 0)
	}
	os.Exit(code)
}

func (m *mesh) start(ctx context.Context, binaries apiserver.Binaries) (err error) {
	if m.dir, err = os.MkdirTemp("", "isthmus-mcs-"); err != nil {
		return err
	}
	m.programs = filepath.Join(m.dir, "bin")
	for _, name := range clusterNames {
		m.members = append(m.members, &member{name: name, dir: filepath.Join(m.dir, name), programs: m.programs})
	}
	// The cores are few: first what is built, then what is started.
	if err = build(ctx, m.programs, "./cmd/isthmus", "./cmd/"+control, "./cmd/isthmus-gateway"); err != nil {
		return err
	}
	if err = m.each(func(c *member) error { return c.startCluster(ctx, binaries) }); err != nil {
		return err
	}
	if err = m.each(func(c *member) error { return c.startControl(ctx) }); err != nil {
		return err
	}
	if err = m.introduce(ctx); err != nil {
		return err
	}
	if err = m.each(func(c *member) error { return c.startGateway(ctx) }); err != nil {
		return err
	}
	return m.settle(ctx)
}

// each does something for all clusters at once.
func (m *mesh) each(do func(*member) error) error {
	errs := make([]error, len(m.members))
	var group sync.WaitGroup
	for i, c := range m.members {
		group.Go(func() {
			if err := do(c); err != nil {
				errs[i] = fmt.Errorf("%s: %w", c.name, err)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// introduce lets every cluster into every other, as their administrators would.
func (m *mesh) introduce(ctx context.Context) error {
	return m.each(func(c *member) error {
		peer, err := c.isthmus(ctx, "introduction")
		if err != nil {
			return err
		}
		for _, o := range m.members {
			if o == c {
				continue
			}
			if _, _, err := o.api.Kubectl(ctx, peer, "apply", "-f", "-"); err != nil {
				return err
			}
		}
		return nil
	})
}

// settle waits until no control plane has anything to complain of.
func (m *mesh) settle(ctx context.Context) error {
	return m.each(func(c *member) error {
		return poll(ctx, patience, func() error {
			out, err := c.isthmus(ctx, "status")
			if err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			return nil
		})
	})
}

// close ends everything. Logs are kept after a failure, and nothing otherwise.
func (m *mesh) close(failed bool) {
	for _, c := range m.members {
		c.close()
	}
	if !failed {
		_ = os.RemoveAll(m.dir)
		return
	}
	_ = filepath.WalkDir(m.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Ext(path) != ".log" {
			_ = os.Remove(path)
		}
		return nil
	})
	fmt.Fprintln(os.Stderr, "what the programs logged is in", m.dir)
}

func (m *mesh) member(name string) (*member, error) {
	i := slices.IndexFunc(m.members, func(c *member) bool { return c.name == name })
	if i < 0 {
		return nil, fmt.Errorf("no cluster %q; there are %s", name, strings.Join(clusterNames, ", "))
	}
	return m.members[i], nil
}

// crds are the kinds that a cluster of a mesh has beside its own: the MCS API's and ours.
func crds() (string, error) {
	return manifests([]string{string(crd.ServiceExportCRD), string(crd.ServiceImportCRD)}, "../deploy/crds")
}

// role is what control may do in a cluster.
func role() (string, error) {
	return manifests([]string{`{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "isthmus-system"}}`}, "../deploy/rbac")
}

// manifests adds those of a folder.
func manifests(all []string, dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("no manifests in %s: %w", dir, errors.Join(err, os.ErrNotExist))
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		all = append(all, string(data))
	}
	return strings.Join(all, "\n---\n"), nil
}

// poll tries until it succeeds, or time is up; the error is the last one.
func poll(ctx context.Context, limit time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", limit, err)
		case <-time.After(pause):
		}
	}
}
