package kube

import (
	"cmp"
	"sort"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/manifest"
)

// memory is the last conversion of each object: what has not changed since is not checked again, and of what is bad now the last
// good version is known. Immutable.
type memory map[object]conversion

const (
	peerKind     = "ClusterPeer"
	domainKind   = "FederatedTrustDomain"
	accessKind   = "AccessPolicy"
	quotaKind    = "QuotaPolicy"
	failoverKind = "FailoverPolicy"
)

// object names an object.
type object struct{ kind, namespace, name string }

// conversion is what became of one object.
type conversion struct {
	uid      types.UID
	version  string // resourceVersion
	good     bool   // value is set: of this version, or of an earlier one of the same object
	closed   bool   // value stands in for one of which no good version is known (manifest.Closed)
	value    manifest.Object
	targets  []string          // of a good EndpointSlice: the Pod that each endpoint is, or ""
	problems []control.Problem // of this version
}

// convert turns what the caches hold into control's objects. It is pure: what it returns depends on its arguments alone, and it changes
// neither. The memory it returns is for the next call.
func convert(now *reading, last memory) (*control.Objects, memory) {
	c := &converter{last: last, next: make(memory, len(last)), out: new(control.Objects)}
	meshed := c.meshedPods(now)
	each(c, "Service", now.services, func(v conversion) { c.out.Services = append(c.out.Services, *v.value.Service) })
	c.out.Outside = outside(now.services, now.namespace)
	copies := newCopies(c.out.Services, meshed)
	each(c, "EndpointSlice", ofServices(now.slices), copies.add)
	c.out.Slices = copies.slices()
	each(c, mcsv1beta1.ServiceExportKindName, present(now.exports), func(v conversion) { c.out.Exports = append(c.out.Exports, *v.value.Export) })
	each(c, peerKind, present(now.peers), func(v conversion) { c.out.Peers = append(c.out.Peers, *v.value.Peer) })
	policies := present(now.policies)
	each(c, failoverKind, policies, func(v conversion) { c.out.Policies = append(c.out.Policies, *v.value.Policy) })
	c.refused(policies)
	// What refuses does so until it is gone.
	each(c, accessKind, now.access, func(v conversion) { c.out.Access = append(c.out.Access, *v.value.Access) })
	each(c, quotaKind, now.quotas, func(v conversion) { c.out.Quotas = append(c.out.Quotas, *v.value.Quota) })
	each(c, domainKind, present(now.domains), func(v conversion) { c.out.Domains = append(c.out.Domains, *v.value.Domain) })
	each(c, "Workload", present(now.workloads), func(v conversion) {
		w := v.value.Workload
		if meshed[w.ID()] {
			c.out.Problems = append(c.out.Problems, control.Problem{
				Object: w.Object(), Reason: "a Pod of this name has a sidecar and is in force; this one is not: give it another name",
			})
			return
		}
		c.out.Workloads = append(c.out.Workloads, *w)
	})
	c.out.Network = networkOf(now.nodes)
	c.out.Problems = control.SortProblems(c.out.Problems)
	byName(c.out.Services, func(o *control.Service) *control.Meta { return &o.Meta })
	byName(c.out.Slices, func(o *control.EndpointSlice) *control.Meta { return &o.Meta })
	byName(c.out.Workloads, func(o *control.Workload) *control.Meta { return &o.Meta })
	byName(c.out.Exports, func(o *control.ServiceExport) *control.Meta { return &o.Meta })
	byName(c.out.Peers, func(o *control.ClusterPeer) *control.Meta { return &o.Meta })
	byName(c.out.Domains, func(o *control.FederatedTrustDomain) *control.Meta { return &o.Meta })
	byName(c.out.Policies, func(o *control.FailoverPolicy) *control.Meta { return &o.Meta })
	byName(c.out.Refused, func(o *control.RefusedPolicy) *control.Meta { return &o.Meta })
	byName(c.out.Access, func(o *control.AccessPolicy) *control.Meta { return &o.Meta })
	byName(c.out.Quotas, func(o *control.QuotaPolicy) *control.Meta { return &o.Meta })
	return c.out, c.next
}

// converter is one call of convert.
type converter struct {
	last, next memory
	out        *control.Objects
}

// each converts the objects of one kind, and hands on those of which a good version is known.
func each[T any, P interface {
	*T
	metav1.Object
}](c *converter, kind string, in []T, use func(conversion)) {
	for i := range in {
		v := c.one(kind, P(&in[i]))
		c.out.Problems = append(c.out.Problems, v.problems...)
		if v.good {
			use(v)
		}
	}
}

// refused notes the FailoverPolicies that were converted and are not understood: an object says itself what is wrong with it.
func (c *converter) refused(in []meshv1alpha1.FailoverPolicy) {
	for i := range in {
		p := &in[i]
		var reasons []string
		for _, problem := range c.next[object{failoverKind, p.Namespace, p.Name}].problems {
			reasons = append(reasons, problem.Reason)
		}
		if reasons != nil {
			c.out.Refused = append(c.out.Refused, control.RefusedPolicy{
				Meta: control.Meta{Kind: failoverKind, Namespace: p.Namespace, Name: p.Name}, Generation: p.Generation, Reason: strings.Join(reasons, "; "),
			})
		}
	}
}

func (c *converter) one(kind string, in metav1.Object) conversion {
	key := object{kind, in.GetNamespace(), in.GetName()}
	v, known := c.last[key]
	known = known && v.uid == in.GetUID()
	if !known {
		v = conversion{uid: in.GetUID()}
	}
	if !known || v.version != in.GetResourceVersion() {
		value, problems := manifest.Convert(in)
		v.version, v.problems = in.GetResourceVersion(), problems
		if len(problems) == 0 {
			v.good, v.closed, v.value, v.targets = true, false, value, targetsOf(in)
		} else if !v.good || v.closed {
			v.value, v.closed = manifest.Closed(in)
			v.good = v.closed
		}
	}
	c.next[key] = v
	return v
}

// byName puts objects into the order that control.Objects has. It compares in place: they are large, and there are many.
func byName[T any](in []T, meta func(*T) *control.Meta) {
	sort.Slice(in, func(i, j int) bool {
		x, y := meta(&in[i]), meta(&in[j])
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name)) < 0
	})
}
