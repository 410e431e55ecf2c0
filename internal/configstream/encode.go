package configstream

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// The Encode functions make resources from the topology's types; Decode is their counterpart. A resource's version is
// filled in by NewWorld.

// BundleData is what is accepted of one trust domain now. Its fields are those of trust.Bundle, and mean what they mean there: the two
// convert into each other.
type BundleData struct {
	Authorities    []*x509.Certificate
	JWTAuthorities map[string]crypto.PublicKey
	Revoked        map[[32]byte]struct{}
	RevokedIDs     map[spiffeid.ID]time.Time // to the second
}

// EncodeSelf makes the resource that tells a program who it is. receiver is as ReceiverOf gives it.
func EncodeSelf(receiver string, s topology.Self) *configv1.Resource {
	return &configv1.Resource{
		Key: kindSelf + "/" + receiver,
		Body: &configv1.Resource_Self{Self: &configv1.Self{
			Cluster:     s.Cluster.String(),
			TrustDomain: s.Domain.Name(),
			Region:      s.Locality.Region,
			Zone:        s.Locality.Zone,
			Namespace:   s.Namespace,
			Workload:    s.Workload,
		}},
	}
}

// EncodeBundle makes the resource that says by which roots a trust domain is verified.
func EncodeBundle(td spiffeid.TrustDomain, b BundleData) *configv1.Resource {
	body := &configv1.Bundle{TrustDomain: td.Name()}
	for _, c := range b.Authorities {
		body.X509Authorities = append(body.X509Authorities, c.Raw)
	}
	for _, k := range sortedKeys(b.Revoked) {
		body.RevokedKeys = append(body.RevokedKeys, k[:])
	}
	for _, id := range slices.SortedFunc(maps.Keys(b.RevokedIDs), func(a, b spiffeid.ID) int { return cmp.Compare(a.String(), b.String()) }) {
		body.RevokedIds = append(body.RevokedIds, &configv1.RevokedID{SpiffeId: id.String(), BegunBy: encodeMoment(b.RevokedIDs[id])})
	}
	for _, id := range slices.Sorted(maps.Keys(b.JWTAuthorities)) {
		der, err := x509.MarshalPKIXPublicKey(b.JWTAuthorities[id])
		if err != nil {
			der = nil // a World withholds what receivers would refuse, and says so
		}
		body.JwtAuthorities = append(body.JwtAuthorities, &configv1.JWTAuthority{KeyId: id, PublicKey: der})
	}
	return &configv1.Resource{Key: kindBundle + "/" + td.Name(), Body: &configv1.Resource_Bundle{Bundle: body}}
}

// encodeMoment rounds up, so that nothing that is revoked slips through by a fraction of a second.
func encodeMoment(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	seconds := t.Unix()
	if t.Nanosecond() > 0 {
		seconds++
	}
	return max(1, seconds)
}

// EncodeGateway makes the resource of a gateway of the own cluster.
func EncodeGateway(g topology.Gateway) *configv1.Resource {
	return &configv1.Resource{Key: kindGateway + "/" + g.ID, Body: &configv1.Resource_Gateway{Gateway: encodeGateway(g)}}
}

// EncodeCluster makes the resource of a peer cluster. Its gateways are sent to gateways alone.
func EncodeCluster(c *topology.Cluster) *configv1.Resource {
	body := &configv1.Cluster{
		Name:        c.Name.String(),
		TrustDomain: c.Domain.Name(),
		Region:      c.Region,
		Link:        string(c.Link),
		RttMicros:   uint64(max(0, c.RTT) / time.Microsecond),
	}
	body.PodCidrs = texts(c.Pods)
	for _, g := range c.Gateways {
		body.Gateways = append(body.Gateways, encodeGateway(g))
	}
	return &configv1.Resource{Key: kindCluster + "/" + c.Name.String(), Body: &configv1.Resource_Cluster{Cluster: body}}
}

// EncodeService makes the resource of a service, as callers see it.
func EncodeService(s *topology.Service) *configv1.Resource {
	body := &configv1.Service{
		Namespace:     s.Name.Namespace(),
		Name:          s.Name.Name(),
		ClusterIps:    texts(s.ClusterIPs),
		ClustersetIps: texts(s.ClusterSetIPs),
		Imported:      s.Imported,
		Exported:      s.Exported,
		Headless:      s.Headless,
		Endpoints:     encodeEndpoints(s.Endpoints),
		Policy:        encodePolicy(s.Policy),
		Drain:         encodeDrain(s.Drain),
	}
	for _, p := range s.Ports {
		if p.Protocol == topology.UDP {
			body.OtherPorts = append(body.OtherPorts, &configv1.OtherPort{Name: p.Name, Port: uint32(p.Number), Protocol: string(p.Protocol)})
			continue
		}
		body.Ports = append(body.Ports, &configv1.Port{Name: p.Name, Port: uint32(p.Number), Protocol: string(p.Protocol)})
	}
	for _, p := range s.OtherPorts {
		body.OtherPorts = append(body.OtherPorts, &configv1.OtherPort{Name: p.Name, Port: uint32(p.Number), Protocol: p.Protocol})
	}
	for i := range s.Hosts {
		body.Hosts = append(body.Hosts, encodeHosts(&s.Hosts[i]))
	}
	for _, r := range s.Remotes {
		body.Remotes = append(body.Remotes, &configv1.Remote{
			Cluster:   r.Cluster.String(),
			SpiffeIds: texts(r.Servers),
			Ready:     count(r.Ready),
			Total:     count(r.Total),
			Ports:     encodeNumbers(r.Ports),
			UdpPorts:  encodeNumbers(r.UDPPorts),
			Labels:    r.Labels,
			Stale:     r.Stale,
			Drain:     encodeDrain(r.Drain),
		})
	}
	return &configv1.Resource{Key: ServiceKey(s.Name), Body: &configv1.Resource_Service{Service: body}}
}

