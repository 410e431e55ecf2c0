package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// QuotaPolicy bounds how many requests the workloads that it is for take, of each caller or end user, or of all together. What is above
// is answered with 429. Every limit that matches a request must have room for it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=quotapolicies,shortName=qop,categories=isthmus
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Workloads",type=integer,JSONPath=`.status.workloads`
// +kubebuilder:printcolumn:name="Limits",type=string,JSONPath=`.spec.limits[*].name`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type QuotaPolicy struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`

	// Spec says which workloads it is for, and what they take.
	// +required
	Spec QuotaPolicySpec `json:"spec,omitzero"`
	// Status is control's to write.
	// +optional
	Status PolicyStatus `json:"status,omitzero"`
}

// QuotaPolicySpec says which workloads it is for, and what they take.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.selector) && has(self.targetRefs))",message="selector and targetRefs: want one of the two",fieldPath=".targetRefs"
type QuotaPolicySpec struct {
	// Selector picks workloads of the policy's namespace by their labels.
	// +optional
	Selector *PolicySelector `json:"selector,omitempty"`
	// TargetRefs are Services in the policy's namespace: it is for all workloads behind them, by whatever name they are called.
	// Neither Selector nor TargetRefs: it is for all workloads of the namespace.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	TargetRefs []PolicyTargetRef `json:"targetRefs,omitempty"`
	// Mode "Audit" counts and logs what the policy would refuse, and refuses nothing. Default "Enforce".
	// +optional
	// +kubebuilder:validation:Enum=Enforce;Audit
	// +kubebuilder:default=Enforce
	Mode string `json:"mode,omitempty"`
	// Issuers are those whose end users are told apart.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=16
	Issuers []TokenIssuer `json:"issuers,omitempty"`
	// Limits, each of which must have room.
	// +required
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Limits []QuotaLimit `json:"limits,omitempty"`
}

// QuotaLimit is one bound.
type QuotaLimit struct {
	// Name is how logs, metrics and rate-limit headers call it. Unique in the policy.
	// +required
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// Per is whose requests are counted together: "Caller" (a workload's identity), "EndUser" (issuer and subject of the token; requests
	// without a valid one are counted together) or "Service" (all).
	// +required
	// +kubebuilder:validation:Enum=Caller;EndUser;Service
	Per string `json:"per"`
	// Requests that are let through in a window: at most 1,000,000 a second.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=3600000000
	Requests int64 `json:"requests"`
	// Window is "1s", "1m" or "1h".
	// +required
	// +kubebuilder:validation:Enum="1s";"1m";"1h"
	Window string `json:"window"`
	// Burst is how many may come at once. Default: Requests, but 1,000,000 at most.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	Burst int64 `json:"burst,omitempty"`
	// Scope "Replica": each copy of the application counts for itself. "Shared": the copies share the limit. Default "Replica".
	// +optional
	// +kubebuilder:validation:Enum=Replica;Shared
	// +kubebuilder:default=Replica
	Scope string `json:"scope,omitempty"`
	// From is who calls, for the limit to count. None: everybody.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	From []AccessSource `json:"from,omitempty"`
	// To is what is called, for the limit to count. None: everything.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	To []AccessOperation `json:"to,omitempty"`
}

// QuotaPolicyList is a list of QuotaPolicies.
//
// +kubebuilder:object:root=true
type QuotaPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`

	Items []QuotaPolicy `json:"items"`
}
