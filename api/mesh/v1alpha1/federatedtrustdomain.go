package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// FederatedTrustDomain lets workloads verify those of another SPIFFE trust domain that is no cluster of the mesh: one that SPIRE runs, say.
// Its bundle is followed from its SPIFFE federation endpoint, and given to the workloads here. What its workloads may call is for
// AccessPolicies to say.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=ftd,categories=isthmus
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Trust Domain",type=string,JSONPath=`.spec.trustDomain`
// +kubebuilder:printcolumn:name="Endpoint",type=string,JSONPath=`.spec.bundleEndpoint.url`
// +kubebuilder:printcolumn:name="Profile",type=string,JSONPath=`.spec.bundleEndpoint.profile`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type FederatedTrustDomain struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`

	// Spec says which trust domain it is, and where its bundle is served.
	// +required
	Spec FederatedTrustDomainSpec `json:"spec"`
	// Status is control's to write.
	// +optional
	Status FederatedTrustDomainStatus `json:"status,omitzero"`
}

// FederatedTrustDomainSpec says which trust domain it is, and where its bundle is served.
//
// +kubebuilder:validation:XValidation:rule="self.bundleEndpoint.profile != 'https_spiffe' || has(self.bundle) || !has(self.bundleEndpoint.spiffeID) || !self.bundleEndpoint.spiffeID.startsWith('spiffe://' + self.trustDomain + '/')",message="an https_spiffe endpoint of the trust domain itself is known by its bundle: give the present one",fieldPath=".bundle"
type FederatedTrustDomainSpec struct {
	// TrustDomain is the SPIFFE trust domain, e.g. "partner.example". Neither this cluster's own nor that of a ClusterPeer.
	// +required
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:Pattern=`^[a-z0-9._-]+$`
	TrustDomain string `json:"trustDomain"`
	// BundleEndpoint is where its bundle is served, and how the server is known.
	// +required
	BundleEndpoint BundleEndpoint `json:"bundleEndpoint,omitzero"`
	// Bundle is a bundle of the trust domain that is known to be right: a SPIFFE bundle document (JSON). It is in force until the endpoint has
	// told a newer one. Needed where the endpoint is known by an SVID of the same trust domain. Another bundle than before counts also when
	// its sequence is lower than what was seen: so a trust domain that began anew is let in again.
	// +optional
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=65536
	Bundle string `json:"bundle,omitempty"`
}

// BundleEndpoint is where a bundle is served, and how the server is known.
//
// +kubebuilder:validation:XValidation:rule="self.profile != 'https_spiffe' || has(self.spiffeID)",message="https_spiffe needs the SPIFFE ID of the server",fieldPath=".spiffeID"
// +kubebuilder:validation:XValidation:rule="self.profile != 'https_web' || !has(self.spiffeID)",message="of no effect with https_web",fieldPath=".spiffeID"
// +kubebuilder:validation:XValidation:rule="self.profile != 'https_spiffe' || !has(self.caBundle)",message="of no effect with https_spiffe",fieldPath=".caBundle"
type BundleEndpoint struct {
	// URL of the bundle, e.g. "https://spire.partner.example:8443".
	// +required
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^https://[^/?#@]+([/?][^#]*)?$`
	URL string `json:"url"`
	// Profile is how the server is known: "https_web", by its DNS name, or "https_spiffe", by its SPIFFE ID.
	// +required
	// +kubebuilder:validation:Enum=https_web;https_spiffe
	Profile string `json:"profile"`
	// SPIFFEID of the server, with https_spiffe, e.g. "spiffe://partner.example/spire/server".
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^spiffe://[a-z0-9._-]+(/[a-zA-Z0-9._-]+)+$`
	SPIFFEID string `json:"spiffeID,omitempty"`
	// CABundle holds the roots (PEM) by which the server's DNS name is verified, with https_web. Default: those of the system.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=65536
	CABundle string `json:"caBundle,omitempty"`
}

// FederatedTrustDomainStatus says how current the bundle is.
type FederatedTrustDomainStatus struct {
	// Conditions: "Ready" is True while the endpoint's last word is recent (reason Fresh). Else its reason is Stale (the endpoint does not answer,
	// and what it said last is in force), Failed (nothing is known, or what it says is refused), or NotInForce.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// FederatedTrustDomainList is a list of FederatedTrustDomains.
//
// +kubebuilder:object:root=true
type FederatedTrustDomainList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`

	Items []FederatedTrustDomain `json:"items"`
}
