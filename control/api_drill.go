package control

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
)

// serveDrills adds what drills are begun, renewed and ended by.
func (c *Control) serveDrills(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/drills", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.drills.list()) })
	mux.HandleFunc("POST /v1/drills", c.postDrill)
	mux.HandleFunc("PUT /v1/drills/{id}", func(w http.ResponseWriter, r *http.Request) {
		if awaited(w, r) {
			held(c.drills.renew)(w, r)
		}
	})
	mux.HandleFunc("DELETE /v1/drills/{id}", held(c.drills.stop))
}

// held does something with a drill that is on.
func held(do func(id string) (admin.Drill, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		d, err := do(r.PathValue("id"))
		if err != nil {
			refuse(w, http.StatusNotFound, err)
			return
		}
		answer(w, d)
	}
}

func (c *Control) postDrill(w http.ResponseWriter, r *http.Request) {
	var ask admin.DrillRequest
	if !decodeAsk(w, r, "drill", maxAsk, &ask) {
		return
	}
	p := c.present.Load()
	if p == nil {
		refuse(w, http.StatusServiceUnavailable, errors.New("not everything has been read yet: "+strings.Join(c.cfg.Checks.Missing(), "; ")))
		return
	}
	name, d, code, err := p.drill(ask, c.cfg.Now())
	if err != nil {
		refuse(w, code, err)
		return
	}
	if !ask.DryRun {
		if d, err = c.drills.begin(name, d, ask.For, ask.Force); err != nil {
			refuse(w, http.StatusConflict, err)
			return
		}
	}
	answer(w, d)
}

// drill says what a drill would make look dead, or why it can't be.
func (p *present) drill(ask admin.DrillRequest, now time.Time) (name topology.ServiceName, d admin.Drill, code int, err error) {
	self := p.world.in.self.Cluster.String()
	bad := func(format string, args ...any) (topology.ServiceName, admin.Drill, int, error) {
		return name, d, http.StatusBadRequest, fmt.Errorf(format, args...)
	}
	conflict := func(format string, args ...any) (topology.ServiceName, admin.Drill, int, error) {
		return name, d, http.StatusConflict, fmt.Errorf(format, args...)
	}
	if name, err = topology.ParseServiceName(ask.Service); err != nil {
		return bad("drill: service: %w; want name.namespace", err)
	}
	if ask.How == "" {
		ask.How = admin.DrillRefuse
	}
	if ask.How != admin.DrillRefuse && ask.How != admin.DrillSilent {
		return bad("drill: how %q: want %s or %s", ask.How, admin.DrillRefuse, admin.DrillSilent)
	}
	if ask.For < minDrill || ask.For > maxDrill {
		return bad("drill: for %v: want %v to %v", ask.For, minDrill, maxDrill)
	}
	r := p.world.services[name]
	if r == nil || len(r.inbounds) == 0 {
		return name, d, http.StatusNotFound, fmt.Errorf("%s has no copy of %s behind a sidecar or a node proxy: there is nothing to make look dead", self, name)
	}
	d = admin.Drill{
		Service: name.String(), Cluster: self, How: ask.How,
		Programs: slices.Sorted(maps.Keys(r.inbounds)), Others: make(map[string]int),
	}
	if r := p.world.rival(name, now); r != nil && !ask.Force {
		return conflict("there is %s: both would leave %s to nobody; wait for it, or end it (isthmus drill list, isthmus drill stop); --force does it all the same", r, name)
	}
	for _, s := range p.world.callable {
		if s.Name != name {
			continue
		}
		if s.Drain != nil {
			return conflict("%s is drained in %s: its requests go elsewhere already, and a drill would show nothing (isthmus undrain)", name, self)
		}
		for i := range s.Remotes {
			if o := &s.Remotes[i]; o.Ready > 0 && o.Drain == nil {
				d.Others[o.Cluster.String()] = o.Ready
			}
		}
	}
	if len(d.Others) == 0 && !ask.Force {
		return conflict("no other cluster has a ready copy of %s, as far as %s knows: its callers would fail (--force does it all the same)", name, self)
	}
	return name, d, 0, nil
}
