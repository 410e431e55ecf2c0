package control

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// Status returns the cluster at a glance.
func (c *Control) Status() admin.Status {
	missing := c.cfg.Checks.Missing()
	s := admin.Status{
		Cluster: c.cfg.Cluster.String(), TrustDomain: c.cfg.Domain.Name(), Region: c.cfg.Region,
		Version: c.cfg.Version, Started: c.started, Now: c.cfg.Now(), ClusterSetCIDR: c.cfg.ClusterSetCIDR.String(), Ready: len(missing) == 0, Missing: missing,
		Manifests: c.manifests(), Peers: []admin.Peer{}, Links: []admin.Link{}, Proxies: c.proxies(), Overloads: c.served.overloads(),
	}
	for _, root := range c.authority.Roots() {
		if root.NotAfter.After(s.RootExpires) {
			s.RootExpires = root.NotAfter
		}
	}
	if p := c.present.Load(); p != nil {
		s.Peers, s.Links = p.peers(), p.links()
		s.Services, s.Exports, s.Imports = len(p.world.services), len(p.world.own.Exports), len(p.world.imports)
	}
	return s
}

// manifests says whether what is declared is in force.
func (c *Control) manifests() admin.ManifestState {
	p := c.present.Load()
	if p == nil {
		return admin.ManifestState{}
	}
	out := admin.ManifestState{Source: p.world.in.objects.Source, Objects: p.world.in.objects.Len(), Loaded: p.world.in.objects.Loaded}
	for _, problem := range p.status.Problems {
		out.Problems = append(out.Problems, admin.Problem{File: problem.File, Line: problem.Line, Object: problem.Object, Reason: problem.Reason, Note: problem.Note})
	}
	return out
}

func (p *present) services() []admin.Service {
	out := []admin.Service{}
	for _, s := range p.world.callable {
		r := p.world.services[s.Name]
		if r == nil {
			continue
		}
		out = append(out, admin.Service{
			Namespace: s.Name.Namespace(), Name: s.Name.Name(), Ports: portTexts(r.ports),
			Endpoints: r.copies, Ready: r.ready(), Exported: s.Exported, Imported: s.Imported,
		})
	}
	return out
}

func portTexts(ports []topology.Port) []string {
	out := make([]string, 0, len(ports))
	for _, p := range ports {
		out = append(out, fmt.Sprintf("%d/%s", p.Number, p.Protocol))
	}
	return out
}

func (p *present) endpoints() []admin.Endpoint {
	out := []admin.Endpoint{}
	for _, s := range p.world.callable {
		for _, e := range s.Endpoints {
			ready := 0
			if e.Ready {
				ready = e.Capacity
			}
			out = append(out, admin.Endpoint{
				Service: s.Name.String(), Cluster: p.world.in.self.Cluster.String(), ID: e.ID, Address: e.Address.String(),
				SPIFFEID: []string{e.Server.String()}, Zone: e.Locality.Zone, Ready: ready, Capacity: e.Capacity, StandIn: e.StandIn,
			})
		}
		for _, r := range s.Remotes {
			remote := admin.Endpoint{
				Service: s.Name.String(), Cluster: r.Cluster.String(), SPIFFEID: []string{},
				Ready: r.Ready, Capacity: r.Ready, Stale: r.Stale,
			}
			for _, id := range r.Servers {
				remote.SPIFFEID = append(remote.SPIFFEID, id.String())
			}
			out = append(out, remote)
		}
	}
	return out
}

func (p *present) peers() []admin.Peer {
	out := []admin.Peer{}
	for _, peer := range p.world.peers {
		a := admin.Peer{
			Cluster: peer.Cluster.String(), TrustDomain: peer.Domain.Name(), State: string(federation.Waiting), Bus: "inbound",
			RootFingerprint: peer.RootFingerprint, BusKey: peer.BusKey, BusURLs: peer.BusURLs,
			PodCIDRs: texts(peer.PodCIDRs), Namespaces: peer.Namespaces,
		}
		if state := p.buses[a.Cluster]; state != nil {
			a.Bus = state()
		}
		if v := p.views.Cluster(peer.Cluster); v != nil {
			a.Region, a.State, a.Reason = v.Region, v.State(), v.Reason
			a.Epoch, a.Seq, a.Issued = v.Epoch, v.Seq, v.Issued
			a.Gateways, a.Services = len(v.Gateways), len(v.Exports)
		}
		if why, revoked := p.revokes(peer); revoked {
			a.State, a.Reason = "Revoked", why
		}
		out = append(out, a)
	}
	return out
}

