package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sigs.k8s.io/yaml"
)

// up brings a playground of fakes up, and takes it down when the test ends.
func up(t *testing.T, clusters int, opts Options) *Playground {
	t.Helper()
	spec, err := Sample(clusters)
	if err != nil {
		t.Fatal(err)
	}
	opts.Binaries, opts.DieWithParent = fakes(t), true
	p, started, err := Up(t.Context(), t.TempDir(), spec, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := p.Stop(context.Background(), time.Second); err != nil && !errors.Is(err, ErrNotUp) {
			t.Error(err)
		}
		p.Close()
	})
	if want := len(p.state.all()); len(started) != want {
		t.Fatalf("started %d of %d", len(started), want)
	}
	return p
}

func (p *Playground) dead() []string {
	var out []string
	for _, u := range p.state.all() {
		if !p.alive(u) {
			out = append(out, u.id())
		}
	}
	return out
}

func TestUpIsIdempotent(t *testing.T) {
	p := up(t, 2, Options{})
	again, started, err := Up(t.Context(), p.Dir(), p.Spec(), p.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if len(started) > 0 {
		t.Errorf("started %v a second time", started)
	}
	three, _ := Sample(3)
	if _, _, err := Up(t.Context(), p.Dir(), three, p.opts); err == nil || !strings.Contains(err.Error(), "it has 2 clusters, not 3") {
		t.Errorf("three clusters in a playground of two: %v", err)
	}
}

func TestBreakAndHeal(t *testing.T) {
	p := up(t, 2, Options{})
	for _, c := range []struct {
		targets []string
		want    []string
	}{
		{[]string{"us/gateway-0"}, []string{"us/gateway-0"}},
		{[]string{"us/checkout"}, []string{"us/checkout-0-app", "us/checkout-0-sidecar"}},
		{[]string{"us/checkout-0-app", "eu/control"}, []string{"eu/control", "us/checkout-0-app"}},
		{[]string{"us"}, []string{"us/control", "us/gateway-0", "us/gateway-1", "us/node-0", "us/checkout-0-app", "us/checkout-0-sidecar"}},
	} {
		dead, err := p.Break(t.Context(), c.targets...)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, dead); d != "" {
			t.Errorf("break %v (-want +got):\n%s", c.targets, d)
		}
		if d := cmp.Diff(c.want, p.dead()); d != "" {
			t.Errorf("dead after break %v (-want +got):\n%s", c.targets, d)
		}
		healed, err := p.Heal(t.Context(), c.targets...)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(c.want)
		if d := cmp.Diff(c.want, healed); d != "" {
			t.Errorf("heal %v (-want +got):\n%s", c.targets, d)
		}
	}
	if _, err := p.Break(t.Context(), "us/gateway-9"); !errors.Is(err, ErrNoTarget) || !strings.Contains(err.Error(), "us/gateway-1") {
		t.Errorf("no such target: %v", err)
	}
}

// A program that hangs runs, so heal starts nothing; NotReady tells it from one that is well.
func TestNotReadyFindsWhatHangs(t *testing.T) {
	p := up(t, 2, Options{})
	if sick, err := p.NotReady(t.Context()); err != nil || len(sick) > 0 {
		t.Errorf("all are well: %v, %v", sick, err)
	}
	if err := p.state.Running["us/control"].signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The signal has been sent; the kernel stops one thread after the other.
	sick, err := p.NotReady(t.Context())
	for deadline := time.Now().Add(30 * time.Second); err == nil && len(sick) == 0 && time.Now().Before(deadline); {
		sick, err = p.NotReady(t.Context())
	}
	if err != nil || len(sick) != 1 || !strings.HasPrefix(sick[0], "us/control: ") {
		t.Errorf("us/control hangs: %v, %v", sick, err)
	}
	if sick, err := p.NotReady(t.Context(), "eu"); err != nil || len(sick) > 0 {
		t.Errorf("eu is well: %v, %v", sick, err)
	}
	if _, err := p.Break(t.Context(), "us/control"); err != nil {
		t.Error(err)
	}
}

