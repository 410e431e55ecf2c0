package federation

import "time"

// view is what there is to show of the peer at now.
func (p *peer) view(now time.Time) *View {
	v := &View{Cluster: p.spec.Cluster, Domain: p.spec.Domain, Freshness: Waiting, Quarantined: p.quarantine != "", spec: p.spec}
	if c := p.cut; c != nil {
		v.Region, v.Epoch, v.Seq = c.said.region, c.said.epoch, c.said.seq
		v.Issued, v.Received, v.NotAfter = c.said.issued, c.received, c.notAfter
		v.Freshness = p.limit.At(c.said.issued, c.notAfter, now)
		v.BundleSequence, v.Acknowledged = c.sequence, c.said.acknowledged
		v.Bundle, v.Gateways, v.PodCIDRs, v.Exports = c.bundle, c.gateways, c.pods, c.exports
	}
	v.Reason = p.reason(v, now)
	return v
}

func (p *peer) reason(v *View, now time.Time) string {
	switch {
	case p.quarantine != "":
		return "it told two stories: " + p.quarantine
	case p.problem != "":
		return "its newest head is not in force: " + p.problem
	case v.Freshness == Waiting && p.root == nil:
		return "nothing has been heard yet"
	case v.Freshness == Waiting && p.newest == nil:
		return "its member root has been heard, its head has not"
	case v.Freshness == Waiting:
		return "records that its head names have not come yet"
	case !now.Before(v.NotAfter):
		return "its member root or its trust bundle has ended"
	case v.Freshness != Fresh:
		return "no newer head has come"
	}
	return ""
}

// next returns when the view changes by time alone; zero when never.
func (p *peer) next(now time.Time) time.Time {
	if p.cut == nil {
		return time.Time{}
	}
	return p.limit.next(p.cut.said.issued, p.cut.notAfter, now)
}
