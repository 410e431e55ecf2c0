package control

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Limits of drills.
const (
	drillLease = 5 * time.Second // that a drill goes on without being renewed
	minDrill   = time.Second
	maxDrill   = federation.MaxDrill
	maxDrills  = 100 // at a time
	keptDrills = 20  // that have ended
)

var errNoDrill = errors.New("there is no such drill: it is over")

// drills are those that are on. They are in memory alone: when control ends, so do they. Safe for concurrent use.
type drills struct {
	now  func() time.Time
	log  *slog.Logger
	wake func()
	note func(service topology.ServiceName, what string) // for the timeline

	mu    sync.Mutex
	on    map[topology.ServiceName]*heldDrill // guarded by mu
	ended []admin.Drill                       // guarded by mu; the last ones, newest first
}

// heldDrill is a drill that somebody holds.
type heldDrill struct {
	admin.Drill

	word   topology.Drill // as programs are told
	forced bool           // though another one may be on elsewhere
}

func newDrills(now func() time.Time, log *slog.Logger, wake func(), note func(topology.ServiceName, string)) *drills {
	return &drills{now: now, log: log, wake: wake, note: note, on: make(map[topology.ServiceName]*heldDrill)}
}

// begin begins a drill that was found to make sense.
func (d *drills) begin(name topology.ServiceName, as admin.Drill, lasts time.Duration, forced bool) (admin.Drill, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.sweep().Truncate(time.Millisecond) // peers are told so
	if o := d.on[name]; o != nil {
		return admin.Drill{}, fmt.Errorf("the drill %s of %s is on until %s: wait for it, or end it (isthmus drill stop %s)", o.ID, o.Service, o.Ends.Format(time.TimeOnly), o.ID)
	}
	if len(d.on) >= maxDrills {
		return admin.Drill{}, fmt.Errorf("%d drills are on", len(d.on))
	}
	id := make([]byte, 4)
	_, _ = rand.Read(id) // never fails
	as.ID, as.Began, as.Ends = "d-"+hex.EncodeToString(id), now, now.Add(lasts)
	h := &heldDrill{Drill: as, forced: forced}
	h.renew(now)
	d.on[name] = h
	d.log.Warn("drill begun: the service looks dead here", "drill", h.ID, "service", h.Service, "how", h.How, "ends", h.Ends)
	d.note(name, fmt.Sprintf("drill %s begins: %s looks dead to callers (%s), until %s at the latest", h.ID, h.Cluster, h.How, h.Ends.UTC().Format(time.TimeOnly)))
	d.wake()
	return h.Drill, nil
}

// renew has the lease begin anew.
func (h *heldDrill) renew(now time.Time) {
	left := min(drillLease, h.Ends.Sub(now))
	h.Now, h.LeaseEnds = now, now.Add(left)
	h.word = topology.Drill{ID: h.ID, Ends: h.LeaseEnds.Truncate(time.Millisecond), Left: left, Silent: h.How == admin.DrillSilent}
}

// renew keeps a drill on.
func (d *drills) renew(id string) (admin.Drill, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.sweep()
	for _, h := range d.on {
		if h.ID == id {
			h.renew(now)
			d.wake()
			return h.Drill, nil
		}
	}
	return admin.Drill{}, errNoDrill
}

// stop ends a drill.
func (d *drills) stop(id string) (admin.Drill, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.sweep()
	for name, h := range d.on {
		if h.ID == id {
			return d.end(name, now, "it was stopped"), nil
		}
	}
	return admin.Drill{}, errNoDrill
}

// end takes a drill off. mu is held.
func (d *drills) end(name topology.ServiceName, at time.Time, why string) admin.Drill {
	h := d.on[name]
	delete(d.on, name)
	h.Ended, h.Why, h.Now = at, why, at
	d.ended = slices.Insert(d.ended, 0, h.Drill)
	d.ended = d.ended[:min(len(d.ended), keptDrills)]
	d.log.Info("drill ended", "drill", h.ID, "service", h.Service, "why", why)
	d.note(name, fmt.Sprintf("drill %s of %s ends: %s", h.ID, h.Cluster, why))
	d.wake()
	return h.Drill
}

// sweep ends what was not renewed, or has been on for long enough, and returns the time. mu is held.
func (d *drills) sweep() time.Time {
	now := d.now()
	for name, h := range d.on {
		switch {
		case !now.Before(h.Ends):
			d.end(name, h.Ends, "its time was up")
		case !now.Before(h.LeaseEnds):
			d.end(name, h.LeaseEnds, "it was not renewed any more")
		case h.Began.Sub(now) > drillLease: // nobody knows for how long that would be
			d.end(name, now, "the clock was set back")
		}
	}
	return now
}

// present returns what programs are told, and peers, and when to look again; 0: need not.
func (d *drills) present() (words map[topology.ServiceName]*topology.Drill, peers map[topology.ServiceName]federation.Drill, again time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.sweep()
	for name, h := range d.on {
		if words == nil {
			words, peers = make(map[topology.ServiceName]*topology.Drill), make(map[topology.ServiceName]federation.Drill)
		}
		peers[name] = federation.Drill{Began: h.Began, Ends: h.Ends.Truncate(time.Millisecond)}
		word := h.word
		words[name] = &word
		again = earliest(again, max(h.LeaseEnds.Sub(now), time.Millisecond))
	}
	return words, peers, again
}

// list returns the drills that are on, and the last ones that were.
func (d *drills) list() []admin.Drill {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.sweep()
	out := []admin.Drill{}
	for _, h := range d.on {
		told := h.Drill
		told.Now = now
		out = append(out, told)
	}
	slices.SortFunc(out, func(a, b admin.Drill) int { return cmp.Compare(a.Service, b.Service) })
	return append(out, d.ended...)
}
