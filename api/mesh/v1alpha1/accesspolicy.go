package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AccessPolicy says who may call the workloads that it is for. A workload that no policy is for may be called by everybody whom the mesh
// lets in. One that at least one enforcing policy is for may be called only as a rule allows, and never as a rule denies: a rule that
// denies wins over all that allow, in whatever policy they stand.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=acp,categories=isthmus
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Workloads",type=integer,JSONPath=`.status.workloads`
// +kubebuilder:printcolumn:name="Rules",type=string,JSONPath=`.spec.rules[*].name`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AccessPolicy struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`

	// Spec says which workloads it is for, and who may call them.
	// +required
	Spec AccessPolicySpec `json:"spec,omitzero"`
	// Status is control's to write.
	// +optional
	Status PolicyStatus `json:"status,omitzero"`
}

// AccessPolicySpec says which workloads it is for, and who may call them.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.selector) && has(self.targetRefs))",message="selector and targetRefs: want one of the two",fieldPath=".targetRefs"
type AccessPolicySpec struct {
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
	// Issuers are those whose end-user tokens the rules speak of.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=16
	Issuers []TokenIssuer `json:"issuers,omitempty"`
	// Rules say what is allowed and what is denied. None: nothing is allowed.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=64
	Rules []AccessRule `json:"rules,omitempty"`
}

// PolicySelector picks workloads by labels.
type PolicySelector struct {
	// MatchLabels are the labels that a workload must have, all of them.
	// +required
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=64
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
}

// PolicyTargetRef names a Service.
type PolicyTargetRef struct {
	// Group is "".
	// +optional
	// +kubebuilder:validation:Enum=""
	Group string `json:"group,omitempty"`
	// Kind is "Service".
	// +required
	// +kubebuilder:validation:Enum=Service
	Kind string `json:"kind"`
	// Name of the Service.
	// +required
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
}

// AccessRule allows or denies requests. Each of From, To and EndUsers matches if one of its entries does, and if it has none.
type AccessRule struct {
	// Name is how logs, metrics and tests call the rule. Unique in the policy.
	// +required
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// Action is "Allow" or "Deny". Default "Allow".
	// +optional
	// +kubebuilder:validation:Enum=Allow;Deny
	// +kubebuilder:default=Allow
	Action string `json:"action,omitempty"`
	// From is who calls.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	From []AccessSource `json:"from,omitempty"`
	// To is what is called.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	To []AccessOperation `json:"to,omitempty"`
	// EndUsers is on whose behalf: the end user whose token came with the request.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	EndUsers []EndUser `json:"endUsers,omitempty"`
}

