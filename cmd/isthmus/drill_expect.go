package main

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/rehearsal"
)

// maxAskedSidecars is how many callers' sidecars of one cluster are asked where their requests would go.
const maxAskedSidecars = 4

// expected asks sidecars that call the service where their requests would go if the cluster were down, and returns that for each cluster whose
// control answers.
func (f *failover) expected(ctx context.Context) []rehearsal.Caller {
	out := make([]rehearsal.Caller, len(f.controls))
	var all sync.WaitGroup
	for i, c := range f.controls {
		all.Go(func() {
			asking, cancel := context.WithTimeout(ctx, f.timeout/2)
			defer cancel()
			out[i] = f.expectedOf(asking, c)
		})
	}
	all.Wait()
	return out
}

func (f *failover) expectedOf(ctx context.Context, c target) rehearsal.Caller {
	caller := rehearsal.Caller{Cluster: c.cluster}
	proxies, err := c.Proxies(ctx)
	if err != nil {
		caller.Problem = err.Error()
		return caller
	}
	callers := slices.DeleteFunc(proxies, func(p admin.Proxy) bool {
		return p.Program != "sidecar" || !p.Connected || !slices.Contains(p.Services, f.service.String())
	})
	sum, heard := make(map[string]float64), 0.0
	for _, p := range callers[:min(len(callers), maxAskedSidecars)] {
		name := p.Name
		if c.kube == nil {
			name = path.Base(name) // as a playground calls it, which knows from where it can be asked
		}
		ask, err := f.sidecarAdmin(ctx, io.Discard, c.cluster+"/"+name)
		if err != nil {
			caller.Problem = err.Error()
			continue
		}
		x, _, err := askSidecar(ctx, ask, f.service.String(), "", []string{f.cluster})
		if err != nil {
			caller.Problem = err.Error()
			continue
		}
		heard++
		for _, r := range x.Rows {
			if r.AsIf != nil {
				sum[r.Cluster.String()] += r.AsIf.Traffic
			}
		}
	}
	if heard > 0 {
		caller.Problem, caller.Expected = "", make(map[string]float64)
		for name, share := range sum {
			if share > 0 {
				caller.Expected[name] = share / heard
			}
		}
	}
	return caller
}

// preview says what a drill would do.
func (f *failover) preview(w io.Writer, would admin.Drill, callers []rehearsal.Caller) error {
	type preview struct {
		Drill   admin.Drill        `json:"drill"`
		Callers []rehearsal.Caller `json:"callers"`
	}
	if !f.format.IsTable() {
		return output.Write(w, f.format, preview{would, callers}, nil)
	}
	_, err := fmt.Fprintf(w, "%s would look dead in %s for %s (%s): %s would take no requests for it.\n\n", would.Service, would.Cluster, f.lasts, would.How, list(would.Programs))
	if err != nil {
		return err
	}
	t := output.Table{Columns: []string{"CALLERS IN", "REQUESTS WOULD GO TO"}, Empty: "nobody calls it"}
	for _, c := range callers {
		switch {
		case c.Problem != "":
			t.Row(c.Cluster, "not known: "+c.Problem)
		case c.Expected == nil:
			t.Row(c.Cluster, "nobody calls it from here")
		case len(c.Expected) == 0:
			t.Row(c.Cluster, "nowhere: they would fail")
		default:
			t.Row(c.Cluster, sharesText(c.Expected))
		}
	}
	if err = output.Write(w, f.format, nil, func() output.Table { return t }); err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, "\nNothing was touched. Without --dry-run, it is done and measured.")
	return err
}

// maxDecisions is how many decisions the page shows: a drill has a few.
const maxDecisions = 200

// decisions asks what callers decided meanwhile, and why. What can't be asked for is not there.
func (f *failover) decisions(ctx context.Context, facts *rehearsal.Facts) (out []rehearsal.Decided) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	events, _ := f.timeline(ctx, f.service, time.Since(facts.Began)+f.baseline) // who does not answer was said before
	for i := range events {
		e := &events[i]
		d := rehearsal.Decided{At: e.At.Sub(facts.Began).Seconds(), Who: e.Cluster + " control", After: e.Kind, Why: e.Detail}
		if e.Kind == admin.EventTurn {
			d.Who, d.Before, d.After, d.Why = e.Cluster+"/"+callersOf(e), sharesText(e.Before), sharesText(e.After), evidenceText(e.Evidence)
		}
		out = append(out, d)
	}
	return out[:min(len(out), maxDecisions)]
}
