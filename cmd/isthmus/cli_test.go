package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
)

// control serves api/admin with canned answers on a Unix socket, and returns its path.
func control(t *testing.T, answers map[string]any) string {
	t.Helper()
	return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			answer, ok = answers[r.URL.Path]
		}
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			answer = map[string]string{"error": "there is no " + r.URL.Path}
		}
		if refused, is := answer.(*admin.Error); is {
			w.WriteHeader(refused.Status)
			answer = map[string]string{"error": refused.Message}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
}

// serve serves a handler on a Unix socket, and returns its path.
func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "isthmus-") //nolint:usetesting // t.TempDir is too long for a Unix socket on some systems
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
		_ = os.RemoveAll(dir)
	})
	return socket
}

// isthmus runs the command and returns what it prints, and its exit code.
func isthmus(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, chatter bytes.Buffer
	err := run(t.Context(), args, strings.NewReader(""), &out, &chatter)
	return out.String(), chatter.String() + complaint(err), exitCode(err)
}

// alone makes sure that a test speaks of no mesh of whoever runs it.
func alone(t *testing.T) {
	t.Helper()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	t.Setenv(envControl, "")
	t.Setenv(envPlayground, "")
	t.Setenv(envContext, "")
	t.Setenv("KUBECONFIG", "")
}

var healthy = admin.Status{
	Cluster: "eu", TrustDomain: "eu.test", Region: "europe", Version: "v0", Ready: true, Started: time.Now().Add(-time.Hour),
	RootExpires: time.Date(2027, 1, 2, 0, 0, 0, 0, time.UTC), Services: 1, Imports: 1,
	Manifests: admin.ManifestState{Source: "/m", Objects: 4},
	Peers:     []admin.Peer{{Cluster: "us", TrustDomain: "us.test", State: "Fresh", Bus: "connected", Gateways: 2, Services: 1}},
	Links:     []admin.Link{{Gateway: "gateway-0", Cluster: "us", State: "up", Transport: "quic", Connections: 4, RTT: 1500 * time.Microsecond}},
	Proxies:   []admin.Proxy{{Program: "gateway", Name: "gateway-0", Connected: true}},
}

func TestStatus(t *testing.T) {
	alone(t)
	out, chatter, code := isthmus(t, "status", "--control", control(t, map[string]any{"/v1/status": healthy, "/v1/exports": []admin.Export{}}))
	if code != exitOK || chatter != "" {
		t.Errorf("exit %d: %s", code, chatter)
	}
	want := `CLUSTER   READY   PEERS   LINKS   PROXIES   SERVICES   EXPORTS   IMPORTS   MANIFESTS
eu        yes     1/1     1/1     1/1       1          0         1         4 objects

CLUSTER   PEER   STATE   SERVICES   GATEWAYS   BUS         LAST WORD   REASON
eu        us     Fresh   1          2          connected   never       -

CLUSTER   GATEWAY     LINK TO   STATE   TRANSPORT   CONNECTIONS   RTT     DETAIL
eu        gateway-0   us        up      quic        4             1.5ms   -
`
	if d := cmp.Diff(want, out); d != "" {
		t.Errorf("output (-want +got):\n%s", d)
	}
}

