package kube

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/manifest"
	"github.com/isthmus-mesh/isthmus/topology"
)

// verb is what a write does.
type verb string

const (
	create          verb = "create"
	update          verb = "update" // all but a status
	remove          verb = "delete"
	putImportStatus verb = "update status"   // of an import
	applyExport     verb = "apply status"    // of an export
	applyPeer       verb = "apply state"     // of a ClusterPeer, likewise
	applyDomain     verb = "apply freshness" // of a FederatedTrustDomain, likewise
	applyFailover   verb = "apply failover"  // of a FailoverPolicy, likewise
	applyPolicy     verb = "apply outcome"   // of an AccessPolicy or a QuotaPolicy, likewise
)

// write is one request that is due. Exactly one of the objects is set.
type write struct {
	verb verb
	// imported is as it shall be, with the resourceVersion that it replaces.
	imported *mcsv1beta1.ServiceImport
	// slice likewise; it is one of an import.
	slice *discoveryv1.EndpointSlice
	// export holds the conditions that it shall have, and the resourceVersion that it had.
	export *mcsv1beta1.ServiceExport
	// peer likewise.
	peer *meshv1alpha1.ClusterPeer
	// domain likewise.
	domain *meshv1alpha1.FederatedTrustDomain
	// policy is likewise; its kind is set.
	policy *policy
	// failover likewise, and where calls go by it.
	failover *meshv1alpha1.FailoverPolicy
	// news are those of its conditions that are told of by Events.
	news []metav1.Condition
}

// target is the object that the write is for.
func (w *write) target() object {
	switch {
	case w.export != nil:
		return object{mcsv1beta1.ServiceExportKindName, w.export.Namespace, w.export.Name}
	case w.peer != nil:
		return object{peerKind, "", w.peer.Name}
	case w.domain != nil:
		return object{domainKind, "", w.domain.Name}
	case w.policy != nil:
		return object{w.policy.kind, w.policy.Namespace, w.policy.Name}
	case w.failover != nil:
		return object{failoverKind, w.failover.Namespace, w.failover.Name}
	case w.slice != nil:
		return object{sliceKind, w.slice.Namespace, w.slice.Name}
	}
	return object{mcsv1beta1.ServiceImportKindName, w.imported.Namespace, w.imported.Name}
}

// base is the resourceVersion that the write was decided on; "" where there was no object.
func (w *write) base() string {
	switch {
	case w.export != nil:
		return w.export.ResourceVersion
	case w.peer != nil:
		return w.peer.ResourceVersion
	case w.domain != nil:
		return w.domain.ResourceVersion
	case w.policy != nil:
		return w.policy.ResourceVersion
	case w.failover != nil:
		return w.failover.ResourceVersion
	}
	return w.whole().GetResourceVersion()
}

// whole is the object that is created, updated or deleted.
func (w *write) whole() client.Object {
	if w.slice != nil {
		return w.slice
	}
	return w.imported
}

// String returns "Kind namespace/name".
func (o object) String() string {
	return control.Meta{Kind: o.kind, Namespace: o.namespace, Name: o.name}.Object()
}

// written is what the caches hold of what is written. Nothing in it may be changed: it is the caches' own.
type written struct {
	exports    []mcsv1beta1.ServiceExport
	peers      []meshv1alpha1.ClusterPeer
	domains    []meshv1alpha1.FederatedTrustDomain
	policies   []policy // AccessPolicies and QuotaPolicies
	failover   []meshv1alpha1.FailoverPolicy
	imports    []mcsv1beta1.ServiceImport
	slices     []discoveryv1.EndpointSlice // of imports, ours and others'
	namespaces map[string]bool             // that are there and not being deleted
}

