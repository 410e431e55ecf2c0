package federation

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	federationv1 "github.com/isthmus-mesh/isthmus/api/federation/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Shards is into how many records a catalog is cut: a namespace is in the shard that the first byte of its
// SHA-256 says, mod Shards. It is part of the protocol: a member whose number differs is not understood.
const Shards = 16

// Limits of a catalog shard, and of each service in it.
const (
	maxServices    = 1024
	maxPorts       = 64
	maxPairs       = 64 // labels, and annotations
	maxKeyBytes    = 317
	maxLabelBytes  = 63
	maxValueBytes  = 4 << 10
	maxServers     = 256
	maxAudience    = 256
	maxZones       = 64
	maxZoneReady   = 1 << 20
	maxZoneTotal   = 1 << 21
	maxEndpoints   = 256 // of a headless service
	maxNameBytes   = 63
	maxAppProtocol = 253 + 1 + 63
	maxAffinity    = 24 * time.Hour // as Kubernetes
)

// shardOf returns the shard that a namespace is in.
func shardOf(namespace string) uint32 {
	return uint32(sha256.Sum256([]byte(namespace))[0]) % Shards
}

// encodeCatalog makes the shards of exports, those that aren't empty, by index. What can't be told, because it breaks a limit or
// its shard is full, is left out, and the error says so for each; where a shard is full the youngest exports stay out.
func encodeCatalog(domain spiffeid.TrustDomain, exports []Export) (map[uint32]*record, error) {
	ordered := slices.Clone(exports)
	slices.SortStableFunc(ordered, func(a, b Export) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return a.Name.Compare(b.Name)
	})
	shards := make(map[uint32]*federationv1.CatalogShard)
	sizes := make(map[uint32]int)
	seen := make(map[topology.ServiceName]bool, len(exports))
	var left []error
	for i := range ordered {
		e := &ordered[i]
		p := encodeExport(e)
		if _, err := decodeExport(domain, p); err != nil {
			left = append(left, fmt.Errorf("export %s: %w", e.Name, err))
			continue
		}
		if seen[e.Name] {
			left = append(left, fmt.Errorf("export %s: %w", e.Name, refuse(Malformed, "exported twice")))
			continue
		}
		index := shardOf(e.Name.Namespace())
		shard := shards[index]
		if shard == nil {
			shard = &federationv1.CatalogShard{TrustDomain: domain.Name(), Index: index}
			shards[index], sizes[index] = shard, proto.Size(shard)
		}
		encoded, err := proto.Marshal(p)
		if err != nil {
			left = append(left, fmt.Errorf("export %s: %w", e.Name, refuse(Malformed, "%v", err)))
			continue
		}
		size := 1 + protowire.SizeBytes(len(encoded)) // with its tag
		if sizes[index]+size > MaxPayload || len(shard.Services) == maxServices {
			left = append(left, fmt.Errorf("export %s: %w", e.Name, refuse(TooLarge, "catalog shard %d is full", index)))
			continue
		}
		seen[e.Name] = true
		sizes[index] += size
		shard.Services = append(shard.Services, p)
	}
	records := make(map[uint32]*record, len(shards))
	for index, shard := range shards {
		if len(shard.Services) == 0 {
			continue
		}
		slices.SortFunc(shard.Services, func(a, b *federationv1.ExportedService) int {
			if c := strings.Compare(a.GetNamespace(), b.GetNamespace()); c != 0 {
				return c
			}
			return strings.Compare(a.GetName(), b.GetName())
		})
		r, err := sealMessage(RecordCatalogShard, shard)
		if err != nil {
			left = append(left, err)
			continue
		}
		records[index] = r
	}
	return records, errors.Join(left...)
}

func encodeExport(e *Export) *federationv1.ExportedService {
	p := &federationv1.ExportedService{
		Namespace:             e.Name.Namespace(),
		Name:                  e.Name.Name(),
		Type:                  string(e.Type),
		SessionAffinity:       string(e.SessionAffinity),
		InternalTrafficPolicy: e.InternalTrafficPolicy,
		TrafficDistribution:   e.TrafficDistribution,
		Labels:                e.Labels,
		Annotations:           e.Annotations,
		Created:               timestamppb.New(e.Created.Truncate(time.Second)),
	}
	if p.SessionAffinity == "" {
		p.SessionAffinity = string(NoAffinity)
	}
	if seconds := e.SessionAffinityTimeout / time.Second; seconds >= 0 && e.SessionAffinityTimeout <= maxAffinity {
		p.SessionAffinityTimeoutSeconds = int32(seconds)
	} else {
		p.SessionAffinityTimeoutSeconds = -1 // refused by decodeExport
	}
	for i, port := range e.Ports {
		transport := port.Transport
		if transport == "" {
			transport = TCP
		}
		encoded := &federationv1.ServicePort{Name: port.Name, Port: uint32(port.Number), Protocol: string(transport), AppProtocol: port.AppProtocol}
		if target := e.Target(i); target != port.Number {
			encoded.Target = uint32(target)
		}
		p.Ports = append(p.Ports, encoded)
	}
	p.Endpoints, p.Drain, p.Drill = encodeEndpoints(e.Endpoints), encodeDrain(e.Drain), encodeDrill(e.Drill)
	for _, id := range e.Servers {
		p.ServerSpiffeIds = append(p.ServerSpiffeIds, id.String())
	}
	for _, c := range e.Audience {
		p.Audience = append(p.Audience, c.String())
	}
	for _, z := range e.Capacity {
		p.Capacity = append(p.Capacity, &federationv1.ZoneCapacity{Zone: z.Zone, Ready: z.Ready, Total: z.Total})
	}
	return p
}

