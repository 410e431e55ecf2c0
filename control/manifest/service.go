package manifest

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/federation"
)

// Limits of a Service, as Kubernetes has them or tighter.
const (
	maxServicePorts    = 100
	maxAffinityTimeout = 86_400 // seconds (core/v1 MaxClientIPServiceAffinitySeconds)
)

func service(c *checker, in *corev1.Service) Object {
	s := &control.Service{
		Meta:     c.meta(&in.ObjectMeta, true, validation.IsDNS1123Label),
		Selector: in.Spec.Selector, PublishNotReady: in.Spec.PublishNotReadyAddresses,
	}
	if len(c.errs) == 0 {
		s.ID = c.service("metadata.name", s.Namespace, s.Name)
	}
	c.serviceType(s, &in.Spec)
	c.clusterIPs(s, &in.Spec)
	c.servicePorts(s, in.Spec.Ports)
	c.labels("spec.selector", in.Spec.Selector)
	c.affinity(s, &in.Spec)
	c.traffic(s, &in.Spec)
	return Object{Service: s}
}

func (c *checker) serviceType(s *control.Service, in *corev1.ServiceSpec) {
	switch in.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
	case corev1.ServiceTypeExternalName:
		s.ExternalName = true
		if in.ExternalName == "" {
			c.addf("spec.externalName", "is missing: the type is ExternalName")
		} else {
			c.all("spec.externalName", strconv.Quote(in.ExternalName), validation.IsDNS1123Subdomain(strings.TrimSuffix(in.ExternalName, ".")))
		}
	default:
		c.addf("spec.type", "%q is not known: want ClusterIP, NodePort, LoadBalancer or ExternalName", in.Type)
	}
}

func (c *checker) clusterIPs(s *control.Service, in *corev1.ServiceSpec) {
	field, ips := "spec.clusterIPs[%d]", in.ClusterIPs
	switch {
	case len(ips) == 0 && in.ClusterIP != "":
		field, ips = "spec.clusterIP", []string{in.ClusterIP}
	case len(ips) > 0 && in.ClusterIP != "" && ips[0] != in.ClusterIP:
		c.addf("spec.clusterIP", "%q differs from clusterIPs[0], %q", in.ClusterIP, ips[0])
	case len(ips) > 2:
		c.addf("spec.clusterIPs", "%d addresses: want at most one of each family", len(ips))
		return
	}
	if len(ips) == 1 && ips[0] == corev1.ClusterIPNone {
		s.Headless = true
		return
	}
	for i, ip := range ips {
		at := field
		if len(in.ClusterIPs) > 0 {
			at = fmt.Sprintf(field, i)
		}
		a := c.ip(at, ip)
		for _, other := range s.ClusterIPs {
			if other.Is4() == a.Is4() {
				c.addf(at, "a second address of one family")
			}
		}
		s.ClusterIPs = append(s.ClusterIPs, a)
	}
	if s.ExternalName && len(s.ClusterIPs) > 0 {
		c.addf("spec.clusterIP", "an ExternalName Service has none")
	}
}

