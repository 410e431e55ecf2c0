package control

import (
	"net/netip"
	"time"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Status is what a Registry writes back: what became of what was declared, and what others offer. Immutable.
type Status struct {
	Exports  []ExportStatus   // ordered by service
	Imports  []ImportStatus   // ordered by service
	Peers    []PeerStatus     // ordered by name
	Domains  []DomainStatus   // ordered by name
	Policies []PolicyStatus   // AccessPolicies, then QuotaPolicies; each ordered by namespace and name
	Failover []FailoverStatus // ordered by namespace and name
	Problems []Problem
	// Silent are the peers that have not spoken since the start, ordered. That an import which one of them offered is not among
	// Imports says nothing yet: nothing is deleted until its owner has spoken.
	Silent []topology.ClusterName
}

// ExportStatus is the status of a ServiceExport.
type ExportStatus struct {
	Export     ServiceExport
	Conditions []Condition // Valid, Ready, Conflict
}

// PeerStatus is the status of a ClusterPeer.
type PeerStatus struct {
	Peer       ClusterPeer
	Conditions []Condition // Ready
}

// DomainStatus is the status of a FederatedTrustDomain.
type DomainStatus struct {
	Domain     FederatedTrustDomain
	Conditions []Condition // Ready
}

// PolicyStatus is the status of an AccessPolicy or a QuotaPolicy.
type PolicyStatus struct {
	Kind, Namespace, Name string
	Generation            int64
	Copies                int         // of applications that it is for
	Conditions            []Condition // Accepted
}

// Object returns "Kind namespace/name".
func (s *PolicyStatus) Object() string {
	return Meta{Kind: s.Kind, Namespace: s.Namespace, Name: s.Name}.Object()
}

// ImportStatus is a ServiceImport, whole: only control writes imports.
type ImportStatus struct {
	Import     federation.Import
	IPs        []netip.Addr // none for a headless one
	Copies     []Copies     // what each of Import.Clusters offers, in the same order
	Conditions []Condition  // Ready
}

// Copies is what one cluster offers of an import.
type Copies struct {
	Cluster topology.ClusterName
	Ports   []federation.Port // those of the import that it serves, in the import's order
	Ready   bool              // it has a copy that is ready
	// Hosts are the ready copies of a headless service, ordered by Address, and Targets where they listen, by Ports.
	Hosts   []Host
	Targets []uint16
}

// Host is a copy of a headless service, known by name.
type Host struct {
	Hostname string // empty: it has none
	Zone     string
	Address  netip.Addr   // in its own cluster
	IPs      []netip.Addr // by which it is reached from this one
}

// ConditionStatus is the status of a condition, as Kubernetes spells it.
type ConditionStatus string

// The condition statuses.
const (
	True    ConditionStatus = "True"
	False   ConditionStatus = "False"
	Unknown ConditionStatus = "Unknown"
)

// Condition is a Kubernetes condition. Types and reasons are those of KEP-1645, as sigs.k8s.io/mcs-api v1beta1 spells them.
type Condition struct {
	Type    string
	Status  ConditionStatus
	Reason  string
	Message string
	Since   time.Time // when Status last changed
}

// Types and reasons of conditions, but for those of a conflict (federation.Merge), of a peer's state (federation.View) and of a federated trust
// domain's (bundleendpoint.Freshness).
const (
	conditionValid = "Valid"
	conditionReady = "Ready"

	conditionAccepted = "Accepted" // of a policy

	reasonValid              = "Valid"
	reasonNoService          = "NoService"
	reasonInvalidServiceType = "InvalidServiceType"
	reasonExported           = "Exported"
	reasonReady              = "Ready"
	reasonPending            = "Pending"
	reasonFailed             = "Failed"
	reasonIPFamily           = "IPFamilyNotSupported"
	reasonNotInForce         = "NotInForce" // of a ClusterPeer, a FederatedTrustDomain

	reasonAccepted     = "Accepted"
	reasonNoWorkloads  = "NoWorkloads"
	reasonInvalid      = "Invalid"
	reasonUnknownNames = "UnknownNames"
)

// family returns the IP family of an address, as Kubernetes spells it.
func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// Families returns the IP families of a ServiceImport's addresses in the same order. One without addresses is reached by both.
func (s *ImportStatus) Families() []string {
	if len(s.IPs) == 0 {
		return []string{"IPv4", "IPv6"}
	}
	out := make([]string, len(s.IPs))
	for i, a := range s.IPs {
		out[i] = family(a)
	}
	return out
}

// Service returns the import's name.
func (s *ImportStatus) Service() topology.ServiceName { return s.Import.Name }
