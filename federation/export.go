package federation

import (
	"net/netip"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/topology"
)

// Type is how an exported service is reached: the type of its ServiceImport.
type Type string

// The types. A NodePort or LoadBalancer Service exports as ClusterSetIP.
const (
	ClusterSetIP Type = "ClusterSetIP"
	Headless     Type = "Headless"
)

// Affinity is a Service's sessionAffinity. The zero value counts as NoAffinity.
type Affinity string

// The affinities.
const (
	NoAffinity       Affinity = "None"
	ClientIPAffinity Affinity = "ClientIP"
)

// Transport is a port's transport protocol, as Kubernetes spells it. The zero value counts as TCP.
type Transport string

// The transports. The mesh carries TCP; ports of the others are named in imports, no more.
const (
	TCP  Transport = "TCP"
	UDP  Transport = "UDP"
	SCTP Transport = "SCTP"
)

// Port is a port of an exported service.
type Port struct {
	Name        string // empty where a service has one port only
	Number      uint16
	Transport   Transport
	AppProtocol string // Kubernetes appProtocol, verbatim; empty: none
}

// Protocol returns what the port speaks, as topology.ParseProtocol reads it. What isn't TCP is opaque.
func (p Port) Protocol() topology.Protocol {
	if p.Transport != "" && p.Transport != TCP {
		return topology.TCP
	}
	return topology.ParseProtocol(p.AppProtocol, p.Name)
}

// ZoneCapacity is how many copies run in one zone.
type ZoneCapacity struct {
	Zone  string // empty: not known
	Ready uint32
	Total uint32 // ready or not; 0: not told
}

// Export is a service as one cluster exports it: the Service and its ServiceExport in one, and who answers for it.
// It is a value: nothing it points to changes once it is published.
type Export struct {
	Name topology.ServiceName
	// Created is when the ServiceExport was created. Whole seconds count: the oldest export wins a conflict.
	Created time.Time
	Ports   []Port
	Type    Type
	// SessionAffinity and its time-out (whole seconds; zero: Kubernetes' default of three hours, DefaultAffinityTimeout).
	SessionAffinity        Affinity
	SessionAffinityTimeout time.Duration
	InternalTrafficPolicy  string // "Cluster" or "Local"; empty counts as "Cluster"
	TrafficDistribution    string // verbatim; empty: none
	// Labels and Annotations are those of spec.exportedLabels and spec.exportedAnnotations, nothing else.
	Labels      map[string]string
	Annotations map[string]string
	// Servers are the SPIFFE IDs that may answer: its workloads' or its node proxies'.
	Servers []spiffeid.ID
	// Audience are the clusters that may call it; empty means every peer.
	Audience []topology.ClusterName
	Capacity []ZoneCapacity
	// Endpoints are the ready copies of a headless service, ordered by their first addresses. Of every other service they stay in their cluster;
	// here their names are what callers came for.
	Endpoints []Endpoint
	// Targets are, of a headless service, where its copies listen, by Ports; empty: on the ports themselves.
	Targets []uint16
	// Drain is set when its owner sends it nothing new, and asks callers to do likewise.
	Drain *topology.Drain `json:",omitempty"`
	// Drill is set while a failover drill makes its copies look dead.
	Drill *Drill `json:",omitempty"`
}

// Endpoint is a ready copy of a headless service. Callers may name it.
type Endpoint struct {
	Hostname  string       // empty: it is named by its first address
	Addresses []netip.Addr // in its cluster's own pod network; one or two, of different families. The first tells it from others
	Zone      string
}

// Target returns where the copies of a headless service listen for its i-th port.
func (e *Export) Target(i int) uint16 {
	if i < len(e.Targets) {
		return e.Targets[i]
	}
	return e.Ports[i].Number
}

// DefaultAffinityTimeout is what a ClientIP affinity without a time-out gets (core/v1 DefaultClientIPServiceAffinitySeconds).
const DefaultAffinityTimeout = 3 * time.Hour

// Ready returns the number of ready copies over all zones.
func (e *Export) Ready() int {
	n := 0
	for _, z := range e.Capacity {
		n += int(z.Ready)
	}
	return n
}

// Total returns the number of copies over all zones, ready or not; those of a zone that doesn't tell count as far as they are ready.
func (e *Export) Total() int {
	n := 0
	for _, z := range e.Capacity {
		n += int(max(z.Total, z.Ready))
	}
	return n
}

// Admits reports whether cluster c is in the export's audience.
func (e *Export) Admits(c topology.ClusterName) bool {
	return len(e.Audience) == 0 || slices.Contains(e.Audience, c)
}

// Import is a service that the clusterset offers, merged of all that clusters export under its name: a ServiceImport.
type Import struct {
	Name topology.ServiceName
	// Oldest is the cluster whose export decides what can't be merged.
	Oldest topology.ClusterName
	Type   Type
	// Ports are the union, each with the clusters that serve it.
	Ports []ImportPort // in the order of the oldest, then of the next
	// The rest as in Export, normalized: never the zero value where Kubernetes has a default, and no time-out without affinity.
	SessionAffinity        Affinity
	SessionAffinityTimeout time.Duration
	InternalTrafficPolicy  string
	TrafficDistribution    string
	Labels                 map[string]string
	Annotations            map[string]string
	// Clusters are all that export it, ordered by name.
	Clusters []topology.ClusterName
}

// ImportPort is a port of an Import.
type ImportPort struct {
	Port
	Clusters []topology.ClusterName // that serve it, ordered by name; never empty
}

// ConditionType is the type of a ServiceExport's condition.
type ConditionType string

// Conflict says whether the exports of one name disagree. Valid and Ready are said by who sees the registry.
const Conflict ConditionType = "Conflict"

// The reasons of Conflict=True, as sigs.k8s.io/mcs-api v1beta1 spells them, in the order in which they are joined.
// There is no IPFamilyConflict: proxies stand behind every clusterset IP, so that any family reaches all copies.
const (
	PortConflict                  = "PortConflict"
	TypeConflict                  = "TypeConflict"
	SessionAffinityConflict       = "SessionAffinityConflict"
	SessionAffinityConfigConflict = "SessionAffinityConfigConflict"
	InternalTrafficPolicyConflict = "InternalTrafficPolicyConflict"
	TrafficDistributionConflict   = "TrafficDistributionConflict"
	LabelsConflict                = "LabelsConflict"
	AnnotationsConflict           = "AnnotationsConflict"
)

// NoConflicts is the reason of Conflict=False.
const NoConflicts = "NoConflicts"

// Condition is a condition of one cluster's ServiceExport.
type Condition struct {
	Type    ConditionType
	Status  bool
	Reason  string // several are joined by a comma, without a space
	Message string // in words: what differs from whose
}

// Merged is what the exports of all clusters come to.
type Merged struct {
	// Imports are ordered by name.
	Imports []Import
	// Conditions hold, for each service and each cluster that exports it, that export's conditions.
	Conditions map[topology.ServiceName]map[topology.ClusterName][]Condition
}
