package manifest

import (
	"fmt"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/isthmus-mesh/isthmus/control"
)

// Limits of an EndpointSlice, as Kubernetes has them.
const (
	maxSliceEndpoints = 1000
	maxSlicePorts     = 100
	maxSliceAddresses = 100
)

func endpointSlice(c *checker, in *discoveryv1.EndpointSlice) Object {
	s := &control.EndpointSlice{Meta: c.meta(&in.ObjectMeta, true, validation.IsDNS1123Subdomain)}
	if name := in.Labels[discoveryv1.LabelServiceName]; name == "" {
		c.addf("metadata.labels", "label %s is missing: it names the Service", discoveryv1.LabelServiceName)
	} else if len(c.errs) == 0 {
		s.Service = c.service("metadata.labels", s.Namespace, name)
	}
	switch in.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
	case discoveryv1.AddressTypeFQDN:
		c.addf("addressType", "FQDN is not supported: want IPv4 or IPv6")
		return Object{Slice: s}
	default:
		c.addf("addressType", "%q is not known: want IPv4 or IPv6", in.AddressType)
		return Object{Slice: s}
	}
	c.slicePorts(s, in.Ports)
	if len(in.Endpoints) > maxSliceEndpoints {
		c.addf("endpoints", "%d endpoints, more than the limit of %d", len(in.Endpoints), maxSliceEndpoints)
		return Object{Slice: s}
	}
	for i := range in.Endpoints {
		s.Endpoints = append(s.Endpoints, c.sliceEndpoint(fmt.Sprintf("endpoints[%d]", i), in.AddressType, &in.Endpoints[i]))
	}
	return Object{Slice: s}
}

func (c *checker) slicePorts(s *control.EndpointSlice, in []discoveryv1.EndpointPort) {
	if len(in) > maxSlicePorts {
		c.addf("ports", "%d ports, more than the limit of %d", len(in), maxSlicePorts)
		return
	}
	if len(in) == 0 {
		c.addf("ports", "are missing: name the port of the Service and where the endpoints listen")
	}
	names := map[string]int{}
	for i, p := range in {
		at := fmt.Sprintf("ports[%d]", i)
		var out control.SlicePort
		if p.Name != nil {
			out.Name = *p.Name
		}
		c.portName(at+".name", out.Name)
		unique(c, names, out.Name, "ports", i, "the name "+strconv.Quote(out.Name))
		protocol := ""
		if p.Protocol != nil {
			protocol = string(*p.Protocol)
		}
		out.Transport = c.transport(at+".protocol", protocol)
		if p.Port == nil {
			c.addf(at+".port", "is missing: a slice without port numbers is not supported")
		} else {
			out.Number = c.port(at+".port", *p.Port)
		}
		s.Ports = append(s.Ports, out)
	}
}

func (c *checker) sliceEndpoint(at string, kind discoveryv1.AddressType, in *discoveryv1.Endpoint) control.SliceEndpoint {
	// Nil means ready (discovery/v1 EndpointConditions); one that terminates takes no new calls.
	out := control.SliceEndpoint{Ready: in.Conditions.Ready == nil || *in.Conditions.Ready}
	if in.Conditions.Terminating != nil && *in.Conditions.Terminating {
		out.Ready = false
	}
	if len(in.Addresses) == 0 || len(in.Addresses) > maxSliceAddresses {
		c.addf(at+".addresses", "%d addresses: want 1 to %d", len(in.Addresses), maxSliceAddresses)
		return out
	}
	for i, s := range in.Addresses {
		field := fmt.Sprintf("%s.addresses[%d]", at, i)
		a := c.ip(field, s)
		if a.IsValid() && family(a) != string(kind) {
			c.addf(field, "%s in a slice of addressType %s", a, kind)
		}
		if i == 0 { // the addresses of one endpoint are interchangeable, and consumers use the first (discovery/v1)
			out.Address = a
		}
	}
	if in.Zone != nil {
		out.Zone = *in.Zone
		c.all(at+".zone", strconv.Quote(out.Zone), validation.IsValidLabelValue(out.Zone))
	}
	if in.Hostname != nil {
		out.Hostname = *in.Hostname
		c.all(at+".hostname", strconv.Quote(out.Hostname), validation.IsDNS1123Label(out.Hostname))
	}
	return out
}