func (c *checker) servicePorts(s *control.Service, in []corev1.ServicePort) {
	if len(in) == 0 && !s.Headless && !s.ExternalName {
		c.addf("spec.ports", "are missing")
	}
	if len(in) > maxServicePorts {
		c.addf("spec.ports", "%d ports, more than the limit of %d", len(in), maxServicePorts)
		return
	}
	type pair struct {
		transport federation.Transport
		number    uint16
	}
	names, pairs := map[string]int{}, map[pair]int{}
	for i, p := range in {
		at := fmt.Sprintf("spec.ports[%d]", i)
		if p.Name == "" && len(in) > 1 {
			c.addf(at+".name", "is missing: a Service with several ports names each")
		} else {
			unique(c, names, p.Name, "spec.ports", i, "the name "+strconv.Quote(p.Name))
		}
		c.portName(at+".name", p.Name)
		out := control.ServicePort{
			Name: p.Name, Number: c.port(at+".port", p.Port), Transport: c.transport(at+".protocol", string(p.Protocol)),
		}
		if out.Number != 0 {
			unique(c, pairs, pair{out.Transport, out.Number}, "spec.ports", i, fmt.Sprintf("port %d/%s", out.Number, out.Transport))
		}
		if p.AppProtocol != nil {
			out.AppProtocol = *p.AppProtocol
			c.all(at+".appProtocol", strconv.Quote(out.AppProtocol), validation.IsQualifiedName(out.AppProtocol))
		}
		switch {
		case p.TargetPort.Type == intstr.String:
			out.TargetName = p.TargetPort.StrVal
			c.all(at+".targetPort", strconv.Quote(out.TargetName), validation.IsValidPortName(out.TargetName))
		case p.TargetPort.IntVal != 0:
			out.TargetNumber = c.port(at+".targetPort", p.TargetPort.IntVal)
		default:
			out.TargetNumber = out.Number
		}
		s.Ports = append(s.Ports, out)
	}
}

func (c *checker) affinity(s *control.Service, in *corev1.ServiceSpec) {
	switch in.SessionAffinity {
	case "", corev1.ServiceAffinityNone:
		s.SessionAffinity = federation.NoAffinity
		if in.SessionAffinityConfig != nil {
			c.addf("spec.sessionAffinityConfig", "has no meaning without sessionAffinity: ClientIP")
		}
	case corev1.ServiceAffinityClientIP:
		s.SessionAffinity = federation.ClientIPAffinity
		s.SessionAffinityTimeout = federation.DefaultAffinityTimeout
		if in.SessionAffinityConfig != nil && in.SessionAffinityConfig.ClientIP != nil && in.SessionAffinityConfig.ClientIP.TimeoutSeconds != nil {
			seconds := *in.SessionAffinityConfig.ClientIP.TimeoutSeconds
			if seconds < 1 || seconds > maxAffinityTimeout {
				c.addf("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d: want 1 to %d", seconds, maxAffinityTimeout)
			}
			s.SessionAffinityTimeout = time.Duration(seconds) * time.Second
		}
	default:
		c.addf("spec.sessionAffinity", "%q is not known: want None or ClientIP", in.SessionAffinity)
	}
}

func (c *checker) traffic(s *control.Service, in *corev1.ServiceSpec) {
	if p := in.InternalTrafficPolicy; p != nil {
		s.InternalTrafficPolicy = string(*p)
		if *p != corev1.ServiceInternalTrafficPolicyCluster && *p != corev1.ServiceInternalTrafficPolicyLocal {
			c.addf("spec.internalTrafficPolicy", "%q is not known: want Cluster or Local", *p)
		}
	}
	if d := in.TrafficDistribution; d != nil {
		s.TrafficDistribution = *d
		switch *d {
		case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode:
		default:
			c.addf("spec.trafficDistribution", "%q is not known: want PreferSameZone, PreferSameNode or PreferClose", *d)
		}
	}
	families := map[string]int{}
	for i, f := range in.IPFamilies {
		if f != corev1.IPv4Protocol && f != corev1.IPv6Protocol {
			c.addf(fmt.Sprintf("spec.ipFamilies[%d]", i), "%q is not known: want IPv4 or IPv6", f)
			continue
		}
		unique(c, families, string(f), "spec.ipFamilies", i, "the family")
		s.IPFamilies = append(s.IPFamilies, string(f))
	}
	for i, a := range s.ClusterIPs {
		if i < len(s.IPFamilies) && a.IsValid() && family(a) != s.IPFamilies[i] {
			c.addf(fmt.Sprintf("spec.ipFamilies[%d]", i), "%s, but the cluster IP is %s", s.IPFamilies[i], a)
		}
	}
}

func family(a netip.Addr) string {
	if a.Is4() {
		return string(corev1.IPv4Protocol)
	}
	return string(corev1.IPv6Protocol)
}
