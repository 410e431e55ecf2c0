package configstream

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// What one resource may hold at most. Kubernetes allows no more of what comes from there; the rest is far above any use.
const (
	maxPorts       = MaxPorts
	maxIPs         = 16
	maxEndpoints   = 10_000
	maxRemotes     = 1_000
	maxServers     = 1_000
	maxAudience    = 1_000
	maxGateways    = 256
	maxTargets     = 10_000
	maxHosts       = 10_000
	maxPrefixes    = 256
	maxTiers       = 64
	maxNever       = 64
	maxFailback    = time.Hour
	maxLabels      = 128
	maxText        = 1024 // names, regions, addresses, label keys and values, SPIFFE IDs have a limit of their own
	maxAuthorities = 64
	maxCertificate = 16 << 10 // DER bytes
	maxRevoked     = 10_000   // keys, and as many IDs
	maxJWTKeys     = 64
	maxKeyID       = 256  // bytes
	maxPublicKey   = 4096 // DER bytes: RSA keys of up to 16,384 bits
	maxBegunBy     = 1 << 40
	maxCount       = 1 << 30 // copies
	maxRTT         = time.Hour
)

// errMalformed is what every decoding error is.
var errMalformed = errors.New("malformed resource")

// decoded is a resource in the topology's terms: one field is set, or none when this program does not know the kind.
type decoded struct {
	self    *topology.Self
	domain  spiffeid.TrustDomain // of bundle
	bundle  *BundleData
	gateway *topology.Gateway
	cluster *topology.Cluster
	service *topology.Service
	export  *topology.Export
	inbound *topology.Inbound
}

// decode turns r into the topology's terms and checks all of it: names, addresses, numbers, limits, and that the key says
// the same as the body. A kind that this program does not know is no error: control may be newer.
func decode(r *configv1.Resource) (decoded, error) {
	d, key, err := decodeBody(r)
	if err == nil && key != "" && key != r.GetKey() {
		err = fmt.Errorf("its body is %q", key)
	}
	if err != nil {
		return decoded{}, fmt.Errorf("%w %q: %w", errMalformed, clip(r.GetKey()), err)
	}
	return d, nil
}

// decodeBody returns the value and the key that such a value must have; an empty key when any will do.
func decodeBody(r *configv1.Resource) (d decoded, key string, err error) {
	if k := r.GetKey(); k == "" || len(k) > MaxKey || !utf8.ValidString(k) {
		return d, "", fmt.Errorf("want a key of 1 to %d bytes of UTF-8", MaxKey)
	}
	kind, rest, _ := strings.Cut(r.GetKey(), "/")
	switch b := r.GetBody().(type) {
	case *configv1.Resource_Self:
		if err = checkReceiver(rest); err == nil {
			d.self, err = decodeSelf(b.Self)
		}
		return d, kindSelf + "/" + rest, err
	case *configv1.Resource_Bundle:
		d.domain, d.bundle, err = decodeBundle(b.Bundle)
		return d, kindBundle + "/" + d.domain.Name(), err
	case *configv1.Resource_Gateway:
		if d.gateway, err = decodeGateway(b.Gateway); err != nil {
			return d, "", err
		}
		return d, kindGateway + "/" + d.gateway.ID, nil
	case *configv1.Resource_Cluster:
		if d.cluster, err = decodeCluster(b.Cluster); err != nil {
			return d, "", err
		}
		return d, kindCluster + "/" + d.cluster.Name.String(), nil
	case *configv1.Resource_Service:
		if d.service, err = decodeService(b.Service); err != nil {
			return d, "", err
		}
		return d, ServiceKey(d.service.Name), nil
	case *configv1.Resource_Export:
		if d.export, err = decodeExport(b.Export); err != nil {
			return d, "", err
		}
		return d, kindExport + "/" + d.export.Name.String(), nil
	case *configv1.Resource_Inbound:
		receiver := rest[:max(0, strings.LastIndexByte(rest, '/'))]
		if err = checkReceiver(receiver); err != nil {
			return d, "", err
		}
		if d.inbound, err = decodeInbound(b.Inbound); err != nil {
			return d, "", err
		}
		return d, kindInbound + "/" + receiver + "/" + d.inbound.Name.String(), nil
	default:
		switch kind {
		case kindSelf, kindBundle, kindGateway, kindCluster, kindService, kindExport, kindInbound:
			return d, "", errors.New("no body")
		}
		return d, "", nil
	}
}

