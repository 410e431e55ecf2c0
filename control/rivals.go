package control

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Two drills of one service, in two clusters, would leave it to nobody. A control tells of its drills in its catalog, to the other controls alone: who
// hears of one begins none, and who has begun one at the same time gives way to the one that comes first, by when it began, then by its cluster's name.
// All compare the same words, so that one stays. What an older catalog says of a drill counts until the drill's end at the latest, and only as long as
// its cluster's word is fresh.

// rivalDrill is a drill of a service in another cluster.
type rivalDrill struct {
	cluster topology.ClusterName
	federation.Drill
}

func (r *rivalDrill) String() string {
	return fmt.Sprintf("a drill in %s since %s, until %s at the latest", r.cluster, r.Began.UTC().Format(time.TimeOnly), r.Ends.UTC().Format(time.TimeOnly))
}

// rivalDrills returns the drills of other clusters, by service.
func rivalDrills(views []*federation.View, exports map[topology.ClusterName][]federation.Export) map[topology.ServiceName][]rivalDrill {
	var out map[topology.ServiceName][]rivalDrill
	for _, v := range views {
		if v.Freshness != federation.Fresh || v.Quarantined {
			continue
		}
		for i := range exports[v.Cluster] {
			e := &exports[v.Cluster][i]
			if e.Drill == nil || e.Ready() == 0 { // where nothing is ready, a drill takes nothing away
				continue
			}
			if out == nil {
				out = make(map[topology.ServiceName][]rivalDrill)
			}
			out[e.Name] = append(out[e.Name], rivalDrill{v.Cluster, *e.Drill})
		}
	}
	return out
}

// drilled reports whether a drill of the service is on in that cluster.
func (w *world) drilled(name topology.ServiceName, in topology.ClusterName, now time.Time) bool {
	return slices.ContainsFunc(w.rivals[name], func(r rivalDrill) bool { return r.cluster == in && now.Before(r.Ends) })
}

// rival returns a drill of the service that is on in another cluster.
func (w *world) rival(name topology.ServiceName, now time.Time) *rivalDrill {
	all := w.rivals[name]
	if i := slices.IndexFunc(all, func(r rivalDrill) bool { return now.Before(r.Ends) }); i >= 0 {
		return &all[i]
	}
	return nil
}

// giveWay ends the own drills that come after another cluster's, but for those that were begun by force: a peer that tells of drills without end
// keeps nobody from rehearsing.
func (d *drills) giveWay(self topology.ClusterName, rivals map[topology.ServiceName][]rivalDrill) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.sweep()
	for name, all := range rivals {
		h := d.on[name]
		if h == nil || h.forced {
			continue
		}
		if i := slices.IndexFunc(all, func(r rivalDrill) bool {
			return now.Before(r.Ends) && cmp.Or(r.Began.Compare(h.Began), r.cluster.Compare(self)) < 0
		}); i >= 0 {
			d.end(name, now, "there is "+all[i].String()+", which came first, and both would leave the service to nobody")
		}
	}
}
