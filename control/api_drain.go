package control

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
)

// errNobodyElse says that a drain would leave a service to nobody.
var errNobodyElse = errors.New("nothing else could serve it")

// serveDrains adds what the admin API does about drains.
func (c *Control) serveDrains(mux *http.ServeMux) {
	mux.HandleFunc("GET "+admin.DrainsPath, func(w http.ResponseWriter, _ *http.Request) {
		if p := c.presentOr(w); p != nil {
			answer(w, c.drainsOf(p, c.drains.load()))
		}
	})
	mux.HandleFunc("PUT "+admin.DrainsPath, c.putDrain)
	mux.HandleFunc("DELETE "+admin.DrainsPath, c.deleteDrain)
}

func (c *Control) putDrain(w http.ResponseWriter, r *http.Request) {
	var ask admin.DrainRequest
	if !decodeAsk(w, r, "drain", maxAsk, &ask) {
		return
	}
	p := c.presentOr(w)
	if p == nil {
		return
	}
	var next *drainSet
	var already bool
	err := c.drains.change(func() (*drainSet, bool, error) {
		var err error
		if next, already, err = c.drains.with(ask.Service, ask.Over); err != nil || already {
			return nil, false, err
		}
		if err = p.drainable(ask.Service, ask.Force, c.cfg.Now()); err != nil {
			return nil, false, err
		}
		return next, !ask.DryRun, nil
	})
	if err != nil {
		refuse(w, drainCode(err), err)
		return
	}
	if !already && !ask.DryRun {
		c.cfg.Log.WarnContext(r.Context(), "drained by an operator", "service", ask.Service, "over", ask.Over, "force", ask.Force)
		c.noteDrain(admin.EventDrain, ask.Service, fmt.Sprintf("%s is drained, over %s, by an operator", c.cfg.Cluster, ask.Over))
		c.poke()
	}
	out := c.drainsOf(p, next)
	out.DryRun, out.Already = ask.DryRun, already
	answer(w, out)
}

func (c *Control) deleteDrain(w http.ResponseWriter, r *http.Request) {
	service, dry := r.URL.Query().Get("service"), r.URL.Query().Get("dry_run") == "true"
	p := c.presentOr(w)
	if p == nil || !awaited(w, r) {
		return
	}
	var next *drainSet
	var none bool // it is not drained
	err := c.drains.change(func() (*drainSet, bool, error) {
		var err error
		if next, none, err = c.drains.without(service); err != nil {
			return nil, false, err
		}
		if none && service != "" {
			if name, err := topology.ParseServiceName(service); err != nil || p.world.services[name] == nil { // that it is in use would hide a slip of the pen
				return nil, false, fmt.Errorf("%w: %s", errNoService, service)
			}
		}
		return next, !none && !dry, nil
	})
	if err != nil {
		refuse(w, drainCode(err), err)
		return
	}
	if !none && !dry {
		c.cfg.Log.WarnContext(r.Context(), "taken into use again by an operator", "service", service)
		c.noteDrain(admin.EventUndrain, service, fmt.Sprintf("%s is in use again, by an operator", c.cfg.Cluster))
		c.poke()
	}
	out := c.drainsOf(p, next)
	out.DryRun, out.Already = dry, none
	answer(w, out)
}

// noteDrain puts a drain, or its end, into the timeline: of one service, or of the cluster.
func (c *Control) noteDrain(kind, service, detail string) {
	var name topology.ServiceName
	if service != "" {
		name, _ = topology.ParseServiceName(service) // it was parsed before
	}
	c.timeline.tell(kind, name, detail)
}

