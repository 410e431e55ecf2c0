package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/manifest"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// later is when control says that a condition changed.
var later = born.Add(time.Hour)

func name(t *testing.T, s string) topology.ServiceName {
	t.Helper()
	n, err := topology.NewServiceName("shop", s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func cluster(t *testing.T, s string) topology.ClusterName {
	t.Helper()
	c, err := topology.ParseClusterName(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// importStatusOf is an import of shop/<service> that cluster us offers.
func importStatusOf(t *testing.T, service string) control.ImportStatus {
	t.Helper()
	return control.ImportStatus{
		Import: federation.Import{
			Name: name(t, service), Type: federation.ClusterSetIP, SessionAffinity: federation.NoAffinity,
			Ports:  []federation.ImportPort{{Port: federation.Port{Name: "http", Number: 80, Transport: federation.TCP}}},
			Labels: map[string]string{"tier": "prod"}, Clusters: []topology.ClusterName{cluster(t, "us")},
		},
		IPs: []netip.Addr{netip.MustParseAddr("241.0.0.1")},
		Copies: []control.Copies{{
			Cluster: cluster(t, "us"), Ports: []federation.Port{{Name: "http", Number: 80, Transport: federation.TCP, AppProtocol: "http"}}, Ready: true,
		}},
		Conditions: []control.Condition{{Type: "Ready", Status: control.True, Reason: "Ready", Since: later}},
	}
}

func exportStatusOf(t *testing.T, service string, conditions ...control.Condition) control.ExportStatus {
	t.Helper()
	return control.ExportStatus{
		Export: control.ServiceExport{
			Meta: control.Meta{Kind: "ServiceExport", Namespace: "shop", Name: service}, Service: name(t, service), Generation: 3,
		},
		Conditions: conditions,
	}
}

// standing is an import as it stands once all of it was written.
func standing(s control.ImportStatus) mcsv1beta1.ServiceImport {
	out := importOf(&s)
	m := metaOf(out.Name)
	m.Labels, m.Annotations, m.Generation = out.Labels, out.Annotations, 1
	out.ObjectMeta = m
	out.Status.Conditions = merged(nil, manifest.Conditions(s.Conditions), 1)
	return *out
}

func describe(due []write) []string {
	var out []string
	for _, w := range due {
		out = append(out, fmt.Sprintf("%s %s @%s", w.verb, w.target(), w.base()))
	}
	return out
}

func TestPlanOfImports(t *testing.T) {
	shop := map[string]bool{"shop": true}
	for title, c := range map[string]struct {
		want       func(*control.Status)
		have       func(*mcsv1beta1.ServiceImport) // nil: there is none
		namespaces map[string]bool
		due        []string
		problem    string
	}{
		"missing":                  {nil, nil, shop, []string{"create ServiceImport shop/web @"}, ""},
		"no namespace":             {nil, nil, nil, nil, ""},
		"namespace being deleted":  {nil, nil, map[string]bool{"shop": false}, nil, ""},
		"as it should be":          {nil, func(*mcsv1beta1.ServiceImport) {}, shop, nil, ""},
		"being deleted":            {nil, func(i *mcsv1beta1.ServiceImport) { i.ObjectMeta = deleted(i.ObjectMeta); i.Spec.IPs = nil }, shop, nil, ""},
		"address edited":           {nil, func(i *mcsv1beta1.ServiceImport) { i.Spec.IPs = []string{"10.0.0.1"} }, shop, []string{"update ServiceImport shop/web @1"}, ""},
		"a field added":            {nil, func(i *mcsv1beta1.ServiceImport) { i.Spec.TrafficDistribution = new("PreferClose") }, shop, []string{"update ServiceImport shop/web @1"}, ""},
		"label of an older export": {nil, func(i *mcsv1beta1.ServiceImport) { i.Labels["was"] = "exported" }, shop, []string{"update ServiceImport shop/web @1"}, ""},
		"status emptied":           {nil, func(i *mcsv1beta1.ServiceImport) { i.Status = mcsv1beta1.ServiceImportStatus{} }, shop, []string{"update status ServiceImport shop/web @1"}, ""},
		"older transition":         {nil, func(i *mcsv1beta1.ServiceImport) { i.Status.Conditions[0].LastTransitionTime = born }, shop, nil, ""},
		"a condition of another's": {nil, func(i *mcsv1beta1.ServiceImport) {
			i.Status.Conditions = append(i.Status.Conditions, metav1.Condition{Type: "Theirs", Status: "True", Reason: "So"})
		}, shop, nil, ""},
		"conditions of an older generation": {nil, func(i *mcsv1beta1.ServiceImport) { i.Generation = 2 }, shop, []string{"update status ServiceImport shop/web @1"}, ""},
		"somebody else's": {
			nil, func(i *mcsv1beta1.ServiceImport) { delete(i.Labels, ManagedByLabel) }, shop, nil,
			"ServiceImport shop/web: is somebody else's (label isthmus.dev/managed-by=isthmus-control is missing) and is left alone",
		},
		"not wanted": {func(s *control.Status) { s.Imports = nil }, func(*mcsv1beta1.ServiceImport) {}, shop, []string{"delete ServiceImport shop/web @1"}, ""},
		"not wanted, somebody else's": {
			func(s *control.Status) { s.Imports = nil }, func(i *mcsv1beta1.ServiceImport) { delete(i.Labels, ManagedByLabel) }, shop, nil, "",
		},
		"not wanted, its cluster is silent": {
			func(s *control.Status) { s.Imports, s.Silent = nil, []topology.ClusterName{cluster(t, "us")} },
			func(*mcsv1beta1.ServiceImport) {}, shop, nil, "",
		},
		"not wanted, another is silent": {
			func(s *control.Status) { s.Imports, s.Silent = nil, []topology.ClusterName{cluster(t, "ap")} },
			func(*mcsv1beta1.ServiceImport) {}, shop,
			[]string{"delete ServiceImport shop/web @1"},
			"",
		},
		"not wanted, whose was not written": {
			func(s *control.Status) { s.Imports, s.Silent = nil, []topology.ClusterName{cluster(t, "ap")} },
			func(i *mcsv1beta1.ServiceImport) { i.Status.Clusters = nil }, shop, nil, "",
		},
	} {
		t.Run(title, func(t *testing.T) {
			want := &control.Status{Imports: []control.ImportStatus{importStatusOf(t, "web")}}
			now := &written{namespaces: c.namespaces}
			if c.have != nil {
				i := standing(want.Imports[0])
				c.have(&i)
				now.imports = append(now.imports, i)
			}
			for _, slice := range slicesOf(&want.Imports[0]) {
				slice.ResourceVersion = "1"
				now.slices = append(now.slices, *slice)
			}
			if c.want != nil {
				c.want(want)
			}
			before := (&mcsv1beta1.ServiceImportList{Items: now.imports}).DeepCopy().Items
			due, problems := plan(want, now)
			due = slices.DeleteFunc(due, func(w write) bool { return w.slice != nil }) // TestPlanOfSlices
			if diff := cmp.Diff(c.due, describe(due)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if got := fmt.Sprint(problems); !strings.Contains(got, c.problem) || (c.problem == "") != (len(problems) == 0) {
				t.Errorf("problems %s, want %q", got, c.problem)
			}
			if diff := cmp.Diff(before, now.imports); diff != "" {
				t.Errorf("plan changed what the caches hold\n%s", diff)
			}
		})
	}
}

func TestImportIsWhole(t *testing.T) {
	s := importStatusOf(t, "web")
	s.Import.SessionAffinity, s.Import.SessionAffinityTimeout = federation.ClientIPAffinity, time.Minute
	s.Import.InternalTrafficPolicy = "Local"
	due, _ := plan(&control.Status{Imports: []control.ImportStatus{s}}, &written{namespaces: map[string]bool{"shop": true}})
	due = slices.DeleteFunc(due, func(w write) bool { return w.slice != nil })
	if len(due) != 1 {
		t.Fatalf("%v", describe(due))
	}
	want := mcsv1beta1.ServiceImportSpec{
		Type: mcsv1beta1.ClusterSetIP, IPs: []string{"241.0.0.1"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
		Ports:                 []mcsv1beta1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		SessionAffinity:       corev1.ServiceAffinityClientIP,
		SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(int32(60))}},
		InternalTrafficPolicy: new(corev1.ServiceInternalTrafficPolicyLocal),
	}
	if diff := cmp.Diff(want, due[0].imported.Spec); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"tier": "prod", ManagedByLabel: ManagedBy}, due[0].imported.Labels); diff != "" {
		t.Errorf("labels (-want +got)\n%s", diff)
	}
	if len(s.Import.Labels) != 1 {
		t.Error("plan changed what it was given")
	}
}

func TestPlanOfExports(t *testing.T) {
	valid := control.Condition{Type: "Valid", Status: control.True, Reason: "Valid", Since: later}
	ready := control.Condition{Type: "Ready", Status: control.False, Reason: "Pending", Message: "no gateway has joined", Since: later}
	asWritten := func(observed int64) []metav1.Condition {
		return merged(nil, manifest.Conditions([]control.Condition{valid, ready}), observed)
	}
	for title, c := range map[string]struct {
		have []metav1.Condition
		due  bool
	}{
		"none yet":               {nil, true},
		"as it should be":        {asWritten(3), false},
		"of an older generation": {asWritten(2), true},
		"others beside": {
			append([]metav1.Condition{{Type: "Theirs", Status: "True", Reason: "So"}}, asWritten(3)...), false,
		},
		"removed by hand": {asWritten(3)[:1], true},
		"another reason": {
			[]metav1.Condition{asWritten(3)[0], {Type: "Ready", Status: "False", Reason: "Failed", ObservedGeneration: 3}}, true,
		},
		"older transition": {
			[]metav1.Condition{asWritten(3)[0], {Type: "Ready", Status: "False", Reason: "Pending", Message: ready.Message, ObservedGeneration: 3, LastTransitionTime: born}}, false,
		},
	} {
		t.Run(title, func(t *testing.T) {
			have := exportFor("web")
			have.Status.Conditions = c.have
			now := &written{exports: []mcsv1beta1.ServiceExport{have}}
			due, problems := plan(&control.Status{Exports: []control.ExportStatus{exportStatusOf(t, "web", valid, ready)}}, now)
			if len(problems) > 0 || (len(due) > 0) != c.due {
				t.Fatalf("due %v, problems %v; want due: %t", describe(due), problems, c.due)
			}
			for _, w := range due {
				if got := w.export.Status.Conditions; len(got) != 2 || got[0].Type != "Valid" || got[1].Message != ready.Message || got[1].ObservedGeneration != 3 {
					t.Errorf("conditions %+v", got)
				}
			}
		})
	}
	due, _ := plan(&control.Status{Exports: []control.ExportStatus{exportStatusOf(t, "gone", valid)}}, &written{})
	if len(due) != 0 {
		t.Errorf("for an export that is gone: %v", describe(due))
	}
}

func TestPlanOfDomains(t *testing.T) {
	status := &control.Status{Domains: []control.DomainStatus{{
		Domain:     control.FederatedTrustDomain{Meta: control.Meta{Kind: "FederatedTrustDomain", Name: "partner"}, Generation: 3},
		Conditions: []control.Condition{{Type: "Ready", Status: control.False, Reason: "Stale", Message: "away", Since: later}},
	}}}
	have := meshv1alpha1.FederatedTrustDomain{ObjectMeta: metaOf("partner")}
	have.Namespace = ""
	due, _ := plan(status, &written{domains: []meshv1alpha1.FederatedTrustDomain{have}})
	if d := cmp.Diff([]string{"apply freshness FederatedTrustDomain partner @1"}, describe(due)); d != "" {
		t.Fatal(d)
	}
	want := []metav1.Condition{{Type: "Ready", Status: "False", Reason: "Stale", Message: "away", ObservedGeneration: 3, LastTransitionTime: metav1.NewTime(later)}}
	if d := cmp.Diff(want, due[0].domain.Status.Conditions); d != "" {
		t.Error(d)
	}
	have.Status.Conditions = want
	if due, _ = plan(status, &written{domains: []meshv1alpha1.FederatedTrustDomain{have}}); len(due) != 0 {
		t.Errorf("as it should be: %v", describe(due))
	}
	if due, _ = plan(status, &written{}); len(due) != 0 {
		t.Errorf("of one that is gone: %v", describe(due))
	}
}

func TestPlanOfPolicies(t *testing.T) {
	status := &control.Status{}
	for _, kind := range []string{"AccessPolicy", "QuotaPolicy"} {
		status.Policies = append(status.Policies, control.PolicyStatus{
			Kind: kind, Namespace: "shop", Name: "p", Generation: 4, Copies: 2,
			Conditions: []control.Condition{{Type: "Accepted", Status: control.True, Reason: "Accepted", Message: "for 2 workloads: a, b", Since: later}},
		})
	}
	meta := metaOf("p")
	foreign := metav1.Condition{Type: "Reviewed", Status: "True", Reason: "ByHand", LastTransitionTime: metav1.NewTime(later)}
	have := []policy{
		{accessKind, &meta, meshv1alpha1.PolicyStatus{Conditions: []metav1.Condition{foreign}}},
		{quotaKind, &meta, meshv1alpha1.PolicyStatus{}},
	}
	due, _ := plan(status, &written{policies: have})
	if d := cmp.Diff([]string{"apply outcome AccessPolicy shop/p @1", "apply outcome QuotaPolicy shop/p @1"}, describe(due)); d != "" {
		t.Fatal(d)
	}
	want := meshv1alpha1.PolicyStatus{Workloads: 2, Conditions: []metav1.Condition{{
		Type: "Accepted", Status: "True", Reason: "Accepted", Message: "for 2 workloads: a, b", ObservedGeneration: 4, LastTransitionTime: metav1.NewTime(later),
	}}}
	if d := cmp.Diff(want, due[0].policy.status); d != "" { // conditions of others are theirs
		t.Error(d)
	}
	have[0].status, have[1].status = want, want
	if due, _ = plan(status, &written{policies: have}); len(due) != 0 {
		t.Errorf("as it should be: %v", describe(due))
	}
	have[0].status.Workloads = 1
	if due, _ = plan(status, &written{policies: have}); len(due) != 1 {
		t.Errorf("with another number of workloads: %v", describe(due))
	}
	if due, _ = plan(status, &written{}); len(due) != 0 {
		t.Errorf("of those that are gone: %v", describe(due))
	}
}

func TestPlanOfPeers(t *testing.T) {
	fresh := control.Condition{Type: "Ready", Status: control.True, Reason: "Fresh", Since: later}
	status := func(c control.Condition) *control.Status {
		return &control.Status{Peers: []control.PeerStatus{{
			Peer: control.ClusterPeer{Meta: control.Meta{Kind: "ClusterPeer", Name: "us"}, Generation: 2}, Conditions: []control.Condition{c},
		}}}
	}
	have := meshv1alpha1.ClusterPeer{ObjectMeta: metaOf("us")}
	have.Namespace = ""
	due, _ := plan(status(fresh), &written{peers: []meshv1alpha1.ClusterPeer{have}})
	if d := cmp.Diff([]string{"apply state ClusterPeer us @1"}, describe(due)); d != "" {
		t.Fatal(d)
	}
	want := []metav1.Condition{{Type: "Ready", Status: "True", Reason: "Fresh", ObservedGeneration: 2, LastTransitionTime: metav1.NewTime(later)}}
	if d := cmp.Diff(want, due[0].peer.Status.Conditions); d != "" {
		t.Error(d)
	}
	have.Status.Conditions = append(want, metav1.Condition{Type: "Theirs", Status: "True", Reason: "So"})
	if due, _ = plan(status(fresh), &written{peers: []meshv1alpha1.ClusterPeer{have}}); len(due) != 0 {
		t.Errorf("as it should be: %v", describe(due))
	}
	fresh.Status, fresh.Reason = control.False, "Stale"
	if due, _ = plan(status(fresh), &written{peers: []meshv1alpha1.ClusterPeer{have}}); len(due) != 1 || len(due[0].peer.Status.Conditions) != 1 {
		t.Errorf("another state: %v", describe(due))
	}
	if due, _ = plan(status(fresh), &written{}); len(due) != 0 {
		t.Errorf("of a peer that is gone: %v", describe(due))
	}
}
