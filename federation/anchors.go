package federation

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/types/known/timestamppb"

	federationv1 "github.com/isthmus-mesh/isthmus/api/federation/v1"
	"github.com/isthmus-mesh/isthmus/trust"
)

// Limits of a gateway set.
const (
	maxGateways  = 64
	maxAddresses = 8 // of one gateway and one protocol
	maxHostBytes = 253
	maxCapacity  = 1 << 20
)

// Gateway is where a cluster takes connections from other clusters.
type Gateway struct {
	// ID is unique in its cluster, and the last part of its Identity.
	ID string
	// QUIC and TCP are host:port, each reachable from other clusters. A host may be a name.
	QUIC, TCP []string
	Identity  spiffeid.ID
	// Capacity is a weight relative to the cluster's other gateways; 0 counts as 1.
	Capacity uint32
	// Draining gateways finish what they carry and take nothing new.
	Draining bool
	Zone     string // empty: not known
}

// encodeGateways makes a GatewaySet, or nil when there is none to tell of.
func encodeGateways(domain spiffeid.TrustDomain, gateways []Gateway, pods []netip.Prefix) (*record, error) {
	if len(gateways) == 0 {
		return nil, nil
	}
	ordered := slices.Clone(gateways)
	slices.SortFunc(ordered, func(a, b Gateway) int {
		switch {
		case a.ID < b.ID:
			return -1
		case a.ID > b.ID:
			return 1
		}
		return 0
	})
	p := &federationv1.GatewaySet{TrustDomain: domain.Name()}
	for _, g := range ordered {
		p.Gateways = append(p.Gateways, &federationv1.GatewayInfo{
			Id: g.ID, QuicAddresses: g.QUIC, TcpAddresses: g.TCP, SpiffeId: g.Identity.String(),
			Capacity: g.Capacity, Draining: g.Draining, Zone: g.Zone,
		})
	}
	for _, prefix := range pods {
		p.PodCidrs = append(p.PodCidrs, prefix.String())
	}
	r, err := sealMessage(RecordGatewaySet, p)
	if err != nil {
		return nil, err
	}
	// What peers would refuse is not published.
	if _, _, err := decodeGateways(r, domain); err != nil {
		return nil, err
	}
	return r, nil
}

func decodeGateways(r *record, domain spiffeid.TrustDomain) (gateways []Gateway, pods []netip.Prefix, err error) {
	p := new(federationv1.GatewaySet)
	if err = unmarshal(r, RecordGatewaySet, p, max(maxGateways, maxPodCIDRs)); err != nil {
		return nil, nil, err
	}
	if p.GetTrustDomain() != domain.Name() {
		return nil, nil, refuse(WrongDomain, "%s of %q, named by a head of %q", r.kind, p.GetTrustDomain(), domain.Name())
	}
	gateways = make([]Gateway, 0, len(p.GetGateways()))
	for _, i := range p.GetGateways() {
		g, bad := decodeGateway(i, domain)
		if bad != nil {
			return nil, nil, bad
		}
		if slices.ContainsFunc(gateways, func(o Gateway) bool { return o.ID == g.ID }) {
			return nil, nil, refuse(Malformed, "gateway %q twice", g.ID)
		}
		gateways = append(gateways, g)
	}
	pods, err = decodePodCIDRs(p.GetPodCidrs())
	return gateways, pods, err
}

func decodeGateway(p *federationv1.GatewayInfo, domain spiffeid.TrustDomain) (Gateway, error) {
	g := Gateway{
		ID: p.GetId(), QUIC: p.GetQuicAddresses(), TCP: p.GetTcpAddresses(),
		Capacity: p.GetCapacity(), Draining: p.GetDraining(), Zone: p.GetZone(),
	}
	id, err := spiffeid.FromString(p.GetSpiffeId())
	if err != nil {
		return Gateway{}, refuse(Malformed, "gateway %q: %v", g.ID, err)
	}
	if id.TrustDomain() != domain {
		return Gateway{}, refuse(WrongDomain, "gateway %q: %q is not of %q", g.ID, p.GetSpiffeId(), domain.Name())
	}
	if name, ok := trust.ParseGateway(id); !ok || name != g.ID || len(g.ID) > maxNameBytes {
		return Gateway{}, refuse(Malformed, "gateway %q: %q is not its identity", g.ID, p.GetSpiffeId())
	}
	g.Identity = id
	if len(g.QUIC) > maxAddresses || len(g.TCP) > maxAddresses || len(g.Zone) > maxNameBytes || g.Capacity > maxCapacity {
		return Gateway{}, refuse(TooLarge, "gateway %q: more addresses than %d, a longer zone than %d or more capacity than %d",
			g.ID, maxAddresses, maxNameBytes, maxCapacity)
	}
	for _, a := range slices.Concat(g.QUIC, g.TCP) {
		if !isHostPort(a) {
			return Gateway{}, refuse(Malformed, "gateway %q: address %q is not host:port", g.ID, a)
		}
	}
	return g, nil
}

func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || len(host) > maxHostBytes || !isPrintable(host) {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// anchors is TrustBundle, parsed.
type anchors struct {
	sequence uint64
	bundle   trust.Bundle // without revocations: those are in the Head
	notAfter time.Time
}

// encodeBundle makes a TrustBundle. It ends with the last of its roots.
func encodeBundle(domain spiffeid.TrustDomain, bundle trust.Bundle, sequence uint64) (*record, error) {
	document, err := trust.MarshalBundle(domain, bundle, sequence, 0)
	if err != nil {
		return nil, refuse(Malformed, "%v", err)
	}
	var last time.Time
	for _, c := range bundle.Authorities {
		if c.NotAfter.After(last) {
			last = c.NotAfter
		}
	}
	return sealMessage(RecordTrustBundle, &federationv1.TrustBundle{
		TrustDomain: domain.Name(), Sequence: sequence, SpiffeBundle: document, NotAfter: timestamppb.New(last),
	})
}

func decodeBundle(r *record, domain spiffeid.TrustDomain) (anchors, error) {
	p := new(federationv1.TrustBundle)
	if err := unmarshal(r, RecordTrustBundle, p, 0); err != nil {
		return anchors{}, err
	}
	if p.GetTrustDomain() != domain.Name() {
		return anchors{}, refuse(WrongDomain, "%s of %q, named by a head of %q", r.kind, p.GetTrustDomain(), domain.Name())
	}
	notAfter, err := decodeTime(r.kind, "not_after", p.GetNotAfter())
	if err != nil {
		return anchors{}, err
	}
	bundle, sequence, err := trust.ParseBundle(domain, p.GetSpiffeBundle())
	if err != nil {
		return anchors{}, refuse(Malformed, "%s: %v", r.kind, err)
	}
	if sequence != p.GetSequence() {
		return anchors{}, refuse(Malformed, "%s: sequence %d outside, %d inside", r.kind, p.GetSequence(), sequence)
	}
	return anchors{sequence: sequence, bundle: bundle, notAfter: notAfter}, nil
}