func TestStatusFindings(t *testing.T) {
	alone(t)
	sick := healthy
	sick.Ready, sick.Missing = false, []string{"bus: not listening"}
	sick.Manifests.Problems = []admin.Problem{{File: "pay.yaml", Line: 7, Object: "Service shop/pay", Reason: `unknown key "prots"`}}
	sick.Peers = []admin.Peer{{Cluster: "us", State: "Stale", Reason: "no word for 70 s"}}
	sick.Links = []admin.Link{
		{Gateway: "gateway-0", Cluster: "us", State: "down", Detail: "refused"},
		{Gateway: "gateway-1", Cluster: "us", State: "unknown", RTT: time.Millisecond, Detail: "the gateway is not connected"},
	}
	sick.Proxies = []admin.Proxy{{Program: "sidecar", Name: "shop/web"}, {Program: "gateway", Name: "gateway-1"}}
	exports := []admin.Export{
		{Namespace: "shop", Name: "gone", Conditions: []admin.Condition{{Type: "Valid", Status: "False", Reason: "NoService", Message: "there is no Service shop/gone"}}},
		{Namespace: "shop", Name: "torn", Conditions: []admin.Condition{
			{Type: "Valid", Status: "True", Reason: "Valid"}, {Type: "Conflict", Status: "True", Reason: "PortConflict", Message: "us has other ports"},
		}},
		{Namespace: "shop", Name: "labelled", Conditions: []admin.Condition{
			{Type: "Valid", Status: "True", Reason: "Valid"}, {Type: "Conflict", Status: "True", Reason: "LabelsConflict,AnnotationsConflict"},
		}},
		{Namespace: "shop", Name: "fine", Conditions: []admin.Condition{
			{Type: "Valid", Status: "True", Reason: "Valid"}, {Type: "Conflict", Status: "False", Reason: "NoConflicts"},
		}},
	}
	out, chatter, code := isthmus(t, "status", "--control", control(t, map[string]any{"/v1/status": sick, "/v1/exports": exports}))
	if code != exitFinding || chatter != "isthmus: 8 finding(s)" {
		t.Errorf("exit %d: %s", code, chatter)
	}
	if strings.Contains(out, "0s") || strings.Contains(out, "1ms") {
		t.Errorf("a link that isn't up has a round-trip time:\n%s", out)
	}
	_, found, _ := strings.Cut(out, "FINDINGS\n")
	want := `eu: not ready: bus: not listening
eu: pay.yaml:7: Service shop/pay: unknown key "prots"
eu: export gone.shop: Valid=False, NoService: there is no Service shop/gone
eu: export torn.shop: Conflict=True, PortConflict: us has other ports
eu: peer us: Stale no word for 70 s
eu: link gateway-0 to us: down refused
eu: sidecar shop/web: not connected
eu: gateway gateway-1: not connected
`
	if d := cmp.Diff(want, found); d != "" {
		t.Errorf("findings (-want +got):\n%s", d)
	}
}

func TestStatusJSONOfOneAliveAndOneDead(t *testing.T) {
	alone(t)
	dead := filepath.Join(t.TempDir(), "nobody.sock")
	t.Setenv(envControl, control(t, map[string]any{"/v1/status": healthy, "/v1/exports": []admin.Export{}})+string(filepath.ListSeparator)+dead)
	out, chatter, code := isthmus(t, "status", "-o", "json")
	if code != exitUnreachable || !strings.Contains(chatter, dead) {
		t.Errorf("exit %d: %s", code, chatter)
	}
	var got []struct{ Socket, Cluster, Error string }
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v in:\n%s", err, out)
	}
	if len(got) != 2 || got[0].Cluster != "eu" || got[1].Socket != dead || got[1].Error == "" {
		t.Errorf("%+v", got)
	}
}