// plan returns the writes that make what is there what it should be, ordered by kind, namespace and name, and what can't be made so. It is
// pure.
func plan(want *control.Status, now *written) (due []write, problems []control.Problem) {
	due = slices.Concat(exportWrites(want, now), peerWrites(want, now), domainWrites(want, now), policyWrites(want, now), failoverWrites(want, now))
	there := make(map[topology.ServiceName]*mcsv1beta1.ServiceImport, len(now.imports))
	for i := range now.imports {
		if name, err := topology.NewServiceName(now.imports[i].Namespace, now.imports[i].Name); err == nil {
			there[name] = &now.imports[i]
		}
	}
	wanted := make(map[topology.ServiceName]bool, len(want.Imports))
	stands := make(map[topology.ServiceName]bool, len(want.Imports)) // as ours, now or in a moment
	for i := range want.Imports {
		s := &want.Imports[i]
		wanted[s.Service()] = true
		have := there[s.Service()]
		switch {
		case !now.namespaces[s.Service().Namespace()]:
			// The import stands where the namespace does (KEP-1645, "namespace sameness").
		case have == nil:
			stands[s.Service()] = true
			due = append(due, write{verb: create, imported: importOf(s)})
		case have.Labels[ManagedByLabel] != ManagedBy:
			problems = append(problems, foreign(object{mcsv1beta1.ServiceImportKindName, have.Namespace, have.Name}, ManagedByLabel))
		case have.DeletionTimestamp == nil:
			stands[s.Service()] = true
			if w, is := importWrite(s, have); is {
				due = append(due, w)
			}
		}
	}
	for i := range now.imports {
		have := &now.imports[i]
		name, err := topology.NewServiceName(have.Namespace, have.Name)
		ours := have.Labels[ManagedByLabel] == ManagedBy && have.DeletionTimestamp == nil
		if err == nil && ours && !wanted[name] && !mayReturn(have, want.Silent) {
			due = append(due, write{verb: remove, imported: have.DeepCopy()})
		}
	}
	more, strange := sliceWrites(want, now, stands)
	due, problems = append(due, more...), append(problems, strange...)
	slices.SortStableFunc(due, func(a, b write) int { return a.target().compare(b.target()) })
	return due, control.SortProblems(problems)
}

// foreign tells of an object that stands where one of ours shall.
func foreign(o object, label string) control.Problem {
	return control.Problem{
		Object: o.String(),
		Reason: fmt.Sprintf("is somebody else's (label %s=%s is missing) and is left alone: remove it, and control writes its own", label, ManagedBy),
	}
}

func (o object) compare(p object) int {
	return cmp.Or(cmp.Compare(o.kind, p.kind), cmp.Compare(o.namespace, p.namespace), cmp.Compare(o.name, p.name))
}

// mayReturn reports whether an import that is not wanted now may be wanted again once a peer has spoken that is silent still.
func mayReturn(have *mcsv1beta1.ServiceImport, silent []topology.ClusterName) bool {
	if len(have.Status.Clusters) == 0 {
		return len(silent) > 0 // whose it is was not written yet
	}
	return slices.ContainsFunc(silent, func(c topology.ClusterName) bool {
		return slices.Contains(have.Status.Clusters, mcsv1beta1.ClusterStatus{Cluster: c.String()})
	})
}

// importOf is an import as it shall be, with the mark that it is ours.
func importOf(s *control.ImportStatus) *mcsv1beta1.ServiceImport {
	out := manifest.ServiceImport(s)
	out.Labels = maps.Clone(out.Labels)
	if out.Labels == nil {
		out.Labels = make(map[string]string, 1)
	}
	out.Labels[ManagedByLabel] = ManagedBy
	out.Status.EndpointSliceObjects = mcsv1beta1.EndpointSliceObjectsPresent
	return out
}

// importWrite compares an import of ours with what it shall be. Its labels, annotations and spec are wholly control's: what others add
// is taken away again. Conditions of types that are not ours stay.
func importWrite(s *control.ImportStatus, have *mcsv1beta1.ServiceImport) (write, bool) {
	want := importOf(s)
	if !maps.Equal(have.Labels, want.Labels) || !maps.Equal(have.Annotations, want.Annotations) || !equality.Semantic.DeepEqual(have.Spec, want.Spec) {
		out := have.DeepCopy()
		out.Labels, out.Annotations, out.Spec = want.Labels, want.Annotations, want.Spec
		return write{verb: update, imported: out}, true
	}
	want.Status.Conditions = merged(have.Status.Conditions, want.Status.Conditions, have.Generation)
	if !equality.Semantic.DeepEqual(have.Status, want.Status) {
		out := have.DeepCopy()
		out.Status = want.Status
		return write{verb: putImportStatus, imported: out}, true
	}
	return write{}, false
}

