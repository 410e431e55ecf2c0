package control

import (
	"fmt"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
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
func (c *Control) flowOf(_ *present, _ *resolved, now time.Time) flow {
	return flow{since: now}
}

// judge says whether a drained service's copies can be taken away: nothing is open, and nothing has come in for long enough.
func (f flow) judge(d *admin.DrainedService, now time.Time) {
	d.Active, d.Rate, d.Callers, d.Last, d.Silent = f.active, f.rate, f.callers, f.last, f.silent
	from := f.last
	if from.Before(f.since) {
		from = f.since
	}
	if from.Before(d.Began) {
		from = d.Began
	}
	still := now.Sub(from)
	switch {
	case d.Copies == 0 && len(f.silent) == 0 && f.active == 0:
		d.Safe, d.Why = true, "safe: no copy is ready here"
	case len(f.silent) > 0:
		d.Why = "not known: no word from " + strings.Join(f.silent, ", ")
	case f.active > 0:
		d.Why = fmt.Sprintf("%d open", f.active)
	case still < quiet:
		d.Why = fmt.Sprintf("the last came in %s ago; safe when nothing has for %s", still.Round(time.Second), quiet)
	default:
		d.Safe, d.Why = true, fmt.Sprintf("safe: nothing has come in for %s", still.Round(time.Second))
	}
}
