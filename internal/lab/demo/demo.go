// Package demo is the main job of the project, played for a stranger: clusters start, traffic flows, the cluster that
// answers is killed under load, traffic moves, the cluster comes back. It says as it goes what happens, and ends in a
// verdict.
//
// The isthmus command's `playground run` and a test use it. Run owns all that it starts and leaves nothing behind.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
)

// ErrVerdict is what the error of a Run is that came to its end with the verdict Fail.
var ErrVerdict = errors.New("the run failed")

// Config is how a run goes. The zero value works.
type Config struct {
	Clusters int           // default 3
	Dir      string        // default: a temporary folder
	Keep     bool          // leave the folder, and what runs, as it is in the end
	Lab      lab.Options   // how programs are started
	Out      io.Writer     // what happens, for a person; default: nobody reads
	Before   time.Duration // of steady traffic before the kill. Default 5 s.
	After    time.Duration // of steady traffic after it had moved. Default 8 s.
	Back     time.Duration // of steady traffic once the cluster is back. Default 4 s.
	Rate     float64       // requests a second. Default 200.
}

// The callers, the call, and the least number of requests that makes a run worth its verdict.
const (
	caller  = "eu/web"
	target  = "http://checkout.shop.svc.clusterset.local/"
	callers = 8
	floor   = 0.25 // of what Rate would give
	// patience bounds each wait for traffic to do what it should.
	patience = 30 * time.Second
	grace    = 3 * time.Second
)

func (c Config) filled() Config {
	if c.Clusters == 0 {
		c.Clusters = 3
	}
	if c.Out == nil {
		c.Out = io.Discard
	}
	if c.Before == 0 {
		c.Before = 5 * time.Second
	}
	if c.After == 0 {
		c.After = 8 * time.Second
	}
	if c.Back == 0 {
		c.Back = 4 * time.Second
	}
	if c.Rate == 0 {
		c.Rate = 200
	}
	return c
}

type run struct {
	cfg    Config
	start  time.Time
	report Report
	tally  traffic.Tally
	watch  *watch
}

// Run plays. The report says how far it came, also when there is an error; the error is ErrVerdict when the run came to its
// end and a request that may be retried failed.
func Run(ctx context.Context, cfg Config) (Report, error) {
	r := &run{cfg: cfg.filled(), start: time.Now(), watch: newWatch(callers)}
	r.report.Clusters, r.report.Verdict, r.report.Events = r.cfg.Clusters, Fail, []Event{}
	err := r.play(ctx)
	r.count()
	if err == nil {
		err = r.judge()
	}
	if err != nil {
		r.report.Reason = err.Error()
	} else {
		r.report.Verdict = Pass
	}
	r.summary()
	return r.report, err
}

func (r *run) play(ctx context.Context) (err error) {
	spec, err := lab.Sample(r.cfg.Clusters)
	if err != nil {
		return err
	}
	dir, temporary, err := r.folder()
	if err != nil {
		return err
	}
	r.say("starting %d clusters in %s", r.cfg.Clusters, dir)
	r.event("started", "")
	p, started, err := lab.Up(ctx, dir, spec, r.cfg.Lab)
	// Whatever came up goes down, also when not all of it did, and also after ctx ended.
	defer func() {
		if e := r.clean(context.WithoutCancel(ctx), p, dir, temporary); e != nil {
			err = errors.Join(err, e)
		}
	}()
	if err != nil {
		return err
	}
	var names []string
	for _, c := range spec.Clusters {
		names = append(names, c.Name)
	}
	r.event("ready", "")
	r.say("ready: %s, %d processes", strings.Join(names, " "), len(started))

	proxy, err := p.ProxyOf(caller)
	if err != nil {
		return err
	}
	load := traffic.Load{URL: target, Proxy: proxy, Workers: callers, Rate: r.cfg.Rate}
	sending, stop := context.WithCancel(ctx)
	defer stop()
	sent := make(chan error, 1)
	go func() { sent <- load.Run(sending, r.tally.Add, r.watch.add) }()
	r.event("traffic", "")
	r.say("%s calls %s, %.0f times a second", caller, target, r.cfg.Rate)
	err = r.drill(ctx, p)
	stop()
	err = errors.Join(err, <-sent)
	r.event("stopped", "")
	return err
}

