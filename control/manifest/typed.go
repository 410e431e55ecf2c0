package manifest

import (
	"errors"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
)

// Convert checks an object that comes from no file, by the rules of Parse and in its words. Its problems name the object and no place.
// With any problem the Object is empty.
//
// It takes pointers to the Go types of the kinds that Parse knows, in their newest version. in is not changed, but what is
// returned shares its maps: neither may be changed afterwards.
func Convert(in metav1.Object) (Object, []control.Problem) {
	c := &checker{header: header{namespace: in.GetNamespace(), name: in.GetName()}}
	is := func(apiVersion, kind string) *checker {
		c.header.apiVersion, c.header.kind = apiVersion, kind
		return c
	}
	var out Object
	switch in := in.(type) {
	case *corev1.Service:
		out = service(is("v1", "Service"), in)
	case *discoveryv1.EndpointSlice:
		out = endpointSlice(is("discovery.k8s.io/v1", "EndpointSlice"), in)
	case *mcsv1beta1.ServiceExport:
		out = serviceExport(is(mcsv1beta1.GroupVersion.String(), mcsv1beta1.ServiceExportKindName), in)
	case *meshv1alpha1.Workload:
		out = workload(is(meshv1alpha1.GroupVersion.String(), "Workload"), in)
	case *meshv1alpha1.ClusterPeer:
		out = clusterPeer(is(meshv1alpha1.GroupVersion.String(), "ClusterPeer"), in)
	case *meshv1alpha1.FailoverPolicy:
		out = failoverPolicy(is(meshv1alpha1.GroupVersion.String(), "FailoverPolicy"), in)
	case *meshv1alpha1.FederatedTrustDomain:
		out = federatedTrustDomain(is(meshv1alpha1.GroupVersion.String(), "FederatedTrustDomain"), in)
	case *meshv1alpha1.AccessPolicy:
		out = accessPolicy(is(meshv1alpha1.GroupVersion.String(), accessKind), in)
	case *meshv1alpha1.QuotaPolicy:
		out = quotaPolicy(is(meshv1alpha1.GroupVersion.String(), "QuotaPolicy"), in)
	default:
		c.addf("", "%T is not used here", in)
	}
	if len(c.errs) > 0 {
		return Object{}, control.SortProblems(problems("", c.object(), errors.Join(c.errs...)))
	}
	return out, nil
}

// Closed returns what must be in force for an object that Convert refuses and of which no good version is known: of an AccessPolicy, one
// that refuses everything to what it selects. ok is false where nothing must.
func Closed(in metav1.Object) (o Object, ok bool) {
	p, is := in.(*meshv1alpha1.AccessPolicy)
	if !is {
		return Object{}, false
	}
	c := &checker{header: header{namespace: in.GetNamespace(), name: in.GetName(), kind: accessKind}}
	out := closed(c, &p.Spec)
	if len(out) == 0 {
		return Object{}, false
	}
	out[0].Access.Generation = p.Generation
	return out[0], true
}
