package gateway

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	// watchEvery is how often a link is looked at as a whole.
	watchEvery = 100 * time.Millisecond
	// suspectFor is for how long a link is said to be suspect after it was: every change of it goes to every proxy.
	suspectFor = time.Second
	// warmInUse and warmBeside are how many connections over TCP are ready at least, on a link whose streams go over TCP, and on one whose streams
	// go over QUIC. On one that has carried nothing for warmIdle there are none.
	warmInUse  = 2
	warmBeside = 1
)

// watch looks at the link as a whole until ctx ends: over which transport streams go, how much is lost, and what there is to report.
func (l *link) watch(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	var metered time.Time
	for {
		now := time.Now()
		if now.Sub(metered) >= meterEvery {
			metered = now
			for _, c := range l.live() {
				c.meter.look(c.conn.counts())
			}
		}
		l.decide(ctx, now)
		if l.state(now) != l.stated.Load() {
			l.stated.Store(l.state(now))
			l.g.linkChanged()
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// decide chooses the transport, and has connections ready on it.
func (l *link) decide(ctx context.Context, now time.Time) {
	if l.choice.judge(now, l.sight(transportQUIC, now), l.sight(transportTCP, now)) {
		transport, why := l.choice.explain()
		l.log.InfoContext(ctx, "new streams to a peer cluster take another transport", "transport", transport, "why", why)
		l.g.linkChanged()
	}
	if !l.idle() {
		l.busy = now
	}
	floor := int32(0)
	if transport, _ := l.choice.explain(); now.Sub(l.busy) < warmIdle {
		floor = warmBeside
		if transport == transportTCP {
			floor = warmInUse
		}
	}
	for _, c := range l.live() {
		if t, ok := c.conn.(*tcpCarrier); ok {
			t.retired.Store(c.aged.Load() || c.draining.Load())
			t.floor.Store(floor)
		}
	}
}

// sight is what is seen of the connections of one transport.
func (l *link) sight(transport string, now time.Time) sight {
	s := sight{suspect: true}
	var packets, lost float64
	for _, c := range l.live() {
		if c.conn.transport() != transport || !c.usable() {
			continue
		}
		s.up = true
		p, n := c.meter.lately()
		packets, lost = packets+p, lost+n
		if c.pulse.suspect(now) {
			continue
		}
		s.suspect = false
		if rtt := c.pulse.rtt(); s.rtt == 0 || rtt != 0 && rtt < s.rtt {
			s.rtt = rtt
		}
	}
	s.loss = loss(packets, lost)
	if !s.up {
		s.why = l.whyNot(transport)
	}
	return s
}

// whyNot says why there is no connection of a transport; empty when none is wanted.
func (l *link) whyNot(transport string) string {
	wanted := slices.ContainsFunc(l.wanted.Load().Gateways, func(g topology.Gateway) bool {
		return transport == transportQUIC && g.QUIC != "" || transport == transportTCP && g.TCP != ""
	})
	if !wanted {
		return ""
	}
	return cmp.Or(l.reasons(func(w way) (string, bool) { return w.gateway, w.transport == transport }), "no connection yet")
}

// state is how the link is: suspect when every way is, as far as there are some.
func (l *link) state(now time.Time) topology.LinkState {
	up, suspect := false, true
	for _, c := range l.live() {
		if c.usable() {
			up = true
			suspect = suspect && c.pulse.suspect(now)
		}
	}
	if !up {
		return topology.LinkDown
	}
	if suspect {
		l.suspected.Store(now.UnixNano())
		return topology.LinkSuspect
	}
	if now.Sub(time.Unix(0, l.suspected.Load())) < suspectFor {
		return topology.LinkSuspect
	}
	return topology.LinkUp
}
