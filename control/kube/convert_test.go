package kube

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/federation"
)

func TestPodsWithSidecarAreWorkloads(t *testing.T) {
	whole := control.Workload{
		Meta:   control.Meta{Kind: "Pod", Namespace: "shop", Name: "web-0", Created: born.UTC()},
		Labels: map[string]string{"app": "web"}, ServiceAccount: "web", Address: netip.MustParseAddr("10.0.0.1"),
		Ports: []control.WorkloadPort{{Name: "http", Number: 8080, Transport: federation.TCP}}, Zone: "a", Ready: true, Inbound: 15008,
	}
	for name, c := range map[string]struct {
		change  func(*corev1.Pod)
		want    func(*control.Workload) // nil: no workload
		problem string
	}{
		"whole":           {func(*corev1.Pod) {}, func(*control.Workload) {}, ""},
		"without sidecar": {func(p *corev1.Pod) { p.Annotations = nil }, nil, ""},
		"a bad port":      {func(p *corev1.Pod) { p.Annotations[InboundPortAnnotation] = "65536" }, nil, `Pod shop/web-0: annotation isthmus.dev/inbound-port: "65536" is no port`},
		"no address yet":  {func(p *corev1.Pod) { p.Status.PodIP = "" }, nil, ""},
		"ended":           {func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, nil, ""},
		"not ready": {
			func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse },
			func(w *control.Workload) { w.Ready = false }, "",
		},
		"readiness not known": {func(p *corev1.Pod) { p.Status.Conditions = nil }, func(w *control.Workload) { w.Ready = false }, ""},
		"being deleted":       {func(p *corev1.Pod) { p.ObjectMeta = deleted(p.ObjectMeta) }, func(w *control.Workload) { w.Ready = false }, ""},
		"zone of its own":     {func(p *corev1.Pod) { p.Labels[corev1.LabelTopologyZone] = "b" }, func(w *control.Workload) { w.Zone = "b"; w.Labels[corev1.LabelTopologyZone] = "b" }, ""},
		"unknown node":        {func(p *corev1.Pod) { p.Spec.NodeName = "node-9" }, func(w *control.Workload) { w.Zone = "" }, ""},
		"no account named":    {func(p *corev1.Pod) { p.Spec.ServiceAccountName = "" }, func(w *control.Workload) { w.ServiceAccount = "default" }, ""},
		"IPv6":                {func(p *corev1.Pod) { p.Status.PodIP = "fd00::1" }, func(w *control.Workload) { w.Address = netip.MustParseAddr("fd00::1") }, ""},
		"ports": {
			func(p *corev1.Pod) {
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Ports: []corev1.ContainerPort{
					{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
					{Name: "diameter", ContainerPort: 3868, Protocol: corev1.ProtocolSCTP}, // not carried
					{Name: "inbound", ContainerPort: 15008},                                // the sidecar's
					{Name: "http", ContainerPort: 8081},                                    // the name is taken
					{ContainerPort: 9000},
					{ContainerPort: 9001},
				}})
			},
			func(w *control.Workload) {
				w.Ports = append(w.Ports, control.WorkloadPort{Name: "dns", Number: 53, Transport: federation.UDP},
					control.WorkloadPort{Number: 9000, Transport: federation.TCP}, control.WorkloadPort{Number: 9001, Transport: federation.TCP})
			}, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podOf("web-0", "10.0.0.1")
			c.change(&pod)
			out, _ := convert(&reading{pods: []corev1.Pod{pod}, nodes: []corev1.Node{nodeOf("node-1", "a")}}, nil)
			var want []control.Workload
			if c.want != nil {
				w := whole
				w.Labels = maps.Clone(whole.Labels)
				c.want(&w)
				want = []control.Workload{w}
			}
			if diff := cmp.Diff(want, out.Workloads, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if got := fmt.Sprint(out.Problems); !strings.Contains(got, c.problem) || (c.problem == "") != (len(out.Problems) == 0) {
				t.Errorf("problems %s, want %q", got, c.problem)
			}
		})
	}
}

