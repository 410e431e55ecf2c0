package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// Two drills of one service, begun at the same instant in two clusters, would take it down everywhere. Each who began one looks whether there is
// another, at once and then with each renewal, and gives way to the one that comes first: by when it began, then by its cluster's name. All compare
// the same words of the same controls, so that one of them stays. (The controls keep the same rule among themselves, by their catalogs, as fast as those arrive.)

// rival returns a drill of the service that ours has to give way to.
func (f *failover) rival(ctx context.Context, own *admin.Drill) (admin.Drill, bool) {
	if f.force {
		return admin.Drill{}, false
	}
	for _, a := range askEach(ctx, min(renewEvery, f.timeout), f.controls, (*admin.Client).Drills) {
		for _, d := range a.answer {
			if d.Ended.IsZero() && d.Service == own.Service && d.ID != own.ID && precedes(&d, own) {
				return d, true
			}
		}
	}
	return admin.Drill{}, false
}

// precedes reports whether one of two drills of a service is the one that stays.
func precedes(a, b *admin.Drill) bool {
	return cmp.Or(a.Began.Compare(b.Began), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.ID, b.ID)) < 0
}

// gaveWay says why a drill was taken back.
func gaveWay(to *admin.Drill) string {
	return fmt.Sprintf("the drill %s of %s in %s began at the same time: both would take it down everywhere, so this one was taken back", to.ID, to.Service, to.Cluster)
}

// begin begins the drill, and takes it back if another one has begun meanwhile. An error says that none is on.
func (f *failover) begin(ctx context.Context, control target, request admin.DrillRequest) (admin.Drill, error) {
	asking, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	drill, err := control.BeginDrill(asking, request)
	if err != nil {
		return drill, conflict(err)
	}
	to, there := f.rival(ctx, &drill)
	if !there {
		return drill, nil
	}
	f.end(ctx, control, &drill, true)
	return drill, finding{gaveWay(&to) + ". Wait for that one, or end it: isthmus drill stop " + to.ID}
}

// end ends the drill, also when the command is interrupted. on: nobody has said yet that it is over.
func (f *failover) end(ctx context.Context, control target, drill *admin.Drill, on bool) {
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.timeout)
	defer cancel()
	over, err := control.EndDrill(ending, drill.ID)
	switch {
	case err == nil:
		*drill = over
	case on && !isOver(err):
		f.chat.say("the control of %s did not take its end (%v); it ends by itself within %s", f.cluster, err, drill.LeaseEnds.Sub(drill.Now).Round(time.Second))
	}
}
