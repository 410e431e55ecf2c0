package install

import (
	"context"
	"fmt"
	"maps"
	"time"

	chartutil "helm.sh/helm/v4/pkg/chart/common/util"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Options are what a user may say about an installation.
type Options struct {
	Values         Values        // of the chart isthmus
	Keep           bool          // values that were given before stay, where Values has no others
	MustExist      bool          // there must be an installation
	ForceConflicts bool          // fields that others have set are taken over
	Wait           time.Duration // 0: do not wait
}

// Plan is what an installation is to be.
type Plan struct {
	Cluster     string
	ClusterFrom string // where the name is from; empty: the values
	Namespace   *corev1.Namespace
	CRDs, Mesh  *Rendered
	Notes       []string // worth knowing
}

// Plan looks at the cluster and works out what is to be installed. Nothing is written. What can't work is an error.
func (e *Engine) Plan(ctx context.Context, o Options) (*Plan, error) {
	p := &Plan{Namespace: e.namespace()}
	version, err := e.kube.Discovery().ServerVersion()
	if err != nil {
		return nil, err
	}
	values := maps.Clone(o.Values)
	if values == nil {
		values = Values{}
	}
	before, err := e.release(ctx, Mesh)
	if err != nil {
		return nil, err
	}
	if before == nil && o.MustExist {
		return nil, fmt.Errorf("there is no Helm release %s in namespace %s: isthmus install makes one; what GitOps brought is upgraded there", Mesh, e.Namespace)
	}
	if before != nil && o.Keep {
		given, wrong := e.inForce(ctx, Mesh)
		if wrong != nil {
			return nil, wrong
		}
		values = MergeValues(values, given.Config)
	}
	if name, _ := values["cluster"].(string); name == "" {
		if p.Cluster, p.ClusterFrom, err = e.Name(ctx); err != nil {
			return nil, err
		}
		values["cluster"] = p.Cluster
	} else {
		p.Cluster = name
	}
	crds, notes, err := e.preflight(ctx, version, p.Cluster, before)
	if err != nil {
		return nil, err
	}
	p.Notes = notes
	if p.CRDs, err = Render(ctx, CRDs, e.Namespace, version.GitVersion, crds, e.Build); err != nil {
		return nil, err
	}
	if p.Mesh, err = Render(ctx, Mesh, e.Namespace, version.GitVersion, values, e.Build); err != nil {
		return nil, err
	}
	if cidr, _ := p.Mesh.Merged["clusterSetCIDR"].(string); cidr != "" {
		if err := e.cidrFits(ctx, cidr); err != nil {
			return nil, err
		}
	}
	return p, e.notOthers(ctx, p)
}

// MergeValues returns values of which first's count where both have one.
func MergeValues(first, then Values) Values {
	return chartutil.MergeTables(deepCopy(first), deepCopy(then))
}

func deepCopy(v Values) Values {
	if v == nil {
		return Values{}
	}
	return runtime.DeepCopyJSON(v)
}

// coreDNSWanted reports whether the stub is to be in CoreDNS.
func (p *Plan) coreDNSWanted() bool {
	dns, _ := p.Mesh.Merged["dns"].(map[string]any)
	node, _ := p.Mesh.Merged["node"].(map[string]any)
	return dns["coredns"] == true && node["enabled"] == true
}

// namespace is the one that Isthmus is in. Pods of the node proxy use the network of their node, which the strictest policies refuse.
func (e *Engine) namespace() *corev1.Namespace {
	return &corev1.Namespace{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{
			Name: e.Namespace,
			Labels: map[string]string{
				managedByLabel:                       managedByInstaller,
				"app.kubernetes.io/part-of":          "isthmus",
				"pod-security.kubernetes.io/enforce": "privileged",
			},
		},
	}
}

// Apply carries a plan out.
func (e *Engine) Apply(ctx context.Context, p *Plan, o Options) error {
	// Whoever could be locked out by a mistake in the DNS is told before anything is written.
	if p.coreDNSWanted() {
		if _, err := e.coreDNS(ctx); err != nil {
			return err
		}
	}
	if o.Wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.Wait)
		defer cancel()
	}
	if err := e.makeNamespace(ctx, p.Namespace); err != nil {
		return err
	}
	changed, err := e.put(ctx, CRDs, p.CRDs, o)
	if err != nil {
		return err
	}
	if changed {
		e.say("applied %s: %d kinds", CRDs, len(p.CRDs.Objects))
	}
	if err = e.established(ctx, p.CRDs.Objects); err != nil {
		return err
	}
	if changed, err = e.put(ctx, Mesh, p.Mesh, o); err != nil {
		return err
	}
	if changed {
		e.say("applied %s: %d objects in namespace %s", Mesh, len(p.Mesh.Objects), e.Namespace)
	}
	if p.coreDNSWanted() {
		changed, err = e.setStub(ctx)
	} else {
		changed, err = e.clearStub(ctx)
	}
	if err != nil {
		return err
	}
	if changed {
		e.say("changed ConfigMap kube-system/coredns: clusterset.local")
	}
	if o.Wait <= 0 {
		return nil
	}
	if changed && p.coreDNSWanted() {
		e.say("starting CoreDNS anew, one Pod after the other: it reads that now")
		if err := e.rereadCorefile(ctx); err != nil {
			return err
		}
	}
	return e.Wait(ctx, "")
}

// makeNamespace creates the namespace. One that was there before is left as it is: somebody else decides about it.
func (e *Engine) makeNamespace(ctx context.Context, want *corev1.Namespace) error {
	_, err := e.kube.CoreV1().Namespaces().Create(ctx, want, metav1.CreateOptions{FieldManager: managedByInstaller})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("namespace %s: %w", want.Name, err)
	}
	e.say("created namespace %s", want.Name)
	return nil
}

// established waits until the API server serves kinds.
func (e *Engine) established(ctx context.Context, crds []*unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, o := range crds {
		for {
			got, err := e.live(ctx, o)
			if err != nil {
				return err
			}
			if got != nil && condition(got, "Established") == "True" {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s: the API server does not serve it yet: %w", title(o), context.Cause(ctx))
			case <-time.After(poll / 10):
			}
		}
	}
	return nil
}

// condition returns the status of a condition of an object.
func condition(o *unstructured.Unstructured, kind string) string {
	all, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range all {
		if m, ok := c.(map[string]any); ok && m["type"] == kind {
			s, _ := m["status"].(string)
			return s
		}
	}
	return ""
}

// notOthers refuses to take over objects that are not the releases'.
func (e *Engine) notOthers(ctx context.Context, p *Plan) error {
	for _, of := range []struct {
		release string
		objects []*unstructured.Unstructured
	}{{CRDs, p.CRDs.Objects}, {Mesh, p.Mesh.Objects}} {
		for _, o := range of.objects {
			is, err := e.live(ctx, o)
			if err != nil {
				return err
			}
			if is != nil && !e.ours(of.release, is) && !e.ownKind(is) {
				return fmt.Errorf("%s is there already and is not of the Helm release %s of namespace %s. If it is a leftover, delete it; if Argo CD, Flux or "+
					"another release brought it, change Isthmus there", title(is), of.release, e.Namespace)
			}
		}
	}
	return nil
}

// ownKind reports whether an object is a CRD of isthmus.dev: those may have been applied from deploy/crds, and nobody else's they are.
func (e *Engine) ownKind(o *unstructured.Unstructured) bool {
	group, _, _ := unstructured.NestedString(o.Object, "spec", "group")
	return o.GroupVersionKind().GroupKind() == (schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}) &&
		group == "isthmus.dev" && o.GetAnnotations()[releaseName] == ""
}