func TestGet(t *testing.T) {
	alone(t)
	socket := control(t, map[string]any{
		"/v1/status":   healthy,
		"/v1/services": []admin.Service{{Namespace: "shop", Name: "checkout", Ports: []string{"80/http", "9090/grpc"}, Endpoints: 2, Ready: 1, Exported: true}},
		"/v1/exports":  []admin.Export{},
		"/v1/endpoints": []admin.Endpoint{{
			Service: "checkout.shop", Cluster: "eu", ID: "checkout-0", Address: "10.0.0.1:15008", SPIFFEID: []string{"spiffe://eu.test/x"},
			Ready: 1, Capacity: 1, StandIn: true,
		}},
	})
	for _, c := range []struct{ args, want string }{
		{"get services", "CLUSTER   NAMESPACE   NAME       PORTS                READY   EXPORTED   IMPORTED\neu        shop        checkout   80/http, 9090/grpc   1/2     yes        no\n"},
		{"get exports", "none\n"},
		{"get exports -o json", "[\n  {\n    \"seen_from\": \"eu\",\n    \"items\": []\n  }\n]\n"},
		{"get ep -o wide", "SEEN FROM   SERVICE         CLUSTER   COPY         ADDRESS          READY   ZONE   NOTE                   SPIFFE ID\neu          checkout.shop   eu        checkout-0   10.0.0.1:15008   1/1     -      node proxy stands in   spiffe://eu.test/x\n"},
		{"get service -o yaml", "- items:\n  - endpoints: 2\n    exported: true\n    imported: false\n    name: checkout\n    namespace: shop\n    ports:\n    - 80/http\n    - 9090/grpc\n    ready: 1\n  seen_from: eu\n"},
	} {
		out, chatter, code := isthmus(t, append(strings.Fields(c.args), "--control", socket)...)
		if code != exitOK {
			t.Errorf("%s: exit %d: %s", c.args, code, chatter)
		}
		if d := cmp.Diff(c.want, out); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.args, d)
		}
	}
	if _, chatter, code := isthmus(t, "get", "peers", "--control", socket); code != exitFinding || !strings.Contains(chatter, "there is no /v1/peers (HTTP 404)") {
		t.Errorf("an error of the control: exit %d: %s", code, chatter)
	}
}

