package federation_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

func clusterName(t interface{ Fatal(...any) }, s string) topology.ClusterName {
	c, err := topology.ParseClusterName(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func serviceName(t interface{ Fatal(...any) }, s string) topology.ServiceName {
	n, err := topology.ParseServiceName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// exporting is one cluster's exports of one name; t0 is the oldest possible.
type exporting struct {
	cluster string
	export  federation.Export
}

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestMerge(t *testing.T) {
	tcp42 := federation.Port{Name: "tcp", Number: 42, Transport: federation.TCP}
	udp42 := federation.Port{Name: "udp", Number: 42, Transport: federation.UDP}
	sctp142 := federation.Port{Name: "stcp", Number: 142, Transport: federation.SCTP}
	http80 := federation.Port{Name: "http", Number: 80, Transport: federation.TCP, AppProtocol: "http"}
	port := func(p federation.Port, change func(*federation.Port)) federation.Port { change(&p); return p }
	ports := func(ps ...federation.Port) []federation.Port { return ps }

	type servedPort struct {
		federation.Port
		clusters string
	}
	tests := []struct {
		name   string
		in     []exporting
		ports  []servedPort
		oldest string
		reason string
		check  func(*testing.T, federation.Import)
	}{
		{
			name:   "R8 the ports are those of the export",
			in:     []exporting{{"a", federation.Export{Ports: ports(tcp42, udp42)}}},
			ports:  []servedPort{{tcp42, "a"}, {udp42, "a"}},
			oldest: "a", reason: "NoConflicts",
		},
		{
			name: "R9 the union of ports, SCTP too; a difference is a conflict",
			in: []exporting{
				{"a", federation.Export{Ports: ports(tcp42, udp42)}},
				{"b", federation.Export{Ports: ports(tcp42, sctp142), Created: t0.Add(time.Second)}},
			},
			ports:  []servedPort{{tcp42, "a b"}, {udp42, "a"}, {sctp142, "b"}},
			oldest: "a", reason: "PortConflict",
		},
		{
			name: "R10 O6 same name, other number: the oldest decides, and only it serves",
			in: []exporting{
				{"a", federation.Export{Ports: ports(port(tcp42, func(p *federation.Port) { p.Number = 43 })), Created: t0.Add(time.Second)}},
				{"b", federation.Export{Ports: ports(tcp42, udp42)}},
			},
			ports:  []servedPort{{tcp42, "b"}, {udp42, "b"}},
			oldest: "b", reason: "PortConflict",
		},
		{
			name: "O7 other name, other number: each port reaches its own cluster",
			in: []exporting{
				{"a", federation.Export{Ports: ports(tcp42)}},
				{"b", federation.Export{Ports: ports(http80), Created: t0.Add(time.Second)}},
			},
			ports:  []servedPort{{tcp42, "a"}, {http80, "b"}},
			oldest: "a", reason: "PortConflict",
		},
		{
			name: "other name, same pair: one port, and both serve it",
			in: []exporting{
				{"a", federation.Export{Ports: ports(tcp42)}},
				{"b", federation.Export{Ports: ports(port(tcp42, func(p *federation.Port) { p.Name = "echo" })), Created: t0.Add(time.Second)}},
			},
			ports:  []servedPort{{tcp42, "a b"}},
			oldest: "a", reason: "PortConflict",
		},
		{
			name: "the empty name is a name",
			in: []exporting{
				{"a", federation.Export{Ports: ports(federation.Port{Number: 42})}},
				{"b", federation.Export{Ports: ports(federation.Port{Number: 43}), Created: t0.Add(time.Second)}},
			},
			ports:  []servedPort{{federation.Port{Number: 42, Transport: federation.TCP}, "a"}},
			oldest: "a", reason: "PortConflict",
		},
		{
			name: "other appProtocol: a conflict, but both serve it",
			in: []exporting{
				{"a", federation.Export{Ports: ports(http80)}},
				{"b", federation.Export{Ports: ports(port(http80, func(p *federation.Port) { p.AppProtocol = "grpc" })), Created: t0.Add(time.Second)}},
			},
			ports:  []servedPort{{http80, "a b"}},
			oldest: "a", reason: "PortConflict",
		},
		{
			name: "order of ports is no difference, nor is an unset default",
			in: []exporting{
				{"a", federation.Export{Ports: ports(udp42, tcp42), Type: federation.ClusterSetIP, InternalTrafficPolicy: "Cluster", SessionAffinity: federation.NoAffinity}},
				{"b", federation.Export{Ports: ports(port(tcp42, func(p *federation.Port) { p.Transport = "" }), udp42), Labels: map[string]string{}}},
			},
			ports:  []servedPort{{udp42, "a b"}, {tcp42, "a b"}},
			oldest: "a", reason: "NoConflicts",
		},
		{
			name: "R14 headlessness: the oldest decides",
			in: []exporting{
				{"a", federation.Export{Type: federation.Headless, Created: t0.Add(time.Second)}},
				{"b", federation.Export{Type: federation.ClusterSetIP}},
			},
			oldest: "b", reason: "TypeConflict",
			check: func(t *testing.T, i federation.Import) {
				t.Helper()
				if i.Type != federation.ClusterSetIP {
					t.Errorf("type %s", i.Type)
				}
			},
		},
		{
			name: "O1 exported labels and annotations",
			in:   []exporting{{"a", federation.Export{Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "1"}}}},

			oldest: "a", reason: "NoConflicts",
			check: func(t *testing.T, i federation.Import) {
				t.Helper()
				if i.Labels["l"] != "1" || i.Annotations["a"] != "1" {
					t.Errorf("labels %v, annotations %v", i.Labels, i.Annotations)
				}
			},
		},
		{
			name: "O2 their conflict: the oldest decides, reasons joined without a space",
			in: []exporting{
				{"a", federation.Export{Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "1"}}},
				{"b", federation.Export{Labels: map[string]string{"l2": "1"}, Annotations: map[string]string{"a2": "1"}, Created: t0.Add(time.Hour)}},
			},
			oldest: "a", reason: "LabelsConflict,AnnotationsConflict",
			check: func(t *testing.T, i federation.Import) {
				t.Helper()
				if len(i.Labels) != 1 || i.Labels["l"] != "1" || len(i.Annotations) != 1 || i.Annotations["a"] != "1" {
					t.Errorf("labels %v, annotations %v", i.Labels, i.Annotations)
				}
			},
		},
		{
			name: "everything else",
			in: []exporting{
				{"a", federation.Export{SessionAffinity: federation.ClientIPAffinity, InternalTrafficPolicy: "Local", TrafficDistribution: "PreferClose", Created: t0.Add(time.Second)}},
				{"b", federation.Export{}},
			},
			oldest: "b", reason: "SessionAffinityConflict,InternalTrafficPolicyConflict,TrafficDistributionConflict",
			check: func(t *testing.T, i federation.Import) {
				t.Helper()
				if i.SessionAffinity != federation.NoAffinity || i.SessionAffinityTimeout != 0 || i.InternalTrafficPolicy != "Cluster" || i.TrafficDistribution != "" {
					t.Errorf("%+v", i)
				}
			},
		},
		{
			name: "affinity's time-out, with its default",
			in: []exporting{
				{"a", federation.Export{SessionAffinity: federation.ClientIPAffinity}},
				{"b", federation.Export{SessionAffinity: federation.ClientIPAffinity, SessionAffinityTimeout: 3 * time.Hour}},
				{"c", federation.Export{SessionAffinity: federation.ClientIPAffinity, SessionAffinityTimeout: time.Minute}},
			},
			oldest: "a", reason: "SessionAffinityConfigConflict",
			check: func(t *testing.T, i federation.Import) {
				t.Helper()
				if i.SessionAffinityTimeout != federation.DefaultAffinityTimeout {
					t.Errorf("time-out %s", i.SessionAffinityTimeout)
				}
			},
		},
		{
			name: "less than a second apart is a tie, by cluster name",
			in: []exporting{
				{"b", federation.Export{Type: federation.Headless}},
				{"a", federation.Export{Created: t0.Add(999 * time.Millisecond)}},
			},
			oldest: "a", reason: "TypeConflict",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			name := serviceName(t, "hello.ns")
			exports := make(map[topology.ClusterName][]federation.Export)
			for _, in := range test.in {
				in.export.Name = name
				if in.export.Created.IsZero() {
					in.export.Created = t0
				}
				exports[clusterName(t, in.cluster)] = []federation.Export{in.export}
			}
			m := federation.Merge(clusterName(t, "z"), exports)
			if len(m.Imports) != 1 {
				t.Fatalf("%d imports, want 1", len(m.Imports))
			}
			i := m.Imports[0]
			if i.Name != name || i.Oldest.String() != test.oldest || len(i.Clusters) != len(test.in) {
				t.Errorf("import %s decided by %s of %v, want %s decided by %s", i.Name, i.Oldest, i.Clusters, name, test.oldest)
			}
			var got []servedPort
			for _, p := range i.Ports {
				got = append(got, servedPort{p.Port, words(p.Clusters)})
			}
			if diff := cmp.Diff(test.ports, got, cmp.AllowUnexported(servedPort{})); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
			for cluster := range exports {
				conditions := m.Conditions[name][cluster]
				if len(conditions) != 1 {
					t.Fatalf("%d conditions for %s, want 1", len(conditions), cluster)
				}
				c := conditions[0]
				if c.Type != federation.Conflict || c.Reason != test.reason || c.Status != (test.reason != "NoConflicts") || c.Status == (c.Message == "") {
					t.Errorf("condition of %s: %+v, want reason %s", cluster, c, test.reason)
				}
			}
			if test.check != nil {
				test.check(t, i)
			}
		})
	}
}

