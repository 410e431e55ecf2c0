package install

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
)

// What control writes at run time, and by what it is known.
const (
	stateSecret    = "isthmus-control-state"
	trustBundle    = "isthmus-trust-bundle"
	cniSet         = "isthmus-cni"
	injectionNotes = "isthmus.dev/inbound-port" // the annotation of a Pod with a sidecar
	controlLabel   = "isthmus.dev/managed-by=isthmus-control"
	slicesLabel    = "endpointslice.kubernetes.io/managed-by=isthmus-control"
	controlManager = "isthmus" // of the conditions that control applies
)

var (
	exportKind = schema.GroupVersionResource{Group: mcsGroup, Version: "v1beta1", Resource: "serviceexports"}
	importKind = schema.GroupVersionResource{Group: mcsGroup, Version: "v1beta1", Resource: "serviceimports"}
	sliceKind  = schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}
	userKinds  = []schema.GroupVersionResource{
		{Group: "isthmus.dev", Version: "v1alpha1", Resource: "clusterpeers"},
		{Group: "isthmus.dev", Version: "v1alpha1", Resource: "failoverpolicies"},
		{Group: "isthmus.dev", Version: "v1alpha1", Resource: "federatedtrustdomains"},
		{Group: "isthmus.dev", Version: "v1alpha1", Resource: "workloads"},
	}
)

// Removal is what taking Isthmus out means.
type Removal struct {
	// Uses says who still uses it, a line each: imports, exports, Pods with a sidecar. Empty: nobody.
	Uses []string
	// Lost says what users declared, or can't get back, and is gone afterwards.
	Lost []string
	// Objects are those of the releases, in the order in which they go.
	Objects []string

	mesh, crds []*unstructured.Unstructured
	declared   bool               // by users: it goes with its kinds
	told       map[types.UID]bool // of kinds of the Multi-Cluster Services API, what Uses or Lost names
	nothing    bool
}

// Nothing reports that there is nothing to take out.
func (r *Removal) Nothing() bool { return r.nothing }

// Harmless reports that nobody uses it, and that no user declared anything that goes with it. Keys that nobody has met are no loss.
func (r *Removal) Harmless() bool { return len(r.Uses) == 0 && !r.declared }

// RemoveOptions are what a user may say about taking Isthmus out.
type RemoveOptions struct {
	KeepState bool          // control's keys stay, in their Secret
	Timeout   time.Duration // how long to wait for Pods to end
}

// Remove takes Isthmus out, as Survey found it. It can be run again when it was interrupted.
func (e *Engine) Remove(ctx context.Context, r *Removal, o RemoveOptions) error {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	// Names first: who is told that there is none does not wait for an answer.
	changed, err := e.clearStub(ctx)
	if err != nil {
		return err
	}
	if changed {
		e.say("ConfigMap kube-system/coredns is as it was")
	}
	if err := e.offNodes(ctx); err != nil {
		return err
	}
	if err := e.removeAll(ctx, Mesh, r.mesh); err != nil {
		return err
	}
	if err := e.noPods(ctx); err != nil {
		return err
	}
	if err := e.spare(ctx, r); err != nil {
		return err
	}
	// Only now: control would have put them back.
	if err := e.leftovers(ctx, r); err != nil {
		return err
	}
	if err := e.removeAll(ctx, CRDs, r.crds); err != nil {
		return err
	}
	core := e.kube.CoreV1()
	if err := gone404(core.ConfigMaps(e.Namespace).Delete(ctx, trustBundle, metav1.DeleteOptions{})); err != nil {
		return fmt.Errorf("ConfigMap %s/%s: %w", e.Namespace, trustBundle, err)
	}
	if !o.KeepState {
		if err := gone404(core.Secrets(e.Namespace).Delete(ctx, stateSecret, metav1.DeleteOptions{})); err != nil {
			return fmt.Errorf("secret %s/%s: %w", e.Namespace, stateSecret, err)
		}
	}
	for _, name := range []string{Mesh, CRDs} {
		all, err := e.revisions(ctx, name)
		if err != nil {
			return err
		}
		for _, s := range all {
			if err := gone404(core.Secrets(e.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{})); err != nil {
				return fmt.Errorf("secret %s/%s: %w", e.Namespace, s.Name, err)
			}
		}
	}
	return e.dropNamespace(ctx)
}