// exportWrites compares the conditions of the ServiceExports with what they shall be.
func exportWrites(want *control.Status, now *written) []write {
	there := make(map[object]*mcsv1beta1.ServiceExport, len(now.exports))
	for i := range now.exports {
		e := &now.exports[i]
		there[object{mcsv1beta1.ServiceExportKindName, e.Namespace, e.Name}] = e
	}
	var due []write
	for i := range want.Exports {
		e := &want.Exports[i].Export
		have := there[object{mcsv1beta1.ServiceExportKindName, e.Namespace, e.Name}]
		if have == nil {
			continue // it went: control hears of it in a moment
		}
		conditions := merged(have.Status.Conditions, manifest.Conditions(want.Exports[i].Conditions), e.Generation)
		if equality.Semantic.DeepEqual(have.Status.Conditions, conditions) {
			continue
		}
		ours := slices.DeleteFunc(conditions, func(c metav1.Condition) bool {
			return !slices.ContainsFunc(want.Exports[i].Conditions, func(o control.Condition) bool { return o.Type == c.Type })
		})
		due = append(due, write{verb: applyExport, export: &mcsv1beta1.ServiceExport{
			ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name, UID: have.UID, ResourceVersion: have.ResourceVersion},
			Status:     mcsv1beta1.ServiceExportStatus{Conditions: ours},
		}, news: news(have.Status.Conditions, ours)})
	}
	return due
}

// peerWrites compares the conditions of the ClusterPeers with what they shall be.
func peerWrites(want *control.Status, now *written) []write {
	there := make(map[string]*meshv1alpha1.ClusterPeer, len(now.peers))
	for i := range now.peers {
		there[now.peers[i].Name] = &now.peers[i]
	}
	var due []write
	for i := range want.Peers {
		p := &want.Peers[i].Peer
		have := there[p.Name]
		if have == nil {
			continue
		}
		conditions, same := stateOf(have.Status.Conditions, want.Peers[i].Conditions, p.Generation)
		if same {
			continue
		}
		due = append(due, write{verb: applyPeer, peer: &meshv1alpha1.ClusterPeer{
			ObjectMeta: metav1.ObjectMeta{Name: p.Name, UID: have.UID, ResourceVersion: have.ResourceVersion},
			Status:     meshv1alpha1.ClusterPeerStatus{Conditions: conditions},
		}})
	}
	return due
}

// domainWrites compares the conditions of the FederatedTrustDomains with what they shall be.
func domainWrites(want *control.Status, now *written) []write {
	there := make(map[string]*meshv1alpha1.FederatedTrustDomain, len(now.domains))
	for i := range now.domains {
		there[now.domains[i].Name] = &now.domains[i]
	}
	var due []write
	for i := range want.Domains {
		d := &want.Domains[i].Domain
		have := there[d.Name]
		if have == nil {
			continue
		}
		conditions, same := stateOf(have.Status.Conditions, want.Domains[i].Conditions, d.Generation)
		if same {
			continue
		}
		due = append(due, write{verb: applyDomain, domain: &meshv1alpha1.FederatedTrustDomain{
			ObjectMeta: metav1.ObjectMeta{Name: d.Name, UID: have.UID, ResourceVersion: have.ResourceVersion},
			Status:     meshv1alpha1.FederatedTrustDomainStatus{Conditions: conditions},
		}})
	}
	return due
}

// stateOf returns the conditions of ours that an object shall have, and whether it has them.
func stateOf(have []metav1.Condition, want []control.Condition, generation int64) (conditions []metav1.Condition, same bool) {
	ours := manifest.Conditions(want)
	conditions = merged(have, ours, generation)
	if equality.Semantic.DeepEqual(have, conditions) {
		return nil, true
	}
	return slices.DeleteFunc(conditions, func(c metav1.Condition) bool {
		return !slices.ContainsFunc(ours, func(o metav1.Condition) bool { return o.Type == c.Type })
	}), false
}

