package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess/kubetest"
)

const controlPodPath = "/api/v1/namespaces/isthmus-system/pods/isthmus-control-0"

// kubeControl returns an API server with a control's Pod in it: exec runs admin-pipe, as the image does.
func kubeControl(t *testing.T, answers map[string]any) *kubetest.Server {
	t.Helper()
	socket := control(t, answers)
	s := kubetest.New(t)
	s.Exec = func(pod string, command []string, stdin io.Reader, stdout, stderr io.Writer) int {
		if want := []string{"/isthmus", "admin-pipe", "--socket", controlSocket}; pod != controlPod || !slices.Equal(command, want) {
			_, _ = io.WriteString(stderr, "not what the image has: "+pod+" "+strings.Join(command, " "))
			return 126
		}
		err := run(context.WithoutCancel(t.Context()), []string{"admin-pipe", "--socket", socket}, stdin, stdout, stderr)
		_, _ = io.WriteString(stderr, complaint(err))
		return exitCode(err)
	}
	return s
}

func TestByContext(t *testing.T) {
	alone(t)
	us := healthy
	us.Cluster = "us"
	kubeEU := kubeControl(t, map[string]any{"/v1/status": healthy, "/v1/exports": []admin.Export{}, "/v1/tokens": admin.Token{Token: "secret"}})
	kubeUS := kubeControl(t, map[string]any{"/v1/status": us, "/v1/exports": []admin.Export{}})
	t.Setenv("KUBECONFIG", kubetest.Kubeconfig(t, map[string]*kubetest.Server{"kind-eu": kubeEU, "kind-us": kubeUS}))

	var got []struct{ Socket, Context, Cluster, Error string }
	status := func(args ...string) {
		t.Helper()
		out, chatter, code := isthmus(t, append([]string{"status", "-o", "json"}, args...)...)
		got = nil
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitOK {
			t.Fatalf("%v: exit %d: %s%s", args, code, out, chatter)
		}
	}
	for _, args := range [][]string{{"--context", "kind-eu,kind-us"}, {"--context", "kind-eu", "--context", "kind-us"}} {
		status(args...)
		if len(got) != 2 || got[0].Context != "kind-eu" || got[0].Cluster != "eu" || got[1].Cluster != "us" || got[0].Socket != "" {
			t.Errorf("%v: %+v", args, got)
		}
	}
	if execs := slices.DeleteFunc(kubeEU.Requests(), func(r string) bool { return !strings.HasSuffix(r, "/exec") }); len(execs) != 2 {
		t.Errorf("two questions a verb, in one exec each: %q", execs)
	}
	if status(); len(got) != 1 || got[0].Context != "kind-eu" {
		t.Errorf("the current context: %+v", got)
	}
	t.Setenv(envContext, "kind-us")
	if status(); len(got) != 1 || got[0].Cluster != "us" {
		t.Errorf("%s: %+v", envContext, got)
	}
	sick := control(t, map[string]any{"/v1/status": healthy, "/v1/exports": []admin.Export{}})
	if status("--control", sick, "--context", "kind-us"); len(got) != 2 || got[0].Socket != sick || got[1].Context != "kind-us" {
		t.Errorf("both: %+v", got)
	}
	out, chatter, code := isthmus(t, "join-token", "--gateway", "gateway-0", "--context", "kind-eu,kind-us", "--cluster", "eu")
	if code != exitOK || out != "secret\n" {
		t.Errorf("join-token: exit %d: %s%s", code, out, chatter)
	}
}

