package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ClusterPeer lets another cluster in: its services may be imported, and ours reached from it. Its name is the other cluster's name.
// "isthmus introduction", run in the other cluster, prints it. Removing it cuts the peer off at once.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=cpeer,categories=isthmus
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Trust Domain",type=string,JSONPath=`.spec.trustDomain`
// +kubebuilder:printcolumn:name="Bus",type=string,JSONPath=`.spec.bus.urls`
// +kubebuilder:printcolumn:name="Fingerprint",type=string,JSONPath=`.spec.rootFingerprint`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",message="the name is a cluster's: an RFC 1123 label of at most 63 characters"
type ClusterPeer struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`

	// Spec pins who the peer is.
	// +required
	Spec ClusterPeerSpec `json:"spec"`
	// Status is control's to write.
	// +optional
	Status ClusterPeerStatus `json:"status,omitzero"`
}

// ClusterPeerSpec pins who the peer is.
type ClusterPeerSpec struct {
	// TrustDomain is the peer's SPIFFE trust domain, e.g. "us.example.org".
	// +required
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:Pattern=`^[a-z0-9._-]+$`
	TrustDomain string `json:"trustDomain"`
	// RootFingerprint pins the peer's federation root key: "sha256:" and 64 lower-case hex digits.
	// +required
	// +kubebuilder:validation:Pattern=`^sha256:[0-9a-f]{64}$`
	RootFingerprint string `json:"rootFingerprint"`
	// Bus says how the two control planes reach each other's NATS.
	// +required
	Bus ClusterPeerBus `json:"bus,omitzero"`
	// PodCIDRs are the prefixes in which the peer may say that its pods are. Copies of its headless services are then called by their own
	// addresses, and connections of pods here to addresses in these prefixes go to the peer: name none that something else here uses.
	// Empty: its copies get addresses that stand for them.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="self.all(p, isCIDR(p) && cidr(p) == cidr(p).masked())",message="want prefixes such as 10.1.0.0/16, without bits of a host"
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	// Namespaces are those in which the peer's exports count here. By the rules of multi-cluster services whoever exported a name first says
	// what it is, so a peer that is not to be believed about a namespace must not be heard about it. Empty: all.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1024
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespaces []string `json:"namespaces,omitempty"`
}

// ClusterPeerBus is the peer's place on the bus.
type ClusterPeerBus struct {
	// URLs of the peer's NATS server, e.g. "tls://203.0.113.7:4222". Empty: we don't dial, it may dial us.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=512
	// +kubebuilder:validation:items:Pattern=`^tls://[^/?#@]+:[0-9]+$`
	URLs []string `json:"urls,omitempty"`
	// Key is the peer's bus key, a public NKey ("U…"): it authenticates the peer as our client and its server to us.
	// +required
	// +kubebuilder:validation:Pattern=`^U[A-Z2-7]{55}$`
	Key string `json:"key"`
}

// ClusterPeerStatus says how it is between the two clusters, as this one sees it.
type ClusterPeerStatus struct {
	// Conditions: "Ready" is True while the peer's signed word is recent (reason Fresh). Else its reason is the state that "isthmus get peers"
	// shows (Waiting, Stale, Frozen, Expired, Quarantined), or NotInForce.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ClusterPeerList is a list of ClusterPeers.
//
// +kubebuilder:object:root=true
type ClusterPeerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`

	Items []ClusterPeer `json:"items"`
}
