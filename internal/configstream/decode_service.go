package configstream

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

func decodeService(b *configv1.Service) (*topology.Service, error) {
	s := &topology.Service{Imported: b.GetImported(), Exported: b.GetExported(), Headless: b.GetHeadless()}
	var err error
	if s.Name, err = topology.NewServiceName(b.GetNamespace(), b.GetName()); err != nil {
		return nil, err
	}
	if err = cmp.Or(atMost("ports", len(b.GetPorts()), maxPorts), atMost("other ports", len(b.GetOtherPorts()), maxPorts)); err != nil {
		return nil, err
	}
	for _, bp := range b.GetPorts() {
		p := topology.Port{Name: bp.GetName(), Protocol: topology.Protocol(bp.GetProtocol())}
		p.Number, err = decodeNumber(bp.GetPort())
		if err = cmp.Or(err, checkProtocol(p.Protocol), checkTexts(p.Name)); err != nil {
			return nil, err
		}
		s.Ports = append(s.Ports, p)
	}
	for _, bp := range b.GetOtherPorts() {
		p := topology.OtherPort{Name: bp.GetName(), Protocol: bp.GetProtocol()}
		p.Number, err = decodeNumber(bp.GetPort())
		if err = cmp.Or(err, checkTexts(p.Name, p.Protocol)); err != nil {
			return nil, err
		}
		if p.Protocol == string(topology.UDP) {
			s.Ports = append(s.Ports, topology.Port{Name: p.Name, Number: p.Number, Protocol: topology.UDP})
			continue
		}
		s.OtherPorts = append(s.OtherPorts, p)
	}
	if s.ClusterIPs, err = decodeIPs(b.GetClusterIps()); err != nil {
		return nil, err
	}
	if s.ClusterSetIPs, err = decodeIPs(b.GetClustersetIps()); err != nil {
		return nil, err
	}
	if s.Endpoints, err = decodeEndpoints(b.GetEndpoints()); err != nil {
		return nil, err
	}
	if s.Remotes, err = decodeRemotes(b.GetRemotes()); err != nil {
		return nil, err
	}
	if s.Hosts, err = decodeHosts(b.GetHosts()); err != nil {
		return nil, err
	}
	if s.Policy, err = decodePolicy(b.GetPolicy()); err != nil {
		return nil, err
	}
	s.Drain, err = decodeDrain(b.GetDrain())
	return s, err
}

func decodeHosts(in []*configv1.HostGroup) ([]topology.HostGroup, error) {
	if err := atMost("host groups", len(in), maxRemotes); err != nil {
		return nil, err
	}
	var out []topology.HostGroup
	for _, b := range in {
		var g topology.HostGroup
		var err error
		if g.Cluster, err = topology.ParseClusterName(b.GetCluster()); err != nil {
			return nil, err
		}
		if err = cmp.Or(atMost("ports", len(b.GetPorts()), maxPorts), atMost("hosts", len(b.GetHosts()), maxHosts)); err != nil {
			return nil, fmt.Errorf("hosts of %s: %w", g.Cluster, err)
		}
		for _, bp := range b.GetPorts() {
			p := topology.HostPort{Name: bp.GetName(), Protocol: bp.GetProtocol()}
			p.Number, err = decodeNumber(bp.GetPort())
			if err == nil {
				p.Target, err = decodeNumber(bp.GetTarget())
			}
			if err = cmp.Or(err, checkTexts(p.Name, p.Protocol)); err != nil {
				return nil, fmt.Errorf("hosts of %s: %w", g.Cluster, err)
			}
			g.Ports = append(g.Ports, p)
		}
		for _, bh := range b.GetHosts() {
			h, err := decodeHost(bh)
			if err != nil {
				return nil, fmt.Errorf("hosts of %s: %w", g.Cluster, err)
			}
			g.Hosts = append(g.Hosts, h)
		}
		out = append(out, g)
	}
	return out, nil
}

