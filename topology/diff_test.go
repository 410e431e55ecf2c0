package topology_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
	"github.com/isthmus-mesh/isthmus/trust/quota"
)

// fullSpec has something in every field.
func fullSpec(t *testing.T) topology.SnapshotSpec {
	t.Helper()
	n, td := name(t, "svc.ns"), spiffeid.RequireTrustDomainFromString("eu.example.org")
	id := spiffeid.RequireFromPath(td, "/ns/ns/sa/svc")
	addr := netip.MustParseAddrPort("10.0.0.1:15008")
	labels := func() map[string]string { return map[string]string{"a": "1"} }
	gateway := topology.Gateway{ID: "gateway-0", Address: "10.0.0.1:1", QUIC: "10.0.0.1:2", Identity: id, Zone: "z1"}
	endpoint := func() topology.Endpoint {
		return topology.Endpoint{
			ID: "e", Address: addr, Server: id, Locality: topology.Locality{Region: "r", Zone: "z"}, Labels: labels(),
			Ports: []uint16{80}, UDPPorts: []uint16{53}, Ready: true, Capacity: 1, Total: 2,
		}
	}
	selector := func() topology.Selector {
		return topology.Selector{Cluster: "eu", Region: "r", Zone: "z", Labels: labels()}
	}
	drill := func() *topology.Drill {
		return &topology.Drill{ID: "d", Ends: time.UnixMilli(1), Left: time.Second, Silent: true}
	}
	drain := func() *topology.Drain { return &topology.Drain{Began: time.UnixMilli(1), Over: time.Second} }
	return topology.SnapshotSpec{
		Self: topology.Self{Cluster: cluster(t, "eu"), Domain: td, Locality: topology.Locality{Region: "r", Zone: "z"}, Namespace: "ns", Workload: "w"},
		Services: []*topology.Service{{
			Name:          n,
			Ports:         []topology.Port{{Name: "http", Number: 80, Protocol: topology.HTTP}},
			OtherPorts:    []topology.OtherPort{{Name: "diameter", Number: 3868, Protocol: "sctp"}},
			ClusterIPs:    []netip.Addr{addr.Addr()},
			ClusterSetIPs: []netip.Addr{addr.Addr()},
			Endpoints:     []topology.Endpoint{endpoint()},
			Remotes:       []topology.Remote{{Cluster: cluster(t, "us"), Servers: []spiffeid.ID{id}, Ports: []uint16{80}, UDPPorts: []uint16{53}, Ready: 1, Total: 2, Labels: labels(), Drain: drain()}},
			Drain:         drain(),
			Hosts: []topology.HostGroup{{
				Cluster: cluster(t, "us"), Ports: []topology.HostPort{{Name: "http", Number: 80, Target: 8080, Protocol: "tcp"}},
				Hosts: []topology.Host{{Name: "web-0", Address: addr.Addr(), IPs: []netip.Addr{addr.Addr()}}},
			}},
			Policy: &topology.Policy{
				Name:  "ns/p",
				Tiers: []topology.Tier{{Name: "t", Match: selector(), Weights: map[string]uint32{"eu": 1}}},
				Never: []topology.Selector{selector()},
				Spill: topology.Spill{BelowHealthyPercent: 70}, Failback: topology.Failback{After: time.Second, Ramp: time.Minute},
			},
		}},
		Clusters: []*topology.Cluster{{Name: cluster(t, "us"), Domain: td, Region: "r", Link: topology.LinkUp, RTT: time.Millisecond, Gateways: []topology.Gateway{gateway}, Pods: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}}},
		Gateways: []topology.Gateway{gateway},
		Exports:  []*topology.Export{{Name: n, Ports: []uint16{80}, UDPPorts: []uint16{53}, Audience: []topology.ClusterName{cluster(t, "us")}, Endpoints: []topology.Endpoint{endpoint()}, Hosts: []netip.Addr{addr.Addr()}, Drill: drill()}},
		Inbounds: []*topology.Inbound{{Drill: drill(), Access: [][]access.Policy{{fullPolicy()}}, Quotas: []topology.Quota{fullQuota()}, Name: n, Exported: true, Audience: []topology.ClusterName{cluster(t, "us")}, Ports: []topology.InboundPort{{Number: 80, Protocol: topology.HTTP, Targets: []netip.AddrPort{addr}}}}},
	}
}

