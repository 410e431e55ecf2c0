package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	rel "helm.sh/helm/v4/pkg/release/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kubeversion "k8s.io/apimachinery/pkg/version"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
)

var (
	crdKind  = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	mcsGroup = v1beta1.GroupName
)

// arches are those that there are images for.
var arches = []string{"amd64", "arm64"}

// preflight looks whether the cluster fits. It returns the values of the chart of CRDs, and what is worth knowing; what can't work is an
// error, all of it at once.
func (e *Engine) preflight(ctx context.Context, version *kubeversion.Info, cluster string, before *rel.Release) (crds Values, notes []string, err error) {
	var errs []error
	crds, err = e.mcs(ctx)
	errs = append(errs, err)
	errs = append(errs, oldEnough(version))
	more, err := e.nodes(ctx)
	notes, errs = append(notes, more...), append(errs, err)
	more, err = e.otherMeshes(ctx)
	notes, errs = append(notes, more...), append(errs, err)
	if before != nil {
		if was, _ := before.Config["cluster"].(string); was != "" && was != cluster {
			errs = append(errs, fmt.Errorf("the cluster is named %q and would be named %q: its peers know it by its name; uninstall it first, or --set cluster=%s", was, cluster, was))
		}
	}
	if mcs, _ := crds["mcs"].(map[string]any); mcs["serviceExports"] == false || mcs["serviceImports"] == false {
		notes = append(notes, "kinds of the Multi-Cluster Services API that somebody else brought are left as they are")
	}
	return crds, notes, errors.Join(errs...)
}

func oldEnough(version *kubeversion.Info) error {
	var major, minor int
	if _, err := fmt.Sscanf(version.Major+"."+version.Minor, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("version of the API server: %q: %w", version.GitVersion, err)
	}
	if major == 1 && minor < 30 {
		return fmt.Errorf("the API server is Kubernetes %s: want 1.30 or later", version.GitVersion)
	}
	return nil
}

// mcs looks at the CRDs of the Multi-Cluster Services API. What somebody else brought is left alone when it serves what we need.
func (e *Engine) mcs(ctx context.Context) (Values, error) {
	choice := map[string]any{}
	var errs []error
	for value, plural := range map[string]string{"serviceExports": "serviceexports", "serviceImports": "serviceimports"} {
		name := plural + "." + mcsGroup
		crd, err := e.dynamic.Resource(crdKind).Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			choice[value] = true
		case err != nil:
			errs = append(errs, fmt.Errorf("CustomResourceDefinition %s: %w", name, err))
		case e.ours(CRDs, crd):
			choice[value] = true
		default:
			choice[value] = false
			if !slices.Contains(served(crd), "v1beta1") {
				errs = append(errs, fmt.Errorf("CustomResourceDefinition %s was brought by %s and serves %s: v1beta1 is needed. Upgrade whoever brought it, or "+
					"kubectl apply -f https://raw.githubusercontent.com/kubernetes-sigs/mcs-api/v0.5.2/config/crd/%s_%s.yaml",
					name, broughtBy(crd), strings.Join(served(crd), ", "), mcsGroup, plural))
			}
		}
	}
	return Values{"isthmus": true, "mcs": choice}, errors.Join(errs...)
}

// served returns the versions of a CRD that the API server serves.
func served(crd *unstructured.Unstructured) []string {
	versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
	var out []string
	for _, v := range versions {
		if m, ok := v.(map[string]any); ok && m["served"] == true {
			name, _ := m["name"].(string)
			out = append(out, name)
		}
	}
	return out
}

// broughtBy says who an object is from, as far as it tells.
func broughtBy(o *unstructured.Unstructured) string {
	if r := o.GetAnnotations()[releaseName]; r != "" {
		return "the Helm release " + o.GetAnnotations()[releaseNamespace] + "/" + r
	}
	for _, m := range o.GetManagedFields() {
		if m.Subresource == "" {
			return m.Manager
		}
	}
	return "somebody else"
}

// nodes refuses a cluster in which no program could run, and tells of nodes on which none will.
func (e *Engine) nodes(ctx context.Context) ([]string, error) {
	list, err := e.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("nodes: %w", err)
	}
	var strange []string
	for _, n := range list.Items {
		if n.Status.NodeInfo.OperatingSystem != "linux" || !slices.Contains(arches, n.Status.NodeInfo.Architecture) {
			strange = append(strange, fmt.Sprintf("%s (%s/%s)", n.Name, n.Status.NodeInfo.OperatingSystem, n.Status.NodeInfo.Architecture))
		}
	}
	switch {
	case len(strange) == 0:
		return nil, nil
	case len(strange) == len(list.Items):
		return nil, fmt.Errorf("no node can run Isthmus: %s; there are images for linux on %s", strings.Join(strange, ", "), strings.Join(arches, " and "))
	default:
		return []string{"nodes that Isthmus can't run on, its node proxy will not start there unless node.nodeSelector leaves them out: " + strings.Join(strange, ", ")}, nil
	}
}

// otherMeshes tells of what else takes Pods' connections or speaks for a clusterset. Two of them for the same Pod break both.
func (e *Engine) otherMeshes(ctx context.Context) ([]string, error) {
	var notes []string
	hooks, err := e.kube.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	for _, h := range hooks.Items {
		for prefix, mesh := range map[string]string{"istio-": "Istio", "linkerd-proxy-injector": "Linkerd", "consul-": "Consul", "kuma-": "Kuma"} {
			if strings.HasPrefix(h.Name, prefix) {
				notes = append(notes, fmt.Sprintf("%s is here too (MutatingWebhookConfiguration %s): have no Pod injected by both", mesh, h.Name))
			}
		}
	}
	deployments, err := e.kube.AppsV1().Deployments("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("deployments: %w", err)
	}
	for _, d := range deployments.Items {
		for _, other := range []string{"submariner-lighthouse-agent", "mcs-api-controller", "cilium-clustermesh-mcs"} {
			if d.Name == other {
				notes = append(notes, fmt.Sprintf("Deployment %s/%s writes ServiceImports too: they will get into each other's way", d.Namespace, d.Name))
			}
		}
	}
	slices.Sort(notes)
	return notes, nil
}
