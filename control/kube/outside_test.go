package kube

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/control"
)

// balancer is a Service of control's namespace, as the API server's cache has it.
func balancer(name, what, pod string, port int32, at ...corev1.LoadBalancerIngress) corev1.Service {
	s := corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "isthmus-system", Name: name, Labels: map[string]string{AdvertisesLabel: what}},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: port}}},
		Status:     corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: at}},
	}
	if pod != "" {
		s.Spec.Selector = map[string]string{podNameLabel: pod}
	}
	trimmed, _ := trim(&s)
	return *trimmed.(*corev1.Service)
}

func TestOutside(t *testing.T) {
	theirs := balancer("theirs", AdvertisesBus, "", 4222, corev1.LoadBalancerIngress{IP: "203.0.113.66"})
	theirs.Namespace = "shop" // whoever may label Services elsewhere says nothing for us
	inside := balancer("inside", AdvertisesBus, "", 4222, corev1.LoadBalancerIngress{IP: "203.0.113.67"})
	inside.Spec.Type = corev1.ServiceTypeNodePort
	now := &reading{namespace: "isthmus-system", services: []corev1.Service{
		theirs, inside,
		balancer("bus", AdvertisesBus, "", 4222, corev1.LoadBalancerIngress{IP: "203.0.113.7"}, corev1.LoadBalancerIngress{IP: "2001:db8::7"}),
		balancer("g0", AdvertisesGateway, "isthmus-gateway-0", 7443, corev1.LoadBalancerIngress{Hostname: "g0.example.net", IP: "203.0.113.8"}),
		balancer("g1", AdvertisesGateway, "isthmus-gateway-1", 7443), // waits for its address
		balancer("g2", AdvertisesGateway, "", 7443, corev1.LoadBalancerIngress{IP: "203.0.113.9"}),
		balancer("what", "webhook", "isthmus-gateway-0", 7443, corev1.LoadBalancerIngress{IP: "203.0.113.9"}),
	}}
	want := control.Outside{
		Gateways: map[string]string{"isthmus-gateway-0": "g0.example.net:7443"},
		Bus:      []string{"tls://203.0.113.7:4222", "tls://[2001:db8::7]:4222"},
	}
	if out, _ := convert(now, nil); !reflect.DeepEqual(out.Outside, want) {
		t.Errorf("got %+v\nwant %+v", out.Outside, want)
	}
}
