// Package v1alpha1 holds the kinds of isthmus.dev/v1alpha1: what a user writes that Kubernetes, the MCS API and the
// Gateway API have no word for.
package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// GroupVersion is the apiVersion of the kinds in this package.
const GroupVersion = "isthmus.dev/v1alpha1"

// Workload is a running copy of an application outside Kubernetes, as a Pod is inside: Services select it by its labels.
type Workload struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitzero"`

	Spec WorkloadSpec `json:"spec"`
}

// WorkloadSpec says where the application listens, and where its sidecar does.
type WorkloadSpec struct {
	// ServiceAccount is the last part of the workload's SPIFFE ID, spiffe://<domain>/ns/<namespace>/sa/<serviceAccount>.
	// Default "default".
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// Address is the IP address of the workload.
	Address string `json:"address"`
	// Ports are where the application listens. A Service's targetPort names one, by name or number.
	Ports []WorkloadPort `json:"ports,omitempty"`
	// Zone is where it runs. Default: the cluster's.
	Zone string `json:"zone,omitempty"`
	// Ready false takes the copy out of service. Default true.
	Ready *bool `json:"ready,omitempty"`
	// Sidecar is where the workload's sidecar takes mTLS from others. None: a node proxy stands in.
	Sidecar *WorkloadSidecar `json:"sidecar,omitempty"`
}

// WorkloadPort is a port of the application.
type WorkloadPort struct {
	Name string `json:"name,omitempty"`
	Port int32  `json:"port"`
}

// WorkloadSidecar is where the sidecar listens, on the workload's address.
type WorkloadSidecar struct {
	InboundPort int32 `json:"inboundPort"`
}

// ClusterPeer lets another cluster in: its services may be imported, and ours reached from it. Cluster-scoped; its name is
// the other cluster's name.
type ClusterPeer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitzero"`

	Spec ClusterPeerSpec `json:"spec"`
}

// ClusterPeerSpec pins who the peer is.
type ClusterPeerSpec struct {
	// TrustDomain is the peer's SPIFFE trust domain, e.g. "us.example.org".
	TrustDomain string `json:"trustDomain"`
	// RootFingerprint pins the peer's federation root key: "sha256:" and 64 hex digits.
	RootFingerprint string `json:"rootFingerprint"`
	// Bus says how the two control planes reach each other's NATS.
	Bus ClusterPeerBus `json:"bus,omitzero"`
}

// ClusterPeerBus is the peer's place on the bus.
type ClusterPeerBus struct {
	// URLs of the peer's NATS server, e.g. "tls://203.0.113.7:4222". Empty: we don't dial, it may dial us.
	URLs []string `json:"urls,omitempty"`
	// Key is the peer's bus key, a public NKey ("U…"): it authenticates the peer as our client and its server to us.
	Key string `json:"key"`
}

// FailoverPolicy orders where calls to a service go.
type FailoverPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitzero"`

	Spec FailoverPolicySpec `json:"spec"`
}

// FailoverPolicySpec is an ordered list of tiers for the services that it names.
type FailoverPolicySpec struct {
	// TargetRefs are the ServiceImports or Services that the policy is for, in its own namespace.
	TargetRefs []TargetRef `json:"targetRefs"`
	// Tiers, most wanted first. A copy belongs to the first tier that matches it; copies that none matches are not used.
	Tiers []FailoverTier `json:"tiers"`
	// Never excludes copies, even when all others are down.
	Never []FailoverSelector `json:"never,omitempty"`
}

// TargetRef names a ServiceImport (group multicluster.x-k8s.io) or a Service (group "").
type TargetRef struct {
	Group string `json:"group,omitempty"`
	Kind  string `json:"kind"`
	Name  string `json:"name"`
}

// FailoverTier is one rank.
type FailoverTier struct {
	Name  string           `json:"name"`
	Match FailoverSelector `json:"match"`
	// Weights share the tier's traffic by cluster name. None: by ready copies.
	Weights map[string]uint32 `json:"weights,omitempty"`
}

// FailoverSelector picks copies; all fields set must match. "Same" means the caller's own.
type FailoverSelector struct {
	Cluster string            `json:"cluster,omitempty"`
	Region  string            `json:"region,omitempty"`
	Zone    string            `json:"zone,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}