func words(clusters []topology.ClusterName) string {
	var out []string
	for _, c := range clusters {
		out = append(out, c.String())
	}
	return strings.Join(out, " ")
}

func TestMergeMessage(t *testing.T) {
	name := serviceName(t, "hello.ns")
	m := federation.Merge(clusterName(t, "eu"), map[topology.ClusterName][]federation.Export{
		clusterName(t, "eu"): {{Name: name, Created: t0}},
		clusterName(t, "us"): {{Name: name, Created: t0.Add(time.Second), Type: federation.Headless, Labels: map[string]string{"a": "b"}}},
		clusterName(t, "ap"): {{Name: name, Created: t0.Add(time.Minute), Labels: map[string]string{"a": "c"}}},
	})
	const want = "not as in eu, whose export is the oldest and decides: type of us; exportedLabels of ap, us"
	if got := m.Conditions[name][clusterName(t, "us")][0].Message; got != want {
		t.Errorf("message %q, want %q", got, want)
	}
}

func TestMergeAudience(t *testing.T) {
	eu, us, ap := clusterName(t, "eu"), clusterName(t, "us"), clusterName(t, "ap")
	name := serviceName(t, "hello.ns")
	exports := map[topology.ClusterName][]federation.Export{
		eu: {{Name: name, Created: t0, Audience: []topology.ClusterName{us}}},
		us: {{Name: name, Created: t0.Add(time.Second), Type: federation.Headless}},
	}
	for _, test := range []struct {
		own      topology.ClusterName
		clusters string
		reason   string
	}{
		{eu, "eu us", "TypeConflict"}, // an exporter sees its own, whoever its audience is
		{us, "eu us", "TypeConflict"},
		{ap, "us", "NoConflicts"},
	} {
		m := federation.Merge(test.own, exports)
		if len(m.Imports) != 1 || words(m.Imports[0].Clusters) != test.clusters || m.Conditions[name][us][0].Reason != test.reason {
			t.Errorf("seen from %s: %+v, want %s with %s", test.own, m, test.clusters, test.reason)
		}
	}
}

// The ports of many clusters add up to no more than a service can have; the oldest exports' are kept.
func TestMergePortsBounded(t *testing.T) {
	exports := make(map[topology.ClusterName][]federation.Export)
	for i := range 10 {
		e := federation.Export{Name: serviceName(t, "web.shop"), Created: t0.Add(time.Duration(i) * time.Hour)}
		for j := range 64 {
			number := uint16(1 + 64*i + j)
			e.Ports = append(e.Ports, federation.Port{Name: fmt.Sprintf("p%d", number), Number: number})
		}
		exports[clusterName(t, fmt.Sprintf("c%d", i))] = []federation.Export{e}
	}
	merged := federation.Merge(clusterName(t, "c9"), exports)
	if n := len(merged.Imports[0].Ports); n != federation.MaxImportPorts || merged.Imports[0].Ports[n-1].Number != federation.MaxImportPorts {
		t.Errorf("%d ports: %+v", n, merged.Imports[0].Ports[max(0, n-3):])
	}
}
