package kube

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/control/inject"
)

// bareByRight are the labels of Pods that need no sidecar. There are many: they share it.
var bareByRight = map[string]string{inject.Label: "false"}

// trim drops what nobody here looks at before an object goes into a cache. Pods are most of what a cluster holds, and most of a Pod is
// of no use: a cluster of 10,000 would cost a hundred MB.
func trim(in any) (any, error) {
	switch o := in.(type) {
	case *corev1.Pod:
		return trimPod(o), nil
	case *corev1.Service:
		o.ManagedFields, o.Annotations = nil, nil
		if o.Labels[AdvertisesLabel] == "" {
			o.Status = corev1.ServiceStatus{}
		}
	case *discoveryv1.EndpointSlice:
		o.ManagedFields, o.Annotations = nil, nil
	case *metav1.PartialObjectMetadata:
		o.ManagedFields, o.Annotations, o.OwnerReferences = nil, nil, nil
		o.Labels = only(o.Labels, inject.Label)
	case *corev1.Node:
		return trimNode(o), nil
	case metav1.Object:
		o.SetManagedFields(nil)
	}
	return in, nil
}

// only returns those of the labels that are named; nil when there is none of them.
func only(labels map[string]string, names ...string) map[string]string {
	var out map[string]string
	for _, name := range names {
		if v, ok := labels[name]; ok {
			if out == nil {
				out = make(map[string]string, 1)
			}
			out[name] = v
		}
	}
	return out
}

// trimNode keeps where a Node is, and which addresses it and its Pods have.
func trimNode(in *corev1.Node) *corev1.Node {
	out := &corev1.Node{TypeMeta: in.TypeMeta, ObjectMeta: metav1.ObjectMeta{Name: in.Name, UID: in.UID, ResourceVersion: in.ResourceVersion}}
	out.Labels = only(in.Labels, corev1.LabelTopologyZone)
	out.Spec.PodCIDR, out.Spec.PodCIDRs = in.Spec.PodCIDR, in.Spec.PodCIDRs
	for _, a := range in.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			out.Status.Addresses = append(out.Status.Addresses, a)
		}
	}
	return out
}

// trimPod keeps of a Pod what makes it a Workload, and of one without a sidecar its name and whether it may be without: a label "false" says
// so, whatever the reason is.
func trimPod(in *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{TypeMeta: in.TypeMeta, ObjectMeta: metav1.ObjectMeta{
		Namespace: in.Namespace, Name: in.Name, UID: in.UID, ResourceVersion: in.ResourceVersion,
	}}
	inbound, meshed := in.Annotations[InboundPortAnnotation]
	if !meshed {
		out.DeletionTimestamp, out.Status.Phase = in.DeletionTimestamp, in.Status.Phase
		out.Labels = only(in.Labels, inject.Label)
		if reason, err := inject.Skip(in, in.Namespace, "", inject.ByNamespace); reason != "" || err != nil {
			out.Labels = bareByRight
		}
		return out
	}
	out.Annotations = map[string]string{InboundPortAnnotation: inbound}
	out.Labels = in.Labels
	out.CreationTimestamp, out.DeletionTimestamp = in.CreationTimestamp, in.DeletionTimestamp
	out.Spec.ServiceAccountName, out.Spec.NodeName = in.Spec.ServiceAccountName, in.Spec.NodeName
	out.Spec.Hostname, out.Spec.Subdomain = in.Spec.Hostname, in.Spec.Subdomain
	for i := range in.Spec.Containers {
		if c := &in.Spec.Containers[i]; len(c.Ports) > 0 {
			out.Spec.Containers = append(out.Spec.Containers, corev1.Container{Name: c.Name, Ports: c.Ports})
		}
	}
	out.Status.Phase, out.Status.PodIP = in.Status.Phase, in.Status.PodIP
	for _, c := range in.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return out
}
