// Package v1alpha1 holds the kinds of isthmus.dev/v1alpha1: what a user writes that Kubernetes, the MCS API and the
// Gateway API have no word for.
//
// The comments on types and fields are what "kubectl explain" prints, and the markers in them are what the API server checks
// (deploy/crds is generated from here). control/manifest checks again, and more: a folder of manifests has no API server.
//
// +kubebuilder:object:generate=true
// +groupName=isthmus.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of the kinds in this package.
var GroupVersion = schema.GroupVersion{Group: "isthmus.dev", Version: "v1alpha1"}

// AddToScheme makes the kinds known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&AccessPolicy{}, &AccessPolicyList{},
		&ClusterPeer{}, &ClusterPeerList{},
		&FailoverPolicy{}, &FailoverPolicyList{},
		&FederatedTrustDomain{}, &FederatedTrustDomainList{},
		&QuotaPolicy{}, &QuotaPolicyList{},
		&Workload{}, &WorkloadList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