func TestByContextThatFails(t *testing.T) {
	alone(t)
	installed := kubeControl(t, map[string]any{"/v1/status": healthy})
	pending := kubetest.New(t)
	pending.Put(controlPodPath, corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/1 nodes are available"},
	}}})
	forbidden := kubetest.New(t)
	for _, method := range []string{"GET", "POST"} {
		forbidden.Forbid(method, controlPodPath+"/exec", `User "ann" cannot create resource "pods/exec"`)
	}
	noSocket := kubetest.New(t)
	noSocket.Exec = func(_ string, _ []string, _ io.Reader, _, stderr io.Writer) int {
		_, _ = io.WriteString(stderr, "isthmus: unreachable: connection refused")
		return exitUnreachable
	}
	noSocket.Put(controlPodPath, corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{
		{Name: "control", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 5m"}}},
	}}})
	old := kubetest.New(t)
	old.Exec = func(_ string, _ []string, _ io.Reader, _, stderr io.Writer) int {
		_, _ = io.WriteString(stderr, `isthmus: unknown command "admin-pipe" for "isthmus"`)
		return exitUsage
	}
	ready := corev1.Pod{Status: corev1.PodStatus{
		Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}}
	old.Put(controlPodPath, ready)
	slow := kubetest.New(t)
	slow.Put(controlPodPath, ready)
	slow.Exec = func(_ string, _ []string, stdin io.Reader, _, _ io.Writer) int {
		_, _ = io.Copy(io.Discard, stdin)
		return 0
	}
	t.Setenv("KUBECONFIG", kubetest.Kubeconfig(t, map[string]*kubetest.Server{
		"installed": installed, "empty": kubetest.New(t), "pending": pending, "forbidden": forbidden, "no-socket": noSocket, "old": old, "slow": slow,
	}))
	for _, c := range []struct {
		args string
		code int
		want []string
	}{
		{"--context empty", exitUnreachable, []string{`context "empty"`, "not installed", "isthmus install --context empty"}},
		{"--context pending", exitUnreachable, []string{"not scheduled: 0/1 nodes", "describe pod isthmus-control-0"}},
		{"--context forbidden", exitUnreachable, []string{`context "forbidden"`, "create on pods/exec", `User "ann"`}},
		{"--context no-socket", exitUnreachable, []string{"CrashLoopBackOff back-off 5m"}},
		{"--context old", exitUnreachable, []string{"no admin-pipe"}},
		{"--context slow --timeout 200ms", exitTimeout, []string{`context "slow"`}},
		{"--context mars", exitUsage, []string{`"mars"`, "there are: empty, forbidden, installed"}},
		{"--context installed --kubeconfig none", exitUsage, []string{"no kubeconfig at none"}},
		{"--context=", exitUsage, []string{"--context is empty"}},
	} {
		_, chatter, code := isthmus(t, append([]string{"get", "services"}, strings.Fields(c.args)...)...)
		if code != c.code {
			t.Errorf("%s: exit %d, want %d: %s", c.args, code, c.code, chatter)
		}
		for _, w := range c.want {
			if !strings.Contains(chatter, w) {
				t.Errorf("%s: it does not say %q: %s", c.args, w, chatter)
			}
		}
	}
}

func TestPlugin(t *testing.T) {
	for program, want := range map[string]bool{
		"/usr/bin/kubectl-isthmus": true, filepath.Join("x", "kubectl-isthmus.exe"): true, "isthmus": false, "/kubectl-isthmus/isthmus": false,
	} {
		if got := isPlugin(program); got != want {
			t.Errorf("%s: %v", program, got)
		}
	}
	var help strings.Builder
	root := newRoot(&global{plugin: true}, strings.NewReader(""), &help, &help)
	root.SetArgs([]string{"status", "--help"})
	if err := root.Execute(); err != nil || !strings.Contains(help.String(), "kubectl isthmus status [flags]") {
		t.Errorf("%v: %s", err, help.String())
	}
}

// TestExplainByContext: the sidecar is asked over a forwarded port of its Pod.
func TestExplainByContext(t *testing.T) {
	alone(t)
	s := kubeControl(t, map[string]any{
		"/v1/status":  healthy,
		"/v1/proxies": []admin.Proxy{{Program: "sidecar", Name: "shop/web-7d9", Admin: "[::]:15020", Connected: true}},
	})
	s.Forward = func(pod, port string, data io.ReadWriter) string {
		if pod != "web-7d9" || port != "15020" {
			return "no such port"
		}
		r, err := http.ReadRequest(bufio.NewReader(data))
		if err != nil || r.Host != "127.0.0.1:15020" || r.URL.String() != "/explain?to=checkout.shop" {
			return fmt.Sprint("not what the sidecar answers: ", r, err)
		}
		const answer = `{"error": "unknown service"}`
		_, _ = fmt.Fprintf(data, "HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer)
		return ""
	}
	t.Setenv("KUBECONFIG", kubetest.Kubeconfig(t, map[string]*kubetest.Server{"kind-eu": s}))
	_, chatter, code := isthmus(t, "explain", "eu/web-7d9", "checkout.shop", "--context", "kind-eu")
	if code != exitFinding || !strings.HasSuffix(chatter, ": unknown service") {
		t.Errorf("exit %d: %s", code, chatter)
	}
	s.Forbid("GET", "/api/v1/namespaces/shop/pods/web-7d9/portforward", "you may not create pods/portforward")
	s.Forbid("POST", "/api/v1/namespaces/shop/pods/web-7d9/portforward", "you may not create pods/portforward")
	_, chatter, code = isthmus(t, "explain", "eu/web-7d9", "checkout.shop", "--context", "kind-eu")
	if code != exitUnreachable || !strings.Contains(chatter, "pods/portforward") {
		t.Errorf("forbidden: exit %d: %s", code, chatter)
	}
}
