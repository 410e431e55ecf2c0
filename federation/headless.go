package federation

import (
	"fmt"
	"net/netip"
	"slices"

	federationv1 "github.com/isthmus-mesh/isthmus/api/federation/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// MaxEndpoints is how many copies of a headless service are told of. Those past it are not known by name elsewhere.
const MaxEndpoints = maxEndpoints

func encodeEndpoints(in []Endpoint) []*federationv1.HeadlessEndpoint {
	var out []*federationv1.HeadlessEndpoint
	for _, e := range in {
		p := &federationv1.HeadlessEndpoint{Hostname: e.Hostname, Zone: e.Zone}
		for _, a := range e.Addresses {
			p.Addresses = append(p.Addresses, a.AsSlice())
		}
		out = append(out, p)
	}
	return out
}

// decodeEndpoints reads the copies of a service. Of one that isn't headless there is nothing to be told.
func decodeEndpoints(t Type, in []*federationv1.HeadlessEndpoint) ([]Endpoint, error) {
	if len(in) > 0 && t != Headless {
		return nil, fmt.Errorf("%d endpoints, and its type is %s", len(in), t)
	}
	var out []Endpoint
	seen := make(map[netip.Addr]bool, len(in))
	for i, p := range in {
		e := Endpoint{Hostname: p.GetHostname(), Zone: p.GetZone()}
		if e.Hostname != "" {
			if _, err := topology.ParseClusterName(e.Hostname); err != nil { // the same form: one RFC 1123 label
				return nil, fmt.Errorf("host name %q is not an RFC 1123 label", e.Hostname)
			}
		}
		if len(e.Zone) > maxNameBytes {
			return nil, fmt.Errorf("endpoint %d: zone of %d bytes; the limit is %d", i, len(e.Zone), maxNameBytes)
		}
		for _, b := range p.GetAddresses() {
			a, ok := netip.AddrFromSlice(b)
			if !ok || a.Is4In6() || !callable(a) {
				return nil, fmt.Errorf("endpoint %d: %x is not the address of a pod", i, b)
			}
			if slices.ContainsFunc(e.Addresses, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
				return nil, fmt.Errorf("endpoint %d: a second address of one family", i)
			}
			e.Addresses = append(e.Addresses, a)
		}
		if len(e.Addresses) == 0 || seen[e.Addresses[0]] {
			return nil, fmt.Errorf("endpoint %d: no address, or one that stands there twice", i)
		}
		if i > 0 && out[i-1].Addresses[0].Compare(e.Addresses[0]) > 0 {
			return nil, fmt.Errorf("endpoint %d is out of order", i) // one form of each record
		}
		seen[e.Addresses[0]] = true
		out = append(out, e)
	}
	return out, nil
}

// callable reports whether an address may be that of a pod. Loopback is: a cluster of plain processes may live there.
func callable(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// decodeTargets returns where the copies listen; nil where that is on the ports themselves.
func decodeTargets(t Type, ports []*federationv1.ServicePort) ([]uint16, error) {
	other := false
	out := make([]uint16, 0, len(ports))
	for _, p := range ports {
		target := p.GetTarget()
		switch {
		case target == 0:
			target = p.GetPort()
		case t != Headless || target > 65535 || target == p.GetPort():
			return nil, fmt.Errorf("port %d with target %d", p.GetPort(), target)
		default:
			other = true
		}
		out = append(out, uint16(target)) //nolint:gosec // G115: checked above, and by decodeExport
	}
	if !other {
		return nil, nil
	}
	return out, nil
}

// maxPodCIDRs bounds the prefixes of a member's pods.
const maxPodCIDRs = 64

func decodePodCIDRs(in []string) ([]netip.Prefix, error) {
	if len(in) > maxPodCIDRs {
		return nil, refuse(TooLarge, "%d prefixes of pods; the limit is %d", len(in), maxPodCIDRs)
	}
	var out []netip.Prefix
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Masked().String() != s || p.Addr().Is4In6() {
			return nil, refuse(Malformed, "%q is not a masked prefix", s)
		}
		out = append(out, p)
	}
	return out, nil
}

// CondensePodCIDRs returns prefixes that hold all of those given, ordered, and no more of them than a member may tell of. Where there are
// more, neighbours become one shorter prefix, which may hold addresses that are nobody's.
func CondensePodCIDRs(in []netip.Prefix) []netip.Prefix {
	out := slices.Clone(in)
	for shorter := 0; ; shorter++ {
		for i, p := range out {
			if shorter > 0 && p.Bits() > 1 {
				p = netip.PrefixFrom(p.Addr(), p.Bits()-1)
			}
			out[i] = p.Masked()
		}
		out = union(out)
		if len(out) <= maxPodCIDRs {
			return out
		}
	}
}

// union joins prefixes that lie in each other, or beside each other as the halves of one.
func union(in []netip.Prefix) []netip.Prefix {
	slices.SortFunc(in, func(a, b netip.Prefix) int { return a.Compare(b) })
	var out []netip.Prefix
	for _, p := range in {
		for {
			n := len(out)
			if n == 0 {
				break
			}
			last := out[n-1]
			if last.Bits() <= p.Bits() && last.Contains(p.Addr()) {
				p = last
				out = out[:n-1]
				break
			}
			parent := netip.PrefixFrom(p.Addr(), max(p.Bits()-1, 0)).Masked()
			if last.Bits() != p.Bits() || p.Bits() == 0 || !parent.Contains(last.Addr()) {
				break
			}
			p = parent
			out = out[:n-1]
		}
		out = append(out, p)
	}
	return out
}
