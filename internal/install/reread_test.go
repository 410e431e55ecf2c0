package install

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func dnsPod(n int) *corev1.Pod {
	name := fmt.Sprintf("coredns-%d", n)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name, UID: types.UID(name), Labels: map[string]string{"k8s-app": "kube-dns"}},
		Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

// TestCoreDNSReadsAnew: each Pod goes once, and only while all the others serve; what may not be evicted stays.
func TestCoreDNSReadsAnew(t *testing.T) {
	for _, c := range []struct {
		name    string
		refuse  error
		evicted string
		said    string
	}{
		{"all", nil, "coredns-0 coredns-1", ""},
		{"a budget", apierrors.NewTooManyRequestsError("it would violate a budget"), "", "within two minutes"},
		{"a right that is missing", apierrors.NewForbidden(corev1.Resource("pods/eviction"), "coredns-0", nil), "", "within two minutes"},
		{"gone already", apierrors.NewNotFound(corev1.Resource("pods"), "coredns-0"), "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			api := fake.NewClientset(dnsPod(0), dnsPod(1))
			var evicted, said []string
			api.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
				create, ok := a.(clienttesting.CreateAction)
				if a.GetSubresource() != "eviction" || !ok {
					return false, nil, nil
				}
				pods := corev1.SchemeGroupVersion.WithResource("pods")
				name := create.GetObject().(*policyv1.Eviction).Name
				next := dnsPod(2 + len(evicted))
				if c.refuse == nil {
					evicted = append(evicted, name)
				}
				if c.refuse != nil && !apierrors.IsNotFound(c.refuse) {
					return true, nil, c.refuse
				}
				if err := api.Tracker().Delete(pods, metav1.NamespaceSystem, name); err != nil {
					t.Error(err)
				}
				if err := api.Tracker().Add(next); err != nil && c.refuse == nil {
					t.Error(err)
				}
				if c.refuse != nil {
					_ = api.Tracker().Add(dnsPod(7)) // who took the place of the second
				}
				return true, nil, c.refuse
			})
			e := &Engine{kube: api, Say: func(line string) { said = append(said, line) }}
			if err := e.rereadCorefile(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(evicted, " "); got != c.evicted {
				t.Errorf("evicted %q, want %q", got, c.evicted)
			}
			if got := strings.Join(said, "\n"); (got == "") != (c.said == "") || !strings.Contains(got, c.said) {
				t.Errorf("said %q, want %q", got, c.said)
			}
		})
	}
}
