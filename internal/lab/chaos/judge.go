package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/ledger"
)

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
	all := append(entries, r.clients...)
	r.report.Ledger = rules.Check(all)
	r.report.Coverage = cover(r.Lab.Runtime, r.report.Rounds)
	r.report.P50, r.report.P99, r.report.Slowest = r.tally.Quantile(0.5), r.tally.Quantile(0.99), r.tally.Counts().Slowest
	r.tell()
	if err := rules.Valid(r.report.Ledger); err != nil {
		return err
	}
	r.locate(all)
	if n := len(r.report.Violations); n > 0 {
		first := r.report.Violations[0]
		return fmt.Errorf("%w: %d violations, the first: %s: %s\nto have it again: %s", ErrVerdict, n, first.ID, first.What, first.Repeat)
	}
	if heard := r.report.PlainText; heard != nil && len(heard.Clear) > 0 {
		return fmt.Errorf("%w: what callers said was in the clear between %s", ErrVerdict, strings.Join(slices.Sorted(maps.Keys(heard.Clear)), ", "))
	}
	return nil
}

// tell sums up for a person.
func (r *run) tell() {
	l := r.report.Ledger
	r.say("%d faults in %d rounds, %d requests: %d may be repeated, %d others failed, %d were executed more than once; p50 %s, p99 %s, slowest %s",
		r.report.Faults, len(r.report.Rounds), l.Requests, l.Repeatable, l.Failed, l.Repeated,
		r.report.P50.Round(time.Microsecond), r.report.P99.Round(time.Millisecond), r.report.Slowest.Round(time.Millisecond))
	c := r.report.Coverage
	r.say("%d of %d kinds of faults, %d of %d pairs of kinds", c.Kinds, c.AllKinds, c.Pairs, c.AllPairs)
	if heard := r.report.PlainText; heard != nil {
		r.say("%d packets were listened to: what callers said was in the clear in %d", heard.Packets, sum(heard.Clear))
	}
}

func sum(of map[string]int) (n int) {
	for _, v := range of {
		n += v
	}
	return n
}

// locate finds the round in which each request was made whose story does not hold.
func (r *run) locate(entries []ledger.Entry) {
	made := make(map[string]time.Time)
	for _, v := range r.report.Ledger.Violations {
		made[v.ID] = time.Time{}
	}
	for _, e := range entries {
		if at, ok := made[e.ID]; ok && (at.IsZero() || e.At.Before(at)) {
			made[e.ID] = e.At
		}
	}
	for _, v := range r.report.Ledger.Violations {
		f := Finding{Violation: v, Round: -1}
		for _, round := range r.report.Rounds {
			if !made[v.ID].Before(round.Began) {
				f.Round = round.Index
			}
		}
		if f.Round >= 0 {
			f.Repeat = r.repeat(f.Round)
		}
		r.report.Violations = append(r.report.Violations, f)
		r.say("VIOLATION in round %d, %s, %s: %s", f.Round, made[v.ID].Format("15:04:05.000"), v.ID, v.What)
	}
}

// idOf is who a workload of the sample is.
func idOf(spec lab.Spec, cluster, app string) (string, error) {
	c, ok := spec.Cluster(cluster)
	if !ok {
		return "", lab.ErrNoTarget
	}
	return "spiffe://" + c.TrustDomain + "/ns/shop/sa/" + app, nil
}