// revokes tells whether nobody of a peer passes, because it was revoked here, and why.
func (p *present) revokes(peer ClusterPeer) (why string, revoked bool) {
	set := p.world.in.revoked
	if r, ok := set.find(peer.Domain.Name()); ok {
		return cmp.Or(r.Reason, "revoked at "+r.At.UTC().Format(time.RFC3339)), true
	}
	v := p.views.Cluster(peer.Cluster)
	if v == nil || v.Domain != peer.Domain || len(v.Bundle.Authorities) == 0 {
		return "", false
	}
	for _, root := range v.Bundle.Authorities {
		r, ok := set.find(trust.KeyID(root))
		if !ok {
			return "", false
		}
		why = cmp.Or(r.Reason, "the key of its root is revoked")
	}
	return why, true
}

func texts[T fmt.Stringer](in []T) []string {
	var out []string
	for _, v := range in {
		out = append(out, v.String())
	}
	return out
}

func (p *present) links() []admin.Link {
	out := []admin.Link{}
	for _, l := range p.linkDetails() {
		out = append(out, l.Link)
	}
	return out
}

func (p *present) linkDetails() []admin.LinkDetail {
	out := []admin.LinkDetail{}
	for _, l := range p.fleet.reports {
		a := admin.Link{
			Gateway: l.gateway, Cluster: l.cluster.String(), State: string(l.state), Connections: l.connections,
			RTT: l.rtt, Detail: l.detail, Reported: l.at, Transport: l.transport, Why: l.why,
		}
		carriers := notNil(l.carriers)
		if !l.connected { // what it said last says nothing of now
			a.Detail = fmt.Sprintf("the gateway is not connected; it said %s at %s", a.State, l.at.UTC().Format(time.TimeOnly))
			a.State, a.Connections, a.RTT, a.Transport, a.Why = "unknown", 0, 0, "", ""
			carriers = []admin.Carrier{}
		}
		out = append(out, admin.LinkDetail{Link: a, Carriers: carriers})
	}
	return out
}

func (p *present) exports() []admin.Export {
	out := []admin.Export{}
	for _, e := range p.status.Exports {
		a := admin.Export{
			Namespace: e.Export.Namespace, Name: e.Export.Name, Ports: []string{}, Conditions: conditionsOf(e.Conditions),
		}
		if r := p.world.services[e.Export.Service]; r != nil {
			a.Ports = portTexts(r.ports)
		}
		for _, c := range e.Export.Audience {
			a.Audience = append(a.Audience, c.String())
		}
		out = append(out, a)
	}
	return out
}

func (p *present) imports() []admin.Import {
	out := []admin.Import{}
	for _, i := range p.status.Imports {
		a := admin.Import{
			Namespace: i.Service().Namespace(), Name: i.Service().Name(), Type: string(i.Import.Type),
			IPs: []string{}, Ports: []string{}, Clusters: []string{}, Conditions: conditionsOf(i.Conditions),
		}
		for _, ip := range i.IPs {
			a.IPs = append(a.IPs, ip.String())
		}
		for _, port := range i.Import.Ports {
			protocol := string(port.Protocol())
			if port.Transport != federation.TCP {
				protocol = strings.ToLower(string(port.Transport))
			}
			a.Ports = append(a.Ports, fmt.Sprintf("%d/%s", port.Number, protocol))
		}
		for _, c := range i.Import.Clusters {
			a.Clusters = append(a.Clusters, c.String())
		}
		out = append(out, a)
	}
	return out
}

func conditionsOf(in []Condition) []admin.Condition {
	out := make([]admin.Condition, 0, len(in))
	for _, c := range in {
		out = append(out, admin.Condition{Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message})
	}
	return out
}

// proxies returns every program that has joined or is connected, ordered by program and name.
func (c *Control) proxies() []admin.Proxy {
	byReceiver, issued := make(map[string]admin.Proxy), c.fleet.issuedUntil()
	for receiver, said := range c.fleet.programs() {
		program, name := cutProgram(receiver)
		p := admin.Proxy{Program: program, Name: name, SPIFFEID: said.id.String(), Version: said.version, Admin: said.admin, Since: said.since, SVIDEnds: issued[receiver]}
		if said.id.IsZero() {
			p.SPIFFEID = c.expectedID(program, name)
		}
		byReceiver[receiver] = p
	}
	for _, s := range c.stream.Sessions() {
		p, ok := byReceiver[s.Receiver]
		if !ok {
			continue // connected at this moment
		}
		p.Connected, p.Since, p.Services = true, s.Since, nil
		for _, name := range s.Services() {
			p.Services = append(p.Services, name.String())
		}
		byReceiver[s.Receiver] = p
	}
	out := slices.Collect(maps.Values(byReceiver))
	slices.SortFunc(out, func(a, b admin.Proxy) int {
		return cmp.Or(cmp.Compare(a.Program, b.Program), cmp.Compare(a.Name, b.Name))
	})
	return notNil(out)
}

// expectedID is the identity of a gateway or node proxy that has not been heard since control started.
func (c *Control) expectedID(program, name string) string {
	id, err := trust.NodeID(c.cfg.Domain, name)
	if program == configstream.ProgramGateway {
		id, err = trust.GatewayID(c.cfg.Domain, name)
	}
	if err != nil {
		return ""
	}
	return id.String()
}
