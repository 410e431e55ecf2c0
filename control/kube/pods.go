package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/federation"
)

// present leaves out the objects that are being deleted: whoever removes an export or a peer means now, whatever finalizers hold on to.
func present[T any, P interface {
	*T
	metav1.Object
}](in []T) []T {
	out := make([]T, 0, len(in))
	for i := range in {
		if P(&in[i]).GetDeletionTimestamp() == nil {
			out = append(out, in[i])
		}
	}
	return out
}

// meshedPods adds a Workload for each Pod that has a sidecar, and returns their IDs, "namespace/name".
func (c *converter) meshedPods(now *reading) map[string]bool {
	meshed := make(map[string]bool)
	zones := make(map[string]string, len(now.nodes))
	for i := range now.nodes {
		zones[now.nodes[i].Name] = now.nodes[i].Labels[corev1.LabelTopologyZone]
	}
	for i := range now.pods {
		p := &now.pods[i]
		if _, annotated := p.Annotations[InboundPortAnnotation]; !annotated || ended(p) {
			continue
		}
		w, err := workloadOf(p, cmp.Or(p.Labels[corev1.LabelTopologyZone], zones[p.Spec.NodeName]))
		if err != nil {
			c.out.Problems = append(c.out.Problems, control.Problem{Object: w.Object(), Reason: err.Error()})
			continue
		}
		meshed[w.ID()] = true
		if w.Address.IsValid() {
			c.out.Workloads = append(c.out.Workloads, w)
		}
	}
	return meshed
}

// ended reports whether a Pod has run to its end: its address may be another's by now.
func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// workloadOf turns a Pod with a sidecar into a Workload. One that has no address yet has none here either.
func workloadOf(p *corev1.Pod, zone string) (control.Workload, error) {
	w := control.Workload{
		Meta:           control.Meta{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, Created: p.CreationTimestamp.UTC()},
		Labels:         p.Labels,
		ServiceAccount: cmp.Or(p.Spec.ServiceAccountName, "default"), // as the API server has it
		Hostname:       p.Spec.Hostname,
		Subdomain:      p.Spec.Subdomain,
		Zone:           zone,
		Ready:          p.DeletionTimestamp == nil && isReady(p),
	}
	inbound, err := strconv.ParseUint(p.Annotations[InboundPortAnnotation], 10, 16)
	if err != nil || inbound == 0 {
		return w, fmt.Errorf("annotation %s: %q is no port: want 1 to 65535", InboundPortAnnotation, p.Annotations[InboundPortAnnotation])
	}
	w.Inbound = uint16(inbound)
	if p.Status.PodIP != "" {
		a, err := netip.ParseAddr(p.Status.PodIP)
		if err != nil {
			return w, fmt.Errorf("status.podIP: %q is no IP address", p.Status.PodIP)
		}
		w.Address = a.Unmap()
	}
	type name struct {
		transport federation.Transport
		name      string
	}
	named := make(map[name]bool)
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			key := name{federation.Transport(cmp.Or(port.Protocol, corev1.ProtocolTCP)), port.Name}
			own := key.transport == federation.TCP && port.ContainerPort == int32(w.Inbound)
			// The sidecar's own port is none of the application's. Of two containers that give one name, the first has it.
			if key.transport == federation.SCTP || own || port.ContainerPort < 1 || port.ContainerPort > 65535 || named[key] {
				continue
			}
			named[key] = port.Name != ""
			w.Ports = append(w.Ports, control.WorkloadPort{Name: port.Name, Number: uint16(port.ContainerPort), Transport: key.transport})
		}
	}
	return w, nil
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