// drill kills the cluster that answers, and brings it back.
func (r *run) drill(ctx context.Context, p *lab.Playground) error {
	first, err := r.patiently(ctx, "answers", r.watch.answering)
	if err != nil {
		return err
	}
	r.event("answering", first)
	r.say("%s answers", first)
	if err = pause(ctx, r.cfg.Before); err != nil {
		return err
	}
	r.say("%s, so far", r.progress())

	r.watch.killed(first, time.Now())
	r.event("killed", first)
	dead, err := p.Break(ctx, first)
	if err != nil {
		return err
	}
	r.say("killed cluster %s: SIGKILL to %s", first, strings.Join(dead, ", "))
	_, err = r.patiently(ctx, "an answer from another cluster for every caller", func(ctx context.Context) (string, error) {
		r.report.Failover, err = r.watch.allMoved(ctx)
		return "", err
	})
	if err != nil {
		return err
	}
	f := r.report.Failover
	r.event("moved", f.To)
	r.say("traffic moved to %s within %d ms; the slowest request took %.0f ms", f.To, f.Moved, f.Slowest)
	if err = pause(ctx, r.cfg.After); err != nil {
		return err
	}
	r.say("%s, so far", r.progress())

	if _, err = p.Heal(ctx, first); err != nil {
		return err
	}
	r.event("healed", first)
	r.say("brought cluster %s back", first)
	if _, err = r.patiently(ctx, "an answer from "+first, func(ctx context.Context) (string, error) {
		return "", r.watch.back(ctx, first)
	}); err != nil {
		return err
	}
	r.event("back", first)
	r.say("%s answers again", first)
	return pause(ctx, r.cfg.Back)
}

// patiently waits for something that traffic should show, and says what was awaited when it doesn't.
func (r *run) patiently(ctx context.Context, what string, wait func(context.Context) (string, error)) (string, error) {
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	got, err := wait(bounded)
	if err == nil || ctx.Err() != nil {
		return got, err
	}
	why := ""
	if f := r.tally.Failures(); len(f) > 0 {
		why = "; the first failure: " + f[0].Reason()
	}
	return got, fmt.Errorf("waited %s for %s (%s)%s", patience, what, r.progress(), why)
}

func (r *run) folder() (dir string, temporary bool, err error) {
	if r.cfg.Dir != "" {
		return r.cfg.Dir, false, nil
	}
	dir, err = os.MkdirTemp("", "isthmus-run-")
	return dir, true, err
}

func (r *run) clean(ctx context.Context, p *lab.Playground, dir string, temporary bool) error {
	if p != nil {
		defer p.Close()
	}
	if r.cfg.Keep {
		r.say("left as it is in %[1]s; look with: isthmus playground status --dir %[1]s; end it with: isthmus playground down --dir %[1]s", dir)
		return nil
	}
	if p == nil {
		var err error
		if p, err = lab.Open(dir, r.cfg.Lab); err != nil {
			if errors.Is(err, lab.ErrNotUp) && temporary {
				return os.RemoveAll(dir)
			}
			return nil //nolint:nilerr // there is nothing to take down, and why is being reported already
		}
		defer p.Close()
	}
	if err := p.Down(ctx, grace, temporary); err != nil {
		return err
	}
	if temporary {
		return os.RemoveAll(dir)
	}
	return nil
}

func (r *run) judge() error {
	q := r.report.Requests
	span := r.cfg.Before + r.cfg.After + r.cfg.Back
	least := int(floor * r.cfg.Rate * span.Seconds())
	switch {
	case q.Failed > 0:
		return fmt.Errorf("%w: %d of %d requests failed; the first: %s", ErrVerdict, q.Failed, q.Total, q.Failures[0].Reason)
	case q.Total < least:
		return fmt.Errorf("%w: only %d requests were sent, fewer than %d prove nothing", ErrVerdict, q.Total, least)
	default:
		return nil
	}
}

func (r *run) count() {
	c := r.tally.Counts()
	q := Requests{
		Total: c.Total, Failed: c.Failed, ByCluster: c.ByCluster, Slowest: milliseconds(c.Slowest),
		P50: milliseconds(r.tally.Quantile(0.5)), P99: milliseconds(r.tally.Quantile(0.99)),
	}
	if q.ByCluster == nil {
		q.ByCluster = map[string]int{}
	}
	for _, a := range r.tally.Failures() {
		q.Failures = append(q.Failures, Failed{At: a.Sent.Sub(r.start).Milliseconds(), Reason: a.Reason()})
	}
	r.report.Requests = q
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