func decodeHost(b *configv1.Host) (h topology.Host, err error) {
	h.Name = b.GetName()
	if err = checkTexts(h.Name); err != nil {
		return h, err
	}
	if h.Name == "" || strings.ContainsAny(h.Name, ". ") {
		return h, fmt.Errorf("host %q: want one DNS label", clip(h.Name))
	}
	own, err := decodeIPs([]string{b.GetAddress()})
	if err != nil {
		return h, err
	}
	h.Address, h.IPs = own[0], own
	if len(b.GetIps()) > 0 {
		h.IPs, err = decodeIPs(b.GetIps())
	}
	return h, err
}

func decodeIPs(in []string) ([]netip.Addr, error) { return decodeAddrs(in, maxIPs) }

func decodeAddrs(in []string, limit int) ([]netip.Addr, error) {
	if err := atMost("addresses", len(in), limit); err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, s := range in {
		a, err := netip.ParseAddr(s)
		if err != nil || a.String() != s || a.Zone() != "" {
			return nil, fmt.Errorf("address %q: want an IP address in its canonical form", clip(s))
		}
		out = append(out, a)
	}
	return out, nil
}

func decodeEndpoints(in []*configv1.Endpoint) ([]topology.Endpoint, error) {
	if err := atMost("endpoints", len(in), maxEndpoints); err != nil {
		return nil, err
	}
	seen := make(map[string]bool, len(in))
	var out []topology.Endpoint
	for _, b := range in {
		e, err := decodeEndpoint(b)
		if err == nil && seen[e.ID] {
			err = errors.New("listed twice")
		}
		if err != nil {
			return nil, fmt.Errorf("endpoint %q: %w", clip(b.GetId()), err)
		}
		seen[e.ID] = true
		out = append(out, e)
	}
	return out, nil
}

func decodeEndpoint(b *configv1.Endpoint) (topology.Endpoint, error) {
	e := topology.Endpoint{
		ID:       b.GetId(),
		Locality: topology.Locality{Region: b.GetRegion(), Zone: b.GetZone()},
		Labels:   b.GetLabels(),
		Ready:    b.GetReady(),
		StandIn:  b.GetStandIn(),
	}
	if e.ID == "" {
		return e, errors.New("no id")
	}
	var err error
	if e.Address, err = decodeAddrPort(b.GetAddress()); err != nil {
		return e, err
	}
	if e.Server, err = decodeID(b.GetSpiffeId()); err != nil {
		return e, err
	}
	if e.Ports, err = decodeNumbers(b.GetPorts()); err != nil {
		return e, err
	}
	if e.UDPPorts, err = decodeNumbers(b.GetUdpPorts()); err != nil {
		return e, err
	}
	if e.Capacity, err = decodeCount("capacity", b.GetCapacity()); err != nil {
		return e, err
	}
	if e.Total, err = decodeCount("total", b.GetTotal()); err != nil {
		return e, err
	}
	if err := checkTexts(e.ID, e.Locality.Region, e.Locality.Zone); err != nil {
		return e, err
	}
	return e, checkLabels(e.Labels)
}

func decodeRemotes(in []*configv1.Remote) ([]topology.Remote, error) {
	if err := atMost("remotes", len(in), maxRemotes); err != nil {
		return nil, err
	}
	seen := make(map[topology.ClusterName]bool, len(in))
	var out []topology.Remote
	for _, b := range in {
		r, err := decodeRemote(b)
		if err == nil && seen[r.Cluster] {
			err = errors.New("listed twice")
		}
		if err != nil {
			return nil, fmt.Errorf("remote %q: %w", clip(b.GetCluster()), err)
		}
		seen[r.Cluster] = true
		out = append(out, r)
	}
	return out, nil
}

