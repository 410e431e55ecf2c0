package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// FailoverPolicy orders where calls to a service go. Without one: same zone, then same region, then nearest.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=fop,categories=isthmus
// +kubebuilder:printcolumn:name="Targets",type=string,JSONPath=`.spec.targetRefs[*].name`
// +kubebuilder:printcolumn:name="Tiers",type=string,JSONPath=`.spec.tiers[*].name`
// +kubebuilder:printcolumn:name="Active",type=string,JSONPath=`.status.conditions[?(@.type=="Active")].status`
// +kubebuilder:printcolumn:name="Why",type=string,JSONPath=`.status.conditions[?(@.type=="Active")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type FailoverPolicy struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`

	// Spec is an ordered list of tiers for the services that it names.
	// +required
	Spec FailoverPolicySpec `json:"spec"`
	// Status is written by control.
	// +optional
	Status FailoverPolicyStatus `json:"status,omitzero"`
}

// FailoverPolicySpec is an ordered list of tiers for the services that it names.
//
// +kubebuilder:validation:XValidation:rule="self.tiers.all(t, !has(t.name) || self.tiers.exists_one(u, has(u.name) && u.name == t.name))",message="the name of a tier stands twice",fieldPath=".tiers"
// +kubebuilder:validation:XValidation:rule="!has(self.spill) || self.tiers.size() > 1",message="there is one tier, and none to spill to",fieldPath=".spill"
type FailoverPolicySpec struct {
	// TargetRefs are the ServiceImports or Services that the policy is for, in its own namespace, or that Namespace, for all services in it that
	// no policy names. ServiceImport and Service of one name mean the same calls: each name stands once.
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
	// Spill lets a tier give away a part of what it would get. Without it, a tier gets all as long as it has a copy left.
	// +optional
	Spill *FailoverSpill `json:"spill,omitempty"`
	// Failback is how what was down gets its requests back. Without it: at once.
	// +optional
	Failback *FailoverFailback `json:"failback,omitempty"`
}

// FailoverSpill is when a tier gives requests to the next.
type FailoverSpill struct {
	// BelowHealthyPercent of its copies being healthy, the missing share goes to the next tier: with 70, a tier of which 35 % are healthy
	// keeps half.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	BelowHealthyPercent int32 `json:"belowHealthyPercent"`
}

// FailoverFailback is how a tier, or a cluster in it, gets its requests back.
//
// +kubebuilder:validation:XValidation:rule="has(self.after) || has(self.ramp)",message="want after, ramp or both"
type FailoverFailback struct {
	// After is how long it must have been well, without a break, before it gets any more: "30s", at most "1h". Default: 0.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('1h')",message="want at most 1h"
	After string `json:"after,omitempty"`
	// Ramp is how long it then takes until it has all: "1m", at most "1h". Default: 0.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('1h')",message="want at most 1h"
	Ramp string `json:"ramp,omitempty"`
}

// FailoverPolicyStatus says what became of a FailoverPolicy.
type FailoverPolicyStatus struct {
	// Conditions: "Active" is True while the policy decides where calls go. Else its reason is Invalid (an earlier version may be in force), NoTarget (there is
	// nothing that it is for), Overruled (another policy is in force for that) or NoCopies (its tiers match no copy that there is).
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Clusters are where calls from this cluster go by the policy, as far as control knows; a caller knows more (isthmus explain).
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Clusters []FailoverClusterStatus `json:"clusters,omitempty"`
}

// FailoverClusterStatus is a cluster's copies of one service in one tier.
type FailoverClusterStatus struct {
	// Service is the service's name.
	// +required
	Service string `json:"service"`
	// Cluster is the cluster's name.
	// +required
	Cluster string `json:"cluster"`
	// Tier that its copies are in.
	// +optional
	Tier string `json:"tier,omitempty"`
	// Ready copies.
	// +optional
	Ready int32 `json:"ready,omitempty"`
	// Total is all copies, ready or not.
	// +optional
	Total int32 `json:"total,omitempty"`
	// State is "Active" (calls go there), "Spill" (those that a better tier leaves), "Standby" (when better tiers fail), "Inert" (it is named, and has no copies of the service) or
	// "Excluded" (no call goes there).
	// +required
	// +kubebuilder:validation:Enum=Active;Standby;Spill;Inert;Excluded
	State string `json:"state"`
	// Why, in words.
	// +optional
	Why string `json:"why,omitempty"`
}

// TargetRef names a ServiceImport (group multicluster.x-k8s.io), a Service (group ""), or the policy's own Namespace (group "").
//
// +kubebuilder:validation:XValidation:rule="(has(self.group) ? self.group : \"\") == (self.kind == 'ServiceImport' ? 'multicluster.x-k8s.io' : \"\")",message="a ServiceImport is of group multicluster.x-k8s.io, a Service and a Namespace of group \"\"",fieldPath=".group"
type TargetRef struct {
	// Group is "multicluster.x-k8s.io" for a ServiceImport, "" for a Service or a Namespace.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Group string `json:"group,omitempty"`
	// Kind is "ServiceImport" or "Service", which mean the same calls, or "Namespace".
	// +required
	// +kubebuilder:validation:Enum=ServiceImport;Service;Namespace
	Kind string `json:"kind"`
	// Name of the ServiceImport, the Service, or the policy's own namespace.
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
