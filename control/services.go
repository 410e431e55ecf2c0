package control

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

// callables returns every own and every imported service as callers in the cluster see it, ordered by name.
func (w *world) callables(valid map[topology.ServiceName]*ServiceExport, exports map[topology.ClusterName][]federation.Export) []*topology.Service {
	imports := make(map[topology.ServiceName]*ImportStatus, len(w.imports))
	names := make(map[topology.ServiceName]struct{}, len(w.services)+len(w.imports))
	for i := range w.imports {
		imports[w.imports[i].Service()] = &w.imports[i]
		names[w.imports[i].Service()] = struct{}{}
	}
	for name, r := range w.services {
		if !r.service.ExternalName {
			names[name] = struct{}{}
		}
	}
	offers := w.offers(exports)
	policies := w.policies(names)
	out := make([]*topology.Service, 0, len(names))
	for _, name := range slices.SortedFunc(maps.Keys(names), topology.ServiceName.Compare) {
		s := &topology.Service{Name: name, Policy: policies[name], Exported: valid[name] != nil}
		s.Drain = w.in.drains.of(name, s.Exported)
		if r := w.services[name]; r != nil {
			s.Ports, s.ClusterIPs, s.Headless, s.Endpoints = slices.Clone(r.ports), r.service.ClusterIPs, r.service.Headless, r.endpoints
		}
		if i := imports[name]; i != nil {
			s.Imported = true
			s.ClusterSetIPs = i.IPs
			s.Ports, s.OtherPorts = joinPorts(s.Ports, i.Import.Ports)
			if w.services[name] == nil {
				s.Headless = i.Import.Type == federation.Headless
			}
			s.Remotes = remotes(i, offers[name])
			s.Hosts = w.hostGroups(i)
		}
		out = append(out, s)
	}
	return out
}

// offer is what one other cluster exports under a name.
type offer struct {
	view   *federation.View
	export *federation.Export
}

// offers turns exports round: by service, in the order of the clusters.
func (w *world) offers(exports map[topology.ClusterName][]federation.Export) map[topology.ServiceName][]offer {
	out := make(map[topology.ServiceName][]offer)
	for _, v := range w.usable {
		for i := range exports[v.Cluster] {
			e := &exports[v.Cluster][i]
			out[e.Name] = append(out[e.Name], offer{v, e})
		}
	}
	return out
}

// joinPorts adds to the own ports those that only other clusters have, as far as programs can be told of them: what they can't would be withheld with
// all that the service has. Where both have a number, the import's word on the
// protocol counts: it is the same in every cluster.
func joinPorts(own []topology.Port, imported []federation.ImportPort) (ports []topology.Port, others []topology.OtherPort) {
	byNumber := make(map[portKey]topology.Port, len(own)+len(imported))
	has := make(map[bool]int) // those for TCP, and all others
	for _, p := range own {
		key := portKey{p.Protocol == topology.UDP, p.Number}
		byNumber[key] = p
		has[key.udp]++
	}
	for _, p := range imported {
		key := portKey{p.Transport == federation.UDP, p.Number}
		if _, known := byNumber[key]; !known || !carried(p.Transport) {
			other := p.Transport != federation.TCP
			if has[other] >= configstream.MaxPorts {
				continue
			}
			has[other]++
		}
		switch p.Transport {
		case federation.TCP:
			byNumber[key] = topology.Port{Name: p.Name, Number: p.Number, Protocol: p.Protocol()}
		case federation.UDP:
			byNumber[key] = topology.Port{Name: p.Name, Number: p.Number, Protocol: topology.UDP}
		case federation.SCTP: // has a name, no more
			others = append(others, topology.OtherPort{Name: p.Name, Number: p.Number, Protocol: strings.ToLower(string(p.Transport))})
		}
	}
	return slices.SortedFunc(maps.Values(byNumber), comparePorts), others
}

// portKey tells ports of a service apart.
type portKey struct {
	udp    bool
	number uint16
}

func keyOfPort(p ServicePort) portKey { return portKey{p.Transport == federation.UDP, p.Number} }

// split returns the numbers of ports in order: those that are reached over TCP, and those for datagrams.
func split(keys iter.Seq[portKey]) (tcp, udp []uint16) {
	for k := range keys {
		if k.udp {
			udp = append(udp, k.number)
		} else {
			tcp = append(tcp, k.number)
		}
	}
	slices.Sort(tcp)
	slices.Sort(udp)
	return tcp, udp
}

// comparePorts puts those that are reached over TCP first: the wire tells of the two apart, and the order is the same at its other end.
func comparePorts(a, b topology.Port) int {
	rank := func(p topology.Port) int {
		if p.Protocol == topology.UDP {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Number, b.Number))
}

// carried reports whether the mesh carries what is sent to such a port.
func carried(t federation.Transport) bool { return t == federation.TCP || t == federation.UDP }

// remotes is what other clusters say of an import: only on the ports that each exposes (KEP-1645).
func remotes(i *ImportStatus, offers []offer) []topology.Remote {
	var out []topology.Remote
	for _, o := range offers {
		r := topology.Remote{
			Cluster: o.view.Cluster, Servers: membersOf(o.view.Domain, o.export.Servers), Ready: o.export.Ready(), Total: o.export.Total(), Labels: o.export.Labels,
			Stale: o.view.Freshness != federation.Fresh || o.view.Quarantined, Drain: o.export.Drain,
		}
		for _, p := range i.Import.Ports {
			switch {
			case !slices.Contains(p.Clusters, o.view.Cluster):
			case p.Transport == federation.TCP:
				r.Ports = append(r.Ports, p.Number)
			case p.Transport == federation.UDP:
				r.UDPPorts = append(r.UDPPorts, p.Number)
			}
		}
		slices.Sort(r.Ports)
		slices.Sort(r.UDPPorts)
		if len(r.Servers) > 0 && len(r.Ports)+len(r.UDPPorts) > 0 { // else nobody could answer
			out = append(out, r)
		}
	}
	return out
}