func decodeRemote(b *configv1.Remote) (topology.Remote, error) {
	r := topology.Remote{Labels: b.GetLabels(), Stale: b.GetStale()}
	var err error
	if r.Cluster, err = topology.ParseClusterName(b.GetCluster()); err != nil {
		return r, err
	}
	if err = atMost("spiffe_ids", len(b.GetSpiffeIds()), maxServers); err != nil {
		return r, err
	}
	for _, s := range b.GetSpiffeIds() {
		var id spiffeid.ID
		if id, err = decodeID(s); err != nil {
			return r, err
		}
		r.Servers = append(r.Servers, id)
	}
	if r.Ports, err = decodeNumbers(b.GetPorts()); err != nil {
		return r, err
	}
	if r.UDPPorts, err = decodeNumbers(b.GetUdpPorts()); err != nil {
		return r, err
	}
	if r.Ready, err = decodeCount("ready", b.GetReady()); err != nil {
		return r, err
	}
	if r.Total, err = decodeCount("total", b.GetTotal()); err != nil {
		return r, err
	}
	if r.Drain, err = decodeDrain(b.GetDrain()); err != nil {
		return r, err
	}
	return r, checkLabels(r.Labels)
}

func decodePolicy(b *configv1.FailoverPolicy) (*topology.Policy, error) {
	if b == nil {
		return nil, nil //nolint:nilnil // no policy is the default order, and no error
	}
	p := &topology.Policy{Name: b.GetName()}
	if err := checkTexts(p.Name); err != nil {
		return nil, err
	}
	if err := atMost("tiers", len(b.GetTiers()), maxTiers); err != nil {
		return nil, err
	}
	if err := atMost("never", len(b.GetNever()), maxNever); err != nil {
		return nil, err
	}
	for _, bt := range b.GetTiers() {
		match, err := decodeSelector(bt.GetMatch())
		if err != nil {
			return nil, err
		}
		if err := checkTexts(bt.GetName()); err != nil {
			return nil, err
		}
		if err := atMost("weights", len(bt.GetWeights()), maxRemotes); err != nil {
			return nil, err
		}
		for c := range bt.GetWeights() {
			if err := checkTexts(c); err != nil {
				return nil, err
			}
		}
		p.Tiers = append(p.Tiers, topology.Tier{Name: bt.GetName(), Match: match, Weights: bt.GetWeights()})
	}
	if err := decodeMoves(p, b); err != nil {
		return nil, err
	}
	for _, bs := range b.GetNever() {
		s, err := decodeSelector(bs)
		if err != nil {
			return nil, err
		}
		p.Never = append(p.Never, s)
	}
	return p, nil
}

// decodeMoves sets when a policy moves requests, and how fast.
func decodeMoves(p *topology.Policy, b *configv1.FailoverPolicy) error {
	if b.GetSpillBelowPercent() > 100 {
		return fmt.Errorf("spill_below_percent %d: want at most 100", b.GetSpillBelowPercent())
	}
	p.Spill.BelowHealthyPercent = int(b.GetSpillBelowPercent())
	for _, f := range []struct {
		name string
		ms   uint64
		to   *time.Duration
	}{
		{"failback_after_millis", b.GetFailbackAfterMillis(), &p.Failback.After},
		{"failback_ramp_millis", b.GetFailbackRampMillis(), &p.Failback.Ramp},
	} {
		if f.ms > uint64(maxFailback/time.Millisecond) {
			return fmt.Errorf("%s %d: want at most %v", f.name, f.ms, maxFailback)
		}
		*f.to = time.Duration(f.ms) * time.Millisecond
	}
	return nil
}

func decodeSelector(b *configv1.Selector) (topology.Selector, error) {
	s := topology.Selector{Cluster: b.GetCluster(), Region: b.GetRegion(), Zone: b.GetZone(), Labels: b.GetLabels()}
	if err := checkTexts(s.Cluster, s.Region, s.Zone); err != nil {
		return s, err
	}
	return s, checkLabels(s.Labels)
}