// A Pod with a sidecar is one copy, and not a second one without.
func TestSlicesLeaveOutWhatHasASidecar(t *testing.T) {
	now := &reading{
		services: []corev1.Service{serviceOf("web", map[string]string{"app": "web"}, 80), serviceOf("manual", nil, 80)},
		slices: []discoveryv1.EndpointSlice{
			sliceOf("web", endpointOf("10.0.0.1", "web-0"), endpointOf("10.0.0.2", "old-0"), endpointOf("10.0.0.3", "")),
			sliceOf("manual", endpointOf("10.0.0.1", "web-0")),
		},
		pods: []corev1.Pod{podOf("web-0", "10.0.0.1")},
	}
	out, _ := convert(now, nil)
	got := make(map[string][]string)
	for _, s := range out.Slices {
		for _, e := range s.Endpoints {
			got[s.Name] = append(got[s.Name], e.Address.String()+" "+e.Zone)
		}
	}
	// No selector picks the Workload for "manual": the slice alone says that it is a copy.
	want := map[string][]string{"web-1": {"10.0.0.2 a", "10.0.0.3 a"}, "manual-1": {"10.0.0.1 a"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A Service of two families has two slices, and each Pod is one copy.
func TestTwoFamiliesAreOneCopy(t *testing.T) {
	for first, want := range map[corev1.IPFamily]string{"": "10.0.0.1 10.0.0.3 fd00::2", corev1.IPv6Protocol: "10.0.0.3 fd00::1 fd00::2"} {
		service := serviceOf("web", nil, 80)
		if first != "" {
			service.Spec.ClusterIP, service.Spec.IPFamilies = "fd00:96::1", []corev1.IPFamily{first, corev1.IPv4Protocol}
		}
		v4 := sliceOf("web", endpointOf("10.0.0.1", "old-0"), endpointOf("10.0.0.3", ""))
		v6 := sliceOf("web", endpointOf("fd00::1", "old-0"), endpointOf("fd00::2", "six-0"))
		v6.Name, v6.UID, v6.AddressType = "web-2", "other", discoveryv1.AddressTypeIPv6
		out, _ := convert(&reading{services: []corev1.Service{service}, slices: []discoveryv1.EndpointSlice{v6, v4}}, nil)
		var got []string
		for _, s := range out.Slices {
			for _, e := range s.Endpoints {
				got = append(got, e.Address.String())
			}
		}
		if slices.Sort(got); strings.Join(got, " ") != want || len(out.Problems) > 0 {
			t.Errorf("first family %q: %v, want %s; problems %v", first, got, want, out.Problems)
		}
	}
}

func TestSlicesThatAreNoCopiesAreNotRead(t *testing.T) {
	imported, ours, unnamed, portless := sliceOf("a"), sliceOf("b"), sliceOf("c"), sliceOf("d")
	imported.Labels[mcsv1beta1.LabelSourceCluster] = "us"
	ours.Labels[discoveryv1.LabelManagedBy] = ManagedBy
	delete(unnamed.Labels, discoveryv1.LabelServiceName)
	portless.Ports = nil
	out, _ := convert(&reading{slices: []discoveryv1.EndpointSlice{imported, ours, unnamed, portless, sliceOf("e")}}, nil)
	if len(out.Slices) != 1 || out.Slices[0].Name != "e-1" || len(out.Problems) != 0 {
		t.Errorf("%+v, problems %v; want e-1 alone", out.Slices, out.Problems)
	}
}

// One bad object hides no other, and its last good version stays in force as long as it is the same object.
func TestLastGoodVersionStays(t *testing.T) {
	good := &reading{services: []corev1.Service{serviceOf("web", nil, 80), serviceOf("api", nil, 81)}}
	first, memory := convert(good, nil)
	if len(first.Services) != 2 || first.Services[0].Name != "api" || len(first.Problems) != 0 {
		t.Fatalf("%+v, problems %v; want api and web", first.Services, first.Problems)
	}
	bad := serviceOf("web", nil, 0)
	bad.ResourceVersion = "2"
	kept := maps.Clone(memory)
	second, memory2 := convert(&reading{services: []corev1.Service{bad, serviceOf("api", nil, 82)}}, memory)
	if len(second.Services) != 2 || second.Services[1].Ports[0].Number != 80 {
		t.Errorf("services %+v; want web's last good version", second.Services)
	}
	if second.Services[0].Ports[0].Number != 81 {
		t.Error("an object was converted anew though its resourceVersion is as before")
	}
	if want := "Service shop/web: spec.ports[0].port: 0 is no port: want 1 to 65535"; len(second.Problems) != 1 || second.Problems[0].String() != want {
		t.Errorf("problems %v, want %q", second.Problems, want)
	}
	if len(kept) != len(memory) || memory[object{"Service", "shop", "web"}].version != "1" {
		t.Error("convert changed the memory that it was given")
	}
	// Another object under the name: what the first one said counts no more.
	bad.UID = "another"
	third, _ := convert(&reading{services: []corev1.Service{bad}}, memory2)
	if len(third.Services) != 0 || len(third.Problems) != 1 {
		t.Errorf("services %+v, problems %v; want none and one", third.Services, third.Problems)
	}
	// What is gone is forgotten.
	if _, empty := convert(&reading{}, memory2); len(empty) != 0 {
		t.Errorf("remembered: %v", slices.Collect(maps.Keys(empty)))
	}
}

// TestRefusedPolicies: what is not understood is told on the object itself, with the version that was looked at, whether or not an earlier one is in force.
func TestRefusedPolicies(t *testing.T) {
	policy := func(version string, generation int64, tiers ...string) meshv1alpha1.FailoverPolicy {
		p := meshv1alpha1.FailoverPolicy{}
		p.Namespace, p.Name, p.UID, p.ResourceVersion, p.Generation = "shop", "web", "1", version, generation
		p.Spec.TargetRefs = []meshv1alpha1.TargetRef{{Kind: "Service", Name: "web"}}
		for _, name := range tiers {
			p.Spec.Tiers = append(p.Spec.Tiers, meshv1alpha1.FailoverTier{Name: name})
		}
		return p
	}
	refused := func(generation int64) []control.RefusedPolicy {
		return []control.RefusedPolicy{{
			Meta: control.Meta{Kind: failoverKind, Namespace: "shop", Name: "web"}, Generation: generation,
			Reason: `spec.tiers[1].match: can't match: tier "a" before it takes all that it would`,
		}}
	}
	_, last := convert(new(reading), nil)
	for _, step := range []struct {
		now      meshv1alpha1.FailoverPolicy
		policies int
		refused  []control.RefusedPolicy
	}{
		{policy("1", 1, "a", "b"), 0, refused(1)},
		{policy("2", 2, "a"), 1, nil},
		{policy("3", 3, "a", "b"), 1, refused(3)},
		{policy("3", 3, "a", "b"), 1, refused(3)}, // not looked at again
	} {
		var out *control.Objects
		out, last = convert(&reading{policies: []meshv1alpha1.FailoverPolicy{step.now}}, last)
		if diff := cmp.Diff(step.refused, out.Refused); diff != "" || len(out.Policies) != step.policies {
			t.Errorf("version %s: %d in force (want %d), refused (-want +got)\n%s", step.now.ResourceVersion, len(out.Policies), step.policies, diff)
		}
	}
}

func TestWithdrawnCountsAtOnce(t *testing.T) {
	export, peer, service := exportFor("web"), peerOf("us"), serviceOf("web", nil, 80)
	now := &reading{
		exports: []mcsv1beta1.ServiceExport{export}, peers: []meshv1alpha1.ClusterPeer{peer}, services: []corev1.Service{service},
	}
	out, memory := convert(now, nil)
	if len(out.Exports) != 1 || len(out.Peers) != 1 || len(out.Services) != 1 {
		t.Fatalf("%+v", out)
	}
	if e := out.Exports[0]; e.Generation != 3 || !e.Created.Equal(born.Time) || e.APIVersion != "multicluster.x-k8s.io/v1beta1" {
		t.Errorf("export %+v", e)
	}
	now.exports[0].ObjectMeta, now.peers[0].ObjectMeta = deleted(export.ObjectMeta), deleted(peer.ObjectMeta)
	now.services[0].ObjectMeta = deleted(service.ObjectMeta) // serves on until it is gone
	out, _ = convert(now, memory)
	if len(out.Exports) != 0 || len(out.Peers) != 0 || len(out.Services) != 1 {
		t.Errorf("while they are being deleted: %+v", out)
	}
}

// TestClosedPolicy: an AccessPolicy that is not understood refuses everything, where no good version of it is known: whoever starts control
// anew while the API server holds a bad one must not open what a good one had closed.
func TestClosedPolicy(t *testing.T) {
	good := meshv1alpha1.AccessPolicy{ObjectMeta: metaOf("p"), Spec: meshv1alpha1.AccessPolicySpec{
		Selector: &meshv1alpha1.PolicySelector{MatchLabels: map[string]string{"app": "web"}}, Rules: []meshv1alpha1.AccessRule{{Name: "any"}},
	}}
	bad := good
	bad.ResourceVersion = "2"
	bad.Spec.Rules = []meshv1alpha1.AccessRule{{Name: "r", To: []meshv1alpha1.AccessOperation{{Paths: []string{"/a//b"}}}}}
	type remembered = map[object]conversion
	read := func(p meshv1alpha1.AccessPolicy, last remembered) (control.AccessPolicy, []control.Problem, remembered) {
		t.Helper()
		out, next := convert(&reading{access: []meshv1alpha1.AccessPolicy{p}}, last)
		if len(out.Access) != 1 {
			t.Fatalf("%+v", out)
		}
		return out.Access[0], out.Problems, next
	}
	p, problems, last := read(good, nil)
	if p.Closed || len(problems) != 0 || len(p.Rules) != 1 {
		t.Fatalf("%+v, %v", p, problems)
	}
	if p, problems, _ = read(bad, last); p.Closed || len(problems) != 1 || len(p.Rules) != 1 {
		t.Errorf("with a good version known: %+v, %v", p, problems)
	}
	p, problems, last = read(bad, nil)
	if !p.Closed || p.Audit || len(p.Rules) != 0 || p.Selects.Labels["app"] != "web" || len(problems) != 1 {
		t.Errorf("without: %+v, %v", p, problems)
	}
	worse := bad
	worse.ResourceVersion, worse.Spec.Selector = "3", &meshv1alpha1.PolicySelector{}
	if p, _, last = read(worse, last); !p.Closed || !p.Selects.IsAll() {
		t.Errorf("what it is for is not understood: %+v", p)
	}
	again := good
	again.ResourceVersion = "4"
	again.ObjectMeta = deleted(again.ObjectMeta) // in force until it is gone
	if p, problems, _ = read(again, last); p.Closed || len(problems) != 0 || len(p.Rules) != 1 {
		t.Errorf("put right: %+v, %v", p, problems)
	}
	audit := bad
	audit.Spec.Mode = "Audit"
	if out, _ := convert(&reading{access: []meshv1alpha1.AccessPolicy{audit}}, nil); len(out.Access) != 0 || len(out.Problems) != 1 {
		t.Errorf("one that refuses nothing: %+v", out)
	}
}

func TestWorkloadUnderThePodsName(t *testing.T) {
	w := meshv1alpha1.Workload{ObjectMeta: metaOf("web-0"), Spec: meshv1alpha1.WorkloadSpec{Address: "10.9.9.9"}}
	other := meshv1alpha1.Workload{ObjectMeta: metaOf("vm-0"), Spec: meshv1alpha1.WorkloadSpec{Address: "10.9.9.8"}}
	out, _ := convert(&reading{pods: []corev1.Pod{podOf("web-0", "10.0.0.1")}, workloads: []meshv1alpha1.Workload{w, other}}, nil)
	if len(out.Workloads) != 2 || out.Workloads[0].Name != "vm-0" || out.Workloads[1].Kind != "Pod" {
		t.Errorf("%+v", out.Workloads)
	}
	if len(out.Problems) != 1 || out.Problems[0].Object != "Workload shop/web-0" {
		t.Errorf("problems %v", out.Problems)
	}
}

func TestTrim(t *testing.T) {
	pod := podOf("web-0", "10.0.0.1")
	pod.Annotations["other"] = strings.Repeat("x", 100)
	pod.Spec.Volumes = []corev1.Volume{{Name: "v"}}
	plain := podOf("old-0", "10.0.0.2")
	plain.Annotations = map[string]string{"other": "x"}
	want, _ := convert(&reading{pods: []corev1.Pod{pod, plain}}, nil)
	trimmed := make([]corev1.Pod, 0, 2)
	for _, p := range []*corev1.Pod{&pod, &plain} {
		out, err := trim(p)
		if err != nil {
			t.Fatal(err)
		}
		trimmed = append(trimmed, *out.(*corev1.Pod))
	}
	got, _ := convert(&reading{pods: trimmed}, nil)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("trimming changed what follows (-want +got)\n%s", diff)
	}
	if len(trimmed[0].Annotations) != 1 || trimmed[0].Spec.Volumes != nil || trimmed[1].Labels != nil || trimmed[1].Spec.Containers != nil {
		t.Errorf("kept: %+v", trimmed)
	}
	if kept, err := trim("a tombstone"); err != nil || kept != "a tombstone" {
		t.Errorf("of another type: %v, %v", kept, err)
	}
}