func fullPolicy() access.Policy {
	patterns := []access.Pattern{{Text: "a", Kind: access.Prefix}}
	return access.Policy{
		Name: "p",
		Rules: []access.Rule{{
			Name: "r", From: []access.Source{{
				Principals: patterns, Domains: []spiffeid.TrustDomain{spiffeid.RequireTrustDomainFromString("eu")},
				Namespaces: []string{"ns"}, ServiceAccounts: []string{"sa"},
			}},
			To: []access.Operation{{
				Methods: []string{"GET"}, Paths: patterns, Ports: []uint16{80}, Headers: []access.Header{{Name: "X", Values: patterns}},
			}},
			Users: []access.User{{Issuer: "i", Claims: []access.Claim{{Path: []string{"c"}, Values: patterns}}}},
		}},
		Issuers: []access.Issuer{{Name: "i", Issuer: "iss", Audiences: []string{"aud"}, JWKS: "{}", JWKSFile: "f", JWKSURL: "u", Header: "H"}},
	}
}

func fullQuota() topology.Quota {
	p := fullPolicy()
	return topology.Quota{
		Name: "q", Per: topology.PerCaller, From: p.Rules[0].From, To: p.Rules[0].To, Issuers: p.Issuers,
		Limit: quota.Limit{Name: "l", Rate: 1, Burst: 1, Window: 1, Replicas: 1, MaxKeys: 1},
	}
}

func TestDiffSeesEveryField(t *testing.T) {
	base := topology.NewSnapshot(fullSpec(t))
	if d := topology.Diff(base, topology.NewSnapshot(fullSpec(t))); !d.IsZero() {
		t.Fatalf("equal snapshots differ: %+v", d)
	}
	others := map[reflect.Type]reflect.Value{
		reflect.TypeFor[topology.ClusterName](): reflect.ValueOf(cluster(t, "other")),
		reflect.TypeFor[topology.ServiceName](): reflect.ValueOf(name(t, "other.ns")),
		reflect.TypeFor[spiffeid.ID]():          reflect.ValueOf(spiffeid.RequireFromString("spiffe://other/id")),
		reflect.TypeFor[spiffeid.TrustDomain](): reflect.ValueOf(spiffeid.RequireTrustDomainFromString("other")),
		reflect.TypeFor[netip.Addr]():           reflect.ValueOf(netip.MustParseAddr("10.9.9.9")),
		reflect.TypeFor[netip.Prefix]():         reflect.ValueOf(netip.MustParsePrefix("10.9.0.0/16")),
		reflect.TypeFor[netip.AddrPort]():       reflect.ValueOf(netip.MustParseAddrPort("10.9.9.9:9")),
		reflect.TypeFor[map[string]string]():    reflect.ValueOf(map[string]string{"a": "2"}),
		reflect.TypeFor[map[string]uint32]():    reflect.ValueOf(map[string]uint32{"eu": 2}),
		reflect.TypeFor[topology.Protocol]():    reflect.ValueOf(topology.GRPC),
		reflect.TypeFor[topology.LinkState]():   reflect.ValueOf(topology.LinkDown),
		reflect.TypeFor[access.Kind]():          reflect.ValueOf(access.Suffix),
		reflect.TypeFor[float64]():              reflect.ValueOf(2.5),
		reflect.TypeFor[time.Time]():            reflect.ValueOf(time.UnixMilli(2)),
	}
	for n := 0; ; n++ {
		spec := fullSpec(t)
		count := 0
		path := changeNth(t, reflect.ValueOf(&spec).Elem(), "spec", others, n, &count)
		if path == "" {
			if n < 60 {
				t.Errorf("%d fields: fewer than there are", n)
			}
			return
		}
		if d := topology.Diff(base, topology.NewSnapshot(spec)); d.IsZero() {
			t.Errorf("a change of %s isn't seen", path)
		}
	}
}

