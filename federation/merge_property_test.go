package federation_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

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
