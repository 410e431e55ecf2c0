package federation_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

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

// someExports draws exports that are likely to collide: few names, few values.
func someExports(t *rapid.T) map[topology.ClusterName][]federation.Export {
	out := make(map[topology.ClusterName][]federation.Export)
	clusters := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 0, 4, rapid.ID[string]).Draw(t, "clusters")
	for _, c := range clusters {
		names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x.ns", "y.ns"}), 0, 2, rapid.ID[string]).Draw(t, "names")
		var list []federation.Export
		for _, n := range names {
			list = append(list, someExport(t, serviceName(t, n)))
		}
		out[clusterName(t, c)] = list
	}
	return out
}

func someExport(t *rapid.T, name topology.ServiceName) federation.Export {
	ports := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) federation.Port {
		return federation.Port{
			Name:        rapid.SampledFrom([]string{"", "http", "tcp"}).Draw(t, "port name"),
			Number:      rapid.Uint16Range(1, 3).Draw(t, "port"),
			Transport:   rapid.SampledFrom([]federation.Transport{"", federation.TCP, federation.UDP}).Draw(t, "transport"),
			AppProtocol: rapid.SampledFrom([]string{"", "http"}).Draw(t, "appProtocol"),
		}
	}), 0, 3).Draw(t, "ports")
	labels := rapid.SampledFrom([]map[string]string{nil, {}, {"a": "1"}, {"a": "2"}})
	return federation.Export{
		Name:                   name,
		Created:                t0.Add(time.Duration(rapid.IntRange(0, 4).Draw(t, "age")) * 500 * time.Millisecond),
		Ports:                  ports,
		Type:                   rapid.SampledFrom([]federation.Type{"", federation.ClusterSetIP, federation.Headless}).Draw(t, "type"),
		SessionAffinity:        rapid.SampledFrom([]federation.Affinity{"", federation.NoAffinity, federation.ClientIPAffinity}).Draw(t, "affinity"),
		SessionAffinityTimeout: rapid.SampledFrom([]time.Duration{0, time.Minute, 3 * time.Hour}).Draw(t, "timeout"),
		InternalTrafficPolicy:  rapid.SampledFrom([]string{"", "Cluster", "Local"}).Draw(t, "itp"),
		TrafficDistribution:    rapid.SampledFrom([]string{"", "PreferClose"}).Draw(t, "distribution"),
		Labels:                 labels.Draw(t, "labels"),
		Annotations:            labels.Draw(t, "annotations"),
	}
}

// shuffled returns the same exports, as they might have arrived in another order: a new map, and lists in another order.
func shuffled(t *rapid.T, in map[topology.ClusterName][]federation.Export) map[topology.ClusterName][]federation.Export {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	keys := slices.Collect(maps.Keys(in))
	r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	out := make(map[topology.ClusterName][]federation.Export, len(in))
	for _, k := range keys {
		list := slices.Clone(in[k])
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		out[k] = list
	}
	return out
}

var equateNames = cmp.Comparer(func(a, b topology.ClusterName) bool { return a == b })

func diffMerged(a, b federation.Merged) string {
	return cmp.Diff(a, b, equateNames, cmp.Comparer(func(a, b topology.ServiceName) bool { return a == b }))
}

