package install

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// TestCIDR: addresses of imports are nobody else's.
func TestCIDR(t *testing.T) {
	e := &Engine{kube: fake.NewClientset(
		&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.1.0.0/24"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.18.0.2"}, {Type: corev1.NodeHostName, Address: "n1"}}},
		},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.101.0.1"}}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "headless"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{corev1.ClusterIPNone}}},
	)}
	for cidr, want := range map[string]string{
		"241.0.0.0/8":   "",
		"fd00:241::/64": "",
		"10.101.0.0/16": "holds 10.101.0.1 of Service default/kubernetes",
		"10.0.0.0/8":    "holds 10.1.0.0/24 of the Pods of node n1",
		"10.1.0.128/25": "the Pods of node n1",
		"172.18.0.0/16": "holds 172.18.0.2 of node n1",
		"241.0.0.0/99":  "want a prefix",
		"241.0.0.0":     "want a prefix",
	} {
		err := e.cidrFits(t.Context(), cidr)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", cidr, err, want)
		}
	}
}
