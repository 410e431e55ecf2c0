package kube

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
)

// do makes the request of a write.
func (w *writer) do(ctx context.Context, due *write) error {
	owner := client.FieldOwner(FieldManager)
	switch due.verb {
	case create:
		return w.writes.Create(ctx, due.whole(), owner)
	case update:
		return w.writes.Update(ctx, due.whole(), owner)
	case putImportStatus:
		return w.writes.Status().Update(ctx, due.imported, owner)
	case remove:
		// Only what was looked at: if it became somebody else's meanwhile, it stays.
		gone := due.whole()
		err := w.writes.Delete(ctx, gone, client.Preconditions{UID: new(gone.GetUID()), ResourceVersion: new(gone.GetResourceVersion())})
		return client.IgnoreNotFound(err)
	case applyExport:
		object, err := conditionsOf(schema.FromAPIVersionAndKind(mcsv1beta1.GroupVersion.String(), mcsv1beta1.ServiceExportKindName), due.export, due.export.Status.Conditions)
		if err != nil {
			return err
		}
		return w.writes.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(object), owner, client.ForceOwnership)
	case applyPeer:
		object, err := conditionsOf(meshv1alpha1.GroupVersion.WithKind(peerKind), due.peer, due.peer.Status.Conditions)
		if err != nil {
			return err
		}
		return w.writes.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(object), owner, client.ForceOwnership)
	case applyDomain:
		object, err := conditionsOf(meshv1alpha1.GroupVersion.WithKind(domainKind), due.domain, due.domain.Status.Conditions)
		if err != nil {
			return err
		}
		return w.writes.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(object), owner, client.ForceOwnership)
	case applyPolicy:
		object, err := conditionsOf(meshv1alpha1.GroupVersion.WithKind(due.policy.kind), due.policy, due.policy.status.Conditions)
		if err != nil {
			return err
		}
		if err := unstructured.SetNestedField(object.Object, int64(due.policy.status.Workloads), "status", "workloads"); err != nil {
			return err
		}
		return w.writes.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(object), owner, client.ForceOwnership)
	case applyFailover:
		object, err := conditionsOf(meshv1alpha1.GroupVersion.WithKind(failoverKind), due.failover, due.failover.Status.Conditions)
		if err != nil {
			return err
		}
		rows := make([]any, 0, len(due.failover.Status.Clusters))
		for i := range due.failover.Status.Clusters {
			row, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&due.failover.Status.Clusters[i])
			if err != nil {
				return err
			}
			rows = append(rows, row)
		}
		if err := unstructured.SetNestedSlice(object.Object, rows, "status", "clusters"); err != nil {
			return err
		}
		return w.writes.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(object), owner, client.ForceOwnership)
	}
	return fmt.Errorf("no way to %s", due.verb)
}

// conditionsOf is what server-side apply is given: the conditions that are ours, and nothing else. The UID keeps them from an object that
// was made anew under the same name.
func conditionsOf(kind schema.GroupVersionKind, of metav1.Object, ours []metav1.Condition) (*unstructured.Unstructured, error) {
	conditions := make([]any, 0, len(ours))
	for i := range ours {
		c, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&ours[i])
		if err != nil {
			return nil, err
		}
		conditions = append(conditions, c)
	}
	metadata := map[string]any{"name": of.GetName(), "uid": string(of.GetUID())}
	if of.GetNamespace() != "" {
		metadata["namespace"] = of.GetNamespace()
	}
	out := &unstructured.Unstructured{Object: map[string]any{"metadata": metadata, "status": map[string]any{"conditions": conditions}}}
	out.SetGroupVersionKind(kind)
	return out, nil
}
