package kindtests

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRandomExports exports services at random from all clusters, changes them, and each time compares what every cluster says of every
// name with what federation.Merge makes of the Services and ServiceExports that stand in the API servers.
//
// The seed is in the log; ISTHMUS_KUBE_SEED repeats it.
func TestRandomExports(t *testing.T) {
	m := theMesh(t)
	seed := uint64(time.Now().UnixNano())
	if given := os.Getenv("ISTHMUS_KUBE_SEED"); given != "" {
		var err error
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("ISTHMUS_KUBE_SEED=%d", seed)
	s := newScenario(m)
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	s.in = m.members
	if err := m.each(func(c *member) error { return c.makeNamespace(s.ctx, s.namespace) }); err != nil {
		t.Fatal(err)
	}
	r := randomExports{rand: rand.New(rand.NewPCG(seed, 0)), headless: map[string]bool{}, exported: map[string]bool{}}
	const rounds = 5
	for round := range rounds {
		if err := r.declare(s); err != nil {
			t.Fatal(err)
		}
		err := poll(s.ctx, deadline, func() error {
			want, err := m.merged(s.ctx, s.namespace, r.names())
			if err != nil {
				return err
			}
			got, err := m.seen(s.ctx, s.namespace, r.names())
			if err == nil && want != got {
				err = fmt.Errorf("merged (-), seen (+):\n%s", cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")))
			}
			return err
		})
		if err != nil {
			t.Fatalf("round %d of seed %d: %v", round, seed, err)
		}
	}
}

// seen is what the clusters say of all names.
func (m *mesh) seen(ctx context.Context, namespace string, names []string) (string, error) {
	var out strings.Builder
	for _, name := range names {
		for _, kind := range []string{"exports", "imports"} {
			view, err := m.view(ctx, kind, namespace, name)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&out, "%s of %s\n%s", kind, name, view)
		}
	}
	return out.String(), nil
}

// randomExports draws exports that are likely to collide: few names, few values.
type randomExports struct {
	rand     *rand.Rand
	headless map[string]bool // by cluster and name: no Service ever changes that
	exported map[string]bool // likewise: it stands now
}

func (r *randomExports) names() []string { return []string{"a", "b", "c", "d", "e", "f"} }

// declare changes about half of what stands in each cluster.
func (r *randomExports) declare(s *scenario) error {
	services, exports, remove := map[string]string{}, map[string]string{}, map[string][]string{}
	for _, c := range s.mesh.members {
		for _, name := range r.names() {
			key := c.name + "/" + name
			if _, drawn := r.headless[key]; !drawn {
				r.headless[key] = r.one(4)
			}
			switch {
			case r.exported[key] && r.one(4):
				remove[c.name] = append(remove[c.name], "serviceexport/"+name)
				r.exported[key] = false
			case r.one(2):
				services[c.name] += r.service(name, r.headless[key])
				exports[c.name] += r.export(name)
				r.exported[key] = true
			}
		}
	}
	return s.mesh.each(func(c *member) error {
		if names := remove[c.name]; len(names) > 0 {
			if _, _, err := c.api.Kubectl(s.ctx, "", append([]string{"-n", s.namespace, "delete"}, names...)...); err != nil {
				return err
			}
		}
		if services[c.name] == "" {
			return nil
		}
		// Of ports with one number and two protocols only the server can tell which is which; of a map that was emptied only kubectl.
		_, _, err1 := c.api.Kubectl(s.ctx, services[c.name], "-n", s.namespace, "apply", "--server-side", "--force-conflicts", "-f", "-")
		_, _, err2 := c.api.Kubectl(s.ctx, exports[c.name], "-n", s.namespace, "apply", "-f", "-")
		return errors.Join(err1, err2)
	})
}

func (r *randomExports) service(name string, headless bool) string {
	var out strings.Builder
	fmt.Fprintf(&out, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec:\n  ports: [%s]\n", name, r.ports())
	if headless {
		out.WriteString("  clusterIP: None\n")
	}
	out.WriteString(r.of("", "", "  sessionAffinity: ClientIP\n", "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}\n"))
	out.WriteString(r.of("", "  internalTrafficPolicy: Local\n"))
	out.WriteString(r.of("", "  trafficDistribution: PreferClose\n"))
	return out.String()
}

func (r *randomExports) export(name string) string {
	return fmt.Sprintf("---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: %s}\nspec:\n  {%s%s}\n", name,
		r.of("", "exportedLabels: {tier: a},", "exportedLabels: {tier: b},"), r.of("", "", "exportedAnnotations: {note: x}"))
}

// ports draws one to three, of distinct names, and of distinct numbers for each protocol.
func (r *randomExports) ports() string {
	names := []string{"http", "grpc", "dns", "metrics"}
	r.rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	var pairs []string
	for _, number := range []string{"80", "53", "90"} {
		for _, protocol := range []string{"TCP", "UDP"} {
			pairs = append(pairs, "port: "+number+", protocol: "+protocol)
		}
	}
	r.rand.Shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })
	var out []string
	for i := range 1 + r.rand.IntN(3) {
		out = append(out, "{name: "+names[i]+", "+pairs[i]+r.of("", "", ", appProtocol: http")+"}")
	}
	return strings.Join(out, ", ")
}

func (r *randomExports) of(values ...string) string { return values[r.rand.IntN(len(values))] }

// one reports true once in n times.
func (r *randomExports) one(n int) bool { return r.rand.IntN(n) == 0 }
