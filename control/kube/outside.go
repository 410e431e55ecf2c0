package kube

import (
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/control"
)

// AdvertisesLabel on a Service of type LoadBalancer in control's namespace says what other clusters reach through it: AdvertisesBus, or
// AdvertisesGateway, and then that of the Pod which the Service selects by name.
const (
	AdvertisesLabel   = "isthmus.dev/advertises"
	AdvertisesBus     = "bus"
	AdvertisesGateway = "gateway"
)

// podNameLabel is what a StatefulSet puts on its Pods (k8s.io/api/apps/v1 StatefulSetPodNameLabel).
const podNameLabel = "statefulset.kubernetes.io/pod-name"

// outside reads from load balancers where other clusters reach this one. One that has no address yet says nothing.
func outside(services []corev1.Service, namespace string) control.Outside {
	var out control.Outside
	for i := range services {
		s := &services[i]
		what := s.Labels[AdvertisesLabel]
		if s.Namespace != namespace || what == "" || s.Spec.Type != corev1.ServiceTypeLoadBalancer || !onePort(s.Spec.Ports) {
			continue
		}
		for _, at := range s.Status.LoadBalancer.Ingress {
			host := at.Hostname
			if host == "" {
				host = at.IP
			}
			if host == "" {
				continue
			}
			address := net.JoinHostPort(host, strconv.Itoa(int(s.Spec.Ports[0].Port)))
			if what == AdvertisesBus {
				out.Bus = append(out.Bus, "tls://"+address)
				continue
			}
			if id := s.Spec.Selector[podNameLabel]; what == AdvertisesGateway && id != "" {
				if out.Gateways == nil {
					out.Gateways = make(map[string]string)
				}
				out.Gateways[id] = address
				break
			}
		}
	}
	return out
}

// onePort reports whether there is one port number, be it of several protocols.
func onePort(ports []corev1.ServicePort) bool {
	for i := range ports {
		if ports[i].Port != ports[0].Port {
			return false
		}
	}
	return len(ports) > 0
}