func TestMergeProperties(t *testing.T) {
	own := clusterName(t, "a")
	t.Run("neither order nor replay matters", rapid.MakeCheck(func(t *rapid.T) {
		exports := someExports(t)
		first := federation.Merge(own, exports)
		if diff := diffMerged(first, federation.Merge(own, shuffled(t, exports))); diff != "" {
			t.Fatal(diff)
		}
		if diff := diffMerged(first, federation.Merge(own, exports)); diff != "" {
			t.Fatal(diff)
		}
	}))
	t.Run("who leaves and returns finds what was", rapid.MakeCheck(func(t *rapid.T) {
		exports := someExports(t)
		before := federation.Merge(own, exports)
		for leaver, list := range exports {
			rest := maps.Clone(exports)
			delete(rest, leaver)
			without := federation.Merge(own, rest)
			for _, i := range without.Imports {
				if slices.Contains(i.Clusters, leaver) {
					t.Fatalf("%s left, and is still in %v", leaver, i)
				}
			}
			rest[leaver] = list
			if diff := diffMerged(before, federation.Merge(own, rest)); diff != "" {
				t.Fatal(diff)
			}
		}
	}))
	t.Run("inputs are left as they are", rapid.MakeCheck(func(t *rapid.T) {
		exports := someExports(t)
		kept := deepCopy(exports)
		federation.Merge(own, exports)
		if diff := cmp.Diff(kept, exports, equateNames, cmp.Comparer(func(a, b topology.ServiceName) bool { return a == b })); diff != "" {
			t.Fatal(diff)
		}
	}))
	t.Run("an import is sound", rapid.MakeCheck(func(t *rapid.T) {
		exports := someExports(t)
		m := federation.Merge(own, exports)
		count := 0
		for _, i := range m.Imports {
			checkImport(t, exports, i)
			for _, c := range i.Clusters {
				if len(m.Conditions[i.Name][c]) != 1 {
					t.Fatalf("%s of %s has no condition", i.Name, c)
				}
				count++
			}
		}
		for _, list := range exports {
			count -= len(list)
		}
		if count != 0 || len(m.Conditions) != len(m.Imports) {
			t.Fatalf("exports and conditions differ by %d", count)
		}
	}))
	t.Run("exports that agree have no conflict", rapid.MakeCheck(func(t *rapid.T) {
		e := someExport(t, serviceName(t, "x.ns"))
		newer := e
		newer.Created = e.Created.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "seconds")) * time.Second)
		newer.Ports = slices.Clone(e.Ports)
		slices.Reverse(newer.Ports)
		m := federation.Merge(own, map[topology.ClusterName][]federation.Export{own: {e}, clusterName(t, "b"): {newer}})
		if got := m.Conditions[e.Name][own][0]; got.Status {
			t.Fatalf("%+v", got)
		}
	}))
}

func deepCopy(in map[topology.ClusterName][]federation.Export) map[topology.ClusterName][]federation.Export {
	out := make(map[topology.ClusterName][]federation.Export, len(in))
	for c, list := range in {
		list = slices.Clone(list)
		for i := range list {
			list[i].Ports = slices.Clone(list[i].Ports)
		}
		out[c] = list
	}
	return out
}

func checkImport(t *rapid.T, exports map[topology.ClusterName][]federation.Export, i federation.Import) {
	names, pairs := map[string]bool{}, map[federation.Port]bool{}
	for _, p := range i.Ports {
		pair := federation.Port{Number: p.Number, Transport: p.Transport}
		if names[p.Name] || pairs[pair] {
			t.Fatalf("port %+v is there twice in %+v", p, i.Ports)
		}
		names[p.Name], pairs[pair] = true, true
		if len(p.Clusters) == 0 || !slices.IsSortedFunc(p.Clusters, topology.ClusterName.Compare) {
			t.Fatalf("port %+v", p)
		}
		for c, list := range exports {
			exposes := slices.ContainsFunc(list, func(e federation.Export) bool {
				return e.Name == i.Name && slices.ContainsFunc(e.Ports, func(q federation.Port) bool {
					transport := q.Transport
					if transport == "" {
						transport = federation.TCP
					}
					return q.Number == p.Number && transport == p.Transport
				})
			})
			if exposes != slices.Contains(p.Clusters, c) {
				t.Fatalf("cluster %s exposes %+v: %t", c, p, exposes)
			}
		}
	}
	for c, list := range exports {
		for _, e := range list {
			if e.Name != i.Name {
				continue
			}
			oldest := exports[i.Oldest][slices.IndexFunc(exports[i.Oldest], func(e federation.Export) bool { return e.Name == i.Name })]
			if before := e.Created.Unix() - oldest.Created.Unix(); before < 0 || before == 0 && c.Compare(i.Oldest) < 0 {
				t.Fatalf("%s decides, but %s is older", i.Oldest, c)
			}
		}
	}
}
