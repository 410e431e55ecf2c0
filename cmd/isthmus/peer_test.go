package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess/kubetest"
)

const clusterPeersPath = "/apis/isthmus.dev/v1alpha1/clusterpeers"

func fingerprint(digit string) string { return "sha256:" + strings.Repeat(digit, 64) }

var (
	introEU = admin.Introduction{
		Cluster: "eu", TrustDomain: "eu.test", RootFingerprint: fingerprint("e"), BusURLs: []string{"tls://eu.example:4222"},
		BusKey: "UCFIHRFMUGZ5776XW26MVZRXF77IXMYF2DNYWRNIAWQ3M662LACTLEAS",
	}
	introUS = admin.Introduction{
		Cluster: "us", TrustDomain: "us.test", RootFingerprint: fingerprint("a"), BusURLs: []string{"tls://us.example:4222"},
		BusKey: "UAZNSFYXYROSQCHB37DRIODKFUBKWBQBQ634VHTXUJSA4HBOAQW4IJ33",
	}
)

// answersOf is a control that knows its name and its peers.
func answersOf(self admin.Introduction, source string, peers ...admin.Peer) map[string]any {
	return map[string]any{
		"/v1/status": admin.Status{
			Cluster: self.Cluster, TrustDomain: self.TrustDomain, Ready: true, Peers: peers, Manifests: admin.ManifestState{Source: source},
		},
		"/v1/introduction": self, "/v1/peers": peers,
	}
}

// piped runs a verb with a standard input.
func piped(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, chatter bytes.Buffer
	err := run(t.Context(), args, strings.NewReader(stdin), &out, &chatter)
	return out.String(), chatter.String() + complaint(err), exitCode(err)
}

// TestPeerPipe is the pipe of the documentation: invite | accept | accept.
func TestPeerPipe(t *testing.T) {
	alone(t)
	eu, us := kubeControl(t, answersOf(introEU, "")), kubeControl(t, answersOf(introUS, ""))
	for _, s := range []*kubetest.Server{eu, us} {
		s.Serve(clusterPeersPath, "isthmus.dev/v1alpha1", "ClusterPeer")
	}
	t.Setenv("KUBECONFIG", kubetest.Kubeconfig(t, map[string]*kubetest.Server{"kind-eu": eu, "kind-us": us}))

	first, chatter, code := isthmus(t, "peer", "invite", "--context", "kind-eu")
	if code != exitOK || !strings.HasPrefix(first, "# Cluster eu asks") || !strings.HasSuffix(first, "\n...\n") {
		t.Fatalf("invite: exit %d: %s%s", code, first, chatter)
	}
	second, chatter, code := piped(t, first+"what comes after the end is not read\n", "peer", "accept", "--context", "kind-us")
	if code != exitOK || !strings.Contains(chatter, introEU.RootFingerprint) || !strings.Contains(second, "isthmus.dev/in-answer-to: eu") {
		t.Fatalf("accept: exit %d: %s%s", code, second, chatter)
	}
	third, chatter, code := piped(t, second, "peer", "accept", "--context", "kind-eu")
	if code != exitOK || third != "" || !strings.Contains(chatter, "isthmus status") {
		t.Fatalf("the answer's accept: exit %d: %s%s", code, third, chatter)
	}
	for _, c := range []struct {
		in  *kubetest.Server
		who admin.Introduction
	}{{eu, introUS}, {us, introEU}} {
		want := map[string]any{
			"apiVersion": "isthmus.dev/v1alpha1", "kind": "ClusterPeer", "metadata": map[string]any{"name": c.who.Cluster},
			"spec": map[string]any{
				"trustDomain": c.who.TrustDomain, "rootFingerprint": c.who.RootFingerprint,
				"bus": map[string]any{"key": c.who.BusKey, "urls": []any{c.who.BusURLs[0]}},
			},
		}
		if diff := cmp.Diff(want, c.in.Get(clusterPeersPath+"/"+c.who.Cluster)); diff != "" {
			t.Errorf("ClusterPeer %s (-want +got):\n%s", c.who.Cluster, diff)
		}
	}
	again, chatter, code := piped(t, first, "peer", "accept", "--context", "kind-us")
	if code != exitOK || !strings.Contains(chatter, "already") || again != second { // the pipe can be run again
		t.Errorf("once more: exit %d: %s%s", code, again, chatter)
	}
	other := introEU
	other.RootFingerprint = fingerprint("0")
	anew := invitation{Introduction: other}.String()
	if _, chatter, code = piped(t, anew, "peer", "accept", "--context", "kind-us"); code != exitFinding || !strings.Contains(chatter, "--replace") {
		t.Errorf("another cluster: exit %d: %s", code, chatter)
	}
	if _, chatter, code = piped(t, anew, "peer", "accept", "--context", "kind-us", "--replace"); code != exitOK || !strings.Contains(chatter, "fingerprint was "+introEU.RootFingerprint) {
		t.Errorf("another cluster, --replace: exit %d: %s", code, chatter)
	}
	if _, chatter, code = isthmus(t, "peer", "remove", "eu", "--context", "kind-us"); code != exitOK || us.Get(clusterPeersPath+"/eu") != nil {
		t.Errorf("remove: exit %d: %s", code, chatter)
	}
	if _, chatter, code = isthmus(t, "peer", "remove", "eu", "--context", "kind-us"); code != exitFinding || !strings.Contains(chatter, `no peer "eu"`) {
		t.Errorf("remove what is gone: exit %d: %s", code, chatter)
	}
}

