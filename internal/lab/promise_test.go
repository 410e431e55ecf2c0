package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/lab/promise"
	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
	"github.com/isthmus-mesh/isthmus/internal/ledger"
	"github.com/isthmus-mesh/isthmus/internal/netns"
)

// Where the table of promises goes, and how large the scenarios are.
const (
	envPromises = "ISTHMUS_PROMISES" // a file name, without ".md" and ".json"; empty: to the log of the test alone
	envFull     = "ISTHMUS_FULL"     // not empty: as long as the promise is meant; else as long as the gate has time
)

// TestPromises: each promise on failover (docs/failover.md) is a scenario of testdata/promises, on network namespaces with a WAN and, where
// distance does not matter, on plain processes. Beside the commands of TestScenarios there are
//
//	mesh on CLUSTER... [-- LINK...]   "mesh net" or "mesh up", as this turn goes; every request is in the ledger
//	event                             what is measured happens now
//	flap LINK PERIOD FOR              a link goes down and comes back, each half of a period, and is up in the end
//	promise WORDS MEASURE...          ends all traffic, has the ledger judge it, and prints a line with what was measured (internal/lab/promise)
//
// Of the promises on behaviour each is asserted. Those on timing are printed beside their targets.
func TestPromises(t *testing.T) {
	if testing.Short() {
		t.Skip("starts real programs")
	}
	binaries, err := build()
	if err != nil {
		t.Fatal(err)
	}
	var table promise.Table
	t.Cleanup(func() {
		rows := table.Rows()
		t.Logf("\n%s", promise.Markdown(rows))
		if err := writePromises(os.Getenv(envPromises), rows); err != nil {
			t.Error(err)
		}
	})
	for _, runtime := range []lab.Runtime{lab.Netns, lab.Local} {
		t.Run(string(runtime), func(t *testing.T) {
			if err := netns.Available(); runtime == lab.Netns && err != nil {
				if os.Getenv("CI") != "" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			testscript.Run(t, testscript.Params{
				Dir:                 "testdata/promises",
				TestWork:            os.Getenv("ISTHMUS_KEEP_SCENARIOS") != "",
				RequireExplicitExec: true,
				RequireUniqueNames:  true,
				Condition: func(name string) (bool, error) {
					if name == "wan" {
						return runtime == lab.Netns, nil
					}
					return condition(name)
				},
				Cmds: commands,
				Setup: func(env *testscript.Env) error {
					m := setup(env, binaries, alone)
					m.promised, m.runtime, m.rows = true, runtime, &table
					for name, sizes := range map[string][2]string{
						"FLAPPING": {"20s", "10m"}, "AFTER": {"5s", "30s"}, "SWITCHES": {"4", "20"}, "RAMP": {"10s", "60s"}, "RECOVERS": {"2000", "10000"},
					} {
						env.Setenv(name, sizes[map[bool]int{true: 1}[os.Getenv(envFull) != ""]])
					}
					return nil
				},
			})
		})
	}
}

func writePromises(name string, rows []promise.Row) error {
	if name == "" {
		return nil
	}
	b, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	const mode = 0o600
	return errors.Join(os.WriteFile(name+".json", append(b, '\n'), mode), os.WriteFile(name+".md", []byte(promise.Markdown(rows)), mode))
}

// killing is what was killed, and when.
type killing struct {
	targets []string
	at      time.Time
}

func (m *mesh) kill(targets []string) { m.killed = append(m.killed, killing{targets, time.Now()}) }

// on starts clusters in the runtime whose turn it is.
func (m *mesh) on(ctx context.Context, ts *testscript.TestScript, args []string) error {
	clusters, links, err := withLinks(args)
	if err != nil {
		return err
	}
	opts := lab.Options{Runtime: m.runtime, Ledger: true}
	if m.runtime == lab.Netns {
		m.isNet, opts.Links = true, links
	}
	return m.up(ctx, ts, clusters, opts)
}

func (m *mesh) happens(_ *testscript.TestScript, args []string) error {
	if len(args) != 0 {
		return errUsage
	}
	m.heldUp = heldUp(m.ctx)
	m.event = time.Now()
	return nil
}

// heldUp begins to look at how long this machine lets a program wait that wants to run. The function that it returns ends that, and says.
func heldUp(ctx context.Context) func() time.Duration {
	const rest = 2 * time.Millisecond
	ctx, end := context.WithCancel(ctx)
	longest := make(chan time.Duration, 1)
	go func() {
		most, last := time.Duration(0), time.Now()
		for {
			select {
			case <-ctx.Done():
				longest <- most
				return
			case <-time.After(rest):
				now := time.Now()
				most, last = max(most, now.Sub(last)-rest), now
			}
		}
	}()
	return sync.OnceValue(func() time.Duration {
		end()
		return <-longest
	})
}

// flap makes a link go down and come back.
func (m *mesh) flap(ts *testscript.TestScript, args []string) error {
	if len(args) != 3 {
		return errUsage
	}
	pair, _, ok := strings.Cut(args[0], "=")
	period, err1 := time.ParseDuration(args[1])
	lasts, err2 := time.ParseDuration(args[2])
	if err := errors.Join(err1, err2); err != nil || !ok {
		return errors.Join(errUsage, err)
	}
	turn := time.NewTicker(period / 2)
	defer turn.Stop()
	for began := time.Now(); time.Since(began) < lasts; {
		for _, link := range []string{pair + "=down", args[0]} {
			if err := m.wan(ts, []string{link}); err != nil {
				return err
			}
			<-turn.C
		}
	}
	return nil
}

// maxTold is how many failed requests a scenario tells of.
const maxTold = 5

// promise measures, and says what came of it.
func (m *mesh) promise(ts *testscript.TestScript, args []string) error {
	if len(args) < 2 || m.event.IsZero() {
		return errUsage
	}
	var all, now []traffic.Answer
	for name, l := range m.loads {
		if err := l.stop(); err != nil {
			return err
		}
		l.mu.Lock()
		all = append(all, l.answers...)
		if !m.judged[name] {
			now = append(now, l.answers...)
		}
		l.mu.Unlock()
		m.judged[name] = true
	}
	run := promise.Run{Answers: now, Event: m.event}
	var figures []promise.Figure
	for _, words := range args[1:] {
		f, err := promise.Measure(words, run)
		if err != nil {
			return err
		}
		figures = append(figures, f)
	}
	row := promise.NewRow(args[0], string(m.runtime), figures)
	row.HeldUp = m.heldUp()
	m.rows.Add(row)
	ts.Logf("%s", row)
	ts.Logf("requests by second after the event: %s", bySecond(now, m.event))
	told := 0
	for _, a := range now {
		if a.Failed() && told < maxTold {
			told++
			ts.Logf("failed: %s %s after the event, within %s: %s", a.Method, a.Sent.Sub(m.event).Round(time.Millisecond), a.Took.Round(time.Millisecond), a.Reason())
		}
	}
	for _, a := range run.Slowest(maxTold) {
		ts.Logf("slow: %s %s after the event took %s, by %s, %s", a.Method, a.Sent.Sub(m.event).Round(time.Millisecond), a.Took.Round(time.Millisecond), a.Cluster, a.ID)
	}
	if row.Verdict == promise.Broken {
		return fmt.Errorf("not as promised: %s", row)
	}
	return m.audit(all)
}

// bySecond says which cluster answered how many of the requests that were sent in each second after a moment.
func bySecond(answers []traffic.Answer, since time.Time) string {
	const most = 60
	var counts []map[string]int
	for _, a := range answers {
		i := int(a.Sent.Sub(since) / time.Second)
		if a.Sent.Before(since) || i >= most {
			continue
		}
		for len(counts) <= i {
			counts = append(counts, make(map[string]int))
		}
		counts[i][a.Cluster]++
	}
	return fmt.Sprint(counts)
}

// audit has the ledger judge what was asked for.
func (m *mesh) audit(answers []traffic.Answer) error {
	entries, err := m.pg.Ledger()
	if err != nil {
		return err
	}
	entries = slices.DeleteFunc(entries, func(e ledger.Entry) bool { return slices.Contains(m.aside, e.ID) })
	for _, a := range answers {
		entries = append(entries, a.Entry())
	}
	rules := ledger.Rules{Floor: 400, Clusters: []string{"us", "ap"}, Callers: []string{"spiffe://eu.isthmus.test/ns/shop/sa/web"}, Service: "checkout.shop", Killed: m.lost}
	rep := rules.Check(entries)
	if err := rules.Valid(rep); err != nil {
		return err
	}
	if len(rep.Violations) > 0 {
		return fmt.Errorf("the ledger does not add up: %d violations, the first: %+v", len(rep.Violations), rep.Violations[0])
	}
	return nil
}

// lost reports whether a sidecar of a copy was killed about then: what it had not written is lost.
func (m *mesh) lost(cluster, workload string, at time.Time) bool {
	const about = 2 * time.Second
	return slices.ContainsFunc(m.killed, func(k killing) bool {
		return at.Sub(k.at).Abs() < about && slices.ContainsFunc(k.targets, func(t string) bool {
			return t == cluster || strings.HasPrefix(t, cluster+"/") && strings.HasPrefix(workload, strings.TrimPrefix(t, cluster+"/"))
		})
	})
}
