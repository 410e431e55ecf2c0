package install

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Survey looks at what taking Isthmus out would mean. Nothing is written.
func (e *Engine) Survey(ctx context.Context, o RemoveOptions) (*Removal, error) {
	r := &Removal{}
	var err error
	if r.mesh, err = e.objectsOfAll(ctx, Mesh); err != nil {
		return nil, err
	}
	if r.crds, err = e.objectsOfAll(ctx, CRDs); err != nil {
		return nil, err
	}
	for _, of := range []struct {
		release string
		objects *[]*unstructured.Unstructured
	}{{Mesh, &r.mesh}, {CRDs, &r.crds}} {
		var there []*unstructured.Unstructured
		for _, o := range *of.objects {
			is, wrong := e.live(ctx, o)
			if wrong != nil {
				return nil, wrong
			}
			if is != nil && e.ours(of.release, is) {
				there = append(there, is)
				r.Objects = append(r.Objects, title(is))
			}
		}
		*of.objects = there
	}
	if len(r.mesh) == 0 {
		if s, wrong := e.kube.AppsV1().StatefulSets(e.Namespace).Get(ctx, "isthmus-control", metav1.GetOptions{}); wrong == nil {
			return nil, fmt.Errorf("StatefulSet %s/isthmus-control is not of a Helm release %s: take it out where it came from (%s); run this again for what is left then",
				e.Namespace, Mesh, cameFrom(s.Labels))
		} else if !apierrors.IsNotFound(wrong) {
			return nil, fmt.Errorf("StatefulSet %s/isthmus-control: %w", e.Namespace, wrong)
		}
	}
	if err = e.uses(ctx, r); err != nil {
		return nil, err
	}
	state, err := e.kube.CoreV1().Secrets(e.Namespace).Get(ctx, stateSecret, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("secret %s/%s: %w", e.Namespace, stateSecret, err)
	}
	if err == nil && !o.KeepState {
		r.Lost = append(r.Lost, fmt.Sprintf("the keys of the cluster, in Secret %s/%s: installed again it has others, and each peer must be told (--keep-state keeps them)", state.Namespace, state.Name))
	}
	r.nothing = len(r.Objects) == 0 && apierrors.IsNotFound(err) && len(r.Uses) == 0
	return r, nil
}

func cameFrom(labels map[string]string) string {
	if by := labels[managedByLabel]; by != "" {
		return managedByLabel + " says " + by
	}
	return "kubectl, Argo CD, Flux"
}

// objectsOfAll returns what the revisions of a release have, the last applied first: an upgrade that failed may have left some behind.
func (e *Engine) objectsOfAll(ctx context.Context, name string) ([]*unstructured.Unstructured, error) {
	all, err := e.revisions(ctx, name)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var out []*unstructured.Unstructured
	for _, s := range slices.Backward(all) {
		r, err := decodeRelease(s)
		if err != nil {
			return nil, err
		}
		objects, err := objectsOf(r)
		if err != nil {
			return nil, err
		}
		for _, o := range slices.Backward(objects) {
			if !seen[title(o)] {
				seen[title(o)] = true
				out = append(out, o)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b *unstructured.Unstructured) int { return rank(b) - rank(a) })
	return out, nil
}

// goes reports whether a kind is removed: somebody else may have brought it, and then its objects stay.
func (r *Removal) goes(kind schema.GroupVersionResource) bool {
	return slices.ContainsFunc(r.crds, func(o *unstructured.Unstructured) bool { return o.GetName() == kind.GroupResource().String() })
}

// spare takes those kinds from what is removed that would take something with them of which nobody was told: it came after Survey.
func (e *Engine) spare(ctx context.Context, r *Removal) error {
	for _, kind := range []schema.GroupVersionResource{exportKind, importKind} {
		if !r.goes(kind) {
			continue
		}
		all, err := e.list(ctx, kind, "")
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(o unstructured.Unstructured) bool {
			return kind == importKind && byControl(&o) || r.told[o.GetUID()]
		})
		if len(all) > 0 {
			r.crds = slices.DeleteFunc(r.crds, func(o *unstructured.Unstructured) bool { return o.GetName() == kind.GroupResource().String() })
			e.say("the kind %s stays: %s came meanwhile", kind.GroupResource(), names(all))
		}
	}
	return nil
}

// byControl reports whether an import is control's; those of other implementations of the Multi-Cluster Services API are not.
func byControl(o *unstructured.Unstructured) bool {
	key, value, _ := strings.Cut(controlLabel, "=")
	return o.GetLabels()[key] == value
}

// names lists objects as kubectl does.
func names(all []unstructured.Unstructured) string {
	var out []string
	for _, o := range all {
		out = append(out, strings.TrimPrefix(o.GetNamespace()+"/"+o.GetName(), "/"))
	}
	return list(out)
}

// uses finds out who uses the mesh, and what users declared for it.
func (e *Engine) uses(ctx context.Context, r *Removal) error {
	imports, err := e.list(ctx, importKind, "")
	if err != nil {
		return err
	}
	r.told = map[types.UID]bool{}
	var foreign []unstructured.Unstructured
	for _, i := range imports {
		if !byControl(&i) {
			foreign = append(foreign, i)
			continue
		}
		from, _, _ := unstructured.NestedSlice(i.Object, "status", "clusters")
		var clusters []string
		for _, c := range from {
			if m, ok := c.(map[string]any); ok {
				clusters = append(clusters, fmt.Sprint(m["cluster"]))
			}
		}
		r.Uses = append(r.Uses, fmt.Sprintf("%s/%s is imported from %s: its name and address go", i.GetNamespace(), i.GetName(), list(clusters)))
	}
	if len(foreign) > 0 && r.goes(importKind) {
		r.declared = true
		for _, i := range foreign {
			r.told[i.GetUID()] = true
		}
		r.Lost = append(r.Lost, fmt.Sprintf("%d serviceimports that are not of Isthmus, with their kind: %s", len(foreign), names(foreign)))
	}
	exports, err := e.list(ctx, exportKind, "")
	if err != nil {
		return err
	}
	for _, x := range exports {
		r.told[x.GetUID()] = true
		r.Uses = append(r.Uses, fmt.Sprintf("%s/%s is exported: other clusters lose its copies here", x.GetNamespace(), x.GetName()))
	}
	if r.goes(exportKind) && len(exports) > 0 {
		r.Lost = append(r.Lost, fmt.Sprintf("%d serviceexports, with their kind", len(exports)))
	}
	pods, err := e.kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("pods: %w", err)
	}
	sidecars := map[string]int{}
	for _, p := range pods.Items {
		if p.Annotations[injectionNotes] != "" && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			sidecars[p.Namespace]++
		}
	}
	for _, ns := range sorted(sidecars) {
		r.Uses = append(r.Uses, fmt.Sprintf("%d Pods in namespace %s have a sidecar, whose identity ends within an hour: restart them afterwards", sidecars[ns], ns))
	}
	for _, kind := range userKinds {
		all, err := e.list(ctx, kind, "")
		if err != nil {
			return err
		}
		if len(all) > 0 {
			r.declared = true
			r.Lost = append(r.Lost, fmt.Sprintf("%d %s: %s", len(all), kind.Resource, names(all)))
		}
	}
	return nil
}

// list returns all objects of a kind; none where the API server does not know it.
func (e *Engine) list(ctx context.Context, kind schema.GroupVersionResource, selector string) ([]unstructured.Unstructured, error) {
	all, err := e.dynamic.Resource(kind).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind.Resource, err)
	}
	return all.Items, nil
}
