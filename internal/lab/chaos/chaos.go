// Package chaos breaks a playground again and again, in every way that it knows, alone and in pairs, under load, and has the ledger
// (internal/ledger) judge what came of the requests. The same seed breaks the same things in the same order.
//
// The isthmus command's `playground chaos` and a test use it. Run owns all that it starts and leaves nothing behind.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
	"github.com/isthmus-mesh/isthmus/internal/ledger"
)

// ErrVerdict is what the error of a Run is that came to its end and found something.
var ErrVerdict = errors.New("the ledger does not add up")

// Config is how a run goes.
type Config struct {
	Faults int         // how many are injected, at least. Default 20.
	Seed   uint64      // what is broken, and when
	Dir    string      // default: a temporary folder, removed in the end
	Lab    lab.Options // how programs are started; with the runtime Netns the WAN is broken too
	Rate   float64     // requests a second, of each of the two kinds. Default 50.
	Out    io.Writer   // what happens, for a person; default: nobody reads
}

// Report is what came of a run. Its JSON is the ledger file.
type Report struct {
	Seed    uint64         `json:"seed"`
	Runtime lab.Runtime    `json:"runtime"`
	Began   time.Time      `json:"began"`
	Ended   time.Time      `json:"ended"`
	Faults  []Fault        `json:"faults"`
	ByKind  map[string]int `json:"by_kind"`
	Ledger  ledger.Report  `json:"ledger"`
	P50     time.Duration  `json:"p50_ns"`
	P99     time.Duration  `json:"p99_ns"`
	Slowest time.Duration  `json:"slowest_ns"`
	Verdict string         `json:"verdict"` // pass or fail
	Reason  string         `json:"reason,omitempty"`
}

// Fault is one that was injected.
type Fault struct {
	Kind   string    `json:"kind"`
	What   string    `json:"what"`
	Began  time.Time `json:"began"`
	Healed time.Time `json:"healed"`
}

// The caller, and the call. Two clusters answer, so that one can be broken at a time.
const (
	caller    = "eu/web"
	home      = "eu"
	target    = "http://checkout.shop.svc.clusterset.local/"
	service   = "checkout.shop"
	callers   = 4
	floor     = 0.25 // of what Rate would give
	settle    = 90 * time.Second
	grace     = 3 * time.Second
	normalWAN = "10ms~1ms"
)

type run struct {
	Config

	pg     *lab.Playground
	luck   *rand.Rand
	report Report
	tally  traffic.Tally

	mu      sync.Mutex
	clients []ledger.Entry // guarded by mu
	killed  []kill
}

// kill is when a copy's sidecar was killed.
type kill struct {
	cluster string
	at      time.Time
}

// Run breaks things until enough were broken, and judges. The error is ErrVerdict when the run came to its end and the ledger does not add up.
func Run(ctx context.Context, cfg Config) (Report, error) {
	if cfg.Faults == 0 {
		cfg.Faults = 20
	}
	if cfg.Rate == 0 {
		cfg.Rate = 50
	}
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	if cfg.Lab.Runtime == "" {
		cfg.Lab.Runtime = lab.Local
	}
	r := &run{Config: cfg, luck: rand.New(rand.NewPCG(cfg.Seed, 0))} //nolint:gosec // G404: to be repeated, not to be secret
	r.report = Report{Seed: cfg.Seed, Runtime: cfg.Lab.Runtime, Began: time.Now(), Faults: []Fault{}, ByKind: make(map[string]int), Verdict: "fail"}
	err := r.play(ctx)
	r.report.Ended = time.Now()
	if err != nil {
		r.report.Reason = err.Error()
		return r.report, err
	}
	r.report.Verdict = "pass"
	return r.report, nil
}

func (r *run) say(format string, args ...any) {
	_, _ = fmt.Fprintf(r.Out, "%8.2fs  %s\n", time.Since(r.report.Began).Seconds(), fmt.Sprintf(format, args...)) // for a person
}

func (r *run) play(ctx context.Context) (err error) {
	spec, err := lab.Sample(3)
	if err != nil {
		return err
	}
	if r.Dir == "" {
		if r.Dir, err = os.MkdirTemp("", "isthmus-chaos-"); err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(r.Dir) }()
	}
	r.Lab.Ledger = true
	if r.Lab.Runtime == lab.Netns {
		if r.Lab.Links, err = allPairs(spec, normalWAN); err != nil {
			return err
		}
	}
	r.say("starting 3 clusters (%s) in %s; seed %d", r.Lab.Runtime, r.Dir, r.Seed)
	r.pg, _, err = lab.Up(ctx, r.Dir, spec, r.Lab)
	if r.pg != nil {
		defer func() {
			err = errors.Join(err, r.pg.Down(context.WithoutCancel(ctx), grace, false))
			r.pg.Close()
		}()
	}
	if err != nil {
		return err
	}
	began := time.Now()
	stop, err := r.load(ctx)
	if err != nil {
		return err
	}
	err = r.rounds(ctx)
	if e := stop(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return r.judge(time.Since(began))
}