// EncodeExport makes a row of the gateways' export table.
func EncodeExport(e *topology.Export) *configv1.Resource {
	body := &configv1.Export{
		Namespace: e.Name.Namespace(),
		Name:      e.Name.Name(),
		Ports:     encodeNumbers(e.Ports),
		UdpPorts:  encodeNumbers(e.UDPPorts),
		Audience:  texts(e.Audience),
		Endpoints: encodeEndpoints(e.Endpoints),
		Hosts:     texts(e.Hosts),
		Drill:     encodeDrill(e.Drill),
	}
	return &configv1.Resource{Key: kindExport + "/" + e.Name.String(), Body: &configv1.Resource_Export{Export: body}}
}

// EncodeInbound makes the resource that tells a sidecar or a node proxy what it serves. receiver is as ReceiverOf gives it.
func EncodeInbound(receiver string, in *topology.Inbound) *configv1.Resource {
	body := &configv1.Inbound{
		Namespace: in.Name.Namespace(), Name: in.Name.Name(), Exported: in.Exported, Audience: texts(in.Audience), Drill: encodeDrill(in.Drill),
	}
	for _, p := range in.Ports {
		port := &configv1.InboundPort{Port: uint32(p.Number), Protocol: string(p.Protocol), Targets: texts(p.Targets)}
		if p.Protocol == topology.UDP {
			body.UdpPorts = append(body.UdpPorts, port)
			continue
		}
		body.Ports = append(body.Ports, port)
	}
	for _, set := range in.Access {
		body.Access = append(body.Access, EncodeAccess(set))
	}
	for i := range in.Quotas {
		body.Quotas = append(body.Quotas, EncodeQuota(&in.Quotas[i]))
	}
	return &configv1.Resource{
		Key:  kindInbound + "/" + receiver + "/" + in.Name.String(),
		Body: &configv1.Resource_Inbound{Inbound: body},
	}
}

func encodeHosts(g *topology.HostGroup) *configv1.HostGroup {
	out := &configv1.HostGroup{Cluster: g.Cluster.String()}
	for _, p := range g.Ports {
		out.Ports = append(out.Ports, &configv1.HostPort{Name: p.Name, Port: uint32(p.Number), Target: uint32(p.Target), Protocol: p.Protocol})
	}
	for _, h := range g.Hosts {
		host := &configv1.Host{Name: h.Name, Address: h.Address.String()}
		if len(h.IPs) != 1 || h.IPs[0] != h.Address {
			host.Ips = texts(h.IPs)
		}
		out.Hosts = append(out.Hosts, host)
	}
	return out
}

func encodeGateway(g topology.Gateway) *configv1.Gateway {
	return &configv1.Gateway{
		Id: g.ID, Address: g.Address, QuicAddress: g.QUIC, TcpAddress: g.TCP, SpiffeId: g.Identity.String(), Draining: g.Draining, Zone: g.Zone,
	}
}

func encodeEndpoints(in []topology.Endpoint) []*configv1.Endpoint {
	var out []*configv1.Endpoint
	for _, e := range in {
		out = append(out, &configv1.Endpoint{
			Id:       e.ID,
			Address:  e.Address.String(),
			SpiffeId: e.Server.String(),
			Region:   e.Locality.Region,
			Zone:     e.Locality.Zone,
			Ready:    e.Ready,
			Capacity: count(e.Capacity),
			Total:    count(e.Total),
			Ports:    encodeNumbers(e.Ports),
			UdpPorts: encodeNumbers(e.UDPPorts),
			Labels:   e.Labels,
			StandIn:  e.StandIn,
		})
	}
	return out
}

func encodePolicy(p *topology.Policy) *configv1.FailoverPolicy {
	if p == nil {
		return nil
	}
	out := &configv1.FailoverPolicy{
		Name:                p.Name,
		SpillBelowPercent:   uint32(min(max(p.Spill.BelowHealthyPercent, 0), 100)),
		FailbackAfterMillis: uint64(min(max(p.Failback.After, 0), maxFailback).Milliseconds()), //nolint:gosec // G115: bounded here
		FailbackRampMillis:  uint64(min(max(p.Failback.Ramp, 0), maxFailback).Milliseconds()),  //nolint:gosec // G115: bounded here
	}
	for _, t := range p.Tiers {
		out.Tiers = append(out.Tiers, &configv1.Tier{Name: t.Name, Match: encodeSelector(t.Match), Weights: t.Weights})
	}
	for _, s := range p.Never {
		out.Never = append(out.Never, encodeSelector(s))
	}
	return out
}

func encodeSelector(s topology.Selector) *configv1.Selector {
	return &configv1.Selector{Cluster: s.Cluster, Region: s.Region, Zone: s.Zone, Labels: s.Labels}
}

func encodeNumbers(ports []uint16) []uint32 {
	var out []uint32
	for _, p := range ports {
		out = append(out, uint32(p))
	}
	return out
}

// count clamps a number of copies into what the wire carries.
func count(n int) uint32 {
	return uint32(min(max(n, 0), maxCount))
}

func texts[T fmt.Stringer](in []T) []string {
	var out []string
	for _, v := range in {
		out = append(out, v.String())
	}
	return out
}
