package install

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	crd "sigs.k8s.io/mcs-api/config/crd"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

const root = "../../deploy/"

func render(t *testing.T, chart string, values Values) *Rendered {
	t.Helper()
	r, err := Render(t.Context(), chart, "isthmus-system", "v1.34.4", values, Build{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// parseValues reads values as a user writes them.
func parseValues(t *testing.T, text string) Values {
	t.Helper()
	v := Values{}
	if err := yaml.UnmarshalStrict([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestGolden compares what the chart makes of values with what it made of them before: go test ./internal/install -run TestGolden -update
func TestGolden(t *testing.T) {
	for name, values := range map[string]string{
		"default": "cluster: eu",
		"everything": `
cluster: eu
trustDomain: eu.example
region: europe
zone: europe-1
ipFamily: IPv6
image: {registry: registry.example/isthmus, tag: v1.2.3, pullPolicy: Always, pullSecrets: [{name: regcred}]}
log: {level: debug, format: json}
env: {OTEL_EXPORTER_OTLP_ENDPOINT: "http://collector:4317", ANSWER: 42}
bus: {service: {type: LoadBalancer, annotations: {a: b}, loadBalancerClass: x, loadBalancerSourceRanges: [192.0.2.0/24]}}
gateway:
  replicas: 3
  service: {type: LoadBalancer}
  advertise: ["gw-0.eu.example:7443"]
  tolerations: [{operator: Exists}]
  nodeSelector: {pool: edge}
dns: {clusterIP: "fd00::a"}
node: {maxUnavailable: 10%}
injection: {failurePolicy: Ignore, cni: {enabled: true, confDir: /var/lib/cni/net.d}}
`,
		"no-nodes": "{cluster: eu, node: {enabled: false}, injection: {enabled: false}}",
	} {
		t.Run(name, func(t *testing.T) {
			got := render(t, Mesh, parseValues(t, values)).Manifest
			file := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("%s (-want +got; -update writes it anew):\n%s", file, d)
			}
		})
	}
}

// TestSameTwice: GitOps compares what is rendered with what was.
func TestSameTwice(t *testing.T) {
	for _, chart := range []string{CRDs, Mesh} {
		values := Values{}
		if chart == Mesh {
			values["cluster"] = "eu"
		}
		first := render(t, chart, values).Manifest
		for range 5 {
			if again := render(t, chart, values).Manifest; again != first {
				t.Fatalf("%s: two renderings differ:\n%s", chart, cmp.Diff(first, again))
			}
		}
	}
	var all bytes.Buffer
	if err := fs.WalkDir(os.DirFS(root+"charts"), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(path, "templates/") {
			return err
		}
		data, err := os.ReadFile(root + "charts/" + path)
		all.Write(data)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	banned := regexp.MustCompile(`\{\{[^}]*\b(lookup|now|rand\w+|gen[A-Z]\w+|uuidv4|getHostByName)\b`)
	if found := banned.FindString(all.String()); found != "" {
		t.Errorf("a template has %q: what it makes depends on more than the values", found)
	}
	if !banned.MatchString(`{{ $x := now }}`) {
		t.Error("the check can't fail")
	}
}

func TestSchemaRefuses(t *testing.T) {
	for values, want := range map[string]string{
		`{}`:                                      "cluster",
		`{cluster: ""}`:                           "cluster",
		`{cluster: Eu}`:                           "cluster",
		`{cluster: eu, bogus: 1}`:                 "bogus",
		`{cluster: eu, gateway: {replica: 3}}`:    "replica",
		`{cluster: eu, gateway: {replicas: 0}}`:   "replicas",
		`{cluster: eu, gateway: {replicas: "3"}}`: "replicas",
		`{cluster: eu, gateway: {service: {type: ClusterIP}}}`:       "type",
		`{cluster: eu, gateway: {advertise: [gw.example]}}`:          "advertise",
		`{cluster: eu, bus: {advertise: ["nats://x:1"]}}`:            "advertise",
		`{cluster: eu, log: {level: loud}}`:                          "level",
		`{cluster: eu, clusterSetCIDR: everything}`:                  "clusterSetCIDR",
		`{cluster: eu, env: {"A B": x}}`:                             "A B",
		`{cluster: eu, node: {maxUnavailable: some}}`:                "maxUnavailable",
		`{cluster: eu, injection: {failurePolicy: Never}}`:           "failurePolicy",
		`{cluster: eu, injection: {cni: {binDir: bin}}}`:             "binDir",
		`{cluster: eu, node: {resources: {limits: {memory: lots}}}}`: "memory",
		`{cluster: eu, control: {resources: {limit: {}}}}`:           "limit",
		// Not the schema but the chart:
		`{cluster: eu, bus: {service: {type: ClusterIP}}}`: "bus.advertise is empty",
		`{cluster: eu, bus: {service: {nodePort: 0}}}`:     "bus.advertise is empty",
	} {
		_, err := Render(t.Context(), Mesh, "isthmus-system", "", parseValues(t, values), Build{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want something about %s", values, err, want)
		}
	}
}

func TestLint(t *testing.T) {
	for chart, values := range map[string]Values{Mesh: {"cluster": "eu"}, CRDs: {}} {
		result := lint.RunAll(root+"charts/"+chart, values, "isthmus-system")
		if len(result.Messages) == 0 { // that a chart has no icon is always told of
			t.Errorf("%s was not linted", chart)
		}
		for _, m := range result.Messages {
			if m.Severity >= support.WarningSev {
				t.Errorf("%s: %v", chart, m)
			}
		}
	}
}

// TestCopies: what the charts hold twice, because a chart can't reach out of its folder, is the same.
func TestCopies(t *testing.T) {
	same := func(name string, want []byte, file string) {
		t.Helper()
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want, got) {
			t.Errorf("%s is not %s: make generate", file, name)
		}
	}
	files, err := filepath.Glob(root + "crds/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("deploy/crds: %v, %v", files, err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		same("deploy/crds'", data, root+"charts/isthmus-crds/files/isthmus/"+filepath.Base(f))
	}
	same("mcs-api's", crd.ServiceExportCRD, root+"charts/isthmus-crds/files/mcs/multicluster.x-k8s.io_serviceexports.yaml")
	same("mcs-api's", crd.ServiceImportCRD, root+"charts/isthmus-crds/files/mcs/multicluster.x-k8s.io_serviceimports.yaml")
	if n := len(render(t, CRDs, nil).Objects); n != len(files)+2 {
		t.Errorf("the chart has %d kinds, want %d", n, len(files)+2)
	}
}

// TestRole: control may do the same by the chart and by deploy/rbac, which kind-tests and users without the chart apply.
func TestRole(t *testing.T) {
	data, err := os.ReadFile(root + "rbac/control.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want, err := parse(map[string]string{"control.yaml": string(data)})
	if err != nil {
		t.Fatal(err)
	}
	made := map[string]*unstructured.Unstructured{}
	for _, o := range render(t, Mesh, Values{"cluster": "eu"}).Objects {
		o.SetLabels(nil)
		made[title(o)] = o
	}
	for _, w := range want {
		got := made[title(w)]
		if got == nil {
			t.Errorf("the chart has no %s", title(w))
			continue
		}
		if d := cmp.Diff(w.Object, got.Object); d != "" {
			t.Errorf("%s (-deploy/rbac +chart):\n%s", title(w), d)
		}
	}
}

// TestRestricted: no container may do more than the restricted policy allows, but for the one that writes the kernel's rules.
func TestRestricted(t *testing.T) {
	seen := 0
	for _, o := range render(t, Mesh, Values{"cluster": "eu"}).Objects {
		spec, ok, _ := unstructured.NestedMap(o.Object, "spec", "template", "spec")
		if !ok {
			continue
		}
		pod, _ := spec["securityContext"].(map[string]any)
		if d := cmp.Diff(map[string]any{"type": "RuntimeDefault"}, pod["seccompProfile"]); d != "" {
			t.Errorf("%s: seccomp: %s", title(o), d)
		}
		containers, _ := spec["containers"].([]any)
		for _, c := range containers {
			seen++
			c, _ := c.(map[string]any)
			name := title(o) + " " + fmt.Sprint(c["name"])
			s, _ := c["securityContext"].(map[string]any)
			want := map[string]any{"drop": []any{"ALL"}}
			nonRoot := pod["runAsNonRoot"] == true || s["runAsNonRoot"] == true
			if c["name"] == "capture" {
				want["add"] = []any{"NET_ADMIN"}
				nonRoot = true
			}
			if d := cmp.Diff(want, s["capabilities"]); d != "" || s["allowPrivilegeEscalation"] != false || s["readOnlyRootFilesystem"] != true || !nonRoot {
				t.Errorf("%s: %v\n%s", name, s, d)
			}
		}
	}
	if seen != 4 {
		t.Errorf("%d containers seen, want 4", seen)
	}
}

// TestBounded: no container may take the memory of its node, and each knows before its limit is reached; nor may a volume take the disk.
func TestBounded(t *testing.T) {
	limits := func(values string) map[string]string {
		out := map[string]string{}
		for _, o := range render(t, Mesh, parseValues(t, values)).Objects {
			volumes, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "volumes")
			for _, v := range volumes {
				if dir, ok := v.(map[string]any)["emptyDir"].(map[string]any); ok && dir["sizeLimit"] == nil {
					t.Errorf("%s: %v", title(o), v)
				}
			}
			containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
			for _, c := range containers {
				c, _ := c.(map[string]any)
				limit, _, _ := unstructured.NestedFieldNoCopy(c, "resources", "limits", "memory")
				said := fmt.Sprint(limit)
				env, _ := c["env"].([]any)
				for _, v := range env {
					if v, _ := v.(map[string]any); v["name"] == "GOMEMLIMIT" {
						said += " " + fmt.Sprint(v["value"])
					}
				}
				out[fmt.Sprint(c["name"])] = said
			}
		}
		return out
	}
	const half, small = "512Mi 483183820", "64Mi 60397977"
	for values, want := range map[string]map[string]string{
		"{cluster: eu, injection: {cni: {enabled: true}}}": {"control": half, "gateway": half, "proxy": half, "capture": small, "cni": small},
		`{cluster: eu, control: {resources: {limits: {memory: 1.5Gi}}}, gateway: {resources: {limits: {memory: 1000000000}}}, node: {resources: {limits: null}}}`: {
			"control": "1.5Gi 1449551462", "gateway": "1e+09 900000000", "proxy": "<nil>", "capture": small,
		},
		"{cluster: eu, env: {GOMEMLIMIT: 100MiB}, node: {resources: {limits: {memory: 1G}}}}": {
			"control": "512Mi 100MiB", "gateway": "512Mi 100MiB", "proxy": "1G 100MiB", "capture": small,
		},
	} {
		if d := cmp.Diff(want, limits(values)); d != "" {
			t.Errorf("%s (-want +got):\n%s", values, d)
		}
	}
}

// TestRolls: what changes a program's configuration restarts it; one more gateway restarts nobody.
func TestRolls(t *testing.T) {
	sums := func(values string) map[string]string {
		out := map[string]string{}
		for _, o := range render(t, Mesh, parseValues(t, values)).Objects {
			if sum, ok, _ := unstructured.NestedString(o.Object, "spec", "template", "metadata", "annotations", "isthmus.dev/config-checksum"); ok {
				out[o.GetName()] = sum
			}
		}
		return out
	}
	before := sums("cluster: eu")
	for values, want := range map[string][]string{
		"{cluster: eu, log: {level: debug}}":               {"isthmus-control", "isthmus-gateway", "isthmus-node"},
		"{cluster: eu, region: europe}":                    {"isthmus-control"},
		"{cluster: eu, gateway: {replicas: 3}}":            nil,
		`{cluster: eu, gateway: {advertise: ["a:1"]}}`:     {"isthmus-gateway"},
		"{cluster: eu, injection: {cni: {enabled: true}}}": {"isthmus-control"},
	} {
		var rolled []string
		for name, sum := range sums(values) {
			if sum != before[name] {
				rolled = append(rolled, name)
			}
		}
		slices.Sort(rolled)
		if !slices.Equal(rolled, want) {
			t.Errorf("%s restarts %v, want %v", values, rolled, want)
		}
	}
}
