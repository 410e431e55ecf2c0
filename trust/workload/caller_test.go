//go:build linux

package workload

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

// Environment of a child process: what it is to do, and where.
const (
	childDoes   = "WORKLOAD_TEST_CHILD"
	childSocket = "WORKLOAD_TEST_SOCKET"
)

// asChild is what the test binary does as somebody else.
func asChild(does string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+os.Getenv(childSocket)))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = c.Close() }()
	tell := func() {
		svids, err := c.FetchX509SVIDs(ctx)
		for _, s := range svids {
			fmt.Println(s.ID)
		}
		fmt.Println(status.Code(err))
	}
	tell()
	if does == "become" { // connected as root, it gives that up
		if err := syscall.Setuid(1001); err != nil {
			fmt.Println(err)
		}
		tell()
	}
}

// child runs the test binary as a user, and returns what it said.
func (w *world) child(uid uint32, does string) []string {
	w.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := os.ReadFile(exe) // where others may not get to it
	if err != nil {
		w.t.Fatal(err)
	}
	bin := w.socket + ".test"
	if err = os.WriteFile(bin, b, 0o755); err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.CommandContext(w.t.Context(), bin)
	cmd.Dir = "/"
	cmd.Env = []string{childDoes + "=" + does, childSocket + "=" + w.socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v\n%s", err, out)
	}
	return strings.Fields(string(out))
}

// byUID gives each user another identity.
type byUID struct {
	Own

	ids map[uint32][]Identity
}

func (b *byUID) Identities(c Caller) ([]Identity, <-chan struct{}, error) {
	if ids := b.ids[c.UID]; ids != nil && c.Known() {
		return ids, nil, nil
	}
	return nil, nil, ErrNobody
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root, to run processes as other users")
	}
	t.Skip("needs root, to run processes as other users: sudo -E go test ./trust/workload")
}

// TestOtherUsers: each user gets its own identities, never another's, and one who has none gets none; proven with processes of those users.
func TestOtherUsers(t *testing.T) {
	needRoot(t)
	w := newWorld(t, func(w *world, c *Config) {
		c.Source = &byUID{ids: map[uint32][]Identity{
			1001:  {{SVID: w.svid("web")}},
			1002:  {{SVID: w.svid("api")}, {SVID: w.svid("jobs")}},
			65534: {{SVID: w.svid("anybody")}},
		}}
	})
	for uid, want := range map[uint32][]string{
		1001:  {id(t, "web").String(), "OK"},
		1002:  {id(t, "api").String(), id(t, "jobs").String(), "OK"},
		1003:  {"PermissionDenied"},
		0:     {"PermissionDenied"}, // root is no exception
		65534: {"PermissionDenied"}, // whom the kernel may show for anybody
	} {
		if got := w.child(uid, "ask"); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("uid %d got %q, want %q", uid, got, want)
		}
	}
}

// TestOwnUsers: the sidecar's workload is who it is told, and where everybody is, nobody is left out.
func TestOwnUsers(t *testing.T) {
	needRoot(t)
	w := newWorld(t, func(w *world, _ *Config) { w.own.UIDs = []uint32{1001, 65534} })
	w.identity.Set(w.svid("web"))
	for uid, want := range map[uint32]string{1001: id(t, "web").String() + " OK", 0: "PermissionDenied", 1002: "PermissionDenied", 65534: "PermissionDenied"} {
		if got := strings.Join(w.child(uid, "ask"), " "); got != want {
			t.Errorf("uid %d got %q, want %q", uid, got, want)
		}
	}
	w = newWorld(t, func(w *world, _ *Config) { w.own.AnyUID = true })
	w.identity.Set(w.svid("web"))
	for _, uid := range []uint32{0, 1001, 65534} {
		if got := strings.Join(w.child(uid, "ask"), " "); got != id(t, "web").String()+" OK" {
			t.Errorf("any uid: uid %d got %q", uid, got)
		}
	}
}

// TestBecomesAnother: a process that connected as one user and is another now is refused on the same connection.
func TestBecomesAnother(t *testing.T) {
	needRoot(t)
	w := newWorld(t, func(w *world, c *Config) {
		c.Source = &byUID{ids: map[uint32][]Identity{0: {{SVID: w.svid("root")}}, 1001: {{SVID: w.svid("web")}}}}
	})
	if got := strings.Join(w.child(0, "become"), " "); got != id(t, "root").String()+" OK PermissionDenied" {
		t.Errorf("got %q", got)
	}
}

// TestEndedCaller: a process that has ended is nobody, also when another has its number now.
func TestEndedCaller(t *testing.T) {
	me := Caller{UID: uint32(os.Getuid()), PID: int32(os.Getpid())}
	var err error
	if me.born, err = birth(me.PID); err != nil {
		t.Fatal(err)
	}
	if err = me.check(); err != nil {
		t.Error(err)
	}
	for what, c := range map[string]Caller{
		"another process of that number": {UID: me.UID, PID: me.PID, born: me.born + 1},
		"another user":                   {UID: me.UID + 1, PID: me.PID, born: me.born},
		"no process":                     {UID: me.UID, PID: 1 << 30, born: 1},
		"no process, /proc hidden":       {UID: me.UID, PID: 1 << 30},
	} {
		if c.check() == nil {
			t.Errorf("%s passes", what)
		}
	}
	if err = (Caller{UID: 5}).check(); err != nil {
		t.Errorf("one of another PID namespace: %v", err)
	}
}
