package kube

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/control"
)

// networkOf returns which addresses the cluster's Nodes and their Pods have, as far as the Nodes say. A network plug-in that hands out
// addresses by itself may leave spec.podCIDRs empty: then those of Pods are not known.
func networkOf(nodes []corev1.Node) control.Network {
	var out control.Network
	for i := range nodes {
		for _, s := range nodes[i].Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(s); err == nil {
				out.Pods = append(out.Pods, p.Masked())
			}
		}
		for _, a := range nodes[i].Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil {
				out.Nodes = append(out.Nodes, ip.Unmap())
			}
		}
	}
	slices.SortFunc(out.Pods, netip.Prefix.Compare)
	slices.SortFunc(out.Nodes, netip.Addr.Compare)
	out.Pods, out.Nodes = slices.Compact(out.Pods), slices.Compact(out.Nodes)
	return out
}
