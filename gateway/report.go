package gateway

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// reportPause keeps a burst of changes from being a burst of reports.
const reportPause = 20 * time.Millisecond

// report tells the state of the links when it changes, and now and then, until ctx ends.
func (g *Gateway) report(ctx context.Context) {
	ticker := time.NewTicker(g.cfg.ReportInterval)
	defer ticker.Stop()
	for {
		select {
		case <-g.changed:
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		g.cfg.Report(&configv1.Report{Links: g.linkReports(), Draining: g.draining()})
		select {
		case <-time.After(reportPause):
		case <-ctx.Done():
			return
		}
	}
}

// draining reports whether the gateway takes nothing new. The sidecars, here and in other clusters, learn of it through control, and
// move their sessions to other gateways while these still carry them.
func (g *Gateway) draining() bool {
	select {
	case <-g.drain.Draining():
		return true
	default:
		return false
	}
}

// linkReports returns the state of all links, by name of the cluster.
func (g *Gateway) linkReports() []*configv1.LinkReport {
	links := *g.links.Load()
	reports := make([]*configv1.LinkReport, 0, len(links))
	for _, name := range slices.SortedFunc(maps.Keys(links), topology.ClusterName.Compare) {
		reports = append(reports, links[name].report())
	}
	return reports
}

func (l *link) report() *configv1.LinkReport {
	r := &configv1.LinkReport{Cluster: l.cluster.String(), State: string(topology.LinkDown)}
	gateways := make(map[string]*configv1.PeerGatewayReport)
	for _, gw := range l.wanted.Load().Gateways {
		gateways[gw.ID] = &configv1.PeerGatewayReport{Id: gw.ID, State: string(topology.LinkDown)}
	}
	for _, c := range l.live() {
		if c.conn.Context().Err() != nil {
			continue
		}
		rtt := uint64(c.pulse.rtt().Microseconds()) //nolint:gosec // G115: a round trip isn't negative
		if c.usable() {
			r.State = string(topology.LinkUp)
		}
		r.Connections++
		r.RttMicros = shorter(r.GetRttMicros(), rtt)
		if p := gateways[c.gateway.ID]; p != nil {
			p.State = string(topology.LinkUp)
			p.Connections++
			p.RttMicros = shorter(p.GetRttMicros(), rtt)
		}
	}
	if r.GetState() == string(topology.LinkDown) {
		r.Detail = l.why()
	}
	for _, p := range gateways {
		r.Gateways = append(r.Gateways, p)
	}
	slices.SortFunc(r.Gateways, func(a, b *configv1.PeerGatewayReport) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return r
}

// shorter returns the shorter of two round trips, of which 0 is none.
func shorter(a, b uint64) uint64 {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}
