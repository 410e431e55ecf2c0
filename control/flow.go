package control

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
)

// quiet is how long nothing may have come in before what is drained can be taken away.
const quiet = 10 * time.Second

// flow is what comes in to the own copies of a service now.
type flow struct {
	active  uint64
	rate    float64
	callers []admin.DrainCaller
	last    time.Time // when something came in last; zero: nothing did since control started
	since   time.Time // from when on it is known
	silent  []string  // who serves it and does not say
}

// flowOf sums up what the programs that serve a service have told.
func (c *Control) flowOf(r *resolved, now time.Time) flow {
	var f flow
	callers := make(map[topology.ClusterName]*admin.DrainCaller)
	for _, receiver := range slices.Sorted(maps.Keys(r.inbounds)) {
		since, l, ok := c.served.told(receiver, r.service.ID)
		if !ok {
			f.silent = append(f.silent, receiver)
			continue
		}
		f.since, f.last = latest(f.since, since), latest(f.last, l.last)
		f.active += uint64(l.active) //nolint:gosec // read from an unsigned one
		f.rate += perSecond(l.begun, l.at, now)
		for cluster, from := range l.callers {
			a := callers[cluster]
			if a == nil {
				a = &admin.DrainCaller{Cluster: cluster.String()}
				callers[cluster] = a
			}
			a.Active += uint64(from.active) //nolint:gosec // likewise
			a.Rate += perSecond(from.begun, from.at, now)
		}
	}
	if f.active > 0 {
		f.last = now
	}
	for _, cluster := range slices.SortedFunc(maps.Keys(callers), topology.ClusterName.Compare) {
		if a := callers[cluster]; a.Active > 0 || a.Rate > 0 {
			f.callers = append(f.callers, *a)
		}
	}
	return f
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// judge says whether a drained service's copies can be taken away: nothing is open, and nothing has come in for long enough.
func (f flow) judge(d *admin.DrainedService, now time.Time) {
	d.Active, d.Rate, d.Callers, d.Last, d.Silent = f.active, f.rate, f.callers, f.last, f.silent
	still := now.Sub(latest(d.Began, latest(f.since, f.last)))
	switch {
	case d.Copies == 0 && len(f.silent) == 0 && f.active == 0:
		d.Safe, d.Why = true, "safe: no copy is ready here"
	case len(f.silent) > 0:
		d.Why = "not known: no word from " + strings.Join(f.silent, ", ")
	case f.active > 0:
		d.Why = fmt.Sprintf("%d open", f.active)
	case still < quiet && !f.last.After(latest(d.Began, f.since)):
		d.Why = fmt.Sprintf("nothing has come in for %s; safe when nothing has for %s", still.Round(time.Second), quiet)
	case still < quiet:
		d.Why = fmt.Sprintf("the last came in %s ago; safe when nothing has for %s", still.Round(time.Second), quiet)
	default:
		d.Safe, d.Why = true, fmt.Sprintf("safe: nothing has come in for %s", still.Round(time.Second))
	}
}
