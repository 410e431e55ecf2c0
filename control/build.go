package control

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/bundleendpoint"
)

// inputs is all that the cluster's configuration follows from, at one moment.
type inputs struct {
	self    Self
	objects *Objects
	trust   trust.Bundle // of the own trust domain
	named   bool         // a CA of the own SVIDs has the trust domain as its URI
	revoked *revokedSet
	drains  *drainSet
	drills  map[topology.ServiceName]*topology.Drill  // that are on
	drilled map[topology.ServiceName]federation.Drill // the same, as peers are told of them
	// acknowledged says which bundles of peers are in force in all programs, by sequence.
	acknowledged map[spiffeid.TrustDomain]uint64
	views        []*federation.View     // of all pinned peers, ordered by cluster
	domains      []bundleendpoint.State // of all followed domains, ordered by name
	gateways     []topology.Gateway     // that have joined, ordered by ID
	nodes        []node                 // that have joined, ordered by name
	// known are the node proxies that may join.
	known     []string
	links     map[topology.ClusterName]linkWord
	addresses allocation
	hosts     hostAllocation
	cidr      netip.Prefix
	pods      []netip.Prefix // of the own cluster, beside those that objects tell of
	peerPods  []netip.Prefix // that peers may speak for
	complete  bool           // every pinned peer has spoken once: addresses may be given back
}

// world is all that follows from inputs. Immutable.
type world struct {
	in           inputs
	resources    []*configv1.Resource
	own          federation.Own
	peers        []ClusterPeer          // that are in force
	usable       []*federation.View     // of peers whose word counts, ordered by cluster
	silent       []topology.ClusterName // peers that have not spoken, ordered
	domains      []FederatedTrustDomain // that are in force
	addresses    allocation
	hosts        hostAllocation
	pods         map[topology.ClusterName][]netip.Prefix // of peers: addresses that are nobody's but their pods'
	services     map[topology.ServiceName]*resolved
	callable     []*topology.Service // as callers see them, ordered by name
	rivals       map[topology.ServiceName][]rivalDrill
	exports      []ExportStatus // without Condition.Since
	imports      []ImportStatus // likewise
	policing     *policing
	policyStatus []PolicyStatus   // likewise
	reigns       []reign          // of the FailoverPolicies, in their order
	failover     []FailoverStatus // of all of them
	problems     []Problem        // of objects that don't fit together
}

// build computes a world. It is pure: the same inputs give the same world, whatever came before.
func build(in inputs) *world {
	w := &world{in: in, services: make(map[topology.ServiceName]*resolved, len(in.objects.Services))}
	w.peers, w.problems = acceptedPeers(in.self, in.objects.Peers)
	w.usable = slices.DeleteFunc(usableViews(in.views, w.peers), func(v *federation.View) bool { return in.revoked.domain(v.Domain) })
	w.checkSharedRoots()
	w.silent = silentPeers(in.views, w.peers)
	var problems []Problem
	w.domains, problems = acceptedDomains(in.self, in.objects.Peers, in.objects.Domains)
	w.problems = append(w.problems, problems...)
	resolver := newResolver(in.self, in.objects, in.nodes)
	for i := range in.objects.Services {
		r := resolver.resolve(&in.objects.Services[i])
		w.services[r.service.ID] = r
	}
	w.policing = newPolicing(w)
	w.policyStatus = w.policing.policyStatus()
	valid := w.ownRecords()
	for name, r := range w.services {
		w.reportStranded(r, valid[name] != nil)
	}
	w.doubt(valid)
	exports := map[topology.ClusterName][]federation.Export{in.self.Cluster: w.own.Exports}
	for _, v := range w.usable {
		for _, e := range v.Exports {
			if e.Admits(in.self.Cluster) {
				exports[v.Cluster] = append(exports[v.Cluster], e)
			}
		}
	}
	w.rivals = rivalDrills(w.usable, exports)
	merged := federation.Merge(in.self.Cluster, exports)
	w.exportConditions(valid, merged)
	w.pods = w.peerPods()
	w.importStatus(merged.Imports, exports)
	w.assemble(valid, exports)
	w.failover = w.failoverStatus()
	w.problems = SortProblems(w.problems)
	return w
}

// acceptedPeers leaves out the ClusterPeers that can't be told apart from others or from the own cluster.
func acceptedPeers(self Self, in []ClusterPeer) (accepted []ClusterPeer, problems []Problem) {
	owner := make(map[string]string)
	for _, p := range in {
		reason := ""
		switch {
		case p.Cluster == self.Cluster:
			reason = "is this cluster's own name"
		case p.Domain == self.Domain:
			reason = fmt.Sprintf("spec.trustDomain: %s is this cluster's own", p.Domain.Name())
		}
		for _, pin := range []struct{ field, value string }{
			{"spec.trustDomain", p.Domain.Name()}, {"spec.rootFingerprint", p.RootFingerprint}, {"spec.bus.key", p.BusKey},
		} {
			if other, taken := owner[pin.field+pin.value]; taken && reason == "" {
				reason = fmt.Sprintf("%s: is that of %s too, which is in force; this one is not", pin.field, other)
			}
		}
		if reason != "" {
			problems = append(problems, Problem{Source: p.Source, Object: p.Object(), Reason: reason})
			continue
		}
		for _, pin := range []string{"spec.trustDomain" + p.Domain.Name(), "spec.rootFingerprint" + p.RootFingerprint, "spec.bus.key" + p.BusKey} {
			owner[pin] = p.Object()
		}
		accepted = append(accepted, p)
	}
	return accepted, problems
}

