package kube

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestNetworkOf(t *testing.T) {
	one, two := nodeOf("node-1", "a"), nodeOf("node-2", "b")
	one.Spec.PodCIDRs, two.Spec.PodCIDRs = []string{"10.1.1.0/24", "fd00:1::/64"}, []string{"10.1.0.0/24", "nonsense"}
	one.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}, {Type: corev1.NodeHostName, Address: "node-1"}}
	two.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}, {Type: corev1.NodeExternalIP, Address: "192.0.2.3"}}
	one.Status.Images = make([]corev1.ContainerImage, 100)
	var kept []corev1.Node
	for _, n := range []corev1.Node{one, two} {
		k := trimNode(&n)
		if len(k.Status.Images) > 0 || k.Labels[corev1.LabelTopologyZone] == "" {
			t.Errorf("kept of %s: %+v", n.Name, k)
		}
		kept = append(kept, *k)
	}
	got := networkOf(kept)
	if fmt.Sprint(got.Pods) != "[10.1.0.0/24 10.1.1.0/24 fd00:1::/64]" || fmt.Sprint(got.Nodes) != "[192.0.2.3 192.0.2.7]" {
		t.Errorf("%v, %v", got.Pods, got.Nodes)
	}
	if a, b := trimNode(&one), trimNode(&one); !isIdle(a, b) {
		t.Error("a Node that says the same again is news")
	}
	three := one
	three.Spec.PodCIDRs = nil
	if isIdle(trimNode(&one), trimNode(&three)) {
		t.Error("a Node of other addresses is no news")
	}
}
