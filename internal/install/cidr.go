package install

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// cidrFits says what in the cluster has an address where those of imports are to be: node proxies take what goes there, and an API server
// in it would be out of reach of all Pods, control's among them.
func (e *Engine) cidrFits(ctx context.Context, text string) error {
	want, err := netip.ParsePrefix(text)
	if err != nil {
		return &ValuesError{fmt.Errorf("clusterSetCIDR: %q: want a prefix such as 241.0.0.0/8", text)}
	}
	nodes, err := e.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("nodes: %w", err)
	}
	services, err := e.kube.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("services: %w", err)
	}
	var errs []error
	taken := func(address, whose string) {
		other, err := netip.ParsePrefix(address)
		if a, e := netip.ParseAddr(address); e == nil {
			other, err = a.Prefix(a.BitLen())
		}
		if err == nil && want.Overlaps(other) && len(errs) == 0 { // one says it
			errs = append(errs, fmt.Errorf("clusterSetCIDR %s, where the addresses of imports are to come from, holds %s of %s: choose a prefix that nothing in the cluster uses (241.0.0.0/8 by default)",
				want, address, whose))
		}
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		for _, cidr := range n.Spec.PodCIDRs {
			taken(cidr, "the Pods of node "+n.Name)
		}
		for _, a := range n.Status.Addresses {
			taken(a.Address, "node "+n.Name)
		}
	}
	for i := range services.Items {
		s := &services.Items[i]
		for _, ip := range s.Spec.ClusterIPs {
			taken(ip, "Service "+s.Namespace+"/"+s.Name)
		}
	}
	return errors.Join(errs...)
}
