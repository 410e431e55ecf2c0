package kube

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/topology"
)

// sliceKind is the kind of the slices of imports, as it is told of.
const sliceKind = "EndpointSlice"

// isImported reports whether a slice is that of an import (KEP-1645, "EndpointSlice"), ours or somebody else's: no copies of a Service of
// this cluster.
func isImported(s *discoveryv1.EndpointSlice) bool {
	_, imported := s.Labels[mcsv1beta1.LabelSourceCluster]
	return imported || isOurs(s)
}

func isOurs(s *discoveryv1.EndpointSlice) bool {
	return s.Labels[discoveryv1.LabelManagedBy] == ManagedBy
}

// isElsewhere reports whether a slice is of no interest to imports: neither one of theirs, nor where one of ours would stand. The slices
// of Services, which are most, have no dot in their names.
func isElsewhere(s discoveryv1.EndpointSlice) bool {
	return !isImported(&s) && !strings.Contains(s.Name, ".")
}

// slicesOf are the slices that stand for an import: one for each cluster that it comes from, and of a headless one for each family of its
// copies' addresses. None has the label kubernetes.io/service-name, by which kube-proxy would take it for copies of a Service.
func slicesOf(s *control.ImportStatus) []*discoveryv1.EndpointSlice {
	out := make([]*discoveryv1.EndpointSlice, 0, len(s.Copies))
	for i := range s.Copies {
		if string(s.Import.Type) == string(mcsv1beta1.Headless) {
			out = append(out, headlessSlices(s.Service(), &s.Copies[i])...)
		} else {
			out = append(out, addressSlice(s, &s.Copies[i]))
		}
	}
	return out
}

// addressSlice is the slice of an import that has an address. Copies stay in their cluster, so its one endpoint is that address, ready as
// long as a copy of the cluster is: whoever looks for endpoints finds one that can be called. Without an address there is no endpoint.
func addressSlice(s *control.ImportStatus, c *control.Copies) *discoveryv1.EndpointSlice {
	family := discoveryv1.AddressTypeIPv4
	if len(s.IPs) > 0 && s.IPs[0].Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	slice := newSlice(s.Service(), c, family)
	if len(s.IPs) > 0 {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{s.IPs[0].String()},
			Conditions: discoveryv1.EndpointConditions{Ready: new(c.Ready)},
		})
	}
	return slice
}

// headlessSlices holds the ready copies themselves, by the addresses that they have here, and where they listen.
func headlessSlices(service topology.ServiceName, c *control.Copies) []*discoveryv1.EndpointSlice {
	four, six := newSlice(service, c, discoveryv1.AddressTypeIPv4), newSlice(service, c, discoveryv1.AddressTypeIPv6)
	for _, h := range c.Hosts {
		for _, ip := range h.IPs {
			e := discoveryv1.Endpoint{
				Addresses:  []string{ip.String()},
				Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
			}
			if h.Hostname != "" {
				e.Hostname = new(h.Hostname)
			}
			if h.Zone != "" {
				e.Zone = new(h.Zone)
			}
			of := four
			if ip.Is6() {
				of = six
			}
			of.Endpoints = append(of.Endpoints, e)
		}
	}
	if len(six.Endpoints) == 0 {
		return []*discoveryv1.EndpointSlice{four} // empty, too: that there is no copy is a word as well
	}
	if len(four.Endpoints) == 0 {
		return []*discoveryv1.EndpointSlice{six}
	}
	return []*discoveryv1.EndpointSlice{four, six}
}

func newSlice(service topology.ServiceName, c *control.Copies, family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: service.Namespace(), Name: sliceName(service, c.Cluster, family), Labels: sliceLabels(service, c.Cluster)},
		AddressType: family,
		Endpoints:   []discoveryv1.Endpoint{}, // required, be it empty
		Ports:       slicePorts(c),
	}
}

// sliceName is of its own for each service, cluster and family: the names of the first two have no dots.
func sliceName(service topology.ServiceName, cluster topology.ClusterName, family discoveryv1.AddressType) string {
	last := map[discoveryv1.AddressType]string{discoveryv1.AddressTypeIPv4: "ipv4", discoveryv1.AddressTypeIPv6: "ipv6"}[family]
	return fmt.Sprintf("%s.%s.%s", service.Name(), cluster, last)
}

func sliceLabels(service topology.ServiceName, cluster topology.ClusterName) map[string]string {
	return map[string]string{
		discoveryv1.LabelManagedBy:    ManagedBy,
		mcsv1beta1.LabelServiceName:   service.Name(),
		mcsv1beta1.LabelSourceCluster: cluster.String(),
		ManagedByLabel:                ManagedBy,
	}
}

func slicePorts(c *control.Copies) []discoveryv1.EndpointPort {
	var out []discoveryv1.EndpointPort
	for i, p := range c.Ports {
		port := discoveryv1.EndpointPort{Name: new(p.Name), Port: new(int32(p.Number)), Protocol: new(corev1.Protocol(p.Transport))}
		if i < len(c.Targets) {
			port.Port = new(int32(c.Targets[i]))
		}
		if p.AppProtocol != "" {
			port.AppProtocol = new(p.AppProtocol)
		}
		out = append(out, port)
	}
	return out
}

// sliceWrites compares the slices of imports with what they shall be. stands says of which imports there shall be any.
func sliceWrites(want *control.Status, now *written, stands map[topology.ServiceName]bool) (due []write, problems []control.Problem) {
	there := make(map[object]*discoveryv1.EndpointSlice, len(now.slices))
	for i := range now.slices {
		there[object{sliceKind, now.slices[i].Namespace, now.slices[i].Name}] = &now.slices[i]
	}
	wanted := make(map[object]bool)
	for i := range want.Imports {
		if !stands[want.Imports[i].Service()] {
			continue
		}
		for _, s := range slicesOf(&want.Imports[i]) {
			key := object{sliceKind, s.Namespace, s.Name}
			have := there[key]
			switch {
			case have == nil:
				due = append(due, write{verb: create, slice: s})
			case !isOurs(have):
				problems = append(problems, foreign(key, discoveryv1.LabelManagedBy))
			case have.AddressType != s.AddressType: // which can't be changed: it is made anew
				continue
			case have.DeletionTimestamp == nil && !sameSlice(have, s):
				out := have.DeepCopy()
				out.Labels, out.Endpoints, out.Ports = s.Labels, s.Endpoints, s.Ports
				due = append(due, write{verb: update, slice: out})
			}
			wanted[key] = true
		}
	}
	for i := range now.slices {
		have := &now.slices[i]
		if isOurs(have) && have.DeletionTimestamp == nil && !wanted[object{sliceKind, have.Namespace, have.Name}] && !sourceSilent(have, want.Silent) {
			due = append(due, write{verb: remove, slice: have.DeepCopy()})
		}
	}
	return due, problems
}

// sourceSilent reports whether a slice that is not wanted now may be wanted again once the cluster that it is of has spoken.
func sourceSilent(s *discoveryv1.EndpointSlice, silent []topology.ClusterName) bool {
	return slices.ContainsFunc(silent, func(c topology.ClusterName) bool { return s.Labels[mcsv1beta1.LabelSourceCluster] == c.String() })
}

// sameSlice compares what is control's. The API server fills in neither.
func sameSlice(a, b *discoveryv1.EndpointSlice) bool {
	return maps.Equal(a.Labels, b.Labels) && equality.Semantic.DeepEqual(a.Endpoints, b.Endpoints) && equality.Semantic.DeepEqual(a.Ports, b.Ports)
}
