package kindtests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// scenario is one script's part of the mesh. Its commands run one after the other.
type scenario struct {
	mesh      *mesh
	ctx       context.Context //nolint:containedctx // of the scenario: the commands of testscript have none
	cancel    context.CancelFunc
	namespace string
	in        []*member // clusters that the namespace was made in
	marks     int
	alone     bool // no other runs beside it: it may break things
}

var scenarios atomic.Int64

// scenarioTime bounds one scenario, so that what hangs is told from what is slow.
const scenarioTime = 5 * time.Minute

func newScenario(m *mesh) *scenario {
	s := &scenario{mesh: m, namespace: fmt.Sprintf("scenario-%d", scenarios.Add(1))}
	s.ctx, s.cancel = context.WithTimeout(context.Background(), scenarioTime)
	return s
}

// close removes the scenario's namespace everywhere. That it goes, with the imports in it, while control is there to put imports back,
// is a check like any other.
func (s *scenario) close() error {
	defer s.cancel()
	if s.alone {
		if err := s.mesh.heal(s.ctx); err != nil {
			return err
		}
	}
	if keep() {
		return nil
	}
	return onEach(s.in, func(c *member) error {
		limit := deadline
		if c.node != "" {
			limit = patience // its Pods must end, and how long that takes is not ours to say
		}
		_, _, err := c.api.Kubectl(s.ctx, "", "delete", "namespace", s.namespace, "--ignore-not-found", "--timeout="+limit.String())
		return err
	})
}

// commands of the scenarios; see TestMCS.
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"namespace":  command((*scenario).makeNamespace),
	"apply":      command((*scenario).apply),
	"together":   command((*scenario).together),
	"tick":       command((*scenario).tick),
	"kubectl":    command((*scenario).kubectl),
	"isthmus":    command((*scenario).isthmus),
	"exports":    command((*scenario).exports),
	"imports":    command((*scenario).imports),
	"slices":     command((*scenario).slices),
	"still":      command((*scenario).still),
	"eventually": command((*scenario).eventually),
	"save":       command((*scenario).save),
	"control":    command((*scenario).control),
	"apiserver":  command((*scenario).apiserver),
	"sh":         command((*scenario).shell),
	"ready":      command((*scenario).ready),
	"always":     command((*scenario).always),
	"never":      command((*scenario).never),
	"node":       command((*scenario).pauseNode),
	"block":      command((*scenario).block),
}

var errUsage = errors.New("usage: see TestMCS and TestFaults")

func command(do func(*scenario, *testscript.TestScript, []string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		err := do(ts.Value(scenarioKey{}).(*scenario), ts, args)
		switch {
		case err != nil && !neg:
			ts.Fatalf("%v", err)
		case err != nil:
			ts.Logf("%v", err)
		case neg:
			ts.Fatalf("succeeded, which it should not")
		}
	}
}

func (s *scenario) exports(ts *testscript.TestScript, args []string) error {
	return s.become(ts, "exports", args)
}

func (s *scenario) imports(ts *testscript.TestScript, args []string) error {
	return s.become(ts, "imports", args)
}

func (s *scenario) slices(ts *testscript.TestScript, args []string) error {
	return s.become(ts, "slices", args)
}

// become waits until the view of a name is what a file says.
func (s *scenario) become(ts *testscript.TestScript, kind string, args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	want := ts.ReadFile(args[1])
	return poll(s.ctx, s.mesh.deadline, func() error { return s.compare(kind, args[0], want) })
}

func (s *scenario) compare(kind, name, want string) error {
	got, err := s.mesh.view(s.ctx, kind, s.namespace, name)
	if err == nil && got != want {
		err = fmt.Errorf("%s of %s:\n%swant:\n%s", kind, name, got, want)
	}
	return err
}

// still looks once, after everything before has had its effect.
func (s *scenario) still(ts *testscript.TestScript, args []string) error {
	if len(args) != 3 {
		return errUsage
	}
	want := ts.ReadFile(args[2])
	if err := s.settle(); err != nil {
		return err
	}
	return s.compare(args[0], args[1], want)
}

// eventually repeats a command until its output matches.
func (s *scenario) eventually(ts *testscript.TestScript, args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	run := s.printing(args[1])
	if run == nil {
		return errUsage
	}
	want, err := regexp.Compile("(?m)" + args[0])
	if err != nil {
		return err
	}
	var out string
	err = poll(s.ctx, s.mesh.deadline, func() error {
		var failed error
		out, _, failed = run(args[2:])
		if want.MatchString(out) {
			return nil // isthmus status fails where it has something to tell
		}
		return errors.Join(fmt.Errorf("no match for %s in:\n%s", args[0], out), failed)
	})
	_, _ = ts.Stdout().Write([]byte(out))
	return err
}

// printing returns the command of that name whose output can be waited for.
func (s *scenario) printing(name string) func(args []string) (stdout, stderr string, err error) {
	return map[string]func([]string) (string, string, error){"kubectl": s.runKubectl, "isthmus": s.runIsthmus, "sh": s.runShell}[name]
}

// save makes a variable of what was printed last.
func (s *scenario) save(ts *testscript.TestScript, args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	value := strings.TrimSpace(ts.ReadFile("stdout"))
	if value == "" {
		return errors.New("nothing was printed")
	}
	ts.Setenv(args[0], value)
	return nil
}

// manifest reads a file of the scenario and replaces its variables; the last argument names it, the others clusters.
func (s *scenario) manifest(ts *testscript.TestScript, args []string) (text string, in []*member, err error) {
	if len(args) < 2 {
		return "", nil, errUsage
	}
	file := args[len(args)-1]
	in, err = s.clusters(args[:len(args)-1])
	if err != nil {
		return "", nil, err
	}
	var unset []string
	text = os.Expand(ts.ReadFile(file), func(name string) string {
		value := ts.Getenv(name)
		if value == "" {
			unset = append(unset, name)
		}
		return value
	})
	if len(unset) > 0 {
		return "", nil, fmt.Errorf("%s: not set: %s", file, strings.Join(unset, ", "))
	}
	return text, in, nil
}

func (s *scenario) clusters(names []string) (out []*member, err error) {
	if len(names) == 0 {
		return nil, errUsage
	}
	for i, name := range names {
		c, err := s.mesh.member(name)
		if err != nil || slices.Contains(names[:i], name) {
			return nil, errors.Join(err, errUsage)
		}
		out = append(out, c)
	}
	return out, nil
}
