package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/internal/live"
)

// bench is a writer over a fake of the API server, which stands for the caches too: they are never behind.
type bench struct {
	t      *testing.T
	api    client.Client
	writer *writer
	now    time.Time

	refuse   error    // of each write
	requests []string // what was asked for

	problems []control.Problem
}

func newBench(t *testing.T, objects ...client.Object) *bench {
	t.Helper()
	b := &bench{t: t, now: born.Time}
	note := func(what string, o client.Object) error {
		b.requests = append(b.requests, what+" "+o.GetName())
		return b.refuse
	}
	b.api = fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(mapper).WithObjects(objects...).
		WithStatusSubresource(&mcsv1beta1.ServiceExport{}, &mcsv1beta1.ServiceImport{}, &meshv1alpha1.ClusterPeer{}).
		WithInterceptorFuncs(interceptor.Funcs{
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				return errors.Join(note("create", o), ifNil(b.refuse, func() error { return c.Create(ctx, o, opts...) }))
			},
			Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
				return errors.Join(note("update", o), ifNil(b.refuse, func() error { return c.Update(ctx, o, opts...) }))
			},
			Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
				return errors.Join(note("delete", o), ifNil(b.refuse, func() error { return c.Delete(ctx, o, opts...) }))
			},
		}).Build()
	cfg := Config{Now: func() time.Time { return b.now }, Log: slog.New(slog.DiscardHandler)}.withDefaults()
	b.writer = newWriter(cfg, b.api, b.api, new(live.Value[*control.Status]), func(p []control.Problem) { b.problems = p })
	return b
}

func ifNil(err error, f func() error) error {
	if err != nil {
		return nil
	}
	return f()
}

