package kube

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/topology"
)

func TestSliceIsWhole(t *testing.T) {
	s := importStatusOf(t, "web")
	s.Import.Clusters = append(s.Import.Clusters, cluster(t, "ap"))
	s.Copies = append(s.Copies, control.Copies{Cluster: cluster(t, "ap")})
	labels := func(cluster string) map[string]string {
		return map[string]string{
			"multicluster.kubernetes.io/service-name": "web", "multicluster.kubernetes.io/source-cluster": cluster,
			"endpointslice.kubernetes.io/managed-by": "isthmus-control", "isthmus.dev/managed-by": "isthmus-control",
		}
	}
	want := []*discoveryv1.EndpointSlice{
		{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web.us.ipv4", Labels: labels("us")}, AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"241.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}}},
			Ports:     []discoveryv1.EndpointPort{{Name: new("http"), Protocol: new(corev1.ProtocolTCP), Port: new(int32(80)), AppProtocol: new("http")}},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web.ap.ipv4", Labels: labels("ap")}, AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"241.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false)}}},
		},
	}
	if diff := cmp.Diff(want, slicesOf(&s)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	s.IPs = nil // none is free
	if got := slicesOf(&s)[0]; got.Endpoints == nil || len(got.Endpoints) != 0 || got.AddressType != discoveryv1.AddressTypeIPv4 {
		t.Errorf("without an address: %+v", got)
	}
}

// The copies of a headless import stand in its slices themselves.
func TestHeadlessSlices(t *testing.T) {
	s := importStatusOf(t, "db")
	s.Import.Type, s.IPs = "Headless", nil
	c := &s.Copies[0]
	c.Targets = []uint16{8080}
	ip := netip.MustParseAddr
	c.Hosts = []control.Host{
		{Hostname: "db-0", Zone: "a", Address: ip("10.2.0.1"), IPs: []netip.Addr{ip("10.2.0.1"), ip("fd00::1")}},
		{Address: ip("10.1.0.1"), IPs: []netip.Addr{ip("241.0.0.9")}},
	}
	got := slicesOf(&s)
	if len(got) != 2 || got[0].Name != "db.us.ipv4" || got[1].Name != "db.us.ipv6" || got[0].AddressType != discoveryv1.AddressTypeIPv4 || got[1].AddressType != discoveryv1.AddressTypeIPv6 {
		t.Fatalf("%+v", got)
	}
	ready := discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)}
	want := []discoveryv1.Endpoint{
		{Addresses: []string{"10.2.0.1"}, Hostname: new("db-0"), Zone: new("a"), Conditions: ready}, {Addresses: []string{"241.0.0.9"}, Conditions: ready},
	}
	if diff := cmp.Diff(want, got[0].Endpoints); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if len(got[1].Endpoints) != 1 || got[1].Endpoints[0].Addresses[0] != "fd00::1" || *got[0].Ports[0].Port != 8080 {
		t.Errorf("%+v", got[1].Endpoints)
	}
	c.Hosts = nil
	if got := slicesOf(&s); len(got) != 1 || got[0].Name != "db.us.ipv4" || got[0].Endpoints == nil || len(got[0].Endpoints) > 0 {
		t.Errorf("without copies: %+v", got)
	}
}

