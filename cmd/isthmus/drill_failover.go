package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/rehearsal"
	"github.com/isthmus-mesh/isthmus/internal/version"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	defaultDrillFor    = time.Minute
	defaultBaseline    = 5 * time.Second
	defaultSettle      = 90 * time.Second
	defaultDrillFloor  = 10
	defaultDrillLoad   = 50
	drillLook          = time.Second             // between two looks at what callers see
	drillLag           = 2500 * time.Millisecond // by which that may be told late
	maxDrillLoad       = 2_000
	warmUp             = 3 * time.Second // of load that the drill makes, before it counts
	drillSteadySeconds = 3
)

// failover is one isthmus drill failover.
type failover struct {
	*global
	format          output.Format
	service         topology.ServiceName
	cluster, how    string
	lasts, baseline time.Duration
	settle          time.Duration
	floor, load     float64
	loadURL, proxy  string
	loadSaid        bool
	force, dryRun   bool
	report          string

	command  string
	chat     chatter
	controls []target
	recorder *rehearsal.Recorder
}

func newDrillFailover(g *global) *cobra.Command {
	f := failover{global: g, format: output.TableFormat}
	c := &cobra.Command{
		Use:   "failover SERVICE --cluster CLUSTER",
		Short: "A cluster looks dead for a service: do its callers notice?",
		Long: `failover makes a service's copies in one cluster look dead to the mesh, for --for, and measures what its callers see before, while, and after: how
many requests failed, how long the cluster went on answering, who answered in its place, how long requests took, and when it was back.

  PASS      no request failed
  FAIL      some did, or nobody answered in the cluster's place
  INVALID   it proves nothing: too few requests, failures before it began, or it ended early. It says what to do

Sidecars and gateways of that cluster refuse what is asked of the copies as not executed, so that callers go elsewhere with it, as if nothing listened there;
what is under way ends. With --how silent they answer nothing at all, as if packets were dropped: requests that may not be repeated can fail then,
as they do on the bad day. Nothing else is touched, and no other service.

The drill is a lease, which this command renews. When it ends, is interrupted or killed, when control dies, or when --for is over, callers
may use the copies again, within 5 s.

It is refused when another drill of the service is on, when the service is drained there, or when no other cluster has a ready copy (--force).
In a playground the drill makes traffic itself where there is too little; elsewhere only with --load. All clusters whose callers are to be measured have to be named,
with --context or --control, as usual.

It exits with 1 unless the verdict is PASS. --report says where the page goes that shows it all; with --dry-run, it says where requests would go, and touches nothing.`,
		Example: example("isthmus drill failover shop/checkout --cluster eu --for 20s", "isthmus drill failover shop/checkout --cluster eu --dry-run",
			"isthmus drill failover shop/checkout --cluster eu --how silent --report drill.html",
			"isthmus drill failover shop/checkout --cluster us --context us,eu --for 5m -o json"),
		Args: oneArg, ValidArgsFunction: g.completeDrain,
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, args[0]) },
	}
	flags := c.Flags()
	flags.StringVar(&f.cluster, "cluster", "", "`name` of the cluster that looks dead")
	flags.DurationVar(&f.lasts, "for", defaultDrillFor, "how long, 1s to 1h")
	flags.StringVar(&f.how, "how", admin.DrillRefuse, "`HOW` the copies look dead: refuse (as if nothing listened) or silent (as if packets were dropped)")
	flags.DurationVar(&f.baseline, "baseline", defaultBaseline, "how long to measure before")
	flags.DurationVar(&f.settle, "settle", defaultSettle, "how long to wait, after it, for the cluster to have its share again")
	flags.Float64Var(&f.floor, "floor", defaultDrillFloor, "requests a second that the cluster has to answer beforehand, or the drill proves nothing")
	flags.Float64Var(&f.load, "load", defaultDrillLoad, "requests a second that the drill makes; in a playground where there is too little traffic, elsewhere only when given; 0: none")
	flags.StringVar(&f.loadURL, "load-url", "", "`URL` that the load asks for (default: http://NAME.NAMESPACE.svc.clusterset.local/)")
	flags.StringVar(&f.proxy, "load-proxy", "", "`host:port` of the sidecar's proxy that carries the load (default: the playground's caller; elsewhere http_proxy)")
	flags.BoolVar(&f.force, "force", false, "although no other cluster has a ready copy, or one tells of a drill of the service")
	flags.BoolVar(&f.dryRun, "dry-run", false, "say what would happen, and touch nothing")
	flags.StringVar(&f.report, "report", "", "`file` for the page (default: drill-SERVICE-TIME.html here)")
	flags.VarP(&f.format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

func (f *failover) check(c *cobra.Command, what string) (err error) {
	if f.service, err = parseService(what); err != nil {
		return err
	}
	switch {
	case f.cluster == "":
		return usage{errors.New("which cluster is to look dead? Name it with --cluster")}
	case f.lasts < time.Second || f.lasts > time.Hour:
		return usage{fmt.Errorf("--for %s: want 1s to 1h", f.lasts)}
	case f.how != admin.DrillRefuse && f.how != admin.DrillSilent:
		return usage{fmt.Errorf("--how %s: want %s or %s", f.how, admin.DrillRefuse, admin.DrillSilent)}
	case f.baseline < 3*time.Second || f.baseline > 5*time.Minute:
		return usage{fmt.Errorf("--baseline %s: want 3s to 5m", f.baseline)}
	case f.settle < 0 || f.floor < 0 || math.IsNaN(f.floor):
		return usage{errors.New("--settle and --floor: want 0 or more")}
	case f.load < 0 || f.load > maxDrillLoad || math.IsNaN(f.load):
		return usage{fmt.Errorf("--load %g: want 0 to %d", f.load, maxDrillLoad)}
	}
	f.loadSaid = c.Flags().Changed("load")
	f.recorder = new(rehearsal.Recorder)
	f.chat = chatter{c.ErrOrStderr(), time.Now()}
	f.command = commandLine(os.Args)
	if f.report == "" {
		f.report = fmt.Sprintf("drill-%s-%s.html", f.service.Name(), time.Now().Format("20060102-150405"))
	}
	if into, err := os.Stat(filepath.Dir(f.report)); err != nil || !into.IsDir() { // not after the drill
		return usage{fmt.Errorf("--report %s: there is no such folder", f.report)}
	}
	return nil
}

func (f *failover) run(c *cobra.Command, what string) error {
	if err := f.check(c, what); err != nil {
		return err
	}
	ctx := c.Context()
	all, err := askAll(ctx, f.global, (*admin.Client).Drills)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(a asked[[]admin.Drill]) bool { return a.err == nil && a.status.Cluster == f.cluster })
	if i < 0 {
		return noCluster(f.cluster, all)
	}
	for _, a := range all {
		for _, d := range a.answer {
			if d.Ended.IsZero() && d.Service == f.service.String() {
				return finding{fmt.Sprintf("the drill %s of %s is on in %s: wait for it, or end it: isthmus drill stop %s", d.ID, d.Service, d.Cluster, d.ID)}
			}
		}
		if a.err == nil {
			a.client.cluster = a.status.Cluster
			f.controls = append(f.controls, a.client)
		}
	}
	request := admin.DrillRequest{Service: f.service.String(), For: f.lasts, How: f.how, Force: f.force, DryRun: true}
	asking, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	would, err := all[i].client.BeginDrill(asking, request) // before anything is waited for
	if err != nil {
		if none := f.noService(asking, err, f.cluster, f.service, what); none != nil {
			return none
		}
		return conflict(err)
	}
	if f.dryRun {
		return f.preview(c.OutOrStdout(), would, f.expected(ctx))
	}
	facts := rehearsal.Facts{
		Result: rehearsal.Result{
			Service: f.service.String(), Cluster: f.cluster, How: f.how, Asked: f.lasts, Command: f.command, Version: version.String(),
			Began: time.Now(), Ended: time.Now(),
		},
		Baseline: f.baseline, Floor: f.floor,
	}
	for _, a := range all {
		if a.err != nil {
			facts.Unreached = append(facts.Unreached, a.err.Error())
		}
	}
	stopLoad, err := f.startLoad(ctx, &facts)
	if err != nil {
		return err
	}
	request.DryRun = false
	err = f.rehearse(ctx, &facts, all[i].client, request)
	stopLoad()
	if err != nil {
		return err
	}
	f.look(context.WithoutCancel(ctx), drillLook)
	facts.Timeline = f.decisions(context.WithoutCancel(ctx), &facts)
	return f.conclude(c.OutOrStdout(), rehearsal.Judge(facts, f.recorder), facts.Interrupted)
}