func TestPeerAcceptThatFails(t *testing.T) {
	alone(t)
	bare, us, forbidden := kubeControl(t, answersOf(introUS, "")), kubeControl(t, answersOf(introUS, "")), kubeControl(t, answersOf(introUS, ""))
	for _, s := range []*kubetest.Server{us, forbidden} {
		s.Serve(clusterPeersPath, "isthmus.dev/v1alpha1", "ClusterPeer")
	}
	forbidden.Forbid("PATCH", clusterPeersPath, `cannot patch resource "clusterpeers"`)
	t.Setenv("KUBECONFIG", kubetest.Kubeconfig(t, map[string]*kubetest.Server{"bare": bare, "us": us, "forbidden": forbidden}))
	with := func(change func(*admin.Introduction)) string {
		in := introEU
		change(&in)
		return invitation{Introduction: in}.String()
	}
	good := with(func(*admin.Introduction) {})
	for _, c := range []struct{ name, stdin, args, want string }{
		{"nothing", "", "--context us", "it is empty"},
		{"something else", "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 80}]}\n", "--context us", "want one ClusterPeer"},
		{"two", clusterPeer(introEU, "") + "---\n" + clusterPeer(introUS, ""), "--context us", "nothing else"},
		{"a changed key", strings.Replace(good, introEU.BusKey[:8], introEU.BusKey[:6]+introEU.BusKey[7:8]+introEU.BusKey[6:7], 1), "--context us", "checksum"},
		{"itself", invitation{Introduction: introUS}.String(), "--context us", "accept it in the other cluster"},
		{"its name", with(func(in *admin.Introduction) { in.Cluster = "us" }), "--context us", "another name"},
		{"its domain", with(func(in *admin.Introduction) { in.TrustDomain = "us.test" }), "--context us", "trust domain us.test"},
		{"its keys", with(func(in *admin.Introduction) { in.RootFingerprint = introUS.RootFingerprint }), "--context us", "copy of this one's"},
		{"no CRDs", good, "--context bare", "isthmus install --context bare"},
		{"forbidden", good, "--context forbidden", `cannot patch resource "clusterpeers"`},
	} {
		out, chatter, code := piped(t, c.stdin, append([]string{"peer", "accept"}, strings.Fields(c.args)...)...)
		if code != exitFinding || !strings.Contains(chatter, c.want) || out != "" {
			t.Errorf("%s: exit %d: %s%s", c.name, code, out, chatter)
		}
	}
	if us.Get(clusterPeersPath+"/eu") != nil {
		t.Error("what was refused was applied")
	}
}

