package kube

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
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
		object, err := exportStatus(due.export)
		if err != nil {
			return err
		}
		return w.writes.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(object), owner, client.ForceOwnership)
	}
	return fmt.Errorf("no way to %s", due.verb)
}

// exportStatus is what server-side apply is given: the conditions that are ours, and nothing else. The UID keeps them from an export
// that was made anew under the same name.
func exportStatus(e *mcsv1beta1.ServiceExport) (*unstructured.Unstructured, error) {
	conditions := make([]any, 0, len(e.Status.Conditions))
	for i := range e.Status.Conditions {
		c, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&e.Status.Conditions[i])
		if err != nil {
			return nil, err
		}
		conditions = append(conditions, c)
	}
	out := &unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"namespace": e.Namespace, "name": e.Name, "uid": string(e.UID)},
		"status":   map[string]any{"conditions": conditions},
	}}
	out.SetAPIVersion(mcsv1beta1.GroupVersion.String())
	out.SetKind(mcsv1beta1.ServiceExportKindName)
	return out, nil
}