// offNodes takes the CNI plugin from the nodes, which no API object does when it goes: its DaemonSet is told to, and waited for.
func (e *Engine) offNodes(ctx context.Context) error {
	recorded, err := e.objectsOfAll(ctx, Mesh)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(recorded, func(o *unstructured.Unstructured) bool { return o.GetKind() == "DaemonSet" && o.GetName() == cniSet })
	if i < 0 {
		return nil
	}
	if is, err := e.live(ctx, recorded[i]); err != nil || is == nil {
		return err
	}
	o := recorded[i].DeepCopy()
	containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
	for _, c := range containers {
		if m, ok := c.(map[string]any); ok {
			if args, ok := m["args"].([]any); ok {
				if at := slices.Index(args, any("--install")); at >= 0 {
					args[at] = "--remove"
				}
			}
		}
	}
	if err := unstructured.SetNestedSlice(o.Object, containers, "spec", "template", "spec", "containers"); err != nil {
		return fmt.Errorf("%s: %w", title(o), err)
	}
	if _, err := e.apply(ctx, Mesh, o, true, false); err != nil {
		return err
	}
	if err := e.until(ctx, "the CNI plugin is not off all nodes: "+title(o), func() (bool, error) {
		d, err := e.kube.AppsV1().DaemonSets(e.Namespace).Get(ctx, cniSet, metav1.GetOptions{})
		if err != nil {
			return apierrors.IsNotFound(err), gone404(err)
		}
		return daemonReady(d), nil
	}); err != nil {
		return err
	}
	e.say("the CNI plugin is off the nodes")
	return nil
}

func gone404(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// removeAll deletes objects and waits until they are gone.
func (e *Engine) removeAll(ctx context.Context, release string, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		if err := e.remove(ctx, release, o); err != nil {
			return err
		}
	}
	for _, o := range objects {
		err := e.until(ctx, title(o)+" is not gone", func() (bool, error) {
			is, err := e.live(ctx, o)
			return is == nil || is.GetUID() != o.GetUID(), err
		})
		if err != nil {
			return err
		}
	}
	if len(objects) > 0 {
		e.say("removed %s: %d objects", release, len(objects))
	}
	return nil
}

