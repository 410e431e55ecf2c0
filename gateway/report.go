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
	now := time.Now()
	r := &configv1.LinkReport{Cluster: l.cluster.String(), State: string(l.state(now))}
	r.Transport, r.Why = l.choice.explain()
	gateways := make(map[string]*configv1.PeerGatewayReport)
	for _, gw := range l.wanted.Load().Gateways {
		gateways[gw.ID] = &configv1.PeerGatewayReport{Id: gw.ID, State: string(topology.LinkDown)}
	}
	for _, c := range l.live() {
		if c.conn.Context().Err() != nil {
			continue
		}
		rtt := uint64(c.pulse.rtt().Microseconds()) //nolint:gosec // G115: a round trip isn't negative
		r.Connections++
		r.Carriers = append(r.Carriers, c.report(now))
		r.RttMicros = shorter(r.GetRttMicros(), rtt)
		if p := gateways[c.gateway.ID]; p != nil {
			p.State = string(topology.LinkUp)
			p.Connections++
			p.RttMicros = shorter(p.GetRttMicros(), rtt)
		}
	}
	slices.SortFunc(r.Carriers, func(a, b *configv1.CarrierReport) int {
		return cmp.Or(cmp.Compare(a.GetGateway(), b.GetGateway()), cmp.Compare(a.GetTransport(), b.GetTransport()), cmp.Compare(b.GetAgeMillis(), a.GetAgeMillis()))
	})
	if r.GetState() == string(topology.LinkDown) {
		r.Detail = l.why()
	}
	for _, p := range gateways {
		r.Gateways = append(r.Gateways, p)
	}
	slices.SortFunc(r.Gateways, func(a, b *configv1.PeerGatewayReport) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return r
}

// report says how one connection is.
func (c *connection) report(now time.Time) *configv1.CarrierReport {
	moved := c.conn.counts()
	r := &configv1.CarrierReport{
		Gateway: c.gateway.ID, Transport: c.conn.transport(), State: string(topology.LinkUp),
		RttMicros:    uint64(c.pulse.rtt().Microseconds()),    //nolint:gosec // G115: a round trip isn't negative
		JitterMicros: uint64(c.pulse.jitter().Microseconds()), //nolint:gosec // G115: likewise
		Loss:         loss(c.meter.lately()),
		Streams:      uint32(max(c.active.Load(), 0)),         //nolint:gosec // G115: at most Config.MaxStreams
		AgeMillis:    uint64(now.Sub(c.since).Milliseconds()), //nolint:gosec // G115: it was made before
		Sent:         moved.sent, Received: moved.received, Remote: c.conn.remote().String(),
	}
	switch {
	case !c.usable():
		r.State = carrierDraining
	case c.pulse.suspect(now):
		r.State = string(topology.LinkSuspect)
	}
	return r
}

// carrierDraining is the state of a connection that takes no new streams.
const carrierDraining = "draining"

// shorter returns the shorter of two round trips, of which 0 is none.
func shorter(a, b uint64) uint64 {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}
