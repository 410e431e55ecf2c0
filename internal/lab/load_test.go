package lab_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
)

// load is steady traffic that runs beside the script.
type load struct {
	tally traffic.Tally
	end   context.CancelFunc
	done  chan error
	once  sync.Once
	err   error

	mu      sync.Mutex
	answers []traffic.Answer // guarded by mu
}

// note keeps an answer, for what is worked out of all.
func (l *load) note(a traffic.Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers = append(l.answers, a)
}

func (l *load) stop() error {
	l.once.Do(func() {
		l.end()
		l.err = <-l.done
	})
	return l.err
}

func (m *mesh) traffic(ts *testscript.TestScript, args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	verb, name := args[0], args[1]
	if verb == "start" {
		if len(args) != 4 && len(args) != 5 {
			return errUsage
		}
		var body string
		if len(args) == 5 {
			body = args[4]
		}
		proxy, err := m.pg.ProxyOf(args[2])
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(m.ctx)
		l := &load{end: cancel, done: make(chan error, 1)}
		m.loads[name] = l
		of := traffic.Load{URL: args[3], Proxy: proxy, Body: body, Workers: 4, Rate: 100, Timeout: 30 * time.Second}
		if m.promised {
			// Callers enough that those who wait leave others to ask; and from where the caller is, as its application would.
			of.Workers, of.Trace = 25, true
			if of.Dial, err = m.pg.AppDialerOf(args[2]); err != nil {
				return err
			}
			if of.Dial != nil {
				of.Proxy = "" // the kernel brings it to the sidecar
			}
		}
		go func() { l.done <- of.Run(ctx, l.tally.Add, l.note) }()
		return nil
	}
	l, ok := m.loads[name]
	if !ok {
		return fmt.Errorf("no traffic %q", name)
	}
	switch verb {
	case "stop":
		err := l.stop()
		c := l.tally.Counts()
		ts.Logf("%d requests, %d failed, by cluster %v, p50 %s, p99 %s, slowest %s", c.Total, c.Failed, c.ByCluster,
			l.tally.Quantile(0.5), l.tally.Quantile(0.99), c.Slowest)
		for _, f := range l.tally.Failures() {
			ts.Logf("failed: %s", f.Reason())
		}
		return err
	case "pass":
		return l.pass(ts, args[2:])
	default:
		return errUsage
	}
}

// pass waits until so many more requests were answered.
func (l *load) pass(ts *testscript.TestScript, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	answered := func() int {
		c := l.tally.Counts()
		if len(args) > 1 {
			return c.ByCluster[args[1]]
		}
		return c.Total - c.Failed
	}
	begun, first := time.Now(), answered()
	for answered()-first < n {
		if time.Since(begun) > patience {
			c := l.tally.Counts()
			var why []string
			for _, f := range l.tally.Failures() {
				why = append(why, f.Reason())
			}
			return fmt.Errorf("%d of %s within %s; %+v\n%s", answered()-first, strings.Join(args, " by "), patience, c, strings.Join(why, "\n"))
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Logf("%s after %s", strings.Join(args, " by "), time.Since(begun).Round(time.Millisecond))
	return nil
}

func (m *mesh) expect(_ *testscript.TestScript, args []string) error {
	if len(args) != 4 {
		return errUsage
	}
	l, ok := m.loads[args[0]]
	if !ok {
		return fmt.Errorf("no traffic %q", args[0])
	}
	want, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	c := l.tally.Counts()
	got := map[string]int{"failed": c.Failed, "total": c.Total}[args[1]]
	if args[1] != "failed" && args[1] != "total" {
		got = c.ByCluster[args[1]]
	}
	holds := map[string]bool{"==": got == want, ">=": got >= want, "<=": got <= want}
	ok, known := holds[args[2]]
	switch {
	case !known:
		return errUsage
	case !ok:
		var why []string
		for _, f := range l.tally.Failures() {
			why = append(why, f.Reason())
		}
		return fmt.Errorf("%s of %s is %d\n%s", args[1], args[0], got, strings.Join(why, "\n"))
	default:
		return nil
	}
}