// load starts requests that may be repeated, and as many that may not; stop waits for their answers.
func (r *run) load(ctx context.Context) (stop func() error, err error) {
	proxy, err := r.pg.ProxyOf(caller)
	if err != nil {
		return nil, err
	}
	sending, cancel := context.WithCancel(ctx)
	sent := make(chan error, 2)
	for _, body := range []string{"", "a payment"} {
		l := traffic.Load{URL: target, Proxy: proxy, Body: body, Workers: callers, Rate: r.Rate, Timeout: 30 * time.Second, Trace: true}
		go func() { sent <- l.Run(sending, r.tally.Add, r.note) }()
	}
	return func() error {
		cancel()
		return errors.Join(<-sent, <-sent)
	}, nil
}

// note writes down what the client saw.
func (r *run) note(a traffic.Answer) {
	e := ledger.Entry{ID: a.ID, Role: ledger.Client, At: a.Sent, Cluster: a.Cluster, Copy: a.Workload, Method: a.Method, Status: a.Status}
	if a.Err != nil {
		e.Err = a.Err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clients = append(r.clients, e)
}

// rounds breaks one victim at a time, by one fault or two, and heals it before the next.
func (r *run) rounds(ctx context.Context) error {
	for len(r.report.Faults) < r.Faults {
		victim := pick(r.luck, []string{"us", "ap"})
		chosen := r.choose(victim, 1+r.luck.IntN(2))
		var names []string
		for _, f := range chosen {
			names = append(names, f.what)
		}
		began := time.Now()
		for _, f := range chosen {
			if f.kills != "" {
				r.killed = append(r.killed, kill{f.kills, time.Now()})
			}
			if err := f.inject(ctx); err != nil {
				return fmt.Errorf("%s: %w", f.what, err)
			}
		}
		if err := sleep(ctx, r.within(200*time.Millisecond, 1500*time.Millisecond)); err != nil {
			return err
		}
		if err := r.heal(ctx); err != nil {
			return fmt.Errorf("heal %s: %w", strings.Join(names, " and "), err)
		}
		for _, f := range chosen {
			r.report.Faults = append(r.report.Faults, Fault{f.kind, f.what, began, time.Now()})
			r.report.ByKind[f.kind]++
		}
		c := r.tally.Counts()
		r.say("%3d faults; %s; %d requests, %d failed", len(r.report.Faults), strings.Join(names, " and "), c.Total, c.Failed)
	}
	return nil
}

// heal puts everything right and waits until calls go everywhere again.
func (r *run) heal(ctx context.Context) error {
	if r.Lab.Runtime == lab.Netns {
		if _, err := r.pg.SetDirections(ctx, r.Lab.Links); err != nil {
			return err
		}
	}
	if _, err := r.pg.Heal(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	return r.pg.Settle(ctx)
}

// judge reads what everybody noted.
func (r *run) judge(lasted time.Duration) error {
	entries, err := r.pg.Ledger()
	if err != nil {
		return err
	}
	web, err := idOf(r.pg.Spec(), home, "web")
	if err != nil {
		return err
	}
	const around = 2 * time.Second
	rules := ledger.Rules{
		Floor: int(floor * 2 * r.Rate * lasted.Seconds()), Clusters: []string{"us", "ap"}, Callers: []string{web}, Service: service,
		Killed: func(cluster, _ string, at time.Time) bool {
			return slices.ContainsFunc(r.killed, func(k kill) bool { return k.cluster == cluster && at.Sub(k.at).Abs() < around })
		},
	}
	r.report.Ledger = rules.Check(append(entries, r.clients...))
	r.report.P50, r.report.P99, r.report.Slowest = r.tally.Quantile(0.5), r.tally.Quantile(0.99), r.tally.Counts().Slowest
	l := r.report.Ledger
	r.say("%d faults, %d requests: %d may be repeated, %d others failed, %d were executed more than once; p50 %s, p99 %s, slowest %s",
		len(r.report.Faults), l.Requests, l.Repeatable, l.Failed, l.Repeated, r.report.P50.Round(time.Microsecond), r.report.P99.Round(time.Millisecond), r.report.Slowest.Round(time.Millisecond))
	if err := rules.Valid(l); err != nil {
		return err
	}
	for _, v := range l.Violations {
		r.say("VIOLATION %s: %s", v.ID, v.What)
	}
	if n := len(l.Violations); n > 0 {
		return fmt.Errorf("%w: %d violations, the first: %s: %s", ErrVerdict, n, l.Violations[0].ID, l.Violations[0].What)
	}
	return nil
}

func (r *run) within(least, most time.Duration) time.Duration {
	return least + time.Duration(r.luck.Int64N(int64(most-least)))
}

func pick[T any](luck *rand.Rand, from []T) T { return from[luck.IntN(len(from))] }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