func decodeSelf(b *configv1.Self) (*topology.Self, error) {
	var s topology.Self
	var err error
	if s.Cluster, err = topology.ParseClusterName(b.GetCluster()); err != nil {
		return nil, err
	}
	if s.Domain, err = decodeDomain(b.GetTrustDomain()); err != nil {
		return nil, err
	}
	s.Locality = topology.Locality{Region: b.GetRegion(), Zone: b.GetZone()}
	s.Namespace, s.Workload = b.GetNamespace(), b.GetWorkload()
	return &s, checkTexts(b.GetRegion(), b.GetZone(), b.GetNamespace(), b.GetWorkload())
}

func decodeBundle(b *configv1.Bundle) (spiffeid.TrustDomain, *BundleData, error) {
	td, err := decodeDomain(b.GetTrustDomain())
	if err != nil {
		return td, nil, err
	}
	if err = atMost("x509_authorities", len(b.GetX509Authorities()), maxAuthorities); err != nil {
		return td, nil, err
	}
	if err = atMost("revoked_keys", len(b.GetRevokedKeys()), maxRevoked); err != nil {
		return td, nil, err
	}
	out := &BundleData{Revoked: make(map[[32]byte]struct{}, len(b.GetRevokedKeys()))}
	if out.RevokedIDs, err = decodeRevokedIDs(td, b.GetRevokedIds()); err != nil {
		return td, nil, err
	}
	if out.JWTAuthorities, err = decodeJWTAuthorities(b.GetJwtAuthorities()); err != nil {
		return td, nil, err
	}
	for i, der := range b.GetX509Authorities() {
		if err := atMost("bytes of an authority", len(der), maxCertificate); err != nil {
			return td, nil, err
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return td, nil, fmt.Errorf("x509_authorities[%d]: %w", i, err)
		}
		out.Authorities = append(out.Authorities, c)
	}
	for i, k := range b.GetRevokedKeys() {
		if len(k) != 32 {
			return td, nil, fmt.Errorf("revoked_keys[%d]: %d bytes, want 32", i, len(k))
		}
		out.Revoked[[32]byte(k)] = struct{}{}
	}
	return td, out, nil
}

func decodeRevokedIDs(td spiffeid.TrustDomain, in []*configv1.RevokedID) (map[spiffeid.ID]time.Time, error) {
	if err := atMost("revoked_ids", len(in), maxRevoked); err != nil {
		return nil, err
	}
	out := make(map[spiffeid.ID]time.Time, len(in))
	for i, r := range in {
		id, err := spiffeid.FromString(r.GetSpiffeId())
		if err != nil {
			return nil, fmt.Errorf("revoked_ids[%d]: %w", i, err)
		}
		if _, twice := out[id]; twice || !id.MemberOf(td) || id.Path() == "" || id.String() != r.GetSpiffeId() {
			return nil, fmt.Errorf("revoked_ids[%d]: %q comes twice, or is no member of %s", i, r.GetSpiffeId(), td.Name())
		}
		switch s := r.GetBegunBy(); {
		case s < 0 || s > maxBegunBy:
			return nil, fmt.Errorf("revoked_ids[%d]: begun_by: %d is no time", i, s)
		case s == 0:
			out[id] = time.Time{}
		default:
			out[id] = time.Unix(s, 0)
		}
	}
	return out, nil
}