func drainCode(err error) int {
	switch {
	case errors.Is(err, errDrain):
		return http.StatusBadRequest
	case errors.Is(err, errNoService):
		return http.StatusNotFound
	case errors.Is(err, errNobodyElse), errors.Is(err, errManyDrains):
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}

var errNoService = errors.New("no such service in this cluster")

// drainable refuses a drain that would leave something to nobody, unless it is forced. What is drained by name already is asked about again: others
// may have been drained since.
func (p *present) drainable(service string, force bool, now time.Time) error {
	var left []string
	found := false
	for _, s := range p.world.callable {
		r := p.world.services[s.Name]
		if r == nil {
			continue
		}
		found = found || s.Name.String() == service
		meant := s.Name.String() == service || service == "" && s.Exported
		if !meant || r.ready() == 0 {
			continue
		}
		if why := p.nobodyElse(s, now); why != "" {
			left = append(left, s.Name.String()+" ("+why+")")
		}
	}
	switch {
	case service != "" && !found:
		return fmt.Errorf("%w: %s", errNoService, service)
	case len(left) > 0 && !force:
		return fmt.Errorf("%w, so nothing is drained: %s", errNobodyElse, strings.Join(left, "; "))
	}
	return nil
}

// nobodyElse says why no other cluster could serve a service; empty: one could.
func (p *present) nobodyElse(s *topology.Service, now time.Time) string {
	if !s.Exported {
		return "it is not exported, so only this cluster serves it"
	}
	var why []string
	for _, e := range p.elsewhere(s, now) {
		if e.Problem == "" {
			return ""
		}
		why = append(why, e.Cluster+": "+e.Problem)
	}
	if len(why) == 0 {
		return "no other cluster exports it"
	}
	return strings.Join(why, ", ")
}

// elsewhere returns which other clusters serve the same, and what is amiss with each.
func (p *present) elsewhere(s *topology.Service, now time.Time) []admin.DrainElsewhere {
	out := []admin.DrainElsewhere{}
	for i := range s.Remotes {
		r := &s.Remotes[i]
		e := admin.DrainElsewhere{Cluster: r.Cluster.String(), Ready: r.Ready}
		switch {
		case r.Ready == 0:
			e.Problem = "no ready copies"
		case r.Drain != nil:
			e.Problem = "drained itself"
		case p.world.drilled(s.Name, r.Cluster, now):
			e.Problem = "a drill of it is on there"
		case p.world.in.links[r.Cluster].state == topology.LinkDown:
			e.Problem = "no link to it"
		}
		out = append(out, e)
	}
	return out
}

// drainsOf shows what is drained in set, which may be one that is not in force.
func (c *Control) drainsOf(p *present, set *drainSet) admin.Drains {
	out := admin.Drains{
		Cluster: c.cfg.Cluster.String(), Now: c.cfg.Now(), Drains: []admin.Drain{}, Services: []admin.DrainedService{}, Quiet: quiet,
	}
	for _, d := range set.list() {
		out.Drains = append(out.Drains, admin.Drain{Service: d.Service, Began: d.Began, Over: d.word().Over})
	}
	out.Safe = len(out.Drains) > 0
	for _, s := range p.world.callable {
		r := p.world.services[s.Name]
		if r == nil {
			continue
		}
		word := set.of(s.Name, s.Exported)
		if word == nil {
			if set.cluster() && r.ready() > 0 {
				out.Untouched = append(out.Untouched, s.Name.String())
			}
			continue
		}
		d := admin.DrainedService{
			Service: s.Name.String(), Began: word.Began, Over: word.Over, Copies: r.ready(), Elsewhere: p.elsewhere(s, out.Now),
		}
		c.flowOf(r, out.Now).judge(&d, out.Now)
		if why := p.nobodyElse(s, out.Now); why != "" && !d.Safe {
			d.Why += "; nothing else serves it (" + why + ")"
		}
		out.Safe = out.Safe && d.Safe
		out.Services = append(out.Services, d)
	}
	slices.SortFunc(out.Services, func(a, b admin.DrainedService) int { return cmp.Compare(a.Service, b.Service) })
	return out
}

// presentOr returns what is in force, or answers that there is nothing yet.
func (c *Control) presentOr(w http.ResponseWriter) *present {
	p := c.present.Load()
	if p == nil {
		refuse(w, http.StatusServiceUnavailable, errors.New("not everything has been read yet: "+strings.Join(c.cfg.Checks.Missing(), "; ")))
	}
	return p
}