// usableViews returns the views of the peers whose word counts, as far as it does.
func usableViews(views []*federation.View, peers []ClusterPeer) []*federation.View {
	var out []*federation.View
	for _, v := range views {
		i := slices.IndexFunc(peers, func(p ClusterPeer) bool { return p.Cluster == v.Cluster && p.Domain == v.Domain })
		if v.Usable() && i >= 0 {
			out = append(out, heardIn(v, peers[i].Namespaces))
		}
	}
	return out
}

// heardIn leaves of what a peer says the exports in some namespaces; all, where none is named.
func heardIn(v *federation.View, namespaces []string) *federation.View {
	if len(namespaces) == 0 {
		return v
	}
	in := make(map[string]struct{}, len(namespaces))
	for _, n := range namespaces {
		in[n] = struct{}{}
	}
	heard := *v
	heard.Exports = nil
	for _, e := range v.Exports {
		if _, ok := in[e.Name.Namespace()]; ok {
			heard.Exports = append(heard.Exports, e)
		}
	}
	return &heard
}

// silentPeers returns the peers that have not spoken since the start.
func silentPeers(views []*federation.View, peers []ClusterPeer) []topology.ClusterName {
	var out []topology.ClusterName
	for _, p := range peers {
		if !slices.ContainsFunc(views, func(v *federation.View) bool { return v.Cluster == p.Cluster && v.Freshness != federation.Waiting }) {
			out = append(out, p.Cluster)
		}
	}
	slices.SortFunc(out, topology.ClusterName.Compare)
	return out
}

// reportStranded tells of copies that nobody can call. Most Services of a Kubernetes cluster are none of the mesh's: there it is of
// note for those that are exported, or have copies in the mesh beside.
func (w *world) reportStranded(r *resolved, exported bool) {
	if r.stranded == 0 || r.service.File == "" && !exported && r.stranded == r.copies {
		return
	}
	why := "no node proxy is configured (nodeProxies) to stand in for them"
	if len(w.in.known) > 0 {
		why = "no node proxy has joined yet to stand in for them"
	}
	w.problems = append(w.problems, Problem{
		Source: r.service.Source, Object: r.service.Object(),
		Reason: fmt.Sprintf("copies without a sidecar: %d; %s", r.stranded, why),
	})
}

// ownRecords computes what peers are told, and returns the exports that are valid, by service.
func (w *world) ownRecords() map[topology.ServiceName]*ServiceExport {
	good := unrevoked(w.in.trust) // for those who are told of the bundle, and not of what is revoked: the federation endpoint's readers
	w.own.Roots, w.own.JWTKeys, w.own.Acknowledged = good.Authorities, good.JWTAuthorities, w.in.acknowledged
	w.own.Revoked, w.own.RevokedIDs = w.in.revoked.own(w.in.self.Domain)
	w.own.PodCIDRs = w.ownPods()
	for _, g := range w.in.gateways {
		outside := w.in.objects.Outside.Gateways[g.ID] // one port number, for UDP and TCP
		at := cmp.Or(outside, g.QUIC)
		if at == "" {
			continue
		}
		told := federation.Gateway{ID: g.ID, QUIC: []string{at}, Identity: g.Identity, Capacity: 1, Draining: g.Draining, Zone: g.Zone}
		if g.TCP != "" {
			told.TCP = []string{cmp.Or(outside, g.TCP)}
		}
		w.own.Gateways = append(w.own.Gateways, told)
	}
	valid := make(map[topology.ServiceName]*ServiceExport, len(w.in.objects.Exports))
	for i := range w.in.objects.Exports {
		e := &w.in.objects.Exports[i]
		r := w.services[e.Service]
		if r == nil || r.service.ExternalName {
			continue
		}
		valid[e.Service] = e
		told := exportOf(e, r)
		told.Drain = w.in.drains.of(e.Service, true)
		if d, on := w.in.drilled[e.Service]; on {
			told.Drill = &d
		}
		w.own.Exports = append(w.own.Exports, told)
	}
	return valid
}