func TestExplain(t *testing.T) {
	alone(t)
	var asked string
	answer := topology.Explanation{
		Service: name(t, "checkout.shop"), Port: 80, Protocol: topology.HTTP, Policy: "shop/checkout",
		From: topology.Caller{Cluster: cluster(t, "eu"), Workload: "shop/web"},
		Rows: []topology.ExplanationRow{
			{Rank: 1, Tier: "us", Cluster: cluster(t, "us"), Ready: 2, Share: 1, Traffic: 1, State: topology.Active, Reason: "policy"},
			{Rank: 2, Tier: "ap", Cluster: cluster(t, "ap"), Ready: 1, Share: 1, State: topology.LastResort, Reason: "link down", Stale: true},
			{Rank: 3, Tier: "c4", Cluster: cluster(t, "c4"), Ready: 1, State: topology.LastResort, Reason: "ejected: reset", NextTry: time.Now().Add(-time.Minute)},
			{Rank: 3, Tier: "c5", Cluster: cluster(t, "c5"), Ready: 1, State: topology.LastResort, Reason: "ejected: reset", NextTry: time.Now().Add(time.Hour + time.Millisecond)},
			{Cluster: cluster(t, "eu"), Endpoint: "checkout-0", State: topology.Excluded, Reason: "not ready"},
		},
	}
	sidecar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.RequestURI()
		if len(answer.Rows) > 0 { // as seen at this moment, however long the verb took to get here
			answer.Rows[3].NextTry = time.Now().Add(time.Hour + 400*time.Millisecond)
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	defer sidecar.Close()
	socket := control(t, map[string]any{
		"/v1/status": healthy,
		"/v1/proxies": []admin.Proxy{
			{Program: "gateway", Name: "gateway-0"},
			{Program: "sidecar", Name: "shop/web", Admin: sidecar.Listener.Addr().String()},
		},
	})
	out, chatter, code := isthmus(t, "explain", "eu/web", "shop/checkout", "--port", "80", "--control", socket)
	if code != exitOK || asked != "/explain?port=80&to=checkout.shop" {
		t.Errorf("exit %d, asked %q: %s", code, asked, chatter)
	}
	want := `eu/shop/web calls checkout.shop port 80 (http), by policy shop/checkout:

RANK   TIER   TARGET          SHARE   READY   STATE         WHY
1      us     cluster us      100%    2       active        policy
2      ap     cluster ap      0%      1       last resort   link down (its cluster's last word is old)
3      c4     cluster c4      0%      1       last resort   ejected: reset (the next request that can be repeated tries it)
3      c5     cluster c5      0%      1       last resort   ejected: reset (tried again in 1h0m0s)
-      -      eu/checkout-0   0%      0       excluded      not ready
`
	if d := cmp.Diff(want, out); d != "" {
		t.Errorf("explanation (-want +got):\n%s", d)
	}

	answer.Rows, answer.Error = nil, &topology.Failure{Code: "no_candidates", Message: "no copy may be used"}
	if out, chatter, code := isthmus(t, "explain", "eu/shop/web", "checkout.shop", "--control", socket); code != exitFinding || !strings.Contains(out, "Nowhere to go: no copy may be used") || strings.Contains(chatter, "no copy may be used") {
		t.Errorf("nowhere to go: exit %d:\n%s%s", code, out, chatter)
	}
	for args, want := range map[string]string{
		"eu/nobody checkout.shop": "it knows: eu/shop/web",
		"us/web checkout.shop":    "there are: eu",
		"web checkout.shop":       "want CLUSTER/WORKLOAD",
		"nonsense":                "neither an error code",
	} {
		_, chatter, code := isthmus(t, append(append([]string{"explain"}, strings.Fields(args)...), "--control", socket)...)
		if code != exitUsage || !strings.Contains(chatter, want) {
			t.Errorf("explain %s: exit %d: %s", args, code, chatter)
		}
	}
}

// written returns the folder of a playground of eu, with the workload shop/web, and us, of which nothing runs. Each port of its
// sidecar is the given one.
func written(t *testing.T, port string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "isthmus-") //nolint:usetesting // t.TempDir is too long for a Unix socket on some systems
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	state := fmt.Sprintf(`{"version": 1, "sockets": %[1]q,
		"ports": {"eu/web-sidecar/admin": %[2]s, "eu/web-sidecar/proxy": %[2]s, "eu/web-sidecar/dns": %[2]s},
		"spec": {"clusters": [{"name": "eu", "workloads": [{"namespace": "shop", "name": "web", "app": "web"}]}, {"name": "us"}]}}`, dir, port)
	if err := os.WriteFile(filepath.Join(dir, "playground.json"), []byte(state), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestEnvAndBack(t *testing.T) {
	alone(t)
	dir := written(t, "10123")
	out, _, code := isthmus(t, "playground", "env", "eu/web", "--dir", dir)
	if code != exitOK || !strings.Contains(out, "export http_proxy=http://127.0.0.1:10123\n") || strings.Contains(out, envControl) {
		t.Errorf("exit %d:\n%s", code, out)
	}
	t.Setenv(envControl, "/some.sock")
	out, _, code = isthmus(t, "playground", "env", "eu/web", "--dir", dir)
	if code != exitOK || !strings.Contains(out, "unset ISTHMUS_CONTROL # it would win") {
		t.Errorf("exit %d:\n%s", code, out)
	}
	undo, _, code := isthmus(t, "playground", "env", "--unset", "--dir", t.TempDir())
	if want := "unset http_proxy HTTP_PROXY no_proxy NO_PROXY SPIFFE_ENDPOINT_SOCKET ISTHMUS_PLAYGROUND\n"; code != exitOK || undo != want {
		t.Errorf("exit %d: %q, want %q", code, undo, want)
	}
	for args, want := range map[string]string{"env": "call as whom?", "env --unset eu/web": "unexpected argument"} {
		if _, chatter, code := isthmus(t, strings.Fields("playground "+args)...); code != exitUsage || !strings.Contains(chatter, want) {
			t.Errorf("%s: exit %d: %s", args, code, chatter)
		}
	}
	if _, chatter, code := isthmus(t, "playground", "down", "--keep", "--dir", dir); code != exitOK || strings.Contains(chatter, "--unset") {
		t.Errorf("down in a shell that calls elsewhere: exit %d: %s", code, chatter)
	}
	t.Setenv("http_proxy", "http://127.0.0.1:10123")
	if _, chatter, code := isthmus(t, "playground", "down", "--dir", dir); code != exitOK || !strings.Contains(chatter, `eval "$(isthmus playground env --unset)"`) {
		t.Errorf("down in a shell that calls through it: exit %d: %s", code, chatter)
	}
}

// A control that hangs leaves the sidecar, which is healthy, time to answer: the playground knows where that is.
func TestExplainWithAControlThatHangs(t *testing.T) {
	alone(t)
	sidecar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(topology.Explanation{Service: name(t, "checkout.shop"), From: topology.Caller{Cluster: cluster(t, "eu")}})
	}))
	defer sidecar.Close()
	_, port, _ := net.SplitHostPort(sidecar.Listener.Addr().String())
	dir := written(t, port)
	hangs, err := net.Listen("unix", filepath.Join(dir, "eu.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hangs.Close() }()
	_, chatter, code := isthmus(t, "explain", "eu/web", "checkout.shop", "--playground", dir, "--timeout", "1s")
	if code != exitOK || !strings.Contains(chatter, "the control of eu does not answer") {
		t.Errorf("exit %d: %s", code, chatter)
	}
	_, chatter, code = isthmus(t, "join-token", "--node", "node-0", "--cluster", "xx", "--playground", dir, "--timeout", "50ms")
	if code != exitUsage || !strings.Contains(chatter, `no cluster "xx"; there are: eu, us`) {
		t.Errorf("no such cluster: exit %d: %s", code, chatter)
	}
	_, chatter, code = isthmus(t, "join-token", "--node", "node-0", "--cluster", "xx",
		"--control", control(t, map[string]any{"/v1/status": healthy}), "--control", filepath.Join(dir, "nobody.sock"))
	if code != exitUnreachable || !strings.Contains(chatter, `no cluster "xx" among those that answer (eu)`) {
		t.Errorf("no such cluster among those that answer: exit %d: %s", code, chatter)
	}
	out, _, code := isthmus(t, "__complete", "playground", "env", "--dir", dir, "")
	if code != exitOK || !strings.HasPrefix(out, "eu/web\n") {
		t.Errorf("completion of env: exit %d: %s", code, out)
	}
}

func TestExplainCode(t *testing.T) {
	alone(t)
	out, _, code := isthmus(t, "explain", "IST2005")
	if code != exitOK || !strings.HasPrefix(out, "IST2005  No cluster exports the service\n") {
		t.Errorf("exit %d:\n%s", code, out)
	}
}

func TestIntroductionIsAManifest(t *testing.T) {
	alone(t)
	socket := control(t, map[string]any{"/v1/status": healthy, "/v1/introduction": admin.Introduction{
		Cluster: "eu", TrustDomain: "eu.test", RootFingerprint: "sha256:00", BusKey: "UKEY", BusURLs: []string{"tls://10.0.0.1:4222"},
	}})
	out, _, code := isthmus(t, "introduction", "--control", socket)
	want := `apiVersion: isthmus.dev/v1alpha1
kind: ClusterPeer
metadata: {name: eu}
spec:
  trustDomain: eu.test
  rootFingerprint: sha256:00
  bus:
    key: UKEY
    urls: ["tls://10.0.0.1:4222"]
`
	if d := cmp.Diff(want, out); d != "" || code != exitOK {
		t.Errorf("exit %d (-want +got):\n%s", code, d)
	}
}

func TestJoinToken(t *testing.T) {
	alone(t)
	socket := control(t, map[string]any{"/v1/status": healthy, "/v1/tokens": admin.Token{Token: "secret", Expires: time.Now().Add(time.Hour)}})
	out, chatter, code := isthmus(t, "join-token", "--workload", "shop/web", "--control", socket)
	if code != exitOK || out != "secret\n" || !strings.Contains(chatter, "good once") {
		t.Errorf("exit %d: %q, %q", code, out, chatter)
	}
	for _, args := range [][]string{{}, {"--gateway", "a", "--node", "b"}} {
		if _, _, code := isthmus(t, append([]string{"join-token", "--control", socket}, args...)...); code != exitUsage {
			t.Errorf("join-token %v: exit %d", args, code)
		}
	}
}

func TestExitCodesAndWords(t *testing.T) {
	alone(t)
	empty := t.TempDir()
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"status", exitUsage, "start one: isthmus playground up"},
		{"status --playground " + empty, exitUnreachable, "no playground in " + empty},
		{"get services --control /nowhere.sock", exitUnreachable, "control at /nowhere.sock: unreachable"},
		{"get frobs", exitUsage, "is none of services, endpoints"},
		{"get services -o xml", exitUsage, "want one of table, wide, json, yaml"},
		{"status extra", exitUsage, `unexpected argument "extra"`},
		{"playground up extra", exitUsage, `unexpected argument "extra"`},
		{"get services extra", exitUsage, `unexpected argument "extra"`},
		{"join-token extra --node node-0", exitUsage, `unexpected argument "extra"`},
		{"completion extra", exitUsage, "unknown command"},
		{"help extra", exitUsage, "no such verb: extra"},
		{"help playground extra", exitUsage, "no such verb: playground extra"},
		{"explain", exitUsage, "explain what?"},
		{"explain eu/web", exitUsage, "which service?"},
		{"explain IST0105", exitUsage, "no such code, IST0105; the codes are in docs/reference/sidecar.md: IST2001,"},
		{"status --control=", exitUsage, "--control is empty"},
		{"status --playground=", exitUsage, "--playground is empty"},
		{"playground down --dir=", exitUsage, "--dir is empty"},
		{"status --timeout 0", exitUsage, "--timeout 0s: want more than 0"},
		{"status --timeout -1s", exitUsage, "--timeout -1s: want more than 0"},
		{"playground up --patience 0", exitUsage, "--patience 0s: want more than 0"},
		{"playground logs -n -1", exitUsage, "--lines -1: want 0 or more"},
		{"playground run --clusters 2", exitUsage, "--clusters 2: want at least 3"},
		{"playground run --report /nowhere/report.json", exitFinding, "report: open /nowhere/report.json"},
		{"frobnicate", exitUsage, "unknown command"},
		{"stauts", exitUsage, "did you mean status?"},
		{"trust rotat", exitUsage, "did you mean rotate?"},
		{"peer frobnicate", exitUsage, "there are: accept, invite, list, remove"},
		{"playground break", exitUsage, "name at least one target"},
		{"playground up --clusters 1 --dir " + empty, exitUsage, "2 to 16 clusters"},
		{"playground status --dir " + empty, exitUnreachable, "isthmus playground up --dir " + empty},
		{"playground up --env FOO --dir " + empty, exitUsage, "want KEY=VALUE"},
		{"playground down --dir " + empty, exitOK, "nothing to do"},
	} {
		out, chatter, code := isthmus(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(chatter, c.want) || out != "" {
			t.Errorf("isthmus %s: exit %d, want %d; stdout %q, stderr %q", c.args, code, c.code, out, chatter)
		}
	}
}

