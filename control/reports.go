package control

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

// report takes in what a program told: a gateway of its links, all others of what they carry.
func (c *Control) report(s *configstream.Session, r *configv1.Report) {
	if program, _ := cutProgram(s.Receiver); program == configstream.ProgramGateway {
		c.fleet.report(s, r)
		return
	}
	c.traffic.report(s, r)
	c.served.report(s, r, c.serves)
	c.timeline.report(s, r, s.Holds)
}

// gone notes that a program's stream has ended.
func (c *Control) gone(s *configstream.Session) {
	c.fleet.disconnect(s)
	c.served.forget(s)
}

// knowsCluster reports whether there is a cluster of that name in the mesh.
func (c *Control) knowsCluster(name topology.ClusterName) bool {
	if name == c.cfg.Cluster {
		return true
	}
	p := c.present.Load()
	if p == nil {
		return false
	}
	for i := range p.world.peers {
		if p.world.peers[i].Cluster == name {
			return true
		}
	}
	return false
}

// serves reports whether a program serves a service.
func (c *Control) serves(receiver string, name topology.ServiceName) bool {
	p := c.present.Load()
	if p == nil {
		return false
	}
	r := p.world.services[name]
	return r != nil && r.inbounds[receiver] != nil
}

// defaultAgo is how far back traffic is told of where nothing is said.
const defaultAgo = time.Minute

// getTraffic answers GET /v1/traffic?service=NAME.NAMESPACE[&since=DURATION|TIME].
func (c *Control) getTraffic(w http.ResponseWriter, r *http.Request) {
	service, err := topology.ParseServiceName(r.URL.Query().Get("service"))
	if err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("service: %w; want name.namespace", err))
		return
	}
	since, err := c.parseSince(r.URL.Query().Get("since"), defaultAgo)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	out := c.traffic.of(c.cfg.Cluster, service, since)
	out.Served = []admin.Served{}
	for _, l := range c.served.of(service) {
		out.Served = append(out.Served, admin.Served{Program: l.receiver, At: l.at, Active: l.active, Requests: l.requests, Shed: l.shed, Limit: l.limit})
	}
	slices.SortFunc(out.Served, func(a, b admin.Served) int { return cmp.Compare(a.Program, b.Program) })
	answer(w, out)
}

// parseSince reads a moment: a time (RFC 3339), or how long ago it was.
func (c *Control) parseSince(s string, otherwise time.Duration) (time.Time, error) {
	now := c.cfg.Now()
	if s == "" {
		return now.Add(-otherwise), nil
	}
	if ago, err := time.ParseDuration(s); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	if at, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return at, nil
	}
	return time.Time{}, errors.New("since: want how long ago (60s) or a time (2026-01-02T15:04:05Z)")
}