// maxMessage bounds the message of a condition (metav1.Condition), in bytes.
const maxMessage = 32_768

// policy is an AccessPolicy or a QuotaPolicy, as far as its status goes.
type policy struct {
	kind string
	*metav1.ObjectMeta
	status meshv1alpha1.PolicyStatus
}

// policyWrites compares what is said of policies with what shall be.
func policyWrites(want *control.Status, now *written) []write {
	there := make(map[object]*policy, len(now.policies))
	for i := range now.policies {
		p := &now.policies[i]
		there[object{p.kind, p.Namespace, p.Name}] = p
	}
	var due []write
	for i := range want.Policies {
		p := &want.Policies[i]
		have := there[object{p.Kind, p.Namespace, p.Name}]
		if have == nil {
			continue
		}
		ours := manifest.Conditions(p.Conditions)
		copies := int32(min(p.Copies, math.MaxInt32)) //nolint:gosec // G115: bounded here
		conditions := merged(have.status.Conditions, ours, p.Generation)
		if equality.Semantic.DeepEqual(have.status.Conditions, conditions) && have.status.Workloads == copies {
			continue
		}
		conditions = slices.DeleteFunc(conditions, func(c metav1.Condition) bool {
			return !slices.ContainsFunc(ours, func(o metav1.Condition) bool { return o.Type == c.Type })
		})
		due = append(due, write{verb: applyPolicy, policy: &policy{
			kind:       p.Kind,
			ObjectMeta: &metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: have.UID, ResourceVersion: have.ResourceVersion},
			status:     meshv1alpha1.PolicyStatus{Conditions: conditions, Workloads: copies},
		}})
	}
	return due
}

// failoverWrites compares what is said of FailoverPolicies with what shall be.
func failoverWrites(want *control.Status, now *written) []write {
	there := make(map[object]*meshv1alpha1.FailoverPolicy, len(now.failover))
	for i := range now.failover {
		p := &now.failover[i]
		there[object{failoverKind, p.Namespace, p.Name}] = p
	}
	var due []write
	for i := range want.Failover {
		s := &want.Failover[i]
		have := there[object{failoverKind, s.Namespace, s.Name}]
		if have == nil {
			continue
		}
		status := manifest.FailoverStatus(s)
		conditions := merged(have.Status.Conditions, status.Conditions, s.Generation)
		if equality.Semantic.DeepEqual(have.Status.Conditions, conditions) && equality.Semantic.DeepEqual(have.Status.Clusters, status.Clusters) {
			continue
		}
		status.Conditions = slices.DeleteFunc(conditions, func(c metav1.Condition) bool {
			return !slices.ContainsFunc(s.Conditions, func(o control.Condition) bool { return o.Type == c.Type })
		})
		due = append(due, write{verb: applyFailover, failover: &meshv1alpha1.FailoverPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, UID: have.UID, ResourceVersion: have.ResourceVersion},
			Status:     status,
		}})
	}
	return due
}

// merged puts the conditions that are wanted in the place of those of the same type, and leaves the others. A condition whose status is
// as before keeps its time of transition: control knows it only since its own start.
func merged(have, want []metav1.Condition, generation int64) []metav1.Condition {
	out := slices.Clone(have)
	for _, w := range want {
		w.ObservedGeneration = generation
		w.Message = cut(w.Message, maxMessage)
		i := slices.IndexFunc(out, func(c metav1.Condition) bool { return c.Type == w.Type })
		if i < 0 {
			out = append(out, w)
			continue
		}
		if out[i].Status == w.Status {
			w.LastTransitionTime = out[i].LastTransitionTime
		}
		out[i] = w
	}
	return out
}

// cut shortens a text to so many bytes.
func cut(s string, most int) string { return strings.ToValidUTF8(s[:min(len(s), most)], "") }