// commandLine is how to call this command again, in a shell.
func commandLine(args []string) string {
	words := []string{"isthmus"}
	for _, a := range args[min(1, len(args)):] {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool { return !strings.ContainsRune(plain, r) }) {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// plain are the characters that mean nothing to a shell.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,@%+"

// conflict is what a control says when a drill can't be.
func conflict(err error) error {
	if said, ok := errors.AsType[*admin.Error](err); ok && (said.Status == http.StatusConflict || said.Status == http.StatusNotFound) {
		return finding{said.Message}
	}
	return err
}

// rehearse measures, drills, and measures on. An error says that nothing was drilled; what goes wrong later is in facts.
func (f *failover) rehearse(ctx context.Context, facts *rehearsal.Facts, control target, request admin.DrillRequest) error {
	f.chat.say("measuring what callers see of %s, for %s", f.service, f.baseline)
	if !f.watch(ctx, f.baseline+drillLag, nil) {
		return ctx.Err()
	}
	facts.Finished = time.Now()
	window := int(f.baseline.Seconds())
	if rate := f.recorder.Rate(f.cluster, window, time.Now()); rate < f.floor || rate == 0 {
		facts.NothingToFailOver = fmt.Sprintf("%s answered %.1f requests a second before, which is less than the %.0f that prove something: nothing was drilled", f.cluster, rate, f.floor)
		if all := f.recorder.Rate("", window, time.Now()); all >= f.floor && rate < all/10 {
			facts.NothingToFailOver = fmt.Sprintf("%s answered %.1f of the %.1f requests a second before, so that there is nothing to fail over: nothing was drilled", f.cluster, rate, all)
		}
		facts.Began, facts.Ended = facts.Finished, facts.Finished
		return nil
	}
	facts.Callers = f.expected(ctx) // now that they call
	facts.Began = time.Now()
	drill, err := f.begin(ctx, control, request)
	if err != nil {
		return err
	}
	facts.Drill = &drill
	f.chat.say("drill %s: %s looks dead in %s for %s (%s)", drill.ID, f.service, f.cluster, f.lasts, f.how)
	l := &lease{control: control, drill: drill, rival: f.rival, renew: func(ctx context.Context) error {
		_, err := control.RenewDrill(ctx, drill.ID)
		return err
	}}
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	kept := make(chan struct{})
	go func() { defer close(kept); l.keep(keeping) }()
	told := false
	whole := f.watch(ctx, f.lasts-time.Since(facts.Began), func() bool {
		if to := f.answering(); !told && to != "" && to != f.cluster {
			told = true
			f.chat.say("%s answers", to)
		}
		return l.early() == ""
	})
	stop()
	<-kept
	facts.EndedEarly = l.early()
	f.end(ctx, control, &drill, facts.EndedEarly == "")
	facts.Ended = time.Now()
	if !whole && facts.EndedEarly == "" {
		facts.Interrupted, facts.Finished = true, facts.Ended
		f.chat.say("interrupted: the drill is over")
		return nil
	}
	f.chat.say("the drill is over; waiting until %s answers again, %s at most", f.cluster, f.settle)
	f.back(ctx, facts)
	facts.Finished = time.Now()
	return nil
}

// back waits until the drilled cluster has its share again.
func (f *failover) back(ctx context.Context, facts *rehearsal.Facts) {
	steady := 0
	f.watch(ctx, f.settle, func() bool {
		facts.Finished = time.Now()
		trial := *facts
		trial.Callers = nil
		if r := rehearsal.Judge(trial, f.recorder); r.BackIn.Known {
			if steady++; steady == 1 {
				f.chat.say("%s answers again", f.cluster)
			}
		}
		return steady < drillSteadySeconds
	})
}

// answering returns the cluster that answered the most lately.
func (f *failover) answering() string {
	best, most := "", 0.0
	for _, c := range f.controls {
		if rate := f.recorder.Rate(c.cluster, 1, time.Now()); rate > most {
			best, most = c.cluster, rate
		}
	}
	return best
}

// watch looks at what callers see, once a second, for so long, or while more says so. It reports whether ctx goes on and more was content.
func (f *failover) watch(ctx context.Context, lasts time.Duration, more func() bool) bool {
	end := time.NewTimer(lasts)
	defer end.Stop()
	tick := time.NewTicker(drillLook)
	defer tick.Stop()
	for {
		f.look(ctx, drillLook)
		if more != nil && !more() {
			return false
		}
		select {
		case <-tick.C:
		case <-end.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// look asks all controls what their callers saw lately.
func (f *failover) look(ctx context.Context, within time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	done := make(chan struct{}, len(f.controls))
	for _, c := range f.controls {
		go func() {
			defer func() { done <- struct{}{} }()
			asked := time.Now()
			if t, err := c.Traffic(ctx, f.service.String(), 10*time.Second); err == nil {
				f.recorder.Add(t, asked, time.Now())
			}
		}()
	}
	for range f.controls {
		<-done
	}
}

// conclude prints the result and writes the page.
func (f *failover) conclude(w interface{ Write([]byte) (int, error) }, r rehearsal.Result, interrupted bool) error {
	written, err := f.writeReport(r)
	if f.format.IsTable() {
		err = errors.Join(err, rehearsal.WriteText(w, r, cmp.Or(written, "not written")))
	} else {
		err = errors.Join(err, output.Write(w, f.format, r, nil))
		f.chat.say("the page is %s", cmp.Or(written, "not written"))
	}
	switch {
	case err != nil:
		return err
	case interrupted:
		return context.Canceled
	case r.Verdict != rehearsal.Pass:
		return finding{fmt.Sprintf("drill of %s without %s: %s", f.service, f.cluster, r.Verdict)}
	}
	return nil
}

// writeReport writes the page and returns where it is.
func (f *failover) writeReport(r rehearsal.Result) (string, error) {
	file, err := os.Create(f.report)
	if err != nil {
		return "", fmt.Errorf("--report: %w", err)
	}
	err = errors.Join(rehearsal.WriteHTML(file, r), file.Close())
	if err != nil {
		return "", fmt.Errorf("--report: %w", err)
	}
	where, err := filepath.Abs(f.report)
	if err != nil {
		where = f.report
	}
	return cmp.Or(where, f.report), nil
}
