package control

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// resolved is a Service of the own cluster with its copies.
type resolved struct {
	service *Service
	ports   []topology.Port // that are carried, by number
	// endpoints are how callers reach the copies, by ID: each sidecar, and each node proxy for all copies without one.
	endpoints []topology.Endpoint
	inbounds  map[string][]topology.InboundPort // by receiver, as in the keys of the config stream
	workloads []*Workload                       // that it selects and that have one of its ports
	plains    []plain                           // copies without a sidecar
	servers   []spiffeid.ID                     // who may answer, ordered
	capacity  []federation.ZoneCapacity         // copies by zone
	// named are the ready copies of a headless Service, ordered by address, and targets where they listen, by the Service's ports.
	named    []federation.Endpoint
	targets  []uint16
	copies   int // all that there are, ready or not
	stranded int // copies without a sidecar that no node proxy stands in for
}

// ready returns the number of copies that calls may go to.
func (r *resolved) ready() int {
	n := 0
	for _, z := range r.capacity {
		n += int(z.Ready)
	}
	return n
}

// node is a node proxy that has joined.
type node struct {
	name    string
	inbound netip.AddrPort
	server  spiffeid.ID
}

// plain is a copy without a sidecar.
type plain struct {
	workload *Workload // nil: it is of an EndpointSlice
	pod      string    // of that slice, by its name; empty: not known
	ready    bool
	zone     string
	labels   map[string]string
	targets  map[portKey]netip.AddrPort
}

// resolver finds the copies of Services.
type resolver struct {
	self      Self
	nodes     []node
	workloads map[label][]*Workload // that have a label, in order
	slices    map[topology.ServiceName][]*EndpointSlice
}

// label is a label of a workload in a namespace.
type label struct{ namespace, key, value string }

// Self is who the cluster is.
type Self struct {
	Cluster topology.ClusterName
	Domain  spiffeid.TrustDomain
	Region  string
	Zone    string // of what names none
}

func newResolver(self Self, o *Objects, nodes []node) *resolver {
	r := &resolver{
		self: self, nodes: nodes,
		workloads: make(map[label][]*Workload), slices: make(map[topology.ServiceName][]*EndpointSlice),
	}
	for i := range o.Workloads {
		w := &o.Workloads[i]
		for k, v := range w.Labels {
			l := label{w.Namespace, k, v}
			r.workloads[l] = append(r.workloads[l], w)
		}
	}
	for i := range o.Slices {
		s := &o.Slices[i]
		r.slices[s.Service] = append(r.slices[s.Service], s)
	}
	return r
}

