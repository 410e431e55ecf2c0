package kube

import (
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
)

// A watch that controller-runtime filters hangs on its last event for ever if the informer was stopped in that moment.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("k8s.io/apimachinery/pkg/watch.(*filteredWatch).loop"))
}

// born is when every object of the tests came to be.
var born = metav1.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func metaOf(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), ResourceVersion: "1", CreationTimestamp: born}
}

// deleted marks an object as one that only a finalizer holds on to.
func deleted(m metav1.ObjectMeta) metav1.ObjectMeta {
	m.DeletionTimestamp, m.Finalizers = &born, []string{"example.org/hold"}
	return m
}

func serviceOf(name string, selector map[string]string, ports ...int32) corev1.Service {
	s := corev1.Service{ObjectMeta: metaOf(name), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.10", Selector: selector}}
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: p})
	}
	return s
}

// podOf is a ready Pod with a sidecar on port 15008 and an application on 8080.
func podOf(name, ip string) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metaOf(name)}
	p.Labels = map[string]string{"app": "web"}
	p.Annotations = map[string]string{InboundPortAnnotation: "15008"}
	p.Spec = corev1.PodSpec{ServiceAccountName: "web", NodeName: "node-1", Containers: []corev1.Container{
		{Name: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}},
	}}
	p.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip,
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	return p
}

// nodeOf is a Node of a zone.
func nodeOf(name, zone string) corev1.Node {
	n := corev1.Node{ObjectMeta: metaOf(name)}
	n.Namespace, n.Labels = "", map[string]string{corev1.LabelTopologyZone: zone}
	return n
}

func sliceOf(service string, endpoints ...discoveryv1.Endpoint) discoveryv1.EndpointSlice {
	s := discoveryv1.EndpointSlice{ObjectMeta: metaOf(service + "-1"), AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	s.Ports = []discoveryv1.EndpointPort{{Port: new(int32(8080))}}
	return s
}

// endpointOf is an endpoint that is a Pod, or none.
func endpointOf(ip, pod string) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{ip}, Zone: new("a")}
	if pod != "" {
		e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: pod}
	}
	return e
}

func exportFor(name string) mcsv1beta1.ServiceExport {
	e := mcsv1beta1.ServiceExport{ObjectMeta: metaOf(name)}
	e.Generation = 3
	return e
}

func peerOf(name string) meshv1alpha1.ClusterPeer {
	p := meshv1alpha1.ClusterPeer{ObjectMeta: metaOf(name), Spec: meshv1alpha1.ClusterPeerSpec{
		TrustDomain:     name + ".example",
		RootFingerprint: "sha256:ab4ea2eae07ae5767cb45f1fe9906011155199c65171c065bf0bafd0eeecbbf2",
		Bus:             meshv1alpha1.ClusterPeerBus{Key: "UBOKNV3KEHXXLDZYKK3HBEUGW4JJIKIS6VWHTLQQ5PUFTXHC57ODP3IA"},
	}}
	p.Namespace = ""
	return p
}
