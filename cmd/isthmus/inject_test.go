package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/internal/kubeaccess/kubetest"
)

const (
	injectSettings = "trustDomain: eu.example\ncontrol: isthmus-control.isthmus-system.svc:7400\nimage: example.com/sidecar:1\n"
	injectRoots    = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	injectWeb      = `# a comment
apiVersion: v1
kind: Service # stays as it is
metadata: {name: web}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {template: {spec: {containers: [{name: web}]}}}
---
# nothing but this
`
	injectRefused = `
kind: Pod
apiVersion: v1
metadata: {name: taken}
spec: {containers: [{name: web, securityContext: {runAsUser: 15000}}]}
`
)

func TestInject(t *testing.T) {
	alone(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	facts := []string{"inject", "--settings", write("settings.txt", injectSettings), "--trust-bundle", write("roots.txt", injectRoots)}
	web := write("shop/web.yaml", injectWeb)
	write("shop/below/refused.yaml", injectRefused)
	write("shop/README.md", "no manifest")

	out, chatter, code := isthmus(t, append(facts, "-f", web)...)
	if code != exitOK || !strings.HasPrefix(out, "# a comment\napiVersion: v1\nkind: Service # stays as it is\n") || strings.Count(out, "\n---\n") != 1 ||
		!strings.Contains(out, "image: example.com/sidecar:1") || chatter != "Deployment web: injected\n" {
		t.Errorf("exit %d, %q\n%s", code, chatter, out)
	}
	again, chatter, code := isthmus(t, append(facts, "-f", write("again.yaml", out))...)
	if code != exitOK || again != out || chatter != "Deployment web: present\n" {
		t.Errorf("a second time: exit %d, %q\n%s", code, chatter, again)
	}
	// A folder is its own files; with -R also those below, of which one is refused: then nothing is printed.
	if folder, _, ended := isthmus(t, append(facts, "-f", filepath.Dir(web))...); ended != exitOK || folder != out {
		t.Errorf("a folder: exit %d\n%s", ended, folder)
	}
	out, chatter, code = isthmus(t, append(facts, "-R", "-f", filepath.Dir(web))...)
	if code != exitFinding || out != "" || !strings.Contains(chatter, "Pod taken: refused: spec.containers, \"web\": runAsUser 15000") || !strings.Contains(chatter, "nothing was printed") {
		t.Errorf("a Pod that is refused: exit %d, %q\n%s", code, chatter, out)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"inject"}, exitUsage, "name what to inject"},
		{append(facts, "-f", filepath.Join(dir, "nowhere")), exitFinding, "no such file"},
		{append(facts, "-f", write("empty/x", "")), exitOK, ""},
		{append(facts, "-f", filepath.Join(dir, "empty")), exitFinding, "no *.yaml"},
		{append(facts, "-f", write("bad.yaml", "a: 1\n---\na: 1\na: 2\n")), exitFinding, "bad.yaml, document 2: "},
		{append(facts, "--capture-by", "magic", "-f", web), exitUsage, `captureBy: "magic"`},
		{[]string{"inject", "--settings", write("s2", "image: x\n"), "--trust-bundle", filepath.Join(dir, "roots.txt"), "-f", web}, exitUsage, "trustDomain: is missing"},
		{[]string{"inject", "--context", "a,b", "-f", web}, exitUsage, "name one --context"},
	} {
		if out, chatter, code := isthmus(t, c.args...); code != c.code || !strings.Contains(chatter, c.want) || out != "" {
			t.Errorf("%q: exit %d, want %d, %q\n%s", c.args, code, c.code, chatter, out)
		}
	}
}

func TestInjectByContext(t *testing.T) {
	alone(t)
	cluster, bare := kubetest.New(t), kubetest.New(t)
	const at = "/api/v1/namespaces/isthmus-system/configmaps/"
	cluster.Put(at+settingsConfigMap, corev1.ConfigMap{Data: map[string]string{settingsKey: injectSettings}})
	cluster.Put(at+bundleConfigMap, corev1.ConfigMap{Data: map[string]string{bundleKey: injectRoots}})
	t.Setenv("KUBECONFIG", kubetest.Kubeconfig(t, map[string]*kubetest.Server{"eu": cluster, "bare": bare}))
	web := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(web, []byte(injectWeb), 0o600); err != nil {
		t.Fatal(err)
	}
	out, chatter, code := isthmus(t, "inject", "--context", "eu", "--image", "example.com/sidecar:2", "-f", web)
	if code != exitOK || !strings.Contains(out, "image: example.com/sidecar:2") || !strings.Contains(out, "trustDomain: eu.example") {
		t.Errorf("exit %d, %q\n%s", code, chatter, out)
	}
	out, chatter, code = isthmus(t, "inject", "--context", "bare", "-f", web)
	if code != exitFinding || out != "" || !strings.Contains(chatter, "ConfigMap isthmus-system/isthmus-injection") {
		t.Errorf("a cluster without: exit %d, %q", code, chatter)
	}
}