// Who interrupts a verb is told all the same what to do next.
func TestInterruptedKeepsTheAdvice(t *testing.T) {
	err := fmt.Errorf("up: %w", context.Canceled)
	if got := complaint(err); got != "isthmus: interrupted" {
		t.Errorf("%q", got)
	}
	if got := complaint(advised{err, "End it with: isthmus playground down"}); got != "isthmus: interrupted\nEnd it with: isthmus playground down" {
		t.Errorf("%q", got)
	}
}

// A control that takes the connection and never answers ends in a time-out, not in a wait.
func TestTimeout(t *testing.T) {
	alone(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, chatter, code := isthmus(t, "status", "--timeout", "50ms", "--control", l.Addr().String()); code != exitTimeout {
		t.Errorf("exit %d: %s", code, chatter)
	}
}

func TestCompletion(t *testing.T) {
	alone(t)
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out, _, code := isthmus(t, "completion", shell); code != exitOK || len(out) == 0 {
			t.Errorf("completion %s: exit %d, %d bytes", shell, code, len(out))
		}
	}
}

func TestCompletionOffers(t *testing.T) {
	alone(t)
	socket := control(t, map[string]any{
		"/v1/status": healthy, "/v1/proxies": []admin.Proxy{{Program: "sidecar", Name: "shop/web"}},
		"/v1/imports": []admin.Import{{Namespace: "shop", Name: "checkout"}},
	})
	for args, want := range map[string]string{
		"explain":                    "eu/web\n",
		"explain eu/web":             "checkout.shop\n",
		"join-token --cluster":       "eu\n",
		"status -o":                  "table\nwide\njson\nyaml\n",
		"playground status --output": "table\nwide\njson\nyaml\n",
	} {
		line := append(append([]string{"__complete", "--control", socket}, strings.Fields(args)...), "")
		if out, chatter, code := isthmus(t, line...); code != exitOK || !strings.HasPrefix(out, want) {
			t.Errorf("%s: exit %d: %q, %s", args, code, out, chatter)
		}
	}
}

