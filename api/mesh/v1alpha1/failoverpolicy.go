package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// FailoverPolicy orders where calls to a service go. Without one: same zone, then same region, then nearest.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=fop,categories=isthmus
// +kubebuilder:printcolumn:name="Targets",type=string,JSONPath=`.spec.targetRefs[*].name`
// +kubebuilder:printcolumn:name="Tiers",type=string,JSONPath=`.spec.tiers[*].name`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type FailoverPolicy struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`

	// Spec is an ordered list of tiers for the services that it names.
	// +required
	Spec FailoverPolicySpec `json:"spec"`
}

// FailoverPolicySpec is an ordered list of tiers for the services that it names.
//
// +kubebuilder:validation:XValidation:rule="self.tiers.all(t, !has(t.name) || self.tiers.exists_one(u, has(u.name) && u.name == t.name))",message="the name of a tier stands twice",fieldPath=".tiers"
type FailoverPolicySpec struct {
	// TargetRefs are the ServiceImports or Services that the policy is for, in its own namespace. Both kinds of one name mean the same
	// calls: each name stands once.
	// +required
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	TargetRefs []TargetRef `json:"targetRefs"`
	// Tiers, most wanted first. A copy belongs to the first tier that matches it; copies that none matches are not used.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Tiers []FailoverTier `json:"tiers"`
	// Never excludes copies, even when all others are down.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Never []FailoverSelector `json:"never,omitempty"`
}

// TargetRef names a ServiceImport (group multicluster.x-k8s.io) or a Service (group "").
//
// +kubebuilder:validation:XValidation:rule="(has(self.group) ? self.group : \"\") == (self.kind == 'Service' ? \"\" : 'multicluster.x-k8s.io')",message="a ServiceImport is of group multicluster.x-k8s.io, a Service of group \"\"",fieldPath=".group"
type TargetRef struct {
	// Group is "multicluster.x-k8s.io" for a ServiceImport, "" for a Service.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Group string `json:"group,omitempty"`
	// Kind is "ServiceImport" or "Service". Both mean the same calls.
	// +required
	// +kubebuilder:validation:Enum=ServiceImport;Service
	Kind string `json:"kind"`
	// Name of the ServiceImport or Service.
	// +required
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
}

// FailoverTier is one rank.
type FailoverTier struct {
	// Name is how the tier is called where a choice is explained. Unique in the policy. Default: "tier-" and its place in the list,
	// from 0.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name,omitempty"`
	// Match picks the copies of the tier. Empty: all that no tier before it takes.
	// +optional
	Match FailoverSelector `json:"match,omitzero"`
	// Weights share the tier's traffic by cluster name: 0 to 1,000,000 each, not all of them 0. None: by ready copies.
	// +optional
	// +kubebuilder:validation:MaxProperties=256
	// +kubebuilder:validation:XValidation:rule="self.all(c, self[c] >= 0 && self[c] <= 1000000)",message="want weights from 0 to 1,000,000"
	// +kubebuilder:validation:XValidation:rule="self.size() == 0 || self.exists(c, self[c] > 0)",message="all weights are zero: the tier would get nothing"
	Weights map[string]uint32 `json:"weights,omitempty"`
}

// FailoverSelector picks copies; all fields set must match. "Same" means the caller's own.
type FailoverSelector struct {
	// Cluster is the name of a cluster, or "Same".
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Cluster string `json:"cluster,omitempty"`
	// Region is the name of a region, or "Same".
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Region string `json:"region,omitempty"`
	// Zone is the name of a zone, or "Same".
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Zone string `json:"zone,omitempty"`
	// Labels that a copy must have: its workload's in the caller's cluster, those that its ServiceExport exports in another.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	Labels map[string]string `json:"labels,omitempty"`
}

// FailoverPolicyList is a list of FailoverPolicies.
//
// +kubebuilder:object:root=true
type FailoverPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`

	Items []FailoverPolicy `json:"items"`
}