func TestPeerInFolder(t *testing.T) {
	alone(t)
	dir := t.TempDir()
	known := admin.Peer{Cluster: "eu", TrustDomain: "eu.test", RootFingerprint: introEU.RootFingerprint, BusKey: introEU.BusKey, BusURLs: introEU.BusURLs, State: "Fresh"}
	answers := answersOf(introUS, dir)
	answers["/v1/peers"] = []admin.Peer{known} // as control sees it, once it stands there
	socket := control(t, answers)
	file := filepath.Join(t.TempDir(), "eu.yaml")
	if err := os.WriteFile(file, []byte(invitation{introEU, "us"}.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, chatter, code := isthmus(t, "peer", "accept", file, "--control", socket, "--wait")
	b, err := os.ReadFile(filepath.Join(dir, "peer-eu.yaml"))
	if code != exitOK || out != "" || string(b) != clusterPeer(introEU, "") || !strings.Contains(chatter, "are linked") {
		t.Errorf("exit %d, %v: %s%s%s", code, err, out, chatter, b)
	}
	out, _, code = isthmus(t, "peer", "list", "-o", "wide", "--control", socket)
	if code != exitOK || !strings.Contains(out, introEU.RootFingerprint) {
		t.Errorf("list: exit %d: %s", code, out)
	}
	if _, chatter, code = isthmus(t, "peer", "remove", "eu", "--control", socket); code != exitOK {
		t.Errorf("remove: exit %d: %s", code, chatter)
	}
	if _, err := os.Stat(filepath.Join(dir, "peer-eu.yaml")); err == nil {
		t.Error("it still stands there")
	}

	elsewhere := control(t, answersOf(introUS, dir, known))
	moved := introEU
	moved.BusURLs = []string{"tls://new.example:4222"}
	if _, chatter, code = piped(t, invitation{Introduction: moved}.String(), "peer", "accept", "--control", elsewhere); code != exitFinding ||
		!strings.Contains(chatter, "another file") || !strings.Contains(chatter, "tls://new.example:4222") {
		t.Errorf("declared in another file: exit %d: %s", code, chatter)
	}
	// What this side has taken away from a peer stays taken away when it invites anew, with another address.
	limited := t.TempDir()
	within := introEU
	within.Namespaces = []string{"shop"}
	if err := os.WriteFile(filepath.Join(limited, "peer-eu.yaml"), []byte(clusterPeer(within, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	known.Namespaces = within.Namespaces
	answers = answersOf(introUS, limited, known)
	_, chatter, code = piped(t, invitation{Introduction: moved}.String(), "peer", "accept", "--control", control(t, answers))
	moved.Namespaces = within.Namespaces
	if b, err := os.ReadFile(filepath.Join(limited, "peer-eu.yaml")); err != nil || string(b) != clusterPeer(moved, "") {
		t.Errorf("the namespaces that it is heard in: exit %d: %s%v\n%s", code, chatter, err, b)
	}
	remote := control(t, answersOf(introUS, "/not/on/this/machine"))
	if _, chatter, code = piped(t, invitation{Introduction: introEU}.String(), "peer", "accept", "--control", remote); code != exitFinding ||
		!strings.Contains(chatter, "yourself:\n\napiVersion") {
		t.Errorf("a folder elsewhere: exit %d: %s", code, chatter)
	}
}

func TestPeerWaitsInVain(t *testing.T) {
	alone(t)
	known := admin.Peer{
		Cluster: "eu", TrustDomain: "eu.test", RootFingerprint: introEU.RootFingerprint, BusKey: introEU.BusKey, BusURLs: introEU.BusURLs,
		State: "Waiting", Bus: "connecting",
	}
	socket := control(t, answersOf(introUS, t.TempDir(), known))
	out, chatter, code := piped(t, invitation{Introduction: introEU}.String(), "peer", "accept", "--control", socket, "--wait", "--patience", "50ms")
	if code != exitTimeout || !strings.Contains(chatter, "is Waiting (bus connecting)") || !strings.Contains(out, "in-answer-to: eu") {
		t.Errorf("exit %d: %s%s", code, out, chatter)
	}
}

// TestInvitationEndsByItself: a pipe that stays open does not hold the reader up.
func TestInvitationEndsByItself(t *testing.T) {
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	go func() { _, _ = io.WriteString(w, invitation{introEU, "us"}.String()) }()
	got, err := readInvitation("-", r)
	if diff := cmp.Diff(invitation{introEU, "us"}, got, cmp.AllowUnexported(invitation{})); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}
