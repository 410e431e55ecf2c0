package control

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// The copies of headless services are called one by one: their names are why such a service is exported. Those of other clusters are called
// by their own addresses where these are nobody else's, and else by addresses of the clusterset range that stand for them.

// name notes a copy of a headless Service.
func (r *resolver) name(out *resolved, ready bool, e federation.Endpoint) {
	if out.service.Headless && (ready || out.service.PublishNotReady) && e.Addresses[0].IsValid() {
		out.named = append(out.named, e)
	}
}

// finishNames puts the copies of a headless Service in order, each once, and finds where they listen.
func (r *resolver) finishNames(out *resolved) {
	if !out.service.Headless {
		return
	}
	// Of two that have one address, one with a host name says more.
	slices.SortFunc(out.named, func(a, b federation.Endpoint) int {
		return cmp.Or(a.Addresses[0].Compare(b.Addresses[0]), -cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.Zone, b.Zone))
	})
	out.named = slices.CompactFunc(out.named, func(a, b federation.Endpoint) bool { return a.Addresses[0] == b.Addresses[0] })
	if len(out.service.Ports) == 0 {
		return
	}
	for _, p := range out.service.Ports {
		out.targets = append(out.targets, r.target(out.service, p))
	}
}

// target returns where the copies of a headless Service listen for a port: as its slices say, or its workloads, or else itself. They say
// it alike unless targetPort names a port that is another one in different Pods; then the first counts.
func (r *resolver) target(s *Service, p ServicePort) uint16 {
	for _, slice := range r.slices[s.ID] {
		i := slices.IndexFunc(slice.Ports, func(sp SlicePort) bool { return sp.Name == p.Name && sp.Transport == p.Transport })
		if i >= 0 && len(slice.Endpoints) > 0 {
			return slice.Ports[i].Number
		}
	}
	for _, w := range r.selected(s) {
		if t, ok := workloadTargets(s, w)[keyOfPort(p)]; ok && carried(p.Transport) {
			return t.Port()
		}
	}
	return cmp.Or(p.TargetNumber, p.Number)
}

// hosts returns the addresses of the copies that may be called by name.
func (r *resolved) hosts() []netip.Addr {
	var out []netip.Addr
	for _, e := range r.named[:min(len(r.named), federation.MaxEndpoints)] {
		out = append(out, e.Addresses[0])
	}
	return out
}

// ownPods returns which addresses the own cluster's pods have, as it is told to others.
func (w *world) ownPods() []netip.Prefix {
	return federation.CondensePodCIDRs(slices.Concat(w.in.pods, w.in.objects.Network.Pods))
}

// podsHave reports whether the own cluster's pods have addresses of a's family, as far as theirs are known.
func (w *world) podsHave(a netip.Addr) bool {
	return len(w.own.PodCIDRs) == 0 || slices.ContainsFunc(w.own.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() })
}

// peerPods returns, of each peer, the prefixes of its pods in which every address is nobody's but theirs: not of another cluster, and not of
// anything in this one that is known. What else is in the networks here is not: so the peer's word alone does not do, its ClusterPeer must
// name them too, or a peer could take connections that are to somebody else. Without knowing the own pods' addresses, no peer has any: a pod here may have the same.
func (w *world) peerPods() map[topology.ClusterName][]netip.Prefix {
	if len(w.own.PodCIDRs) == 0 {
		return nil
	}
	said := make(map[topology.ClusterName][]netip.Prefix, len(w.usable))
	for _, v := range w.usable {
		for _, p := range v.PodCIDRs {
			if within(p, w.in.peerPods) && within(p, w.letIn(v.Cluster)) {
				said[v.Cluster] = append(said[v.Cluster], p)
			}
		}
	}
	out := make(map[topology.ClusterName][]netip.Prefix, len(said))
	for cluster, prefixes := range said {
		for _, p := range prefixes {
			// What a peer says beyond its ClusterPeer is no word against another's.
			others := func(o topology.ClusterName) bool { return o != cluster && overlaps(p, said[o]) }
			if !w.takenHere(p) && !slices.ContainsFunc(slices.Collect(maps.Keys(said)), others) {
				out[cluster] = append(out[cluster], p)
			}
		}
	}
	return out
}

// letIn returns what a peer's ClusterPeer says of its pods.
func (w *world) letIn(c topology.ClusterName) []netip.Prefix {
	for i := range w.peers {
		if w.peers[i].Cluster == c {
			return w.peers[i].PodCIDRs
		}
	}
	return nil
}

func within(p netip.Prefix, allowed []netip.Prefix) bool {
	return slices.ContainsFunc(allowed, func(a netip.Prefix) bool { return a.Bits() <= p.Bits() && a.Contains(p.Addr()) })
}

func overlaps(p netip.Prefix, others []netip.Prefix) bool {
	return slices.ContainsFunc(others, p.Overlaps)
}