func TestPlanOfSlices(t *testing.T) {
	const it = "EndpointSlice shop/web.us.ipv4"
	us, ap := cluster(t, "us"), cluster(t, "ap")
	for title, c := range map[string]struct {
		want    func(*control.Status, *written)
		have    func(*discoveryv1.EndpointSlice) // nil: there is none
		due     []string
		problem string
	}{
		"missing":           {nil, nil, []string{"create " + it + " @"}, ""},
		"as it should be":   {nil, func(*discoveryv1.EndpointSlice) {}, nil, ""},
		"a label added":     {nil, func(s *discoveryv1.EndpointSlice) { s.Labels[discoveryv1.LabelServiceName] = "web" }, []string{"update " + it + " @1"}, ""},
		"emptied":           {nil, func(s *discoveryv1.EndpointSlice) { s.Endpoints, s.Ports = nil, nil }, []string{"update " + it + " @1"}, ""},
		"stolen":            {nil, func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "10.0.0.1" }, []string{"update " + it + " @1"}, ""},
		"being deleted":     {nil, func(s *discoveryv1.EndpointSlice) { s.ObjectMeta = deleted(s.ObjectMeta); s.Ports = nil }, nil, ""},
		"of another kind":   {nil, func(s *discoveryv1.EndpointSlice) { s.AddressType = discoveryv1.AddressTypeFQDN }, []string{"delete " + it + " @1"}, ""},
		"somebody else's":   {nil, func(s *discoveryv1.EndpointSlice) { s.Labels = nil }, nil, it + ": is somebody else's (label endpointslice.kubernetes.io/managed-by="},
		"no longer ready":   {func(s *control.Status, _ *written) { s.Imports[0].Copies[0].Ready = false }, func(*discoveryv1.EndpointSlice) {}, []string{"update " + it + " @1"}, ""},
		"not wanted":        {func(s *control.Status, _ *written) { s.Imports = nil }, func(*discoveryv1.EndpointSlice) {}, []string{"delete " + it + " @1"}, ""},
		"of a cluster less": {func(s *control.Status, _ *written) { s.Imports[0].Copies = nil }, func(*discoveryv1.EndpointSlice) {}, []string{"delete " + it + " @1"}, ""},
		"not wanted, not ours": {
			func(s *control.Status, _ *written) { s.Imports = nil }, func(s *discoveryv1.EndpointSlice) { s.Labels[discoveryv1.LabelManagedBy] = "another" }, nil, "",
		},
		"not wanted, its cluster is silent": {
			func(s *control.Status, _ *written) { s.Imports, s.Silent = nil, []topology.ClusterName{us} }, func(*discoveryv1.EndpointSlice) {}, nil, "",
		},
		"not wanted, another is silent": {
			func(s *control.Status, _ *written) { s.Imports, s.Silent = nil, []topology.ClusterName{ap} }, func(*discoveryv1.EndpointSlice) {}, []string{"delete " + it + " @1"}, "",
		},
		"no namespace":            {func(_ *control.Status, now *written) { now.namespaces = nil }, nil, nil, ""},
		"beside a foreign import": {func(_ *control.Status, now *written) { now.imports[0].Labels = nil }, nil, nil, "ServiceImport shop/web: is somebody else's"},
	} {
		t.Run(title, func(t *testing.T) {
			want := &control.Status{Imports: []control.ImportStatus{importStatusOf(t, "web")}}
			now := &written{imports: []mcsv1beta1.ServiceImport{standing(want.Imports[0])}, namespaces: map[string]bool{"shop": true}}
			if c.have != nil {
				s := slicesOf(&want.Imports[0])[0]
				s.ResourceVersion = "1"
				c.have(s)
				now.slices = append(now.slices, *s)
			}
			if c.want != nil {
				c.want(want, now)
			}
			before := (&discoveryv1.EndpointSliceList{Items: now.slices}).DeepCopy().Items
			due, problems := plan(want, now)
			var got []write
			for _, w := range due {
				if w.slice != nil {
					got = append(got, w)
				}
			}
			if diff := cmp.Diff(c.due, describe(got)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if got := fmt.Sprint(problems); !strings.Contains(got, c.problem) || (c.problem == "") != (len(problems) == 0) {
				t.Errorf("problems %s, want %q", got, c.problem)
			}
			if diff := cmp.Diff(before, now.slices); diff != "" {
				t.Errorf("plan changed what the caches hold\n%s", diff)
			}
		})
	}
}

// Slices come and go with their import, and come back when somebody removes them; slices of Services are not touched.
func TestSlicesComeAndGo(t *testing.T) {
	local := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-abcde", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}, AddressType: discoveryv1.AddressTypeIPv4,
	}
	b := newBench(t, namespaceOf("shop"), local)
	names := func() string {
		t.Helper()
		var list discoveryv1.EndpointSliceList
		if err := b.api.List(t.Context(), &list); err != nil {
			t.Fatal(err)
		}
		var out []string
		for i := range list.Items {
			out = append(out, list.Items[i].Name)
		}
		return strings.Join(out, " ")
	}
	b.writer.status.Store(&control.Status{Imports: []control.ImportStatus{importStatusOf(t, "web")}})
	b.settle()
	if got := names(); got != "web-abcde web.us.ipv4" {
		t.Fatalf("slices %s", got)
	}
	if err := b.api.Delete(t.Context(), &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web.us.ipv4"}}); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	b.settle()
	if got := names(); got != "web-abcde web.us.ipv4" {
		t.Errorf("after a removal: %s", got)
	}
	b.writer.status.Store(&control.Status{})
	b.settle()
	if got := names(); got != "web-abcde" {
		t.Errorf("with no import: %s", got)
	}
}

// Whom a change of a slice wakes: the Services' slices change with every rollout, and are none of the writer's.
func TestSliceWakes(t *testing.T) {
	for title, c := range map[string]struct {
		name   string
		labels map[string]string
		want   int
	}{
		"of a Service":          {"web-abcde", map[string]string{discoveryv1.LabelServiceName: "web"}, toReader},
		"ours":                  {"web.us.ipv4", map[string]string{discoveryv1.LabelManagedBy: ManagedBy}, toWriter},
		"of another controller": {"x", map[string]string{mcsv1beta1.LabelSourceCluster: "us"}, toWriter},
		"where ours may stand":  {"web.us.ipv4", nil, toReader | toWriter},
	} {
		if got := sliceWakes(&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: c.name, Labels: c.labels}}); got != c.want {
			t.Errorf("%s: %d, want %d", title, got, c.want)
		}
	}
}
