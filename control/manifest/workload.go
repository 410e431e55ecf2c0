package manifest

import (
	"fmt"
	"math"
	"strconv"

	"k8s.io/apimachinery/pkg/util/validation"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
)

// maxWorkloadPorts bounds the ports that a workload names.
const maxWorkloadPorts = 100

// defaultServiceAccount is the service account of a workload that names none.
const defaultServiceAccount = "default"

func workload(c *checker, in *meshv1alpha1.Workload) Object {
	w := &control.Workload{
		Meta:           c.meta(&in.ObjectMeta, true, validation.IsDNS1123Subdomain),
		Labels:         in.Labels,
		ServiceAccount: in.Spec.ServiceAccount,
		Zone:           in.Spec.Zone,
		Ready:          in.Spec.Ready == nil || *in.Spec.Ready,
	}
	if w.ServiceAccount == "" {
		w.ServiceAccount = defaultServiceAccount
	}
	c.all("spec.serviceAccount", strconv.Quote(w.ServiceAccount), validation.IsDNS1123Subdomain(w.ServiceAccount))
	if in.Spec.Address == "" {
		c.addf("spec.address", "is missing: the IP address of the workload")
	} else {
		w.Address = c.ip("spec.address", in.Spec.Address)
	}
	c.all("spec.zone", strconv.Quote(w.Zone), validation.IsValidLabelValue(w.Zone))
	if len(in.Spec.Ports) > maxWorkloadPorts {
		c.addf("spec.ports", "%d ports, more than the limit of %d", len(in.Spec.Ports), maxWorkloadPorts)
		return Object{Workload: w}
	}
	names := map[string]int{}
	for i, p := range in.Spec.Ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		if p.Name != "" {
			c.all(at+".name", strconv.Quote(p.Name), validation.IsValidPortName(p.Name))
			unique(c, names, p.Name, "spec.ports", i, "the name "+strconv.Quote(p.Name))
		}
		w.Ports = append(w.Ports, control.WorkloadPort{Name: p.Name, Number: c.port(at+".port", p.Port)})
	}
	if s := in.Spec.Sidecar; s != nil {
		w.Inbound = c.port("spec.sidecar.inboundPort", s.InboundPort)
		for i, p := range w.Ports {
			if p.Number == w.Inbound && w.Inbound != 0 {
				c.addf("spec.sidecar.inboundPort", "%d is the application's own, spec.ports[%d]", w.Inbound, i)
			}
		}
	}
	if u := in.Spec.Unix; u != nil {
		w.UID = c.uid("spec.unix.uid", u.UID)
	}
	return Object{Workload: w}
}

// uid checks the number of a user.
func (c *checker) uid(field string, n *int64) *uint32 {
	const (
		nobody = 65534          // whom the kernel shows for any user that is not known (user_namespaces(7))
		unset  = math.MaxUint32 // "no change" to the kernel (setresuid(2))
	)
	switch {
	case n == nil:
		c.addf(field, "is missing")
		return nil
	case *n < 0 || *n >= unset:
		c.addf(field, "%d is no user: want 0 to %d", *n, unset-1)
		return nil
	case *n == nobody:
		c.addf(field, "%d stands for any user that is not known", *n)
		return nil
	}
	out := uint32(*n)
	return &out
}
