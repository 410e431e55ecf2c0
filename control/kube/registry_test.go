package kube

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/internal/live"
)

// TestReaderAndWriter runs both over a fake: what is published follows what is there, and what can't be written is told with it.
func TestReaderAndWriter(t *testing.T) {
	service, node := serviceOf("web", map[string]string{"app": "web"}, 80), corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}
	node.Labels = map[string]string{corev1.LabelTopologyZone: "a"}
	pod := podOf("web-0", "10.0.0.1")
	service.ResourceVersion, pod.ResourceVersion = "", ""
	theirs := &mcsv1beta1.ServiceImport{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
	api := fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(mapper).WithObjects(namespaceOf("shop"), &service, &node, &pod, theirs).
		WithStatusSubresource(&mcsv1beta1.ServiceExport{}, &mcsv1beta1.ServiceImport{}).Build()
	now := born.Time
	k := &Kube{
		cfg:    Config{Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler)}.withDefaults(),
		source: "https://here", objects: new(live.Value[*control.Objects]), status: new(live.Value[*control.Status]),
	}
	k.assemble(api, api)
	publish := func() *control.Objects {
		t.Helper()
		if err := k.reader.publish(t.Context()); err != nil {
			t.Fatal(err)
		}
		return k.Objects().Load()
	}
	first := publish()
	if len(first.Services) != 1 || len(first.Workloads) != 1 || first.Workloads[0].Zone != "a" || !first.Loaded.Equal(now) || first.Source != "https://here" {
		t.Fatalf("%+v", first)
	}
	now = now.Add(time.Second)
	if again := publish(); again != first {
		t.Error("published anew though nothing changed")
	}

	if err := k.PutStatus(t.Context(), &control.Status{Imports: []control.ImportStatus{importStatusOf(t, "web")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.writer.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-k.reader.wake:
	default:
		t.Error("a trouble of the writer's does not wake the reader")
	}
	if o := publish(); len(o.Problems) != 1 || o.Problems[0].Object != "ServiceImport shop/web" || !o.Loaded.Equal(now) {
		t.Errorf("problems %v", o.Problems)
	}
}

// BenchmarkConvert: 10,000 Pods with a sidecar behind 500 Services, one of them changed since.
func BenchmarkConvert(b *testing.B) {
	now := &reading{nodes: []corev1.Node{nodeOf("node-1", "a")}}
	for i := range 500 {
		app := fmt.Sprintf("app-%d", i)
		now.services = append(now.services, serviceOf(app, map[string]string{"app": app}, 80))
		var endpoints []discoveryv1.Endpoint
		for j := range 20 {
			pod := podOf(fmt.Sprintf("%s-%d", app, j), fmt.Sprintf("10.%d.%d.%d", i/256, i%256, j+1))
			pod.Labels["app"] = app
			now.pods = append(now.pods, pod)
			endpoints = append(endpoints, endpointOf(pod.Status.PodIP, pod.Name))
		}
		now.slices = append(now.slices, sliceOf(app, endpoints...))
	}
	_, memory := convert(now, nil)
	b.ResetTimer()
	for i := range b.N {
		now.services[0].ResourceVersion = fmt.Sprint("changed-", i)
		_, memory = convert(now, memory)
	}
}
