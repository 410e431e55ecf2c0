package federation

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/isthmus-mesh/isthmus/api/federation/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.AllowUnexported(topology.ServiceName{}, topology.ClusterName{}, spiffeid.ID{}, spiffeid.TrustDomain{}),
	cmpopts.EquateEmpty(),
}

func testExport(tb testing.TB, name string) Export {
	tb.Helper()
	n, err := topology.ParseServiceName(name)
	if err != nil {
		tb.Fatal(err)
	}
	return Export{Name: n, Created: epochStart.Truncate(time.Second), Type: ClusterSetIP, SessionAffinity: NoAffinity}
}

func fullExport(tb testing.TB, a *author) Export {
	tb.Helper()
	e := testExport(tb, "web.shop")
	e.Type, e.SessionAffinity, e.SessionAffinityTimeout = Headless, ClientIPAffinity, 3*time.Hour
	e.InternalTrafficPolicy, e.TrafficDistribution = "Local", "PreferClose"
	e.Ports = []Port{{"http", 80, TCP, "kubernetes.io/h2c"}, {"dns", 53, TCP, ""}, {"dns-udp", 53, UDP, ""}}
	e.Labels = map[string]string{"tier": "front", "empty": ""}
	e.Annotations = map[string]string{"example.org/owner": strings.Repeat("x", 200)}
	e.Servers = []spiffeid.ID{spiffeid.RequireFromPath(a.domain, "/ns/shop/sa/web"), spiffeid.RequireFromPath(a.domain, "/isthmus/node/n1")}
	e.Audience = []topology.ClusterName{a.cluster}
	e.Capacity = []ZoneCapacity{{"", 1, 0}, {"a", 3, 5}}
	e.Endpoints = []Endpoint{
		{Hostname: "web-0", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.7"), netip.MustParseAddr("fd00::7")}, Zone: "a"},
		{Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.8")}},
	}
	e.Targets = []uint16{8080, 53, 5353}
	e.Drain = &topology.Drain{Began: epochStart.Truncate(time.Millisecond), Over: 10 * time.Second}
	e.Drill = &Drill{Began: epochStart.Truncate(time.Millisecond), Ends: epochStart.Truncate(time.Millisecond).Add(time.Minute)}
	return e
}

func TestCatalog(t *testing.T) {
	a := newAuthor(t, "us")
	want := []Export{fullExport(t, a), testExport(t, "api.shop"), testExport(t, "web.pay")}
	shards, err := encodeCatalog(a.domain, want)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]Export)
	for index, r := range shards {
		exports, decodeErr := decodeCatalog(wire(t, r), a.domain, index)
		if decodeErr != nil {
			t.Fatal(decodeErr)
		}
		for _, e := range exports {
			got[e.Name.String()] = e
		}
	}
	for _, e := range want {
		if diff := cmp.Diff(e, got[e.Name.String()], byValue); diff != "" {
			t.Errorf("%s (-want +got):\n%s", e.Name, diff)
		}
	}
	// The same exports in another order are the same bytes.
	again, err := encodeCatalog(a.domain, []Export{want[2], want[0], want[1]})
	if err != nil {
		t.Fatal(err)
	}
	for index, r := range shards {
		if again[index].hash != r.hash {
			t.Errorf("shard %d depends on the order", index)
		}
	}
}