// decodeCatalog reads the shard of that index in a record of domain.
func decodeCatalog(r *record, domain spiffeid.TrustDomain, index uint32) ([]Export, error) {
	p := new(federationv1.CatalogShard)
	if err := unmarshal(r, RecordCatalogShard, p, maxServices); err != nil {
		return nil, err
	}
	if p.GetTrustDomain() != domain.Name() {
		return nil, refuse(WrongDomain, "%s of %q, named by a head of %q", r.kind, p.GetTrustDomain(), domain.Name())
	}
	if p.GetIndex() != index {
		return nil, refuse(Malformed, "%s %d, named as %d", r.kind, p.GetIndex(), index)
	}
	exports := make([]Export, 0, len(p.GetServices()))
	seen := make(map[topology.ServiceName]bool, len(p.GetServices()))
	for _, s := range p.GetServices() {
		e, err := decodeExport(domain, s)
		if err != nil {
			return nil, err
		}
		// In its own shard only, so that no two shards can tell two stories of one service.
		if shardOf(e.Name.Namespace()) != index || seen[e.Name] {
			return nil, refuse(Malformed, "%s %d: service %s is out of place, or there twice", r.kind, index, e.Name)
		}
		seen[e.Name] = true
		exports = append(exports, e)
	}
	return exports, nil
}

