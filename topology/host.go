package topology

import (
	"fmt"
	"net/netip"
)

// chooseHost makes the plan of a call to one copy of a headless service in another cluster: that copy, or nothing. Of a policy only what it
// forbids has a say: there is nothing to order.
func chooseHost(s *Snapshot, service *Service, plan Plan, load Load) (Plan, error) {
	q := plan.Query
	none := func(reason Reason, c *spot) (Plan, error) {
		if c != nil {
			plan.Excluded = append(plan.Excluded, Exclusion{Target: c.Target, Remote: c.Remote, Reason: reason})
		}
		return plan, fmt.Errorf("service %s, port %d, copy %s in cluster %s: %w%s", q.Service, q.Port, q.Host.Address, q.Host.Cluster, ErrNoCandidates, tally(plan.Excluded))
	}
	var found *spot
	for _, c := range spots(s, service, q) {
		if c.Remote != nil && c.Cluster == q.Host.Cluster {
			found = &c
			break
		}
	}
	if found == nil {
		return none(Reason{}, nil)
	}
	found.Target.Endpoint = q.Host.Address.String()
	found.Host, found.copies = q.Host.Address, 1
	if service.Host(q.Host) == nil {
		return none(Reason{Cause: NotReady}, found)
	}
	if reason, out := forbid(s, service, q, found); out {
		return none(reason, found)
	}
	found.key, found.Reason = rankKey{name: hostTier}, Reason{ByName, q.Host.Address.String()}
	one := (*rung)(nil).count(found.key, found)
	one.place(s, *found, load)
	plan.Tiers = arrange([]*rung{one}, nil, load)
	return plan, nil
}

// hostTier is the name of the one tier of such a plan.
const hostTier = "host"

// DashedAddress is the name of a copy that has no other: its address, in one DNS label, as Kubernetes has it.
func DashedAddress(a netip.Addr) string {
	out := []byte(a.String())
	for i, c := range out {
		if c == '.' || c == ':' {
			out[i] = '-'
		}
	}
	return string(out)
}