// noPods waits until the Pods of the mesh have ended: gateways let streams end, and the kernel's rules go with their container.
func (e *Engine) noPods(ctx context.Context) error {
	said := false
	return e.until(ctx, "Pods have not ended", func() (bool, error) {
		pods, err := e.kube.CoreV1().Pods(e.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=isthmus"})
		if err != nil {
			return false, fmt.Errorf("pods of %s: %w", e.Namespace, err)
		}
		if len(pods.Items) > 0 && !said {
			said = true
			e.say("waiting for %d Pods to end", len(pods.Items))
		}
		return len(pods.Items) == 0, nil
	})
}

// leftovers removes what control wrote at run time.
func (e *Engine) leftovers(ctx context.Context, r *Removal) error {
	for _, of := range []struct {
		kind     schema.GroupVersionResource
		selector string
	}{{sliceKind, slicesLabel}, {importKind, controlLabel}} {
		all, err := e.list(ctx, of.kind, of.selector)
		if err != nil {
			return err
		}
		for _, o := range all {
			err := e.dynamic.Resource(of.kind).Namespace(o.GetNamespace()).Delete(ctx, o.GetName(), metav1.DeleteOptions{})
			if gone404(err) != nil {
				return fmt.Errorf("%s: %w", title(&o), err)
			}
		}
		if len(all) > 0 {
			e.say("removed %d %s that control wrote", len(all), of.kind.Resource)
		}
	}
	told, err := e.kube.CoreV1().Events("").List(ctx, metav1.ListOptions{FieldSelector: "reportingComponent=isthmus-control"})
	if err != nil {
		return fmt.Errorf("events: %w", err)
	}
	for _, ev := range told.Items {
		if err = gone404(e.kube.CoreV1().Events(ev.Namespace).Delete(ctx, ev.Name, metav1.DeleteOptions{})); err != nil {
			return fmt.Errorf("event %s/%s: %w", ev.Namespace, ev.Name, err)
		}
	}
	if r.goes(exportKind) {
		return nil
	}
	// Exports stay, as their kind does. What was said of them is no longer so.
	exports, err := e.list(ctx, exportKind, "")
	if err != nil {
		return err
	}
	for _, x := range exports {
		if !slices.ContainsFunc(x.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool {
			return m.Manager == controlManager && m.Subresource == "status"
		}) {
			continue
		}
		bare := &unstructured.Unstructured{}
		bare.SetGroupVersionKind(x.GroupVersionKind())
		bare.SetName(x.GetName())
		bare.SetNamespace(x.GetNamespace())
		_, err := e.dynamic.Resource(exportKind).Namespace(x.GetNamespace()).
			ApplyStatus(ctx, x.GetName(), bare, metav1.ApplyOptions{FieldManager: controlManager, Force: true})
		if gone404(err) != nil {
			return fmt.Errorf("status of %s: %w", title(&x), err)
		}
	}
	return nil
}

// dropNamespace deletes the namespace if install made it and nothing of others is in it.
func (e *Engine) dropNamespace(ctx context.Context) error {
	ns, err := e.kube.CoreV1().Namespaces().Get(ctx, e.Namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("namespace %s: %w", e.Namespace, err)
	}
	if ns.Labels[managedByLabel] != managedByInstaller {
		e.say("namespace %s stays: it was there before", e.Namespace)
		return nil
	}
	others, err := e.othersIn(ctx)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		e.say("namespace %s stays: %s", e.Namespace, list(others))
		return nil
	}
	uid := ns.UID
	if err := e.kube.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); gone404(err) != nil {
		return fmt.Errorf("namespace %s: %w", e.Namespace, err)
	}
	return e.until(ctx, "namespace "+e.Namespace+" is not gone", func() (bool, error) {
		_, err := e.kube.CoreV1().Namespaces().Get(ctx, e.Namespace, metav1.GetOptions{})
		return apierrors.IsNotFound(err), gone404(err)
	})
}

// othersIn returns what is in the namespace that Kubernetes itself did not put there.
func (e *Engine) othersIn(ctx context.Context) ([]string, error) {
	var out []string
	for _, kind := range []schema.GroupVersionResource{
		{Version: "v1", Resource: "secrets"},
		{Version: "v1", Resource: "configmaps"},
		{Version: "v1", Resource: "serviceaccounts"},
		{Version: "v1", Resource: "services"},
		{Version: "v1", Resource: "persistentvolumeclaims"},
		{Version: "v1", Resource: "pods"},
		{Group: "apps", Version: "v1", Resource: "deployments"},
		{Group: "apps", Version: "v1", Resource: "statefulsets"},
		{Group: "apps", Version: "v1", Resource: "daemonsets"},
	} {
		all, err := e.dynamicIn(kind).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", kind.Resource, e.Namespace, err)
		}
		for _, o := range all.Items {
			if name := o.GetName(); name != "kube-root-ca.crt" && name != "default" && name != "openshift-service-ca.crt" && o.GetDeletionTimestamp() == nil {
				out = append(out, title(&o))
			}
		}
	}
	return out, nil
}

func (e *Engine) dynamicIn(kind schema.GroupVersionResource) dynamic.ResourceInterface {
	return e.dynamic.Resource(kind).Namespace(e.Namespace)
}

// until polls.
func (e *Engine) until(ctx context.Context, otherwise string, done func() (bool, error)) error {
	for {
		switch ok, err := done(); {
		case err != nil && ctx.Err() == nil:
			return err
		case err == nil && ok:
			return nil
		}
		select {
		case <-ctx.Done():
			return &NotReadyError{[]string{otherwise}, context.Cause(ctx)}
		case <-time.After(poll / 5):
		}
	}
}

// list joins names, of many only the first.
func list(names []string) string {
	const most = 5
	if len(names) == 0 {
		return "nobody"
	}
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

func sorted(m map[string]int) []string { return slices.Sorted(maps.Keys(m)) }

// ErrInUse says that taking Isthmus out would break something, and nobody said that it may.
var ErrInUse = errors.New("still in use")