func TestHealWithoutControl(t *testing.T) {
	p := up(t, 2, Options{})
	if _, err := p.Break(t.Context(), "us/control", "us/gateway-0"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Heal(t.Context(), "us/gateway-0"); err != nil {
		t.Errorf("a gateway that has joined before: %v", err)
	}
}

func TestDownLeavesNothing(t *testing.T) {
	p := up(t, 2, Options{})
	kept := filepath.Join(p.Dir(), "mine")
	if err := os.WriteFile(kept, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var pids []running
	for _, r := range p.state.Running {
		pids = append(pids, r)
	}
	if err := p.Down(t.Context(), time.Second, false); err != nil {
		t.Fatal(err)
	}
	for _, r := range pids {
		if r.alive() {
			t.Errorf("pid %d lives", r.Pid)
		}
	}
	left, err := os.ReadDir(p.Dir())
	if err != nil || len(left) != 1 || left[0].Name() != "mine" {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(p.state.Sockets); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("sockets: %v", err)
	}
	if _, err := Open(p.Dir(), Options{}); !errors.Is(err, ErrNotUp) {
		t.Errorf("open: %v", err)
	}
}

// Somebody else has one of our ports since all processes ended. The ports are kept: manifests that the user changed name them.
func TestUpWithPortTaken(t *testing.T) {
	p := up(t, 2, Options{})
	if _, err := p.Stop(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	before := maps.Clone(p.state.Ports)
	l, err := net.Listen("tcp4", loopback(before["us/gateway-0/admin"]))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = Up(t.Context(), p.Dir(), p.Spec(), p.opts)
	if want := fmt.Sprintf("us/gateway-0: its port %d (admin) is taken by another program", before["us/gateway-0/admin"]); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("up with a port taken: %v", err)
	}
	if err = l.Close(); err != nil {
		t.Fatal(err)
	}
	again, started, err := Up(t.Context(), p.Dir(), p.Spec(), p.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if want := len(p.state.all()); len(started) != want {
		t.Errorf("started %d of %d", len(started), want)
	}
	if d := cmp.Diff(before, again.state.Ports); d != "" {
		t.Errorf("the ports moved (-before +after):\n%s", d)
	}
}

// An up that is called off while programs are on their way ends them again; the next one starts them.
func TestUpCalledOff(t *testing.T) {
	spec, err := Sample(2)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	opts := Options{Binaries: fakes(t), Env: []string{"FAKE_UNREAD=1"}, DieWithParent: true}
	go func() { // it never settles: call it off once all of it runs
		for {
			if p, e := Open(dir, opts); e == nil {
				n := len(p.state.Running)
				p.Close()
				if n == len(p.state.all()) {
					cancel()
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	_, started, err := Up(ctx, dir, spec, opts)
	if !errors.Is(err, context.Canceled) || len(started) > 0 {
		t.Errorf("called off: %v, %v", started, err)
	}
	p, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if want := len(p.state.all()); len(p.dead()) != want || len(p.state.Running) > 0 {
		t.Errorf("%d of %d are dead; written down: %v", len(p.dead()), want, p.state.Running)
	}
}

// What an up leaves that fails before it starts anything can be taken down.
func TestDownOfWhatFailedEarly(t *testing.T) {
	spec, err := Sample(2)
	if err != nil {
		t.Fatal(err)
	}
	dir, opts := t.TempDir(), Options{Binaries: fakes(t)}
	if err = os.WriteFile(filepath.Join(dir, "us"), nil, 0o600); err != nil { // no folder can be made there
		t.Fatal(err)
	}
	if _, _, err = Up(t.Context(), dir, spec, opts); err == nil {
		t.Fatal("it came up")
	}
	p, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err = p.Down(t.Context(), time.Second, false); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Nothing can be written (the disk is full): down still takes everything away.
func TestDownWritesNothing(t *testing.T) {
	p := up(t, 2, Options{})
	before, err := os.Stat(statePath(p.dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.endAll(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(statePath(p.dir)); err != nil || !os.SameFile(before, after) {
		t.Errorf("playground.json was written anew: %v", err)
	}
	if want := len(p.state.all()); len(p.dead()) != want {
		t.Errorf("dead: %v", p.dead())
	}
}

// With others alive the ports can't move: the error says which one is taken.
func TestHealWithPortTaken(t *testing.T) {
	p := up(t, 2, Options{})
	if _, err := p.Break(t.Context(), "us/gateway-0"); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenPacket("udp4", loopback(p.state.Ports["us/gateway-0/quic"]))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := p.Heal(t.Context()); err == nil || !strings.Contains(err.Error(), "us/gateway-0: its port") {
		t.Errorf("heal: %v", err)
	}
}

func TestUsersManifestsStay(t *testing.T) {
	p := up(t, 2, Options{})
	dir := p.ManifestsOf("us")
	if err := os.Remove(filepath.Join(dir, "checkout-export.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "peer-eu.yaml"), []byte("# mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Break(t.Context(), "us"); err != nil {
		t.Fatal(err)
	}
	again, _, err := Up(t.Context(), p.Dir(), p.Spec(), p.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := os.Stat(filepath.Join(dir, "checkout-export.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the export is back: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "peer-eu.yaml")); err != nil || string(b) != "# mine\n" {
		t.Errorf("the peer was overwritten: %q, %v", b, err)
	}
}

// A program that ends at once is reported with what it said, long before patience ends.
func TestProgramThatDies(t *testing.T) {
	b := fakes(t)
	script := filepath.Join(t.TempDir(), "gateway")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho 'config.yaml:3: unknown key'\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.Gateway = script
	spec, _ := Sample(2)
	p, _, err := Up(t.Context(), t.TempDir(), spec, Options{Binaries: b, DieWithParent: true, Patience: 5 * time.Minute})
	if err == nil {
		p.Close()
		t.Fatal("it came up")
	}
	for _, want := range []string{"gateway-", "it has ended", "config.yaml:3: unknown key"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
}

func TestMissingProgram(t *testing.T) {
	spec, _ := Sample(2)
	dir := t.TempDir()
	t.Setenv("PATH", t.TempDir())
	_, _, err := Up(t.Context(), dir, spec, Options{})
	if err == nil || !strings.Contains(err.Error(), "isthmus-control is neither beside") {
		t.Errorf("up: %v", err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrNotUp) {
		t.Errorf("it left a state: %v", err)
	}
}

func TestSocketsOfADeepFolder(t *testing.T) {
	spec, _ := Sample(2)
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 20))
	sockets, err := socketDir(dir, spec)
	if err != nil {
		t.Fatal(err)
	}
	if got := filepath.Join(sockets, socketName("eu")); len(got) > maxSocketPath || strings.HasPrefix(got, dir) {
		t.Errorf("socket %s", got)
	}
}

// Two playgrounds that are being created at once never get the same ports.
func TestClaimsExclude(t *testing.T) {
	seen := map[int]bool{}
	for range 5 {
		claims, err := claimBlocks(150)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range claims {
			defer c.release()
			for _, p := range c.ports() {
				if seen[p] {
					t.Fatalf("port %d twice", p)
				}
				seen[p] = true
			}
		}
	}
}

func TestRecycledPidIsNotKilled(t *testing.T) {
	r := running{Pid: os.Getpid(), Started: "another boot/1"}
	if r.alive() {
		t.Error("it took us for another")
	}
	if err := r.kill(t.Context()); err != nil {
		t.Error(err)
	}
	if got := (running{Pid: os.Getpid(), Started: identity(os.Getpid())}); !got.alive() {
		t.Errorf("we are dead: %+v", got)
	}
}

func TestManifestsAreYAML(t *testing.T) {
	p := up(t, 4, Options{})
	n := 0
	for _, c := range p.Spec().Clusters {
		files, err := filepath.Glob(filepath.Join(p.ManifestsOf(c.Name), "*.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for doc := range strings.SplitSeq(string(b), "\n---\n") {
				var object struct {
					APIVersion string `json:"apiVersion"`
					Kind       string `json:"kind"`
				}
				if err := yaml.UnmarshalStrict([]byte(doc), new(any)); err != nil {
					t.Errorf("%s: %v", f, err)
				}
				if err := yaml.Unmarshal([]byte(doc), &object); err != nil || object.Kind == "" || object.APIVersion == "" {
					t.Errorf("%s: %+v, %v", f, object, err)
				}
				n++
			}
		}
	}
	// Per cluster: a workload, its service and three peers; an export in all but eu, a policy in eu.
	if want := 4 * (1 + 1 + 3 + 1); n != want {
		t.Errorf("%d objects, want %d", n, want)
	}
}

// TestSettleWaitsForWhatWasNotHeard: that a control knows of no peer is no proof that there is none.
func TestSettleWaitsForWhatWasNotHeard(t *testing.T) {
	spec, err := Sample(2)
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{Binaries: fakes(t), Patience: 3 * time.Second, Env: []string{"FAKE_UNREAD=1"}, DieWithParent: true}
	p, _, err := Up(t.Context(), t.TempDir(), spec, opts)
	if err == nil || !strings.Contains(err.Error(), "has not read peer-") {
		t.Errorf("settled without a word of the peers: %v", err)
	}
	if p != nil {
		_, _ = p.Stop(t.Context(), time.Second)
		p.Close()
	}
}