// AccessSource is who calls: all fields that are set must match, a list by one of its entries. The same namespace in two clusters is two
// different callers, so that one names clusters or trust domains beside namespaces and service accounts.
//
// +kubebuilder:validation:XValidation:rule="has(self.clusters) || has(self.trustDomains) || !(has(self.namespaces) || has(self.serviceAccounts))",message="namespaces and serviceAccounts need clusters or trustDomains beside them: clusters: [Same] for the own cluster"
// +kubebuilder:validation:XValidation:rule="has(self.clusters) || has(self.trustDomains) || !has(self.principals) || self.principals.all(p, p.startsWith('spiffe://'))",message="a principal that does not begin with spiffe://TRUST-DOMAIN/ needs clusters or trustDomains beside it",fieldPath=".principals"
// +kubebuilder:validation:XValidation:rule="has(self.principals) || has(self.clusters) || has(self.trustDomains) || has(self.namespaces) || has(self.serviceAccounts)",message="is empty: leave from out where everybody is meant"
type AccessSource struct {
	// Principals are SPIFFE IDs: "spiffe://eu.example.org/ns/shop/sa/web" is that one, "spiffe://eu.example.org/ns/shop/*" all that begin so,
	// "*/sa/web" all that end so (with Clusters or TrustDomains beside).
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=2048
	// +kubebuilder:validation:items:Pattern=`^(spiffe://[a-z0-9._-]+/.*|\*.*)$`
	Principals []string `json:"principals,omitempty"`
	// Clusters are names of peers, or "Same" for the own cluster.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^(Same|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$`
	Clusters []string `json:"clusters,omitempty"`
	// TrustDomains are SPIFFE trust domains. Beside Clusters: one list, in two spellings.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=255
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9._-]+$`
	TrustDomains []string `json:"trustDomains,omitempty"`
	// Namespaces of the calling workload.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespaces []string `json:"namespaces,omitempty"`
	// ServiceAccounts of the calling workload.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	ServiceAccounts []string `json:"serviceAccounts,omitempty"`
}

// AccessOperation is what is called: all fields that are set must match, a list by one of its entries. Methods, paths and headers are those of
// HTTP: of opaque TCP, a rule that allows matches nothing by them, and one that denies everything.
//
// +kubebuilder:validation:XValidation:rule="has(self.methods) || has(self.paths) || has(self.ports) || has(self.headers)",message="is empty: leave to out where everything is meant"
type AccessOperation struct {
	// Methods, e.g. "GET".
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:items:Pattern="^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
	Methods []string `json:"methods,omitempty"`
	// Paths: "/cart" is that one, "/cart/*" all that begin so, "*.json" all that end so, "*" any. They are compared with the normal form of the
	// path that was asked for (docs/policy.md), without the query.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=1024
	// +kubebuilder:validation:items:Pattern=`^[/*]`
	Paths []string `json:"paths,omitempty"`
	// Ports are where the application listens, not those of a Service.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	Ports []int32 `json:"ports,omitempty"`
	// Headers that the request must have, or must not have: all of them.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Headers []HeaderMatch `json:"headers,omitempty"`
}

// HeaderMatch matches if the header is there and one of its values matches one of Values, or any where there are none; or if it is absent.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.absent) && self.absent && has(self.values))",message="absent and values: want one of the two",fieldPath=".values"
type HeaderMatch struct {
	// Name of the header. Upper and lower case are the same.
	// +required
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern="^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
	Name string `json:"name"`
	// Values: "text" is that one, "text*" all that begin so, "*text" all that end so. None: any.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=1024
	Values []string `json:"values,omitempty"`
	// Absent true: the request must not have it.
	// +optional
	Absent bool `json:"absent,omitempty"`
}

// EndUser is somebody whose token (JWT) came with the request.
type EndUser struct {
	// Issuer is the name of one of the policy's issuers. Empty: any of them.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Issuer string `json:"issuer,omitempty"`
	// Claims that the token must have, all of them. None: any valid token.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Claims []ClaimMatch `json:"claims,omitempty"`
}

// ClaimMatch matches if the claim, or one element of it where it is a list, matches one of Values.
//
// +kubebuilder:validation:XValidation:rule="has(self.name) != has(self.path)",message="want one of name and path"
type ClaimMatch struct {
	// Name of the claim, e.g. "groups".
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Name string `json:"name,omitempty"`
	// Path to a claim inside of others, outermost first, e.g. [realm_access, roles].
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=256
	Path []string `json:"path,omitempty"`
	// Values: "text" is that one, "text*" all that begin so, "*text" all that end so, "*" any.
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=1024
	Values []string `json:"values,omitempty"`
}

// TokenIssuer is whose end-user tokens are believed.
//
// +kubebuilder:validation:XValidation:rule="(has(self.jwks) ? 1 : 0) + (has(self.jwksFile) ? 1 : 0) + (has(self.jwksURL) ? 1 : 0) == 1",message="want one of jwks, jwksFile and jwksURL"
type TokenIssuer struct {
	// Name is how rules call the issuer. Unique in the policy.
	// +required
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// Issuer is the claim "iss" of its tokens, to the letter.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Issuer string `json:"issuer"`
	// Audiences: one of these must be among the claim "aud".
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=1024
	Audiences []string `json:"audiences,omitempty"`
	// JWKS is the document with its public keys (RFC 7517).
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=65536
	JWKS string `json:"jwks,omitempty"`
	// JWKSFile is the name of such a document in the sidecars' folder of these (jwks.directory in their configuration).
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9_-][A-Za-z0-9._-]*$`
	JWKSFile string `json:"jwksFile,omitempty"`
	// JWKSURL is where sidecars fetch it: https. When it can't be fetched, the last keys count for a while; without any, no token does.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^https://[^/?#@]+(/[^?#]*)?(\?[^#]*)?$`
	JWKSURL string `json:"jwksURL,omitempty"`
	// Header that the token is in. Default: Authorization, after the word Bearer.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern="^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
	Header string `json:"header,omitempty"`
}

// PolicyStatus says what became of an AccessPolicy or a QuotaPolicy.
type PolicyStatus struct {
	// Conditions: "Accepted" is True while the policy is in force as it stands. Else its reason is Invalid (with what is in force instead) or
	// UnknownNames (a cluster that is no peer, a Service that does not exist).
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Workloads is how many copies of applications it is for.
	// +optional
	Workloads int32 `json:"workloads,omitempty"`
}

// AccessPolicyList is a list of AccessPolicies.
//
// +kubebuilder:object:root=true
type AccessPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`

	Items []AccessPolicy `json:"items"`
}