func decodeJWTAuthorities(in []*configv1.JWTAuthority) (map[string]crypto.PublicKey, error) {
	if err := atMost("jwt_authorities", len(in), maxJWTKeys); err != nil {
		return nil, err
	}
	out := make(map[string]crypto.PublicKey, len(in))
	for i, a := range in {
		id, der := a.GetKeyId(), a.GetPublicKey()
		if _, twice := out[id]; twice || id == "" || len(id) > maxKeyID || len(der) > maxPublicKey {
			return nil, fmt.Errorf("jwt_authorities[%d]: key ID of %d bytes, key of %d: want 1 to %d, at most %d, and no ID twice", i, len(id), len(der), maxKeyID, maxPublicKey)
		}
		key, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return nil, fmt.Errorf("jwt_authorities[%d]: %w", i, err)
		}
		switch key.(type) {
		case *ecdsa.PublicKey, *rsa.PublicKey, ed25519.PublicKey:
		default:
			return nil, fmt.Errorf("jwt_authorities[%d]: a key of type %T signs nothing", i, key)
		}
		out[id] = key
	}
	return out, nil
}

func decodeGateway(b *configv1.Gateway) (*topology.Gateway, error) {
	g := &topology.Gateway{
		ID: b.GetId(), Address: b.GetAddress(), QUIC: b.GetQuicAddress(), TCP: b.GetTcpAddress(), Zone: b.GetZone(), Draining: b.GetDraining(),
	}
	if !isName(g.ID) {
		return nil, fmt.Errorf("gateway %q: not a name", clip(g.ID))
	}
	id, err := decodeID(b.GetSpiffeId())
	g.Identity = id
	if err = cmp.Or(err, checkHostPort(g.Address), checkHostPort(g.QUIC), checkHostPort(g.TCP), checkTexts(g.Zone)); err != nil {
		return nil, fmt.Errorf("gateway %q: %w", g.ID, err)
	}
	return g, nil
}

func decodeCluster(b *configv1.Cluster) (*topology.Cluster, error) {
	c := &topology.Cluster{Region: b.GetRegion(), Link: topology.LinkState(b.GetLink())}
	var err error
	if c.Name, err = topology.ParseClusterName(b.GetName()); err != nil {
		return nil, err
	}
	if c.Domain, err = decodeDomain(b.GetTrustDomain()); err != nil {
		return nil, err
	}
	switch c.Link {
	case topology.LinkUnknown, topology.LinkUp, topology.LinkSuspect, topology.LinkDown:
	default:
		return nil, fmt.Errorf("link %q", clip(b.GetLink()))
	}
	if b.GetRttMicros() > uint64(maxRTT/time.Microsecond) {
		return nil, fmt.Errorf("rtt_micros %d: want at most %v", b.GetRttMicros(), maxRTT)
	}
	c.RTT = time.Duration(b.GetRttMicros()) * time.Microsecond //nolint:gosec // checked above
	if err := cmp.Or(atMost("gateways", len(b.GetGateways()), maxGateways), atMost("prefixes", len(b.GetPodCidrs()), maxPrefixes)); err != nil {
		return nil, err
	}
	for _, s := range b.GetPodCidrs() {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Masked().String() != s {
			return nil, fmt.Errorf("prefix %q: want one in its canonical form", clip(s))
		}
		c.Pods = append(c.Pods, p)
	}
	for _, bg := range b.GetGateways() {
		g, err := decodeGateway(bg)
		if err != nil {
			return nil, err
		}
		c.Gateways = append(c.Gateways, *g)
	}
	return c, checkTexts(c.Region)
}

func decodeExport(b *configv1.Export) (*topology.Export, error) {
	var e topology.Export
	var err error
	if e.Name, err = topology.NewServiceName(b.GetNamespace(), b.GetName()); err != nil {
		return nil, err
	}
	if e.Ports, err = decodeNumbers(b.GetPorts()); err != nil {
		return nil, err
	}
	if e.UDPPorts, err = decodeNumbers(b.GetUdpPorts()); err != nil {
		return nil, err
	}
	if e.Audience, err = decodeAudience(b.GetAudience()); err != nil {
		return nil, err
	}
	if e.Hosts, err = decodeAddrs(b.GetHosts(), maxHosts); err != nil {
		return nil, err
	}
	if e.Drill, err = decodeDrill(b.GetDrill()); err != nil {
		return nil, err
	}
	e.Endpoints, err = decodeEndpoints(b.GetEndpoints())
	return &e, err
}

