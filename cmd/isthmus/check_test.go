package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/check"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess/kubetest"
)

var update = flag.Bool("update", false, "write the reference of the checks anew")

// TestCheckReference: docs/reference/check.md lists the checks that there are.
func TestCheckReference(t *testing.T) {
	const path, begin, end = "../../docs/reference/check.md", "<!-- checks:begin -->\n", "<!-- checks:end -->\n"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, is := strings.Cut(string(page), begin)
	_, tail, ends := strings.Cut(rest, end)
	if !is || !ends {
		t.Fatal("the page has no marks")
	}
	var table strings.Builder
	table.WriteString("| | what | expected | what to do otherwise |\n|---|---|---|---|\n")
	for _, c := range check.All() {
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", c.ID, c.Title, c.Expected, strings.ReplaceAll(c.Fix, "|", `\|`))
	}
	want := head + begin + table.String() + end + tail
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(page) {
		t.Error("docs/reference/check.md differs from the checks: go test ./cmd/isthmus -run TestCheckReference -update")
	}
}

// kubeToCheck is an API server with what check looks at in it; installed: with Isthmus.
func kubeToCheck(t *testing.T, installed bool, self admin.Introduction, peers ...admin.Peer) *kubetest.Server {
	t.Helper()
	s := kubetest.New(t)
	if installed {
		s = kubeControl(t, answersOf(self, "", peers...))
		pipe := s.Exec
		s.Exec = func(pod string, command []string, stdin io.Reader, stdout, stderr io.Writer) int {
			if !slices.Equal(command, []string{"/isthmus", "probe", "dns-version.clusterset.local"}) {
				return pipe(pod, command, stdin, stdout, stderr)
			}
			_, _ = io.WriteString(stdout, kubeaccess.Greeting+`{"txt": ["1.0.0"]}`)
			return 0
		}
	}
	s.Put("/version", map[string]string{"major": "1", "minor": "34", "gitVersion": "v1.34.4"})
	for path, kind := range map[string]string{
		"/api/v1/nodes": "Node", "/api/v1/services": "Service", "/api/v1/pods": "Pod", "/api/v1/namespaces": "Namespace",
	} {
		s.Serve(path, "v1", kind)
	}
	s.Serve("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", "admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration")
	s.Serve("/apis/apps/v1/deployments", "apps/v1", "Deployment")
	s.Serve("/apis/apps/v1/namespaces/isthmus-system/statefulsets", "apps/v1", "StatefulSet")
	s.Serve("/apis/apps/v1/namespaces/isthmus-system/daemonsets", "apps/v1", "DaemonSet")
	s.Serve("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "apiextensions.k8s.io/v1", "CustomResourceDefinition")
	s.Serve("/apis/networking.k8s.io/v1/servicecidrs", "networking.k8s.io/v1", "ServiceCIDR")
	s.Put("/api/v1/nodes/n1", corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{
		NodeInfo: corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "amd64", KernelVersion: "6.1.0"},
	}})
	s.Put("/api/v1/namespaces/kube-system/configmaps/coredns", corev1.ConfigMap{Data: map[string]string{"Corefile": ".:53 {\n}\n"}})
	if installed {
		s.Put("/apis/apps/v1/namespaces/isthmus-system/statefulsets/isthmus-control", appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "isthmus-control"}})
	}
	s.Post = func(path string, o map[string]any) map[string]any {
		if strings.HasSuffix(path, "/selfsubjectaccessreviews") {
			spec, _ := o["spec"].(map[string]any)
			attributes, _ := spec["resourceAttributes"].(map[string]any)
			o["status"] = map[string]any{"allowed": attributes["resource"] != "clusterroles"}
		}
		return o
	}
	return s
}

func TestCheck(t *testing.T) {
	alone(t)
	fresh := func(in admin.Introduction) admin.Peer {
		return admin.Peer{Cluster: in.Cluster, State: "Fresh", RootFingerprint: in.RootFingerprint}
	}
	t.Setenv("KUBECONFIG", kubetest.Kubeconfig(t, map[string]*kubetest.Server{
		"bare": kubeToCheck(t, false, introEU), "eu": kubeToCheck(t, true, introEU, fresh(introUS)), "us": kubeToCheck(t, true, introUS, fresh(introEU)),
	}))
	out, chatter, code := isthmus(t, "check", "--context", "bare")
	if code != exitFinding || !strings.Contains(out, "found       you may not create clusterroles.rbac.authorization.k8s.io\n") ||
		!strings.Contains(out, "Next: isthmus install --context bare") || strings.Contains(out, "IST71") || !strings.Contains(chatter, "1 of 9 checks") {
		t.Errorf("bare: exit %d: %s\n%s", code, chatter, out)
	}
	out, chatter, code = isthmus(t, "check", "--context", "eu,us", "-o", "json")
	var got checked
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitFinding {
		t.Fatalf("exit %d, %v: %s%s", code, err, chatter, out)
	}
	results := map[string]check.Status{}
	for _, r := range got.Results {
		results[r.Cluster+" "+r.ID] = r.Status
	}
	for which, want := range map[string]check.Status{
		"eu IST7001": check.OK, "us IST7101": check.OK, "eu IST7102": check.Failed, "eu IST7107": check.OK, "us IST7105": check.Skipped,
		" IST7201": check.OK, " IST7203": check.Failed, "us IST7002": "",
	} {
		if results[which] != want {
			t.Errorf("%s: %s, want %s", which, results[which], want)
		}
	}
	if len(got.Reach) != 2 || got.Reach[0][1].How != "no link" || got.Clusters[1].Cluster != "us" {
		t.Errorf("reach %+v, clusters %+v", got.Reach, got.Clusters)
	}
	out, _, _ = isthmus(t, "check", "--context", "eu,us")
	if !strings.Contains(out, "FROM \\ TO   eu        us\n") {
		t.Errorf("no matrix: %s", out)
	}
	// A cluster that is named by its socket is checked by what its control says.
	out, chatter, code = isthmus(t, "check", "--control", control(t, answersOf(introEU, "/m", fresh(introUS))))
	if code != exitFinding || !strings.Contains(out, "IST7111   ok") || strings.Contains(out, "IST7001") {
		t.Errorf("by socket: exit %d: %s%s", code, chatter, out)
	}
}

func TestCheckOffline(t *testing.T) {
	alone(t)
	out, chatter, code := isthmus(t, "check", "--list")
	if code != exitOK || strings.Count(out, "IST7") != len(check.All()) {
		t.Errorf("exit %d: %s%s", code, chatter, out)
	}
	out, chatter, code = isthmus(t, "explain", "ist7103")
	if code != exitOK || !strings.HasPrefix(out, "IST7103  Node proxies") {
		t.Errorf("exit %d: %s%s", code, chatter, out)
	}
}

func TestProbe(t *testing.T) {
	refused := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: os.ErrPermission}
	}}
	if got := probe(t.Context(), refused, "dns-version.clusterset.local"); got.Error == "" || got.TXT != nil {
		t.Errorf("%+v", got)
	}
}