// resolve finds the copies of one Service. The order in which objects were declared is of no matter.
func (r *resolver) resolve(s *Service) *resolved {
	out := &resolved{service: s, inbounds: make(map[string][]topology.InboundPort)}
	for _, p := range s.Ports {
		switch p.Transport {
		case federation.TCP:
			out.ports = append(out.ports, topology.Port{Name: p.Name, Number: p.Number, Protocol: topology.ParseProtocol(p.AppProtocol, p.Name)})
		case federation.UDP:
			out.ports = append(out.ports, topology.Port{Name: p.Name, Number: p.Number, Protocol: topology.UDP})
		case federation.SCTP: // has a name, no more
		}
	}
	slices.SortFunc(out.ports, comparePorts)
	if s.ExternalName {
		return out
	}
	zones := make(zoneCounts)
	known := make(map[listening]struct{}) // where the workloads listen: a slice that names them too adds no copy
	var plains []plain
	for _, w := range r.selected(s) {
		targets := workloadTargets(s, w)
		if len(targets) == 0 {
			continue
		}
		out.copies++
		out.workloads = append(out.workloads, w)
		for k, t := range targets {
			known[listening{k.udp, t}] = struct{}{}
		}
		r.name(out, w.Ready, federation.Endpoint{Hostname: w.hostname(s), Addresses: []netip.Addr{w.Address}, Zone: cmp.Or(w.Zone, r.self.Zone)})
		if w.Inbound == 0 {
			plains = append(plains, plain{workload: w, ready: w.Ready || s.PublishNotReady, zone: cmp.Or(w.Zone, r.self.Zone), labels: w.Labels, targets: targets})
			continue
		}
		r.sidecar(out, w, targets)
		zones.add(cmp.Or(w.Zone, r.self.Zone), w.Ready || s.PublishNotReady)
	}
	for _, slice := range r.slices[s.ID] {
		for _, e := range slice.Endpoints {
			r.name(out, e.Ready, federation.Endpoint{Hostname: e.Hostname, Addresses: []netip.Addr{e.Address}, Zone: cmp.Or(e.Zone, r.self.Zone)})
		}
		for _, p := range r.sliceCopies(s, slice, known) {
			out.copies++
			plains = append(plains, p)
		}
	}
	out.plains = plains
	if len(r.nodes) == 0 {
		out.stranded = len(plains)
	} else {
		r.standIns(out, plains, zones)
	}
	for _, z := range slices.Sorted(maps.Keys(zones)) {
		out.capacity = append(out.capacity, *zones[z])
	}
	slices.SortFunc(out.endpoints, func(a, b topology.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(out.servers, func(a, b spiffeid.ID) int { return cmp.Compare(a.String(), b.String()) })
	out.servers = slices.Compact(out.servers)
	r.finishNames(out)
	return out
}

// zoneCounts counts copies by zone.
type zoneCounts map[string]*federation.ZoneCapacity

func (z zoneCounts) add(zone string, ready bool) {
	c := z[zone]
	if c == nil {
		c = &federation.ZoneCapacity{Zone: zone}
		z[zone] = c
	}
	c.Total++
	if ready {
		c.Ready++
	}
}

// portion is what the i-th of many gets of a number of copies, as evenly as can be.
func portion(copies, i, many int) int {
	n := copies / many
	if i < copies%many {
		n++
	}
	return n
}

// selected returns the workloads that a Service's selector picks. An empty one picks nothing, as in Kubernetes.
func (r *resolver) selected(s *Service) []*Workload {
	var candidates []*Workload // with the label that the fewest have
	first := true
	for k, v := range s.Selector {
		if with := r.workloads[label{s.Namespace, k, v}]; first || len(with) < len(candidates) {
			candidates, first = with, false
		}
	}
	var out []*Workload
	for _, w := range candidates {
		if selects(s.Selector, w.Labels) {
			out = append(out, w)
		}
	}
	return out
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// listening is where an application takes connections, or datagrams.
type listening struct {
	udp bool
	at  netip.AddrPort
}

// workloadTargets returns where w serves each port of s: by the name of a port that it declares, or by any number.
func workloadTargets(s *Service, w *Workload) map[portKey]netip.AddrPort {
	out := make(map[portKey]netip.AddrPort, len(s.Ports))
	for _, p := range s.Ports {
		if !carried(p.Transport) {
			continue
		}
		target := p.TargetNumber
		if p.TargetName != "" {
			i := slices.IndexFunc(w.Ports, func(wp WorkloadPort) bool {
				return wp.Name == p.TargetName && (wp.Transport == "" || wp.Transport == p.Transport)
			})
			if i < 0 {
				continue
			}
			target = w.Ports[i].Number
		}
		out[keyOfPort(p)] = netip.AddrPortFrom(w.Address, target)
	}
	return out
}

// sidecar adds a copy that has one.
func (r *resolver) sidecar(out *resolved, w *Workload, targets map[portKey]netip.AddrPort) {
	server, err := trust.WorkloadID(r.self.Domain, w.Namespace, w.ServiceAccount)
	if err != nil {
		return // only an over-long name: the manifest check bounds it, and without an identity there is no peer
	}
	out.servers = append(out.servers, server)
	tcp, udp := split(maps.Keys(targets))
	out.endpoints = append(out.endpoints, topology.Endpoint{
		ID: w.Name, Address: netip.AddrPortFrom(w.Address, w.Inbound), Server: server,
		Locality: topology.Locality{Region: r.self.Region, Zone: cmp.Or(w.Zone, r.self.Zone)},
		Labels:   w.Labels, Ports: tcp, UDPPorts: udp, Ready: w.Ready || out.service.PublishNotReady, Capacity: 1,
	})
	receiver := configstream.ProgramSidecar + "/" + w.ID()
	for _, p := range out.ports {
		if t, ok := targets[portKey{p.Protocol == topology.UDP, p.Number}]; ok {
			out.inbounds[receiver] = append(out.inbounds[receiver], topology.InboundPort{
				Number: p.Number, Protocol: p.Protocol, Targets: []netip.AddrPort{t},
			})
		}
	}
}

// sliceCopies returns the endpoints of a slice, but for those that are known already.
func (r *resolver) sliceCopies(s *Service, slice *EndpointSlice, known map[listening]struct{}) []plain {
	var out []plain
	for _, e := range slice.Endpoints {
		p := plain{
			pod: e.Pod, ready: e.Ready, zone: cmp.Or(e.Zone, r.self.Zone),
			targets: make(map[portKey]netip.AddrPort, len(slice.Ports)),
		}
		for _, port := range s.Ports {
			i := slices.IndexFunc(slice.Ports, func(sp SlicePort) bool { return sp.Name == port.Name && sp.Transport == port.Transport })
			if !carried(port.Transport) || i < 0 {
				continue
			}
			target := netip.AddrPortFrom(e.Address, slice.Ports[i].Number)
			key := keyOfPort(port)
			if _, ok := known[listening{key.udp, target}]; !ok {
				p.targets[key] = target
			}
		}
		if len(p.targets) > 0 {
			out = append(out, p)
		}
	}
	return out
}

// standIns lets each node proxy stand in for all copies without a sidecar. The proxies share them: what each counts for adds up to
// the number of copies, but is never nothing, so that one proxy takes over from another.
func (r *resolver) standIns(out *resolved, plains []plain, zones zoneCounts) {
	if len(plains) == 0 {
		return
	}
	ready := 0
	targets := make(map[portKey][]netip.AddrPort)
	served := make(map[portKey]struct{})
	labels := maps.Clone(plains[0].labels)
	for _, p := range plains {
		for port := range p.targets {
			served[port] = struct{}{}
		}
		// A label says something of the stand-in only if it is true of whatever answers behind it.
		maps.DeleteFunc(labels, func(k, v string) bool { return p.labels[k] != v })
		zones.add(p.zone, p.ready)
		if !p.ready {
			continue
		}
		ready++
		for port, t := range p.targets {
			targets[port] = append(targets[port], t)
		}
	}
	for port := range targets {
		slices.SortFunc(targets[port], netip.AddrPort.Compare)
		targets[port] = slices.Compact(targets[port])
	}
	tcp, udp := split(maps.Keys(served))
	for i, n := range r.nodes {
		out.servers = append(out.servers, n.server)
		out.endpoints = append(out.endpoints, topology.Endpoint{
			ID: configstream.ProgramNode + "/" + n.name, Address: n.inbound, Server: n.server,
			Locality: topology.Locality{Region: r.self.Region, Zone: r.self.Zone},
			Labels:   labels, Ports: tcp, UDPPorts: udp, Ready: ready > 0, StandIn: true,
			Capacity: max(portion(ready, i, len(r.nodes)), 1), Total: max(portion(len(plains), i, len(r.nodes)), 1),
		})
		receiver := configstream.ProgramNode + "/" + n.name
		for _, p := range out.ports {
			key := portKey{p.Protocol == topology.UDP, p.Number}
			if _, ok := served[key]; ok {
				out.inbounds[receiver] = append(out.inbounds[receiver], topology.InboundPort{
					Number: p.Number, Protocol: p.Protocol, Targets: targets[key],
				})
			}
		}
	}
}
