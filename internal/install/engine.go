package install

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
)

// manager is the field manager of what is applied. It is Helm's, so that helm is no other writer than this.
const manager = "helm"

// What Helm knows its objects by.
const (
	managedByLabel     = "app.kubernetes.io/managed-by"
	releaseName        = "meta.helm.sh/release-name"
	releaseNamespace   = "meta.helm.sh/release-namespace"
	managedByHelm      = "Helm"
	managedByInstaller = "isthmus-install"
)

// Engine works on one cluster. Say is called with each line of progress; it may be nil.
type Engine struct {
	Context   string // of the kubeconfig
	Namespace string // that Isthmus is, or will be, installed in
	Build     Build
	Say       func(line string)

	cluster *kubeaccess.Cluster
	kube    kubernetes.Interface
	dynamic dynamic.Interface
}

// New returns an Engine for the cluster of a context.
func New(c *kubeaccess.Cluster, namespace string, build Build, say func(string)) (*Engine, error) {
	e := &Engine{cluster: c, Context: c.Context, Namespace: namespace, Build: build, Say: say}
	var err error
	if e.kube, err = c.Clientset(); err != nil {
		return nil, err
	}
	if e.dynamic, err = c.Dynamic(); err != nil {
		return nil, err
	}
	return e, nil
}

// Explain returns err with the context it is of, and what to do where that is known.
func (e *Engine) Explain(err error) error { return e.cluster.Explain("installing", err) }

func (e *Engine) say(format string, args ...any) {
	if e.Say != nil {
		e.Say(fmt.Sprintf(format, args...))
	}
}

// kindOf returns the resource of a kind. All kinds of the charts have the plural that their name suggests.
func kindOf(gvk schema.GroupVersionKind) schema.GroupVersionResource {
	r, _ := meta.UnsafeGuessKindToResource(gvk)
	return r
}

// at returns the client for an object's kind and namespace.
func (e *Engine) at(o *unstructured.Unstructured) dynamic.ResourceInterface {
	r := e.dynamic.Resource(kindOf(o.GroupVersionKind()))
	if ns := o.GetNamespace(); ns != "" {
		return r.Namespace(ns)
	}
	return r
}

// live returns the object as it stands, or nil where there is none.
func (e *Engine) live(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	got, err := e.at(o).Get(ctx, o.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", title(o), err)
	}
	return got, nil
}

// title names an object as kubectl does: kind, and namespace/name.
func title(o *unstructured.Unstructured) string {
	if o.GetNamespace() == "" {
		return o.GetKind() + " " + o.GetName()
	}
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

// owned returns a copy of an object of a release that says whose it is.
func (e *Engine) owned(release string, o *unstructured.Unstructured) *unstructured.Unstructured {
	o = o.DeepCopy()
	labels, notes := o.GetLabels(), o.GetAnnotations()
	if labels == nil {
		labels = map[string]string{}
	}
	if notes == nil {
		notes = map[string]string{}
	}
	labels[managedByLabel] = managedByHelm
	notes[releaseName], notes[releaseNamespace] = release, e.Namespace
	o.SetLabels(labels)
	o.SetAnnotations(notes)
	return o
}

// ours reports whether a live object is the release's.
func (e *Engine) ours(release string, o *unstructured.Unstructured) bool {
	notes := o.GetAnnotations()
	return notes[releaseName] == release && notes[releaseNamespace] == e.Namespace
}

// apply writes an object of a release and returns it as it then stands, or would.
func (e *Engine) apply(ctx context.Context, release string, o *unstructured.Unstructured, force, dry bool) (*unstructured.Unstructured, error) {
	options := metav1.ApplyOptions{FieldManager: manager, Force: force}
	if dry {
		options.DryRun = []string{metav1.DryRunAll}
	}
	got, err := e.at(o).Apply(ctx, o.GetName(), e.owned(release, o), options)
	if !dry && replaceable(o, err) {
		if got, err = e.replace(ctx, release, o, options); err == nil {
			e.say("replaced %s; its Pods go on until they are updated", title(o))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", title(o), explainConflict(err))
	}
	return got, nil
}

// replaceable reports whether an object was refused because fields of it can't be changed, and can be made anew without its Pods
// noticing.
func replaceable(o *unstructured.Unstructured, err error) bool {
	return apierrors.IsInvalid(err) && (o.GetKind() == "StatefulSet" || o.GetKind() == "DaemonSet") && strings.Contains(err.Error(), "updates to")
}

// replace deletes an object, leaves its Pods, and makes it anew: it takes them over.
func (e *Engine) replace(
	ctx context.Context, release string, o *unstructured.Unstructured, options metav1.ApplyOptions,
) (*unstructured.Unstructured, error) {
	orphan := metav1.DeletePropagationOrphan
	if err := gone404(e.at(o).Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &orphan})); err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, replacing)
	defer cancel()
	if err := e.until(bounded, title(o)+" is not gone", func() (bool, error) {
		is, err := e.live(ctx, o)
		return is == nil, err
	}); err != nil {
		return nil, err
	}
	return e.at(o).Apply(ctx, o.GetName(), e.owned(release, o), options)
}

// replacing bounds how long an object may take to go.
const replacing = time.Minute

// ConflictError is a field that somebody else has set.
type ConflictError struct{ err error }

// Error says which fields, who set them, and what to do.
func (c *ConflictError) Error() string {
	return strings.TrimSpace(c.err.Error()) + "; --force-conflicts takes these fields over"
}

// Unwrap returns the API server's error.
func (c *ConflictError) Unwrap() error { return c.err }

func explainConflict(err error) error {
	var status *apierrors.StatusError
	if !errors.As(err, &status) || !apierrors.IsConflict(err) || status.Status().Details == nil {
		return err
	}
	var fields []string
	for _, c := range status.Status().Details.Causes {
		if c.Type == metav1.CauseTypeFieldManagerConflict {
			fields = append(fields, strings.TrimPrefix(c.Field, ".")+" ("+c.Message+")")
		}
	}
	if len(fields) == 0 {
		return err
	}
	return &ConflictError{fmt.Errorf("set by somebody else: %s", strings.Join(fields, ", "))}
}