func decodeExport(domain spiffeid.TrustDomain, p *federationv1.ExportedService) (Export, error) {
	name, err := topology.NewServiceName(p.GetNamespace(), p.GetName())
	if err != nil {
		return Export{}, refuse(Malformed, "%s: %v", RecordCatalogShard, err)
	}
	bad := func(format string, args ...any) error {
		return refuse(Malformed, "service %s: %s", name, fmt.Sprintf(format, args...))
	}
	if err = checkSizes(p); err != nil {
		return Export{}, refuse(TooLarge, "service %s: %v", name, err)
	}
	e := Export{
		Name:                   name,
		Type:                   Type(p.GetType()),
		SessionAffinity:        Affinity(p.GetSessionAffinity()),
		SessionAffinityTimeout: time.Duration(p.GetSessionAffinityTimeoutSeconds()) * time.Second,
		InternalTrafficPolicy:  p.GetInternalTrafficPolicy(),
		TrafficDistribution:    p.GetTrafficDistribution(),
		Labels:                 p.GetLabels(),
		Annotations:            p.GetAnnotations(),
	}
	if e.Created, err = decodeTime(RecordCatalogShard, "created", p.GetCreated()); err != nil {
		return Export{}, bad("%v", err)
	}
	switch {
	case e.Type != ClusterSetIP && e.Type != Headless:
		return Export{}, bad("type %q", e.Type)
	case e.SessionAffinity != NoAffinity && e.SessionAffinity != ClientIPAffinity:
		return Export{}, bad("session affinity %q", e.SessionAffinity)
	case e.SessionAffinityTimeout < 0 || e.SessionAffinityTimeout > maxAffinity:
		return Export{}, bad("session affinity time-out %s", e.SessionAffinityTimeout)
	case !slices.Contains([]string{"", "Cluster", "Local"}, e.InternalTrafficPolicy):
		return Export{}, bad("internal traffic policy %q", e.InternalTrafficPolicy)
	}
	for _, port := range p.GetPorts() {
		number, transport := port.GetPort(), Transport(port.GetProtocol())
		if number == 0 || number > 65535 || transport != TCP && transport != UDP && transport != SCTP {
			return Export{}, bad("port %d/%s", number, transport)
		}
		// The service is one with that of other clusters: what the config stream can't tell would be withheld with all that they have.
		if !isPrintable(port.GetName()) || !isPrintable(port.GetAppProtocol()) {
			return Export{}, bad("port %d: name %q or appProtocol %q is not printable", number, port.GetName(), port.GetAppProtocol())
		}
		decoded := Port{Name: port.GetName(), Number: uint16(number), Transport: transport, AppProtocol: port.GetAppProtocol()}
		if slices.ContainsFunc(e.Ports, func(o Port) bool { return o.Number == decoded.Number && o.Transport == transport }) {
			return Export{}, bad("port %d/%s twice", number, transport)
		}
		e.Ports = append(e.Ports, decoded)
	}
	for _, s := range p.GetServerSpiffeIds() {
		var id spiffeid.ID
		if id, err = spiffeid.FromString(s); err != nil {
			return Export{}, bad("server %q: %v", s, err)
		}
		// A cluster answers for its own workloads only: else it could send callers to look for somebody else's.
		if id.TrustDomain() != domain {
			return Export{}, refuse(WrongDomain, "service %s: server %q is not of %q", name, s, domain.Name())
		}
		e.Servers = append(e.Servers, id)
	}
	for _, s := range p.GetAudience() {
		var c topology.ClusterName
		if c, err = topology.ParseClusterName(s); err != nil {
			return Export{}, bad("audience: %v", err)
		}
		e.Audience = append(e.Audience, c)
	}
	for _, z := range p.GetCapacity() {
		if z.GetReady() > maxZoneReady || slices.ContainsFunc(e.Capacity, func(o ZoneCapacity) bool { return o.Zone == z.GetZone() }) {
			return Export{}, bad("capacity %d in zone %q", z.GetReady(), z.GetZone())
		}
		if total := z.GetTotal(); total > maxZoneTotal || total > 0 && total < z.GetReady() {
			return Export{}, bad("capacity %d of %d in zone %q", z.GetReady(), total, z.GetZone())
		}
		e.Capacity = append(e.Capacity, ZoneCapacity{Zone: z.GetZone(), Ready: z.GetReady(), Total: z.GetTotal()})
	}
	if e.Targets, err = decodeTargets(e.Type, p.GetPorts()); err != nil {
		return Export{}, bad("%v", err)
	}
	if e.Endpoints, err = decodeEndpoints(e.Type, p.GetEndpoints()); err != nil {
		return Export{}, bad("%v", err)
	}
	if e.Drain, err = decodeDrain(p.GetDrain()); err != nil {
		return Export{}, bad("%v", err)
	}
	if e.Drill, err = decodeDrill(p.GetDrill()); err != nil {
		return Export{}, bad("%v", err)
	}
	return e, nil
}

// checkSizes holds every count and length of a service to its limit.
func checkSizes(p *federationv1.ExportedService) error {
	for _, c := range []struct {
		what     string
		n, limit int
	}{
		{"ports", len(p.GetPorts()), maxPorts},
		{"labels", len(p.GetLabels()), maxPairs},
		{"annotations", len(p.GetAnnotations()), maxPairs},
		{"servers", len(p.GetServerSpiffeIds()), maxServers},
		{"clusters in its audience", len(p.GetAudience()), maxAudience},
		{"zones", len(p.GetCapacity()), maxZones},
		{"endpoints", len(p.GetEndpoints()), maxEndpoints},
		{"bytes of traffic distribution", len(p.GetTrafficDistribution()), maxNameBytes},
	} {
		if c.n > c.limit {
			return fmt.Errorf("%d %s; the limit is %d", c.n, c.what, c.limit)
		}
	}
	for _, port := range p.GetPorts() {
		if len(port.GetName()) > maxNameBytes || len(port.GetAppProtocol()) > maxAppProtocol {
			return fmt.Errorf("port %d: name or appProtocol is too long", port.GetPort())
		}
	}
	for _, z := range p.GetCapacity() {
		if len(z.GetZone()) > maxNameBytes {
			return fmt.Errorf("zone of %d bytes; the limit is %d", len(z.GetZone()), maxNameBytes)
		}
	}
	if err := checkPairs(p.GetLabels(), maxLabelBytes); err != nil {
		return fmt.Errorf("label %w", err)
	}
	if err := checkPairs(p.GetAnnotations(), maxValueBytes); err != nil {
		return fmt.Errorf("annotation %w", err)
	}
	return nil
}

// isPrintable reports whether the config stream tells of s as it is.
func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func checkPairs(pairs map[string]string, limit int) error {
	for k, v := range pairs {
		if k == "" || len(k) > maxKeyBytes {
			return fmt.Errorf("key of %d bytes; want 1 to %d", len(k), maxKeyBytes)
		}
		if len(v) > limit {
			return fmt.Errorf("%q of %d bytes; the limit is %d", k, len(v), limit)
		}
	}
	return nil
}
