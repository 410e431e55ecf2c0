package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/netns"
)

// The scenarios of testdata/scenarios say what a mesh does, on real programs, in words that don't say how clusters run:
//
//	mesh up CLUSTER... [KEY=VALUE...]   clusters from here on ("us:2": with two copies); the pairs go into the programs' environment
//	mesh net CLUSTER... [-- LINK...]    the same in network namespaces, with a WAN between ("eu-us=80ms,1%"); under the condition [net]
//	wan LINK...                         the WAN made otherwise: "eu-us=down" both ways, "eu>us=down" one
//	mesh break|stop TARGET...           SIGKILL; SIGTERM
//	mesh heal [TARGET...]               starts what is dead
//	manifest put CLUSTER FILE [NAME]    a manifest into a cluster, $variables replaced
//	manifest rm CLUSTER NAME            and out again
//	manifest get CLUSTER NAME FILE      a copy of it
//	manifest edit CLUSTER NAME RE NEW   what the regular expression matches, replaced
//	call [-H HEADER] [-d BODY] FROM URL one call as a workload; prints "STATUS CLUSTER WORKLOAD PROTOCOL", then the body.
//	                                    Schemes: http, h2c, grpc, ws, tcp, udp. A call that fails prints "error: …"; it is for the script to judge
//	hold NAME FROM tcp://HOST:PORT      a connection that stays open; or a WebSocket, ws://HOST/ws
//	holds NAME open|closed|end          echoes still; waits until it is closed; closes it
//	stream keep NAME FROM HOST:PORT     a gRPC stream both ways, opened anew whenever it ends, and steady calls beside it on the same connection
//	stream with NAME CLUSTER            waits until the stream is with that cluster
//	stream ended NAME N                 waits until it has ended that often at least
//	stream close NAME                   fails if a call failed, or a stream ended but with a status of the mesh that says it may be opened anew
//	server CLUSTER NAME                 an HTTP server that knows nothing of the mesh; sets $NAME_address and $NAME_port
//	traffic start NAME FROM URL [BODY]  steady GETs, or POSTs of that body: 4 callers, 100 a second
//	traffic pass NAME N [CLUSTER]       waits until N more were answered, by that cluster
//	traffic stop NAME
//	expect NAME failed|total|CLUSTER OP N
//	logs TARGET...                      prints what the programs logged
//	svid FROM                           what SPIFFE's own client hears from the Workload API of a workload: its SVIDs, and how many roots of whom
//	eventually REGEXP COMMAND...        repeats call, logs, svid or isthmus until its output matches
//	never N REGEXP COMMAND...           repeats it N times; its output must not match
//	watch start TEXT, watch stop        listens on every wire for TEXT in the clear; fails if it is seen anywhere but between an
//	                                    application and its own sidecar, or is not seen there. In network namespaces, datagrams that
//	                                    are called with. It has to see one with TEXT that is sent for that, first
//	isthmus ARGS...                     the command, speaking of this mesh
//
// Each scenario has traffic enough to mean something, and shows the opposite where that is cheap: that a call fails without the
// export, that the watcher sees what is in the clear.
func TestScenarios(t *testing.T) {
	if testing.Short() {
		t.Skip("starts real programs")
	}
	binaries, err := build()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/scenarios",
		TestWork:            os.Getenv("ISTHMUS_KEEP_SCENARIOS") != "",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Condition:           condition,
		Cmds:                commands,
		Setup:               func(env *testscript.Env) error { setup(env, binaries, turns); return nil },
	})
}

// Starting a mesh keeps two cores busy for a while; after that it mostly waits. What is timed is alone.
var (
	turns = make(chan struct{}, min(runtime.NumCPU(), 4))
	alone = make(chan struct{}, 1)
)

// setup gives a scenario its mesh, when it is its turn.
func setup(env *testscript.Env, binaries string, turn chan struct{}) *mesh {
	turn <- struct{}{}
	env.Defer(func() { <-turn })
	dir := filepath.Join(env.WorkDir, "mesh")
	env.Setenv("PATH", binaries+string(filepath.ListSeparator)+env.Getenv("PATH"))
	env.Setenv("ISTHMUS_PLAYGROUND", dir)
	m := newMesh(binaries, dir)
	env.Values[meshKey{}] = m
	env.Defer(m.close)
	return m
}

// patience bounds what a scenario waits for. It is long because a machine may be busy; nothing depends on its length.
const patience = 90 * time.Second

type meshKey struct{}

// build builds the programs, once for all scenarios.
var build = sync.OnceValues(func() (dir string, err error) {
	dir, err = os.MkdirTemp("", "isthmus-scenarios-")
	if err != nil {
		return "", err
	}
	lab.Cleanup(func() { _ = os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+string(filepath.Separator), "./cmd/...")
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return dir, nil
})

// condition says what a machine can do. What it can't is an error in CI, where a scenario that was left out would prove nothing.
func condition(name string) (bool, error) {
	can := map[string]func() error{"capture": canCapture, "net": netns.Available}[name]
	if can == nil {
		return false, fmt.Errorf("no condition %q", name)
	}
	return met(can(), os.Getenv("CI") != "")
}

// met makes a condition of why it is not met.
func met(why error, ci bool) (bool, error) {
	if why != nil && ci {
		return false, why
	}
	return why == nil, nil
}

// TestConditionMet: what a machine can't do leaves a scenario out, but never in CI.
func TestConditionMet(t *testing.T) {
	why := errors.New("it can't")
	for _, c := range []struct {
		why  error
		ci   bool
		want bool
		err  error
	}{{nil, false, true, nil}, {nil, true, true, nil}, {why, false, false, nil}, {why, true, false, why}} {
		if got, err := met(c.why, c.ci); got != c.want || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%v, in CI %t: %t, %v; want %t, %v", c.why, c.ci, got, err, c.want, c.err)
		}
	}
}