// headless changes a service of two copies.
func headless(change func(*Export)) func(*Export) {
	return func(e *Export) {
		e.Type = Headless
		e.Endpoints = []Endpoint{{Hostname: "web-0", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.7")}}}
		change(e)
	}
}

// TestCatalogLeavesOut: what breaks a limit is left out and named; the rest is told.
func TestCatalogLeavesOut(t *testing.T) {
	a := newAuthor(t, "us")
	for what, change := range map[string]func(*Export){
		"type":                      func(e *Export) { e.Type = "ExternalName" },
		"affinity":                  func(e *Export) { e.SessionAffinity = "Cookie" },
		"long affinity":             func(e *Export) { e.SessionAffinityTimeout = maxAffinity + time.Second },
		"traffic policy":            func(e *Export) { e.InternalTrafficPolicy = "Elsewhere" },
		"port 0":                    func(e *Export) { e.Ports = []Port{{Number: 0}} },
		"port twice":                func(e *Export) { e.Ports = []Port{{Name: "a", Number: 1}, {Name: "b", Number: 1}} },
		"transport":                 func(e *Export) { e.Ports = []Port{{Number: 1, Transport: "DCCP"}} },
		"many ports":                func(e *Export) { e.Ports = make([]Port, maxPorts+1) },
		"long label":                func(e *Export) { e.Labels = map[string]string{"a": strings.Repeat("x", maxLabelBytes+1)} },
		"empty key":                 func(e *Export) { e.Labels = map[string]string{"": "x"} },
		"long annotation":           func(e *Export) { e.Annotations = map[string]string{"a": strings.Repeat("x", maxValueBytes+1)} },
		"foreign server":            func(e *Export) { e.Servers = []spiffeid.ID{spiffeid.RequireFromString("spiffe://other.org/x")} },
		"no server":                 func(e *Export) { e.Servers = make([]spiffeid.ID, 1) },
		"no audience":               func(e *Export) { e.Audience = make([]topology.ClusterName, 1) },
		"zone twice":                func(e *Export) { e.Capacity = make([]ZoneCapacity, 2) },
		"much capacity":             func(e *Export) { e.Capacity = []ZoneCapacity{{Ready: maxZoneReady + 1}} },
		"too many copies":           func(e *Export) { e.Capacity = []ZoneCapacity{{Total: maxZoneTotal + 1}} },
		"more ready than there are": func(e *Export) { e.Capacity = []ZoneCapacity{{Ready: 2, Total: 1}} },
		"long zone":                 func(e *Export) { e.Capacity = []ZoneCapacity{{Zone: strings.Repeat("x", maxNameBytes+1)}} },
		"host name":                 headless(func(e *Export) { e.Endpoints[0].Hostname = "a.b" }),
		"no addresses":              headless(func(e *Export) { e.Endpoints[0].Addresses = nil }),
		"two of a family": headless(func(e *Export) {
			e.Endpoints[0].Addresses = append(e.Endpoints[0].Addresses, netip.MustParseAddr("10.9.9.9"))
		}),
		"mapped":         headless(func(e *Export) { e.Endpoints[0].Addresses[0] = netip.MustParseAddr("::ffff:10.0.0.1") }),
		"multicast":      headless(func(e *Export) { e.Endpoints[0].Addresses[0] = netip.MustParseAddr("224.0.0.1") }),
		"no zone":        headless(func(e *Export) { e.Endpoints[0].Zone = strings.Repeat("x", maxNameBytes+1) }),
		"endpoint twice": headless(func(e *Export) { e.Endpoints = append(e.Endpoints, e.Endpoints[0]) }),
		"out of order": headless(func(e *Export) {
			e.Endpoints = append(e.Endpoints, Endpoint{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
		}),
		"many endpoints": headless(func(e *Export) {
			for i := range maxEndpoints {
				e.Endpoints = append(e.Endpoints, Endpoint{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})}})
			}
		}),
		"endpoints of another type": headless(func(e *Export) { e.Type = ClusterSetIP }),
		"targets of another type":   func(e *Export) { e.Ports, e.Targets = []Port{{Number: 1}}, []uint16{2} },
		"drained for days": func(e *Export) {
			e.Drain = &topology.Drain{Began: epochStart, Over: MaxDrainOver + time.Second}
		},
		"drained from far away": func(e *Export) { e.Drain = &topology.Drain{Began: time.UnixMilli(maxDrainBegan + 1)} },
		"drained since never":   func(e *Export) { e.Drain = new(topology.Drain) },
		"drilled for a day":     func(e *Export) { e.Drill = &Drill{Began: epochStart, Ends: epochStart.Add(24 * time.Hour)} },
		"drilled backwards":     func(e *Export) { e.Drill = &Drill{Began: epochStart, Ends: epochStart.Add(-time.Second)} },
		"drilled before 1970":   func(e *Export) { e.Drill = &Drill{Began: time.Unix(-1, 0), Ends: time.Unix(60, 0)} },
		"no time":               func(e *Export) { e.Created = time.Time{} },
		"no name":               func(e *Export) { e.Name = topology.ServiceName{} },
		"invalid UTF-8":         func(e *Export) { e.Labels = map[string]string{"a": "\xff"} },
	} {
		good, bad := testExport(t, "good.shop"), testExport(t, "bad.shop")
		change(&bad)
		shards, err := encodeCatalog(a.domain, []Export{bad, good})
		if r, ok := errors.AsType[*Refusal](err); !ok || r.Reason == "" {
			t.Errorf("%s: %v", what, err)
		}
		exports, err := decodeCatalog(wire(t, shards[shardOf("shop")]), a.domain, shardOf("shop"))
		if err != nil || len(exports) != 1 || exports[0].Name != good.Name {
			t.Errorf("%s: %d services told: %v", what, len(exports), err)
		}
	}
}

func TestCatalogFull(t *testing.T) {
	a := newAuthor(t, "us")
	var exports []Export
	for i := range 200 {
		e := testExport(t, fmt.Sprintf("s%d.shop", i))
		e.Created = epochStart.Add(-time.Duration(i) * time.Minute).Truncate(time.Second)
		e.Annotations = map[string]string{"a": strings.Repeat("x", 1000)}
		exports = append(exports, e)
	}
	exports = append(exports, exports[0])
	shards, err := encodeCatalog(a.domain, exports)
	if err == nil || !strings.Contains(err.Error(), "catalog shard 13 is full") {
		t.Fatalf("%v", err)
	}
	r := shards[shardOf("shop")]
	if len(r.payload) > MaxPayload || len(r.payload) < MaxPayload-2000 {
		t.Errorf("%d bytes", len(r.payload))
	}
	told, err := decodeCatalog(wire(t, r), a.domain, shardOf("shop"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range told { // s199 is the oldest
		if e.Created.After(exports[199-len(told)].Created) {
			t.Errorf("%s is told, and older ones are not", e.Name)
		}
	}
}

func TestDecodeCatalog(t *testing.T) {
	a, other := newAuthor(t, "us"), newAuthor(t, "xx")
	good := func() *federationv1.CatalogShard {
		e := fullExport(t, a)
		return &federationv1.CatalogShard{TrustDomain: a.domain.Name(), Index: shardOf("shop"), Services: []*federationv1.ExportedService{encodeExport(&e)}}
	}
	for what, test := range map[string]struct {
		change func(*federationv1.CatalogShard)
		want   Reason
	}{
		"good":             {func(*federationv1.CatalogShard) {}, ""},
		"other domain":     {func(p *federationv1.CatalogShard) { p.TrustDomain = other.domain.Name() }, WrongDomain},
		"other index":      {func(p *federationv1.CatalogShard) { p.Index++ }, Malformed},
		"other shard":      {func(p *federationv1.CatalogShard) { p.Services[0].Namespace = "pay" }, Malformed},
		"twice":            {func(p *federationv1.CatalogShard) { p.Services = append(p.Services, p.Services[0]) }, Malformed},
		"foreign server":   {func(p *federationv1.CatalogShard) { p.Services[0].ServerSpiffeIds[0] = "spiffe://xx.example.org/x" }, WrongDomain},
		"server":           {func(p *federationv1.CatalogShard) { p.Services[0].ServerSpiffeIds[0] = "nobody" }, Malformed},
		"port over 65535":  {func(p *federationv1.CatalogShard) { p.Services[0].Ports[0].Port = 1 << 16 }, Malformed},
		"negative timeout": {func(p *federationv1.CatalogShard) { p.Services[0].SessionAffinityTimeoutSeconds = -1 }, Malformed},
		"port's name":      {func(p *federationv1.CatalogShard) { p.Services[0].Ports[0].Name = "http\x1b" }, Malformed},
		"port's protocol":  {func(p *federationv1.CatalogShard) { p.Services[0].Ports[0].AppProtocol = "h2c\n" }, Malformed},
		"name":             {func(p *federationv1.CatalogShard) { p.Services[0].Name = "Web" }, Malformed},
		"no time":          {func(p *federationv1.CatalogShard) { p.Services[0].Created = nil }, Malformed},
		"many services": {func(p *federationv1.CatalogShard) {
			for range maxServices {
				p.Services = append(p.Services, &federationv1.ExportedService{})
			}
		}, Malformed},
	} {
		p := good()
		test.change(p)
		r, err := sealMessage(RecordCatalogShard, p)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, err = decodeCatalog(wire(t, r), a.domain, shardOf("shop"))
		if got := reasonOf(t, err); got != test.want {
			t.Errorf("%s: %q, want %q", what, got, test.want)
		}
	}
	payload, err := proto.Marshal(good())
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := seal(RecordCatalogShard, append(payload, 0xf8, 0x07, 0x01)) // field 127
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeCatalog(unknown, a.domain, shardOf("shop")); reasonOf(t, err) != Malformed {
		t.Errorf("a field that version 1 doesn't have: %v", err)
	}
}

// TestShardOf holds the numbers that are part of the protocol.
func TestShardOf(t *testing.T) {
	got := make(map[string]uint32)
	for _, ns := range []string{"default", "shop", "pay", "kube-system"} {
		got[ns] = shardOf(ns)
	}
	want := map[string]uint32{"default": 7, "shop": 13, "pay": 3, "kube-system": 8}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	used := make(map[uint32]int)
	for i := range 1600 {
		used[shardOf(fmt.Sprintf("namespace-%d", i))]++
	}
	for s, n := range used {
		if n < 50 || n > 150 {
			t.Errorf("%d of 1600 namespaces in shard %d", n, s)
		}
	}
}

func TestGateways(t *testing.T) {
	a := newAuthor(t, "us")
	good := func() Gateway {
		return Gateway{
			ID: "g0", QUIC: []string{"gw.example.org:4443", "[2001:db8::1]:4443"}, TCP: []string{"203.0.113.7:443"},
			Identity: spiffeid.RequireFromPath(a.domain, "/isthmus/gateway/g0"), Capacity: 3, Draining: true, Zone: "a",
		}
	}
	pods := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/56")}
	r, err := encodeGateways(a.domain, []Gateway{good()}, pods)
	if err != nil {
		t.Fatal(err)
	}
	got, told, err := decodeGateways(wire(t, r), a.domain)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(told, pods) {
		t.Errorf("pods %v", told)
	}
	for what, bad := range map[string][]netip.Prefix{
		"no prefix": {{}}, "not masked": {netip.MustParsePrefix("10.1.0.1/16")}, "too many": make([]netip.Prefix, maxPodCIDRs+1),
	} {
		if _, err := encodeGateways(a.domain, []Gateway{good()}, bad); err == nil {
			t.Errorf("pods: %s: taken", what)
		}
	}
	if diff := cmp.Diff([]Gateway{good()}, got, byValue); diff != "" {
		t.Error(diff)
	}
	if r, err := encodeGateways(a.domain, nil, pods); r != nil || err != nil {
		t.Errorf("none: %v, %v", r, err)
	}
	for what, change := range map[string]func(*Gateway){
		"another's identity": func(g *Gateway) { g.ID = "g1" },
		"foreign identity": func(g *Gateway) {
			g.Identity = spiffeid.RequireFromString("spiffe://xx.example.org/isthmus/gateway/g0")
		},
		"a workload":     func(g *Gateway) { g.Identity = spiffeid.RequireFromPath(a.domain, "/ns/a/sa/g0") },
		"no port":        func(g *Gateway) { g.QUIC = []string{"203.0.113.7"} },
		"host":           func(g *Gateway) { g.TCP = []string{"a\x1b:443"} },
		"no host":        func(g *Gateway) { g.QUIC = []string{":4443"} },
		"port 0":         func(g *Gateway) { g.TCP = []string{"a:0"} },
		"port name":      func(g *Gateway) { g.TCP = []string{"a:http"} },
		"many addresses": func(g *Gateway) { g.QUIC = make([]string, maxAddresses+1) },
		"long host":      func(g *Gateway) { g.QUIC = []string{strings.Repeat("a", maxHostBytes+1) + ":1"} },
		"long zone":      func(g *Gateway) { g.Zone = strings.Repeat("a", maxNameBytes+1) },
		"capacity":       func(g *Gateway) { g.Capacity = maxCapacity + 1 },
	} {
		g := good()
		change(&g)
		if _, err := encodeGateways(a.domain, []Gateway{g}, nil); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	if _, err := encodeGateways(a.domain, []Gateway{good(), good()}, nil); err == nil {
		t.Error("twice: taken")
	}
}