// exportOf joins a ServiceExport and its Service into what peers are told.
func exportOf(e *ServiceExport, r *resolved) federation.Export {
	s := r.service
	out := federation.Export{
		Name: s.ID, Created: e.Created, Type: federation.ClusterSetIP,
		SessionAffinity: s.SessionAffinity, SessionAffinityTimeout: s.SessionAffinityTimeout,
		InternalTrafficPolicy: s.InternalTrafficPolicy, TrafficDistribution: s.TrafficDistribution,
		Labels: e.Labels, Annotations: e.Annotations, Audience: e.Audience,
		Servers: r.servers, Capacity: r.capacity,
	}
	if s.Headless {
		out.Type = federation.Headless
		out.Endpoints = r.named[:min(len(r.named), federation.MaxEndpoints)]
		out.Targets = r.targets
	}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, federation.Port{Name: p.Name, Number: p.Number, Transport: p.Transport, AppProtocol: p.AppProtocol})
	}
	return out
}

// assemble makes the resources of the config stream.
func (w *world) assemble(valid map[topology.ServiceName]*ServiceExport, exports map[topology.ClusterName][]federation.Export) {
	in := &w.in
	add := func(r *configv1.Resource) { w.resources = append(w.resources, r) }
	for td, b := range w.bundles() {
		add(configstream.EncodeBundle(td, configstream.BundleData(b)))
	}
	for _, g := range in.gateways {
		add(configstream.EncodeGateway(g))
		add(configstream.EncodeSelf(configstream.ProgramGateway+"/"+g.ID, w.selfOf("", g.ID, g.Zone)))
	}
	for _, name := range in.known {
		add(configstream.EncodeSelf(configstream.ProgramNode+"/"+name, w.selfOf("", name, "")))
	}
	for i := range in.objects.Workloads {
		o := &in.objects.Workloads[i]
		add(configstream.EncodeSelf(configstream.ProgramSidecar+"/"+o.ID(), w.selfOf(o.Namespace, o.Name, o.Zone)))
	}
	for _, p := range w.peers {
		add(configstream.EncodeCluster(w.cluster(p)))
	}
	for _, name := range slices.SortedFunc(maps.Keys(w.services), topology.ServiceName.Compare) {
		r := w.services[name]
		served := topology.Inbound{Name: name, Drill: in.drills[name]}
		e := valid[name]
		if e != nil {
			served.Exported, served.Audience = true, e.Audience
		}
		for _, receiver := range slices.Sorted(maps.Keys(r.inbounds)) {
			served.Ports = r.inbounds[receiver]
			inbound := configstream.EncodeInbound(receiver, &served)
			w.policing.guard(inbound, receiver, r)
			add(inbound)
		}
		if e != nil {
			tcp, udp := numbers(r.ports)
			add(configstream.EncodeExport(&topology.Export{Name: name, Ports: tcp, UDPPorts: udp, Audience: e.Audience, Endpoints: r.endpoints, Hosts: r.hosts(), Drill: in.drills[name]}))
		}
	}
	w.callable = w.callables(valid, exports)
	for _, s := range w.callable {
		add(configstream.EncodeService(s))
	}
	slices.SortFunc(w.resources, func(a, b *configv1.Resource) int { return cmp.Compare(a.GetKey(), b.GetKey()) })
}

func (w *world) selfOf(namespace, name, zone string) topology.Self {
	return topology.Self{
		Cluster: w.in.self.Cluster, Domain: w.in.self.Domain, Namespace: namespace, Workload: name,
		Locality: topology.Locality{Region: w.in.self.Region, Zone: cmp.Or(zone, w.in.self.Zone)},
	}
}

// cluster is a peer as proxies see it. Where its gateways are is known as long as its word counts.
func (w *world) cluster(p ClusterPeer) *topology.Cluster {
	word := w.in.links[p.Cluster]
	c := &topology.Cluster{Name: p.Cluster, Domain: p.Domain, Link: word.state, RTT: word.rtt, Pods: w.pods[p.Cluster]}
	for _, v := range w.usable {
		if v.Cluster != p.Cluster {
			continue
		}
		c.Region = v.Region
		for _, g := range v.Gateways {
			if len(g.QUIC) == 0 {
				continue
			}
			gw := topology.Gateway{ID: g.ID, QUIC: g.QUIC[0], Identity: g.Identity, Zone: g.Zone, Draining: g.Draining}
			if len(g.TCP) > 0 {
				gw.TCP = g.TCP[0]
			}
			c.Gateways = append(c.Gateways, gw)
		}
	}
	return c
}

// numbers returns the numbers of ports, those for datagrams apart.
func numbers(ports []topology.Port) (tcp, udp []uint16) {
	return split(func(yield func(portKey) bool) {
		for _, p := range ports {
			if !yield(portKey{p.Protocol == topology.UDP, p.Number}) {
				return
			}
		}
	})
}

// membersOf keeps the IDs that a domain may speak for.
func membersOf(domain spiffeid.TrustDomain, ids []spiffeid.ID) []spiffeid.ID {
	var out []spiffeid.ID
	for _, id := range ids {
		if id.MemberOf(domain) && !trust.IsControl(id) {
			out = append(out, id)
		}
	}
	return out
}