// takenHere reports whether something in the own cluster has an address in p.
func (w *world) takenHere(p netip.Prefix) bool {
	if overlaps(p, w.own.PodCIDRs) || p.Overlaps(w.in.cidr) || slices.ContainsFunc(w.in.objects.Network.Nodes, p.Contains) {
		return true
	}
	for i := range w.in.objects.Services {
		if slices.ContainsFunc(w.in.objects.Services[i].ClusterIPs, p.Contains) {
			return true
		}
	}
	for i := range w.in.objects.Slices { // the API server, and what else is outside of the pods' network
		for _, e := range w.in.objects.Slices[i].Endpoints {
			if p.Contains(e.Address) {
				return true
			}
		}
	}
	return slices.ContainsFunc(w.ways(), p.Contains)
}

// ways are the addresses by which other clusters are reached, as far as they are none by name.
func (w *world) ways() (out []netip.Addr) {
	add := func(hostPort string) {
		host, _, err := net.SplitHostPort(hostPort)
		if a, e := netip.ParseAddr(host); err == nil && e == nil {
			out = append(out, a.Unmap())
		}
	}
	for i := range w.peers {
		for _, u := range w.peers[i].BusURLs {
			add(strings.TrimPrefix(u, "tls://"))
		}
	}
	for _, v := range w.usable {
		for _, g := range v.Gateways {
			for _, q := range g.QUIC {
				add(q)
			}
		}
	}
	return out
}

// maxStandIns bounds the addresses that stand for copies of one peer: a peer may say what it likes, and the range is for all.
const maxStandIns = 4096

// placeHosts gives each copy of another cluster whose own address can't be used one that stands for it.
func (w *world) placeHosts(imports []federation.Import, offered map[topology.ClusterName]map[topology.ServiceName]*federation.Export) {
	var wanted []hostKey
	of := make(map[topology.ClusterName]int) // how many, of each cluster
	tooMany := 0
	for _, i := range imports {
		for _, c := range i.Clusters {
			e := offered[c][i.Name]
			if i.Type != federation.Headless || e.Type != federation.Headless || c == w.in.self.Cluster {
				continue
			}
			for _, endpoint := range e.Endpoints {
				switch {
				case w.direct(c, endpoint.Addresses):
				case of[c] >= maxStandIns:
					tooMany++
				default:
					of[c]++
					wanted = append(wanted, hostKey{i.Name, topology.HostRef{Cluster: c, Address: endpoint.Addresses[0]}})
				}
			}
		}
	}
	var none []hostKey
	w.hosts, none = allocateHosts(w.in.hosts, wanted, w.in.cidr, !w.in.complete, w.addresses)
	if tooMany > 0 {
		w.problems = append(w.problems, Problem{
			Object: "headless copies", Reason: fmt.Sprintf("%d of other clusters have no address: one cluster has at most %d that stand for its copies", tooMany, maxStandIns),
		})
	}
	if len(none) > 0 {
		w.problems = append(w.problems, Problem{
			Object: "headless copies", Reason: fmt.Sprintf("%d of other clusters have no address: none is free in clusterSetCIDR %s", len(none), w.in.cidr),
		})
	}
}

// direct reports whether a copy of a peer is called by its own addresses.
func (w *world) direct(cluster topology.ClusterName, addresses []netip.Addr) bool {
	for _, a := range addresses {
		if !w.podsHave(a) {
			return false // nothing here could call it
		}
		if !slices.ContainsFunc(w.pods[cluster], func(p netip.Prefix) bool { return p.Contains(a) }) {
			return false
		}
	}
	return true
}

// hostsOf are the copies of a headless service in one cluster, as they are reached from this one.
func (w *world) hostsOf(service topology.ServiceName, cluster topology.ClusterName, e *federation.Export) []Host {
	var out []Host
	for _, endpoint := range e.Endpoints {
		h := Host{Hostname: endpoint.Hostname, Zone: endpoint.Zone, Address: endpoint.Addresses[0], IPs: endpoint.Addresses}
		if cluster != w.in.self.Cluster && !w.direct(cluster, endpoint.Addresses) {
			a, ok := w.hosts[hostKey{service, topology.HostRef{Cluster: cluster, Address: h.Address}}]
			if !ok {
				continue // the range is full
			}
			h.IPs = []netip.Addr{a}
		}
		out = append(out, h)
	}
	return out
}

// hostGroups are the copies of a headless import as callers see them.
func (w *world) hostGroups(i *ImportStatus) []topology.HostGroup {
	var out []topology.HostGroup
	for _, c := range i.Copies {
		if len(c.Hosts) == 0 {
			continue
		}
		g := topology.HostGroup{Cluster: c.Cluster}
		for n, p := range c.Ports {
			g.Ports = append(g.Ports, topology.HostPort{Name: p.Name, Number: p.Number, Target: c.Targets[n], Protocol: strings.ToLower(string(p.Transport))})
		}
		for _, h := range c.Hosts {
			g.Hosts = append(g.Hosts, topology.Host{Name: cmp.Or(h.Hostname, topology.DashedAddress(h.Address)), Address: h.Address, IPs: h.IPs})
		}
		out = append(out, g)
	}
	return out
}
