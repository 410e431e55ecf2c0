package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Workload is a running copy of an application outside Kubernetes, as a Pod is inside: Services select it by its labels.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=wl,categories=isthmus
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="Service Account",type=string,JSONPath=`.spec.serviceAccount`
// +kubebuilder:printcolumn:name="Zone",type=string,JSONPath=`.spec.zone`
// +kubebuilder:printcolumn:name="Inbound",type=integer,JSONPath=`.spec.sidecar.inboundPort`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Workload struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`

	// Spec says where the application listens, and where its sidecar does.
	// +required
	Spec WorkloadSpec `json:"spec"`
}

// WorkloadSpec says where the application listens, and where its sidecar does.
//
// +kubebuilder:validation:XValidation:rule="!has(self.sidecar) || !has(self.ports) || self.ports.all(p, p.port != self.sidecar.inboundPort)",message="sidecar.inboundPort is one of the application's own ports",fieldPath=".sidecar"
type WorkloadSpec struct {
	// ServiceAccount is the last part of the workload's SPIFFE ID, spiffe://<domain>/ns/<namespace>/sa/<serviceAccount>.
	// Default "default".
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// Address is the IP address of the workload.
	// +required
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="want an IP address"
	Address string `json:"address"`
	// Ports are where the application listens. A Service's targetPort names one, by name or number.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=100
	Ports []WorkloadPort `json:"ports,omitempty"`
	// Zone is where it runs. Default: the cluster's.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Zone string `json:"zone,omitempty"`
	// Ready false takes the copy out of service. Default true.
	// +optional
	Ready *bool `json:"ready,omitempty"`
	// Sidecar is where the workload's sidecar takes mTLS from others. None: a node proxy stands in.
	// +optional
	Sidecar *WorkloadSidecar `json:"sidecar,omitempty"`
	// Unix says as whom its processes run on the machine of the control plane: they get its identity there, from control's SPIFFE Workload
	// API. Default: nobody does.
	// +optional
	Unix *WorkloadUnix `json:"unix,omitempty"`
}

// WorkloadUnix says as whom the workload's processes run.
type WorkloadUnix struct {
	// UID is the user's number. Several Workloads may name one: its processes then have the identity of each. Not 65534, "nobody".
	// +required
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967294
	// +kubebuilder:validation:XValidation:rule="self != 65534",message="65534 stands for any user that is not known"
	UID *int64 `json:"uid"`
}

// WorkloadPort is a port of the application.
type WorkloadPort struct {
	// Name is what a Service's targetPort may say instead of the number. Unique in the workload.
	// +optional
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name,omitempty"`
	// Port is the number.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
}

// WorkloadSidecar is where the sidecar listens, on the workload's address.
type WorkloadSidecar struct {
	// InboundPort is where the sidecar takes mTLS from others.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	InboundPort int32 `json:"inboundPort"`
}

// WorkloadList is a list of Workloads.
//
// +kubebuilder:object:root=true
type WorkloadList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`

	Items []Workload `json:"items"`
}
