package kube

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/inject"
)

// injectionOver is an injection over a fake of the API server; its caches hold what trim leaves.
func injectionOver(t *testing.T, objects ...client.Object) *injection {
	t.Helper()
	api := fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(mapper).WithObjects(objects...).Build()
	cfg := Config{Webhook: "isthmus-injection", Log: slog.New(slog.DiscardHandler)}.withDefaults()
	cfg.Namespace = "isthmus-system"
	return &injection{cfg: cfg, reads: api, writes: api, found: func([]control.Problem) {}}
}

func TestTheWebhookIsKept(t *testing.T) {
	roots := []byte(nil)
	i := injectionOver(t)
	i.cfg.Roots = func() []byte { return roots }
	if p := i.keepWebhook(t.Context()); len(p) > 0 {
		t.Errorf("before the roots are known: %v", p)
	}
	roots = []byte("first")
	if p := i.keepWebhook(t.Context()); len(p) != 1 || p[0].Object != "MutatingWebhookConfiguration isthmus-injection" || !strings.Contains(p[0].Reason, "is not there") {
		t.Errorf("without it: %v", p)
	}
	there := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "isthmus-injection"}, Webhooks: []admissionregistrationv1.MutatingWebhook{
		{Name: "a.isthmus.dev"}, {Name: "b.isthmus.dev", ClientConfig: admissionregistrationv1.WebhookClientConfig{CABundle: []byte("somebody's")}},
	}}
	if err := i.writes.Create(t.Context(), there); err != nil {
		t.Fatal(err)
	}
	version := ""
	for _, next := range []string{"first", "second", "second"} {
		before := version
		roots = []byte(next)
		if p := i.keepWebhook(t.Context()); len(p) > 0 {
			t.Errorf("%v", p)
		}
		if err := i.writes.Get(t.Context(), client.ObjectKeyFromObject(there), there); err != nil {
			t.Fatal(err)
		}
		for _, w := range there.Webhooks {
			if string(w.ClientConfig.CABundle) != next {
				t.Errorf("%s: caBundle %q, want %q", w.Name, w.ClientConfig.CABundle, next)
			}
		}
		if version = there.ResourceVersion; version == before && next == "first" {
			t.Error("nothing was written")
		}
	}
	before := version
	i.keepWebhook(t.Context())
	if _ = i.writes.Get(t.Context(), client.ObjectKeyFromObject(there), there); there.ResourceVersion != before {
		t.Error("written though nothing has changed")
	}
}

func TestPodsWithoutASidecarAreFound(t *testing.T) {
	namespace := func(name, value string) client.Object {
		n := metadataOf("Namespace")
		n.Name, n.Labels = name, map[string]string{inject.Label: value}
		return n
	}
	pod := func(namespace, name string, change func(*corev1.Pod)) client.Object {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{"other": "x"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}}
		if change != nil {
			change(p)
		}
		trimmed, err := trim(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, meshed := p.Annotations[InboundPortAnnotation]; !meshed && trimmed.(*corev1.Pod).Annotations != nil {
			t.Errorf("%s: it would wake the reader", name)
		}
		return trimmed.(*corev1.Pod)
	}
	label := func(v string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Labels = map[string]string{inject.Label: v} }
	}
	i := injectionOver(t,
		namespace("shop", inject.NamespaceEnabled), namespace("plain", "disabled"), namespace("kube-system", inject.NamespaceEnabled), namespace("isthmus-system", inject.NamespaceEnabled),
		pod("shop", "d", nil), pod("shop", "c", nil), pod("shop", "b", nil), pod("shop", "a", nil),
		pod("shop", "meshed", func(p *corev1.Pod) { p.Annotations[InboundPortAnnotation] = "15008" }),
		pod("shop", "out", label("false")), pod("shop", "ended", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		pod("shop", "out-by-annotation", func(p *corev1.Pod) { p.Annotations[inject.Label] = "false" }),
		pod("shop", "host", func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
		pod("plain", "x", nil), pod("plain", "in", label("true")), pod("kube-system", "x", nil), pod("isthmus-system", "x", nil),
	)
	got, err := i.bare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const why = ". They were made before it was asked for, or while nobody injected: restart what makes them, with kubectl rollout restart"
	want := []control.Problem{
		{Object: "Namespace plain", Reason: "Pods without a sidecar that ask for one (isthmus.dev/inject): in" + why},
		{Object: "Namespace shop", Reason: "Pods without a sidecar that ask for one (isthmus.dev/inject): a, b, c and 1 more" + why},
	}
	if d := cmp.Diff(want, control.SortProblems(got)); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}