func TestVersionFlag(t *testing.T) {
	alone(t)
	long, _, _ := isthmus(t, "version")
	if out, chatter, code := isthmus(t, "--version"); code != exitOK || out != long {
		t.Errorf("exit %d: %q, want %q; %s", code, out, long, chatter)
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{"": "''", "/a/b-c.d": "/a/b-c.d", "/a b": "'/a b'", "it's": `'it'\''s'`, "$HOME": "'$HOME'"} {
		if got := shellQuote(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func name(t *testing.T, s string) topology.ServiceName {
	t.Helper()
	n, err := topology.ParseServiceName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func cluster(t *testing.T, s string) topology.ClusterName {
	t.Helper()
	n, err := topology.ParseClusterName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestStatusBeforeAllIsRead: a control that can't tell of its exports yet can tell why.
func TestStatusBeforeAllIsRead(t *testing.T) {
	alone(t)
	starting := healthy
	starting.Ready, starting.Missing = false, []string{"kubernetes: workloads can't be read"}
	out, chatter, code := isthmus(t, "status", "--control", control(t, map[string]any{"/v1/status": starting})) // no answer to /v1/exports
	if code != exitFinding || !strings.Contains(out, "eu: not ready: kubernetes: workloads can't be read") {
		t.Errorf("exit %d: %s%s", code, out, chatter)
	}
}

// What may well be meant, and who has too much to do, is said, and is nothing wrong.
func TestStatusNotes(t *testing.T) {
	alone(t)
	s := healthy
	s.Manifests.Problems = []admin.Problem{{File: "shop.yaml", Line: 6, Object: "ServiceExport shop/checkout", Reason: "the Service has no copies", Note: true}}
	s.Now = s.Started
	s.Overloads = []admin.Overload{{Service: "pay.shop", Program: "sidecar/shop/pay-0", Limit: 40, Shed: 12, Last: s.Now.Add(-2 * time.Second)}}
	out, said, code := isthmus(t, "status", "--control", control(t, map[string]any{"/v1/status": s, "/v1/exports": []admin.Export{}}))
	for _, want := range []string{
		"NOTES\neu: shop.yaml:6: ServiceExport shop/checkout: the Service has no copies\n", "4 objects\n",
		"eu: pay.shop: sidecar/shop/pay-0 has more to do than it can: it refused 12 request(s), the last 2s ago (IST2110), and takes 40 at a time now\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if code != exitOK || strings.Contains(out, "FINDINGS") || strings.Contains(out, "bad") {
		t.Errorf("exit %d: %s\n%s", code, said, out)
	}
}