// changeNth changes the n-th thing that can be changed below v, in place, and returns what it was; empty when there are fewer.
func changeNth(t *testing.T, v reflect.Value, path string, others map[reflect.Type]reflect.Value, n int, count *int) string {
	t.Helper()
	hit := func() bool { *count++; return *count-1 == n }
	if other, ok := others[v.Type()]; ok && other.IsValid() {
		if hit() {
			v.Set(other)
			return path
		}
		return ""
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if p := changeNth(t, v.Field(i), path+"."+v.Type().Field(i).Name, others, n, count); p != "" {
				return p
			}
		}
	case reflect.Pointer:
		return changeNth(t, v.Elem(), path, others, n, count)
	case reflect.Slice:
		if v.Len() != 1 {
			t.Fatalf("%s has %d elements, want 1", path, v.Len())
		}
		if hit() {
			v.SetZero()
			return path
		}
		return changeNth(t, v.Index(0), path+"[0]", others, n, count)
	case reflect.String:
		if hit() {
			v.SetString("other")
			return path
		}
	case reflect.Bool:
		if hit() {
			v.SetBool(!v.Bool())
			return path
		}
	case reflect.Int, reflect.Int64:
		if hit() {
			v.SetInt(v.Int() + 1)
			return path
		}
	case reflect.Uint16:
		if hit() {
			v.SetUint(v.Uint() + 1)
			return path
		}
	default:
		t.Fatalf("%s: the test doesn't know %s", path, v.Type())
	}
	return ""
}

func TestDiff(t *testing.T) {
	before := parseSnapshot(t, `
self eu region=europe
cluster us link=up
cluster ap link=up
service a.ns 80/http imported
service b.ns 80/http imported
service c.ns 80/http imported
  remote us ports=80 ready=3
`)
	after := parseSnapshot(t, `
self eu region=europe
cluster us link=down
cluster br link=up
service b.ns 80/http imported
service c.ns 80/http imported
  remote us ports=80 ready=2
service d.ns 80/http imported
service e.aa 80/http imported
`)
	services := func(names ...string) (out []topology.ServiceName) {
		for _, n := range names {
			out = append(out, name(t, n))
		}
		return out
	}
	clusters := func(names ...string) (out []topology.ClusterName) {
		for _, n := range names {
			out = append(out, cluster(t, n))
		}
		return out
	}
	for _, test := range []struct {
		name      string
		old, next *topology.Snapshot
		want      topology.Delta
	}{
		{name: "same", old: before, next: before},
		{name: "nothing", old: nil, next: nil},
		{
			name: "changes", old: before, next: after,
			want: topology.Delta{
				Services: topology.Changes[topology.ServiceName]{Added: services("e.aa", "d.ns"), Removed: services("a.ns"), Changed: services("c.ns")},
				Clusters: topology.Changes[topology.ClusterName]{Added: clusters("br"), Removed: clusters("ap"), Changed: clusters("us")},
			},
		},
		{
			name: "from nothing", old: nil, next: before,
			want: topology.Delta{
				Self:     true,
				Services: topology.Changes[topology.ServiceName]{Added: services("a.ns", "b.ns", "c.ns")},
				Clusters: topology.Changes[topology.ClusterName]{Added: clusters("ap", "us")},
			},
		},
		{
			name: "to nothing", old: before, next: nil,
			want: topology.Delta{
				Self:     true,
				Services: topology.Changes[topology.ServiceName]{Removed: services("a.ns", "b.ns", "c.ns")},
				Clusters: topology.Changes[topology.ClusterName]{Removed: clusters("ap", "us")},
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, topology.Diff(test.old, test.next), equateComparable...); diff != "" {
				t.Errorf("delta (-want +got):\n%s", diff)
			}
		})
	}
	if got := fmt.Sprint(topology.Diff(before, after).Services.Changed); got != "[c.ns]" {
		t.Errorf("prints as %s", got)
	}
}