func decodeAudience(names []string) ([]topology.ClusterName, error) {
	if err := atMost("audience", len(names), maxAudience); err != nil {
		return nil, err
	}
	var audience []topology.ClusterName
	for _, n := range names {
		c, err := topology.ParseClusterName(n)
		if err != nil {
			return nil, err
		}
		audience = append(audience, c)
	}
	return audience, nil
}

func decodeInbound(b *configv1.Inbound) (*topology.Inbound, error) {
	name, err := topology.NewServiceName(b.GetNamespace(), b.GetName())
	if err = cmp.Or(err, atMost("ports", len(b.GetPorts()), maxPorts), atMost("UDP ports", len(b.GetUdpPorts()), maxPorts)); err != nil {
		return nil, err
	}
	in := &topology.Inbound{Name: name, Exported: b.GetExported()}
	if in.Audience, err = decodeAudience(b.GetAudience()); err != nil {
		return nil, err
	}
	for _, bp := range b.GetPorts() {
		p, reason := decodeInboundPort(bp)
		if reason = cmp.Or(reason, checkProtocol(p.Protocol)); reason != nil {
			return nil, reason
		}
		in.Ports = append(in.Ports, p)
	}
	for _, bp := range b.GetUdpPorts() {
		p, reason := decodeInboundPort(bp)
		if reason == nil && p.Protocol != topology.UDP {
			reason = fmt.Errorf("UDP port %d: protocol %q", p.Number, clip(string(p.Protocol)))
		}
		if reason != nil {
			return nil, reason
		}
		in.Ports = append(in.Ports, p)
	}
	if in.Access, err = decodeAccess(b.GetAccess()); err != nil {
		return nil, err
	}
	if in.Drill, err = decodeDrill(b.GetDrill()); err != nil {
		return nil, err
	}
	in.Quotas, err = decodeQuotas(b.GetQuotas())
	return in, err
}

func decodeInboundPort(b *configv1.InboundPort) (p topology.InboundPort, err error) {
	p.Protocol = topology.Protocol(b.GetProtocol())
	p.Number, err = decodeNumber(b.GetPort())
	if err = cmp.Or(err, atMost("targets", len(b.GetTargets()), maxTargets)); err != nil {
		return p, err
	}
	for _, t := range b.GetTargets() {
		a, err := decodeAddrPort(t)
		if err != nil {
			return p, err
		}
		p.Targets = append(p.Targets, a)
	}
	return p, nil
}

func decodeDomain(s string) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(s)
	if err == nil && td.Name() != s { // the parser takes a whole SPIFFE ID too
		err = errors.New("want a bare name")
	}
	if err != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("trust domain %q: %w", clip(s), err)
	}
	return td, nil
}

func decodeID(s string) (spiffeid.ID, error) {
	if len(s) > 2048 { // SPIFFE ID section 2.3
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID of %d bytes", len(s))
	}
	id, err := spiffeid.FromString(s)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID %q: %w", clip(s), err)
	}
	return id, nil
}

func decodeNumbers(in []uint32) ([]uint16, error) {
	if err := atMost("ports", len(in), maxPorts); err != nil {
		return nil, err
	}
	var out []uint16
	for _, n := range in {
		p, err := decodeNumber(n)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func decodeNumber(n uint32) (uint16, error) {
	if n == 0 || n > 65535 {
		return 0, fmt.Errorf("port %d: want 1 to 65535", n)
	}
	return uint16(n), nil
}

func decodeAddrPort(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q: want ip:port", clip(s))
	}
	if a.Port() == 0 || a.String() != s { // one way to write an address, so that it compares
		return netip.AddrPort{}, fmt.Errorf("address %q: want ip:port in its canonical form", clip(s))
	}
	return a, nil
}

func decodeCount(what string, n uint32) (int, error) {
	if n > maxCount {
		return 0, fmt.Errorf("%s %d: want at most %d", what, n, maxCount)
	}
	return int(n), nil
}
