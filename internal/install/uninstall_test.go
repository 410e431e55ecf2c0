package install

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
)

func mcsObject(kind, name string, labels map[string]string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetAPIVersion(mcsGroup + "/v1beta1")
	o.SetKind(kind)
	o.SetNamespace("shop")
	o.SetName(name)
	o.SetUID(types.UID(kind + name))
	o.SetLabels(labels)
	return o
}

// TestForeignImports: ServiceImports of another implementation go with their kind only where that was said, and somebody agreed.
func TestForeignImports(t *testing.T) {
	kinds := map[schema.GroupVersionResource]string{exportKind: "ServiceExportList", importKind: "ServiceImportList"}
	for _, k := range userKinds {
		kinds[k] = "List"
	}
	ours := mcsObject("ServiceImport", "ours", map[string]string{"isthmus.dev/managed-by": "isthmus-control"})
	theirs := mcsObject("ServiceImport", "theirs", map[string]string{"isthmus.dev/managed-by": "somebody"})
	crd := func(resource string) *unstructured.Unstructured {
		o := &unstructured.Unstructured{}
		o.SetName(resource + "." + mcsGroup)
		return o
	}
	both := []*unstructured.Unstructured{crd("serviceexports"), crd("serviceimports")}
	for _, c := range []struct {
		name     string
		objects  []runtime.Object
		crds     []*unstructured.Unstructured
		harmless bool
		lost     string
	}{
		{"none", nil, both, true, ""},
		{"theirs, of our kind", []runtime.Object{theirs}, both, false, "1 serviceimports that are not of Isthmus, with their kind: shop/theirs"},
		{"theirs, where ours is the kind of imports alone", []runtime.Object{theirs}, both[1:], false, "shop/theirs"},
		{"theirs, of their kind", []runtime.Object{theirs}, both[:1], true, ""},
		{"ours", []runtime.Object{ours}, both, false, ""},
	} {
		api := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds, c.objects...)
		var said []string
		e := &Engine{kube: fake.NewClientset(), dynamic: api, Say: func(line string) { said = append(said, line) }}
		r := &Removal{crds: append([]*unstructured.Unstructured(nil), c.crds...)}
		if err := e.uses(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if lost := strings.Join(r.Lost, "\n"); r.Harmless() != c.harmless || (lost == "") != (c.lost == "") || !strings.Contains(lost, c.lost) {
			t.Errorf("%s: harmless %t, lost %q; want %t, %q", c.name, r.Harmless(), lost, c.harmless, c.lost)
		}
		// What was said goes. What came since keeps its kind, and that alone.
		if err := e.spare(t.Context(), r); err != nil || len(r.crds) != len(c.crds) || len(said) > 0 {
			t.Errorf("%s: %d kinds go, %v, %q", c.name, len(r.crds), err, said)
		}
		late := mcsObject("ServiceImport", "late", nil)
		if _, err := api.Resource(importKind).Namespace("shop").Create(t.Context(), late, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		had, exports := r.goes(importKind), r.goes(exportKind)
		if err := e.spare(t.Context(), r); err != nil || r.goes(importKind) || r.goes(exportKind) != exports || (len(said) > 0) != had {
			t.Errorf("%s: then %d kinds go, %v, %q", c.name, len(r.crds), err, said)
		}
	}
}
