package kube

import (
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/topology"
)

// ofServices leaves out the slices that are no copies of a Service of this cluster: those of an import (KEP-1645, "EndpointSlice"), ours
// among them, those that name no Service, and those without ports, as a headless Service without ports has them: there is nothing
// to call.
func ofServices(in []discoveryv1.EndpointSlice) []discoveryv1.EndpointSlice {
	out := make([]discoveryv1.EndpointSlice, 0, len(in))
	for i := range in {
		s := &in[i]
		if !isImported(s) && s.Labels[discoveryv1.LabelServiceName] != "" && len(s.Ports) > 0 {
			out = append(out, *s)
		}
	}
	return out
}

// targetsOf returns which Pod each endpoint of an EndpointSlice is.
func targetsOf(in metav1.Object) []string {
	slice, ok := in.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil
	}
	out := make([]string, len(slice.Endpoints))
	for i := range slice.Endpoints {
		if ref := slice.Endpoints[i].TargetRef; ref != nil && ref.Kind == "Pod" {
			out[i] = ref.Name
		}
	}
	return out
}

// copies sorts out which endpoints are copies of their own.
type copies struct {
	services map[topology.ServiceName]*control.Service
	meshed   map[string]bool // Pods with a sidecar
	all      []conversion
	first    map[copyOf]bool // which have an address of their Service's first family
}

// copyOf is a Pod that serves a Service.
type copyOf struct {
	service topology.ServiceName
	pod     string
}

func newCopies(services []control.Service, meshed map[string]bool) *copies {
	c := &copies{services: make(map[topology.ServiceName]*control.Service, len(services)), meshed: meshed, first: make(map[copyOf]bool)}
	for i := range services {
		c.services[services[i].ID] = &services[i]
	}
	return c
}

// add takes a slice.
func (c *copies) add(v conversion) {
	c.all = append(c.all, v)
	for i, e := range v.value.Slice.Endpoints {
		if v.targets[i] != "" && c.isFirst(v.value.Slice.Service, e) {
			c.first[copyOf{v.value.Slice.Service, v.targets[i]}] = true
		}
	}
}

// isFirst reports whether an endpoint's address is of the first family of its Service: of IPv4, unless that says otherwise.
func (c *copies) isFirst(service topology.ServiceName, e control.SliceEndpoint) bool {
	s := c.services[service]
	return e.Address.Is6() == (s != nil && len(s.IPFamilies) > 0 && s.IPFamilies[0] == "IPv6")
}

// slices returns what was added, without the endpoints that are copies which something else stands for:
//   - Pods with a sidecar, where the Service's selector picks its copies: they are Workloads, and picked as such. Beside them they
//     would count as copies without a sidecar, and be called in plain.
//   - Pods that have an address of the Service's first family too: a Service of two families has a slice for each.
func (c *copies) slices() []control.EndpointSlice {
	out := make([]control.EndpointSlice, 0, len(c.all))
	for _, v := range c.all {
		slice := *v.value.Slice
		s := c.services[slice.Service]
		slice.Endpoints = nil
		for i, e := range v.value.Slice.Endpoints {
			pod := v.targets[i]
			picked := s != nil && len(s.Selector) > 0 && c.meshed[slice.Namespace+"/"+pod]
			again := pod != "" && !c.isFirst(slice.Service, e) && c.first[copyOf{slice.Service, pod}]
			if !picked && !again {
				e.Pod = pod
				slice.Endpoints = append(slice.Endpoints, e)
			}
		}
		out = append(out, slice)
	}
	return out
}