// round is one, and says what it asked of the API server.
func (b *bench) round() []string {
	b.t.Helper()
	b.requests = nil
	if _, err := b.writer.round(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	return b.requests
}

// settle is as many rounds as it takes until nothing is due.
func (b *bench) settle() {
	b.t.Helper()
	for range 10 {
		if again, err := b.writer.round(b.t.Context()); err != nil {
			b.t.Fatal(err)
		} else if again == 0 {
			return
		}
		b.now = b.now.Add(echoTimeout)
	}
	b.t.Fatal("it does not settle: something is written again and again")
}

func (b *bench) importOf(name string) *mcsv1beta1.ServiceImport {
	b.t.Helper()
	out := new(mcsv1beta1.ServiceImport)
	switch err := b.api.Get(b.t.Context(), client.ObjectKey{Namespace: "shop", Name: name}, out); {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		b.t.Fatal(err)
	}
	return out
}

// bareImport has no slices.
func bareImport(t *testing.T, service string) control.ImportStatus {
	t.Helper()
	out := importStatusOf(t, service)
	out.Copies = nil
	return out
}

func namespaceOf(name string) client.Object {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func TestImportsComeAndGo(t *testing.T) {
	b := newBench(t, namespaceOf("shop"))
	if got := b.round(); len(got) != 0 {
		t.Fatalf("before control has said anything: %v", got)
	}
	b.writer.status.Store(&control.Status{Imports: []control.ImportStatus{importStatusOf(t, "web")}})
	b.settle()
	got := b.importOf("web")
	if got == nil || len(got.Spec.IPs) != 1 || len(got.Status.Conditions) != 1 || len(got.Status.Clusters) != 1 ||
		got.Status.EndpointSliceObjects != mcsv1beta1.EndpointSliceObjectsPresent {
		t.Fatalf("%+v", got)
	}
	if got := b.round(); len(got) != 0 {
		t.Errorf("written though nothing differs: %v", got)
	}

	// Edited by hand, and then removed: it comes back as it was.
	edited := got.DeepCopy()
	edited.Spec.IPs = []string{"10.0.0.1"}
	if err := b.api.Update(t.Context(), edited); err != nil {
		t.Fatal(err)
	}
	b.settle()
	if diff := cmp.Diff(got.Spec, b.importOf("web").Spec); diff != "" {
		t.Errorf("after an edit (-want +got)\n%s", diff)
	}
	if err := b.api.Delete(t.Context(), b.importOf("web")); err != nil {
		t.Fatal(err)
	}
	b.settle()
	if again := b.importOf("web"); again == nil || !cmp.Equal(got.Spec, again.Spec) || len(again.Status.Conditions) != 1 {
		t.Errorf("after a removal: %+v", again)
	}

	b.writer.status.Store(&control.Status{})
	b.settle()
	if left := b.importOf("web"); left != nil {
		t.Errorf("not wanted and still there: %+v", left)
	}
}

func TestNamespaceThatComesLater(t *testing.T) {
	b := newBench(t)
	b.writer.status.Store(&control.Status{Imports: []control.ImportStatus{importStatusOf(t, "web")}})
	if got := b.round(); len(got) != 0 {
		t.Fatalf("without the namespace: %v", got)
	}
	if err := b.api.Create(t.Context(), namespaceOf("shop")); err != nil {
		t.Fatal(err)
	}
	b.settle()
	if b.importOf("web") == nil {
		t.Error("no import in the namespace")
	}
}

func TestSomebodyElsesImportIsLeftAlone(t *testing.T) {
	theirs := &mcsv1beta1.ServiceImport{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
	b := newBench(t, namespaceOf("shop"), theirs)
	b.writer.status.Store(&control.Status{Imports: []control.ImportStatus{importStatusOf(t, "web")}})
	if got := b.round(); len(got) != 0 {
		t.Errorf("written: %v", got)
	}
	if len(b.problems) != 1 || b.problems[0].Object != "ServiceImport shop/web" {
		t.Errorf("problems %v", b.problems)
	}
	b.writer.status.Store(&control.Status{})
	if got := b.round(); len(got) != 0 || len(b.problems) != 0 {
		t.Errorf("once it is not wanted: %v, problems %v", got, b.problems)
	}
	if err := b.api.Delete(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
}

// Server-side apply writes the conditions that are ours and leaves the others.
func TestConditionsAreApplied(t *testing.T) {
	export := exportFor("web")
	export.ResourceVersion = ""
	export.Status.Conditions = []metav1.Condition{{Type: "Theirs", Status: "True", Reason: "So", LastTransitionTime: born}}
	b := newBench(t, &export)
	valid := control.Condition{Type: "Valid", Status: control.True, Reason: "Valid", Since: later}
	b.writer.status.Store(&control.Status{Exports: []control.ExportStatus{exportStatusOf(t, "web", valid)}})
	if again, err := b.writer.round(t.Context()); err != nil || again != echoTimeout || len(b.problems) != 0 {
		t.Fatalf("again in %s, %v, problems %v", again, err, b.problems)
	}
	var got mcsv1beta1.ServiceExport
	if err := b.api.Get(t.Context(), client.ObjectKeyFromObject(&export), &got); err != nil {
		t.Fatal(err)
	}
	i := len(got.Status.Conditions) - 1 // the fake knows no list types: it puts ours in the place of all
	if i < 0 || got.Status.Conditions[i].Type != "Valid" || got.Status.Conditions[i].ObservedGeneration != 3 || !got.Status.Conditions[i].LastTransitionTime.Time.Equal(later) {
		t.Errorf("conditions %+v", got.Status.Conditions)
	}
}

func TestNewsAreTold(t *testing.T) {
	condition := func(kind string, status metav1.ConditionStatus, reason string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: status, Reason: reason}
	}
	expected := []metav1.Condition{condition("Valid", "True", "Valid"), condition("Ready", "True", "Exported"), condition("Conflict", "False", "NoConflicts")}
	bad := []metav1.Condition{condition("Valid", "False", "NoService"), condition("Ready", "False", "Pending"), condition("Conflict", "True", "PortConflict")}
	worse := []metav1.Condition{bad[0], bad[1], condition("Conflict", "True", "PortConflict,TypeConflict")}
	for title, c := range map[string]struct{ have, want, news []metav1.Condition }{
		"at first, as expected": {nil, expected, expected[1:2]},
		"at first, bad":         {nil, bad, bad},
		"as before":             {bad, bad, nil},
		"it went well again":    {bad, expected, expected},
		"for another reason":    {bad, worse, worse[2:]},
	} {
		if diff := cmp.Diff(c.news, news(c.have, c.want)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", title, diff)
		}
	}

	export := exportFor("web")
	export.ResourceVersion = ""
	b := newBench(t, &export)
	ready := control.Condition{Type: "Ready", Status: control.False, Reason: "Pending", Message: strings.Repeat("é", maxEventMessage), Since: later}
	b.writer.status.Store(&control.Status{Exports: []control.ExportStatus{exportStatusOf(t, "web", ready)}})
	b.settle()
	var events corev1.EventList
	if err := b.api.List(t.Context(), &events); err != nil {
		t.Fatal(err)
	}
	if len(events.Items) != 1 {
		t.Fatalf("events %+v, want one", events.Items)
	}
	if e := events.Items[0]; e.Type != "Warning" || e.Reason != "Pending" || !strings.HasPrefix(e.Message, "Ready is False: é") ||
		len(e.Message) > maxEventMessage || e.InvolvedObject.UID != export.UID {
		t.Errorf("event %+v", e)
	}
}

// What is refused is tried again, less and less often, said once, and not lost.
func TestRefusedIsTriedAgain(t *testing.T) {
	b := newBench(t, namespaceOf("shop"))
	b.writer.status.Store(&control.Status{Imports: []control.ImportStatus{bareImport(t, "web"), bareImport(t, "web2")}})
	b.refuse = apierrors.NewForbidden(schema.GroupResource{Resource: "serviceimports"}, "web", errors.New("no role"))
	if got := b.round(); len(got) != 2 {
		t.Fatalf("asked %v; want both: one says nothing of the other", got)
	}
	if len(b.problems) != 2 || !strings.Contains(b.problems[0].String(), "ServiceImport shop/web: create: refused by the API server") {
		t.Errorf("problems %v", b.problems)
	}
	if got := b.round(); len(got) != 0 {
		t.Errorf("asked again at once: %v", got)
	}
	if len(b.problems) != 2 {
		t.Errorf("while it waits, problems %v", b.problems)
	}
	b.now = b.now.Add(2 * retryFirst)
	if got := b.round(); len(got) != 2 {
		t.Errorf("after the pause: %v", got)
	}
	b.refuse = nil
	b.now = b.now.Add(retryMost)
	b.settle()
	if b.importOf("web") == nil || b.importOf("web2") == nil || len(b.problems) != 0 {
		t.Errorf("problems %v", b.problems)
	}
}

// An API server that is away is asked once a pause, not once an object.
func TestAwayIsAskedOnce(t *testing.T) {
	b := newBench(t, namespaceOf("shop"))
	b.writer.status.Store(&control.Status{Imports: []control.ImportStatus{importStatusOf(t, "web"), importStatusOf(t, "web2")}})
	b.refuse = errors.New("connection refused")
	for range 3 {
		if got := b.round(); len(got) != 1 {
			t.Fatalf("asked %v", got)
		}
		if got := b.round(); len(got) != 0 {
			t.Fatalf("asked at once again: %v", got)
		}
		b.now = b.now.Add(retryMost)
	}
	if len(b.problems) != 0 {
		t.Errorf("problems %v: that it is away is said elsewhere", b.problems)
	}
	b.refuse = nil
	b.settle()
	if b.importOf("web") == nil || b.importOf("web2") == nil {
		t.Error("lost")
	}
}

// behind is a cache that shows nothing new.
type behind struct{ client.Reader }

func (behind) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	if l, ok := list.(*metav1.PartialObjectMetadataList); ok {
		l.Items = []metav1.PartialObjectMetadata{{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}}
	}
	return nil
}

// While the cache has not caught up, nothing is written twice.
func TestCacheBehind(t *testing.T) {
	b := newBench(t, namespaceOf("shop"))
	b.writer.reads = behind{}
	b.writer.status.Store(&control.Status{Imports: []control.ImportStatus{bareImport(t, "web")}})
	if got := fmt.Sprint(b.round()); got != "[create web]" {
		t.Fatalf("first: %s", got)
	}
	if got := b.round(); len(got) != 0 {
		t.Errorf("at once again: %v", got)
	}
	b.now = b.now.Add(echoTimeout)
	if got := fmt.Sprint(b.round()); got != "[create web]" { // it may have been lost: AlreadyExists is no problem
		t.Errorf("after %s: %s", echoTimeout, got)
	}
	if len(b.problems) != 0 {
		t.Errorf("problems %v", b.problems)
	}
}

func TestBackOff(t *testing.T) {
	last := time.Duration(0)
	for n := 1; n < 100; n++ {
		d := backOff(n)
		if d < last/2 || d > retryMost+retryMost/4 || d < retryFirst*3/4 {
			t.Fatalf("after %d failures: %s, after %s", n, d, last)
		}
		last = d
	}
	if last < retryMost*3/4 {
		t.Errorf("ends at %s", last)
	}
}

func TestPeerStateIsApplied(t *testing.T) {
	peer := meshv1alpha1.ClusterPeer{ObjectMeta: metaOf("us")}
	peer.Namespace, peer.ResourceVersion = "", ""
	b := newBench(t, &peer)
	b.writer.status.Store(&control.Status{Peers: []control.PeerStatus{{
		Peer:       control.ClusterPeer{Meta: control.Meta{Kind: "ClusterPeer", Name: "us"}, Generation: 1},
		Conditions: []control.Condition{{Type: "Ready", Status: control.True, Reason: "Fresh", Since: later}},
	}}})
	b.settle()
	var got meshv1alpha1.ClusterPeer
	if err := b.api.Get(t.Context(), client.ObjectKeyFromObject(&peer), &got); err != nil {
		t.Fatal(err)
	}
	if c := got.Status.Conditions; len(c) != 1 || c[0].Reason != "Fresh" || c[0].ObservedGeneration != 1 || got.Spec.TrustDomain != peer.Spec.TrustDomain {
		t.Errorf("%+v", got)
	}
}
