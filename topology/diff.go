package topology

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Delta is what differs between two snapshots.
type Delta struct {
	Self     bool // who holds it
	Services Changes[ServiceName]
	Clusters Changes[ClusterName]
	Gateways Changes[string] // by Gateway.ID
	Exports  Changes[ServiceName]
	Inbounds Changes[ServiceName]
}

// IsZero reports whether nothing differs.
func (d *Delta) IsZero() bool {
	return !d.Self && d.Services.IsZero() && d.Clusters.IsZero() && d.Gateways.IsZero() && d.Exports.IsZero() && d.Inbounds.IsZero()
}

// Changes are keys of what came, went, or is not what it was; each ordered.
type Changes[K any] struct {
	Added, Removed, Changed []K
}

// IsZero reports whether nothing changed.
func (c *Changes[K]) IsZero() bool { return len(c.Added)+len(c.Removed)+len(c.Changed) == 0 }

// Diff tells what differs between two snapshots; nil holds nothing. Lists are compared in order.
func Diff(old, next *Snapshot) Delta {
	if old == next {
		return Delta{}
	}
	if old == nil {
		old = new(Snapshot)
	}
	if next == nil {
		next = new(Snapshot)
	}
	return Delta{
		Self:     old.self != next.self,
		Services: changes(old.services, next.services, (*Service).equal, ServiceName.Compare),
		Clusters: changes(old.clusters, next.clusters, (*Cluster).equal, ClusterName.Compare),
		Gateways: changes(byID(old.gateways), byID(next.gateways), equalValue[Gateway], strings.Compare),
		Exports:  changes(old.exports, next.exports, (*Export).equal, ServiceName.Compare),
		Inbounds: changes(old.inbounds, next.inbounds, (*Inbound).equal, ServiceName.Compare),
	}
}

func changes[K comparable, V any](old, next map[K]*V, equal func(a, b *V) bool, compare func(a, b K) int) Changes[K] {
	var c Changes[K]
	for k, v := range next {
		switch before, ok := old[k]; {
		case !ok:
			c.Added = append(c.Added, k)
		case v != before && !equal(before, v):
			c.Changed = append(c.Changed, k)
		}
	}
	for k := range old {
		if _, ok := next[k]; !ok {
			c.Removed = append(c.Removed, k)
		}
	}
	slices.SortFunc(c.Added, compare)
	slices.SortFunc(c.Removed, compare)
	slices.SortFunc(c.Changed, compare)
	return c
}

func byID(gateways []Gateway) map[string]*Gateway {
	m := make(map[string]*Gateway, len(gateways))
	for i := range gateways {
		m[gateways[i].ID] = &gateways[i]
	}
	return m
}

func equalValue[T comparable](a, b *T) bool { return *a == *b }

func (s *Service) equal(o *Service) bool {
	return s.Name == o.Name &&
		slices.Equal(s.Ports, o.Ports) &&
		slices.Equal(s.OtherPorts, o.OtherPorts) &&
		slices.Equal(s.ClusterIPs, o.ClusterIPs) &&
		slices.Equal(s.ClusterSetIPs, o.ClusterSetIPs) &&
		s.Imported == o.Imported && s.Exported == o.Exported && s.Headless == o.Headless &&
		slices.EqualFunc(s.Endpoints, o.Endpoints, equalEndpoints) &&
		slices.EqualFunc(s.Remotes, o.Remotes, equalRemotes) &&
		slices.EqualFunc(s.Hosts, o.Hosts, equalHosts) &&
		s.Policy.equal(o.Policy) && s.Drain.equal(o.Drain)
}

func equalEndpoints(a, b Endpoint) bool {
	return a.ID == b.ID && a.Address == b.Address && a.Server == b.Server && a.Locality == b.Locality &&
		maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Ports, b.Ports) && slices.Equal(a.UDPPorts, b.UDPPorts) &&
		a.Ready == b.Ready && a.Capacity == b.Capacity && a.Total == b.Total && a.StandIn == b.StandIn
}

func equalRemotes(a, b Remote) bool {
	return a.Cluster == b.Cluster && slices.Equal(a.Servers, b.Servers) && slices.Equal(a.Ports, b.Ports) && slices.Equal(a.UDPPorts, b.UDPPorts) &&
		a.Ready == b.Ready && a.Total == b.Total && maps.Equal(a.Labels, b.Labels) && a.Stale == b.Stale && a.Drain.equal(b.Drain)
}

func equalHosts(a, b HostGroup) bool {
	return a.Cluster == b.Cluster && slices.Equal(a.Ports, b.Ports) && slices.EqualFunc(a.Hosts, b.Hosts, func(a, b Host) bool {
		return a.Name == b.Name && a.Address == b.Address && slices.Equal(a.IPs, b.IPs)
	})
}

func (p *Policy) equal(o *Policy) bool {
	if p == nil || o == nil {
		return p == o
	}
	return p.Name == o.Name && slices.EqualFunc(p.Tiers, o.Tiers, equalTiers) && slices.EqualFunc(p.Never, o.Never, equalSelectors) &&
		p.Spill == o.Spill && p.Failback == o.Failback
}

func equalTiers(a, b Tier) bool {
	return a.Name == b.Name && equalSelectors(a.Match, b.Match) && maps.Equal(a.Weights, b.Weights)
}

func equalSelectors(a, b Selector) bool {
	return a.Cluster == b.Cluster && a.Region == b.Region && a.Zone == b.Zone && maps.Equal(a.Labels, b.Labels)
}

func (c *Cluster) equal(o *Cluster) bool {
	return c.Name == o.Name && c.Domain == o.Domain && c.Region == o.Region && c.Link == o.Link && c.RTT == o.RTT &&
		slices.Equal(c.Gateways, o.Gateways) && slices.Equal(c.Pods, o.Pods)
}

func (e *Export) equal(o *Export) bool {
	return e.Name == o.Name && slices.Equal(e.Ports, o.Ports) && slices.Equal(e.UDPPorts, o.UDPPorts) && slices.Equal(e.Audience, o.Audience) && slices.Equal(e.Hosts, o.Hosts) &&
		slices.EqualFunc(e.Endpoints, o.Endpoints, equalEndpoints) && e.Drill.equal(o.Drill)
}

func (i *Inbound) equal(o *Inbound) bool {
	return i.Name == o.Name && i.Exported == o.Exported && slices.Equal(i.Audience, o.Audience) && slices.EqualFunc(i.Ports, o.Ports, func(a, b InboundPort) bool {
		return a.Number == b.Number && a.Protocol == b.Protocol && slices.Equal(a.Targets, b.Targets)
	}) && reflect.DeepEqual(i.Access, o.Access) && reflect.DeepEqual(i.Quotas, o.Quotas) && i.Drill.equal(o.Drill)
}
