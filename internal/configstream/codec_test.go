package configstream

import (
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

var equal = []cmp.Option{
	cmpopts.EquateEmpty(),
	cmpopts.EquateComparable(
		spiffeid.ID{}, spiffeid.TrustDomain{}, topology.ClusterName{}, topology.ServiceName{}, netip.Addr{}, netip.AddrPort{}, netip.Prefix{},
	),
	cmp.Comparer(func(a, b *x509.Certificate) bool { return a.Equal(b) }),
}

// travel encodes by the wire and decodes again.
func travel(t *rapid.T, r *configv1.Resource) decoded {
	b, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var out configv1.Resource
	if err = proto.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	d, err := decode(&out)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func same(t *rapid.T, want, got any) {
	if diff := cmp.Diff(want, got, equal...); diff != "" {
		t.Fatalf("differs after the journey (-sent +received):\n%s", diff)
	}
}

func TestWhatIsEncodedIsDecoded(t *testing.T) {
	for name, check := range map[string]func(*rapid.T){
		"self": func(t *rapid.T) {
			s := genSelf(t)
			same(t, &s, travel(t, EncodeSelf("sidecar/shop/checkout-0", s)).self)
		},
		"bundle": func(t *rapid.T) {
			td := genDomain(t)
			b := genBundle(t, td)
			d := travel(t, EncodeBundle(td, b))
			same(t, td, d.domain)
			same(t, &b, d.bundle)
		},
		"gateway": func(t *rapid.T) {
			g := genGateway(t)
			same(t, &g, travel(t, EncodeGateway(g)).gateway)
		},
		"cluster": func(t *rapid.T) {
			c := genPeer(t)
			same(t, c, travel(t, EncodeCluster(c)).cluster)
		},
		"service": func(t *rapid.T) {
			s := genService(t)
			same(t, s, travel(t, EncodeService(s)).service)
		},
		"export": func(t *rapid.T) {
			e := genExport(t)
			same(t, e, travel(t, EncodeExport(e)).export)
		},
		"inbound": func(t *rapid.T) {
			in := genInbound(t)
			same(t, in, travel(t, EncodeInbound("node/node-0.example", in)).inbound)
		},
	} {
		t.Run(name, func(t *testing.T) { rapid.Check(t, check) })
	}
}

func TestDecodeTakesAllOrNothing(t *testing.T) {
	good := EncodeService(service(t, "checkout.shop", 1))
	snapshot, bundles, err := Decode([]*configv1.Resource{
		good,
		EncodeSelf("gateway/gateway-0", topology.Self{Cluster: cluster(t, "eu"), Domain: spiffeid.RequireTrustDomainFromString("eu.example")}),
		EncodeBundle(spiffeid.RequireTrustDomainFromString("us.example"), BundleData{Authorities: authorities()}),
		{Key: "rumour/of-a-newer-control"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := snapshot.Self().Cluster.String(); got != "eu" {
		t.Errorf("cluster %q, want eu", got)
	}
	if len(snapshot.Services()) != 1 || len(bundles) != 1 {
		t.Errorf("%d services and %d bundles, want one each", len(snapshot.Services()), len(bundles))
	}
	for name, resources := range map[string][]*configv1.Resource{
		"a malformed one":  {good, {Key: "service/checkout.other"}},
		"the same twice":   {good, good},
		"two receivers":    {EncodeSelf("node/a", snapshot.Self()), EncodeSelf("node/b", snapshot.Self())},
		"an unknown no id": {{Body: good.GetBody()}},
	} {
		if _, _, err := Decode(resources); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMalformedResourcesAreRefused(t *testing.T) {
	type change func(*configv1.Resource)
	endpoint := func(f func(*configv1.Endpoint)) change {
		return func(r *configv1.Resource) { f(r.GetService().GetEndpoints()[0]) }
	}
	for name, c := range map[string]change{
		"key of another":       func(r *configv1.Resource) { r.Key = "service/other.shop" },
		"key of another kind":  func(r *configv1.Resource) { r.Key = "export/checkout.shop" },
		"key too long":         func(r *configv1.Resource) { r.Key = "service/" + strings.Repeat("a", MaxKey) },
		"no body":              func(r *configv1.Resource) { r.Body = nil },
		"empty body":           func(r *configv1.Resource) { r.Body = &configv1.Resource_Service{} },
		"upper case name":      func(r *configv1.Resource) { r.GetService().Name = "Checkout" },
		"no namespace":         func(r *configv1.Resource) { r.GetService().Namespace = "" },
		"port 0":               func(r *configv1.Resource) { r.GetService().Ports[0].Port = 0 },
		"port 65536":           func(r *configv1.Resource) { r.GetService().Ports[0].Port = 65536 },
		"protocol":             func(r *configv1.Resource) { r.GetService().Ports[0].Protocol = "sctp" },
		"control character":    func(r *configv1.Resource) { r.GetService().Ports[0].Name = "a\x1b[2J" },
		"IP":                   func(r *configv1.Resource) { r.GetService().ClusterIps = []string{"10.0.0"} },
		"IP not canonical":     func(r *configv1.Resource) { r.GetService().ClusterIps = []string{"FD00::1"} },
		"IP with zone":         func(r *configv1.Resource) { r.GetService().ClusterIps = []string{"fe80::1%eth0"} },
		"remote twice":         func(r *configv1.Resource) { s := r.GetService(); s.Remotes = append(s.Remotes, s.GetRemotes()...) },
		"remote without name":  func(r *configv1.Resource) { r.GetService().Remotes[0].Cluster = "" },
		"remote's server":      func(r *configv1.Resource) { r.GetService().Remotes[0].SpiffeIds = []string{"https://us.example"} },
		"remote drained never": func(r *configv1.Resource) { r.GetService().Remotes[0].Drain = &configv1.Drain{} },
		"remote drained in 10000 years": func(r *configv1.Resource) {
			r.GetService().Remotes[0].Drain = &configv1.Drain{BeganMillis: maxMoment + 1}
		},
		"drained over two days": func(r *configv1.Resource) {
			r.GetService().Drain = &configv1.Drain{BeganMillis: 1, OverMillis: 2 * 86_400_000}
		},
		"remote's count":        func(r *configv1.Resource) { r.GetService().Remotes[0].Ready = maxCount + 1 },
		"endpoint without id":   endpoint(func(e *configv1.Endpoint) { e.Id = "" }),
		"endpoint by name":      endpoint(func(e *configv1.Endpoint) { e.Address = "example.com:80" }),
		"endpoint's port":       endpoint(func(e *configv1.Endpoint) { e.Address = "10.0.0.1:0" }),
		"endpoint without SVID": endpoint(func(e *configv1.Endpoint) { e.SpiffeId = "" }),
		"endpoint's capacity":   endpoint(func(e *configv1.Endpoint) { e.Capacity = 1 << 31 }),
		"endpoint's labels":     endpoint(func(e *configv1.Endpoint) { e.Labels = map[string]string{"a": strings.Repeat("b", maxText+1)} }),
		"endpoint twice": func(r *configv1.Resource) {
			s := r.GetService()
			s.Endpoints = append(s.Endpoints, s.GetEndpoints()...)
		},
		"too many tiers": func(r *configv1.Resource) {
			r.GetService().Policy = &configv1.FailoverPolicy{Tiers: make([]*configv1.Tier, maxTiers+1)}
		},
		"too many ports": func(r *configv1.Resource) { r.GetService().Ports = make([]*configv1.Port, maxPorts+1) },
	} {
		t.Run(name, func(t *testing.T) {
			s := service(t, "checkout.shop", 1)
			s.Endpoints = []topology.Endpoint{{
				ID: "a", Address: netip.MustParseAddrPort("10.0.0.1:80"), Server: spiffeid.RequireFromString("spiffe://eu.example/ns/shop/sa/a"),
			}}
			r := proto.CloneOf(EncodeService(s))
			if _, err := decode(r); err != nil {
				t.Fatalf("before the change: %v", err)
			}
			c(r)
			if _, err := decode(r); !errors.Is(err, errMalformed) {
				t.Errorf("error %v, want %v", err, errMalformed)
			}
		})
	}
	for name, r := range map[string]*configv1.Resource{
		"link state": {Key: "cluster/us", Body: &configv1.Resource_Cluster{Cluster: &configv1.Cluster{Name: "us", TrustDomain: "us.example", Link: "sideways"}}},
		"round trip of a day": {Key: "cluster/us", Body: &configv1.Resource_Cluster{Cluster: &configv1.Cluster{
			Name: "us", TrustDomain: "us.example", RttMicros: 86_400_000_000,
		}}},
		"trust domain":       {Key: "bundle/", Body: &configv1.Resource_Bundle{Bundle: &configv1.Bundle{}}},
		"trust domain as ID": {Key: "bundle/us.example", Body: &configv1.Resource_Bundle{Bundle: &configv1.Bundle{TrustDomain: "spiffe://us.example"}}},
		"authority": {Key: "bundle/us.example", Body: &configv1.Resource_Bundle{Bundle: &configv1.Bundle{
			TrustDomain: "us.example", X509Authorities: [][]byte{[]byte("no certificate")},
		}}},
		"revoked key": {Key: "bundle/us.example", Body: &configv1.Resource_Bundle{Bundle: &configv1.Bundle{
			TrustDomain: "us.example", RevokedKeys: [][]byte{{1, 2, 3}},
		}}},
		"revoked ID of another domain": {Key: "bundle/us.example", Body: &configv1.Resource_Bundle{Bundle: &configv1.Bundle{
			TrustDomain: "us.example", RevokedIds: []*configv1.RevokedID{{SpiffeId: "spiffe://eu.example/ns/shop/sa/cart"}},
		}}},
		"revoked ID of a whole domain": {Key: "bundle/us.example", Body: &configv1.Resource_Bundle{Bundle: &configv1.Bundle{
			TrustDomain: "us.example", RevokedIds: []*configv1.RevokedID{{SpiffeId: "spiffe://us.example"}},
		}}},
		"revoked ID in another spelling": {Key: "bundle/us.example", Body: &configv1.Resource_Bundle{Bundle: &configv1.Bundle{
			TrustDomain: "us.example", RevokedIds: []*configv1.RevokedID{{SpiffeId: "SPIFFE://us.example/ns/shop/sa/cart"}},
		}}},
		"revoked ID twice": {Key: "bundle/us.example", Body: &configv1.Resource_Bundle{Bundle: &configv1.Bundle{
			TrustDomain: "us.example", RevokedIds: []*configv1.RevokedID{{SpiffeId: "spiffe://us.example/a"}, {SpiffeId: "spiffe://us.example/a", BegunBy: 1}},
		}}},
		"revoked ID before time began": {Key: "bundle/us.example", Body: &configv1.Resource_Bundle{Bundle: &configv1.Bundle{
			TrustDomain: "us.example", RevokedIds: []*configv1.RevokedID{{SpiffeId: "spiffe://us.example/a", BegunBy: -1}},
		}}},
		"JWT key of no kind": {Key: "bundle/us.example", Body: &configv1.Resource_Bundle{Bundle: &configv1.Bundle{
			TrustDomain: "us.example", JwtAuthorities: []*configv1.JWTAuthority{{KeyId: "a", PublicKey: []byte("no key")}},
		}}},
		"JWT key that signs nothing": {Key: "bundle/us.example", Body: &configv1.Resource_Bundle{Bundle: &configv1.Bundle{
			TrustDomain: "us.example", JwtAuthorities: []*configv1.JWTAuthority{{KeyId: "a", PublicKey: publicKey(t, exchangeKey(t))}},
		}}},
		"JWT key without ID": {Key: "bundle/us.example", Body: &configv1.Resource_Bundle{Bundle: &configv1.Bundle{
			TrustDomain: "us.example", JwtAuthorities: []*configv1.JWTAuthority{{PublicKey: publicKey(t, authorities()[0].PublicKey)}},
		}}},
		"gateway's address":                         {Key: "gateway/a", Body: &configv1.Resource_Gateway{Gateway: &configv1.Gateway{Id: "a", SpiffeId: "spiffe://us.example/isthmus/gateway/a", Address: "nowhere"}}},
		"gateway's name":                            {Key: "gateway/a/b", Body: &configv1.Resource_Gateway{Gateway: &configv1.Gateway{Id: "a/b", SpiffeId: "spiffe://us.example/isthmus/gateway/a"}}},
		"self of nobody":                            EncodeSelf("sidecar/shop", topology.Self{Cluster: cluster(t, "eu"), Domain: spiffeid.RequireTrustDomainFromString("eu.example")}),
		"inbound of nobody":                         EncodeInbound("gateway/..", &topology.Inbound{Name: service(t, "a.b", 1).Name}),
		"access policy with a pattern of no kind":   withAccess(t, func(p *configv1.AccessPolicy) { p.Rules[0].To[0].Paths[0].Kind = "regex" }),
		"access policy with a port that is none":    withAccess(t, func(p *configv1.AccessPolicy) { p.Rules[0].To[0].Ports[0] = 0 }),
		"access policy with a domain that is none":  withAccess(t, func(p *configv1.AccessPolicy) { p.Rules[0].From[0].TrustDomains[0] = "A" }),
		"access policy with a claim without a name": withAccess(t, func(p *configv1.AccessPolicy) { p.Rules[0].Users[0].Claims[0].Path = nil }),
		"access policy with a file elsewhere":       withAccess(t, func(p *configv1.AccessPolicy) { p.Issuers[0].JwksFile = "../keys" }),
		"access policy with a header twofold":       withAccess(t, func(p *configv1.AccessPolicy) { p.Rules[0].To[0].Headers[0].Absent = true }),
		"access policy with too many rules":         withAccess(t, func(p *configv1.AccessPolicy) { p.Rules = make([]*configv1.AccessRule, maxAccessRules+1) }),
		"access policy with too long a pattern": withAccess(t, func(p *configv1.AccessPolicy) {
			p.Rules[0].To[0].Paths[0].Text = strings.Repeat("a", maxPatternText+1)
		}),
		// What a newer control says beside what is known here would be lost, and with it a condition.
		"access policy of a newer version": withAccess(t, func(p *configv1.AccessPolicy) {
			p.Rules[0].To[0].ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1))
		}),
	} {
		if _, err := decode(r); !errors.Is(err, errMalformed) {
			t.Errorf("%s: error %v, want %v", name, err, errMalformed)
		}
	}
}

func anAccessPolicy() access.Policy {
	return access.Policy{
		Name:    "shop/p",
		Issuers: []access.Issuer{{Name: "corp", Issuer: "https://login.example", Audiences: []string{"shop"}, JWKSFile: "keys.json"}},
		Rules: []access.Rule{{
			Name:  "r",
			From:  []access.Source{{Domains: []spiffeid.TrustDomain{spiffeid.RequireTrustDomainFromString("eu.example")}, Namespaces: []string{"shop"}}},
			To:    []access.Operation{{Methods: []string{"GET"}, Paths: []access.Pattern{{Text: "/a/", Kind: access.Prefix}}, Ports: []uint16{80}, Headers: []access.Header{{Name: "X-A", Values: []access.Pattern{{Text: "b"}}}}}},
			Users: []access.User{{Issuer: "corp", Claims: []access.Claim{{Path: []string{"groups"}, Values: []access.Pattern{{Text: "pay"}}}}}},
		}},
	}
}

// withAccess is the resource of a service with one access policy, changed.
func withAccess(t *testing.T, change func(*configv1.AccessPolicy)) *configv1.Resource {
	t.Helper()
	r := EncodeInbound("sidecar/shop/a", &topology.Inbound{Name: service(t, "a.shop", 1).Name, Access: [][]access.Policy{{anAccessPolicy()}}})
	if _, err := decode(r); err != nil {
		t.Fatal(err)
	}
	change(r.GetInbound().GetAccess()[0].GetPolicies()[0])
	return r
}

func TestReceiverOf(t *testing.T) {
	for want, h := range map[string]*configv1.Hello{
		"sidecar/shop/checkout-0": {Program: "sidecar", Workload: "shop/checkout-0"},
		"node/node-0.example":     {Program: "node", Workload: "node-0.example"},
		"gateway/gateway-0":       {Program: "gateway", Gateway: &configv1.Gateway{Id: "gateway-0"}},
	} {
		if got, err := ReceiverOf(h); err != nil || got != want {
			t.Errorf("%v: %q, %v, want %q", h, got, err, want)
		}
	}
	for _, h := range []*configv1.Hello{
		nil,
		{Program: "toaster", Workload: "shop/checkout-0"},
		{Program: "sidecar", Workload: "checkout-0"},
		{Program: "sidecar", Workload: "shop/checkout/0"},
		{Program: "sidecar", Workload: "shop/"},
		{Program: "node", Workload: "a/b"},
		{Program: "node", Workload: ".."},
		{Program: "gateway"},
		{Program: "gateway", Gateway: &configv1.Gateway{Id: strings.Repeat("a", 254)}},
	} {
		if got, err := ReceiverOf(h); err == nil {
			t.Errorf("%v: %q, want an error", h, got)
		}
	}
}

// FuzzDecode feeds the decoder whatever parses as protobuf: it must neither fail hard nor lose anything that it takes.
func FuzzDecode(f *testing.F) {
	seed := func(r *configv1.Resource) {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	self := topology.Self{Cluster: cluster(f, "eu"), Domain: spiffeid.RequireTrustDomainFromString("eu.example")}
	s := service(f, "checkout.shop", 3)
	s.Policy = &topology.Policy{Name: "shop/p", Tiers: []topology.Tier{{Name: "near", Match: topology.Selector{Zone: topology.Same}}}}
	gateway := topology.Gateway{ID: "g", Address: "[::1]:443", Identity: spiffeid.RequireFromString("spiffe://eu.example/isthmus/gateway/g")}
	seed(EncodeService(s))
	seed(EncodeSelf("sidecar/shop/checkout-0", self))
	seed(EncodeGateway(gateway))
	seed(EncodeCluster(&topology.Cluster{Name: self.Cluster, Domain: self.Domain, Gateways: []topology.Gateway{gateway}}))
	seed(EncodeExport(&topology.Export{Name: s.Name, Ports: []uint16{80}}))
	seed(EncodeInbound("node/n", &topology.Inbound{Name: s.Name, Ports: []topology.InboundPort{{Number: 80, Protocol: topology.GRPC}}}))
	seed(EncodeInbound("node/n", &topology.Inbound{Name: s.Name, Access: [][]access.Policy{{anAccessPolicy()}, {{Name: "shop/q", Audit: true}}}}))
	seed(EncodeBundle(self.Domain, BundleData{Revoked: map[[32]byte]struct{}{{1}: {}}}))
	seed(EncodeBundle(self.Domain, BundleData{
		JWTAuthorities: map[string]crypto.PublicKey{"key": authorities()[0].PublicKey},
		RevokedIDs:     map[spiffeid.ID]time.Time{spiffeid.RequireFromPath(self.Domain, "/ns/shop/sa/cart"): {}, gateway.Identity: time.Unix(1_700_000_000, 0)},
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r configv1.Resource
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		d, err := decode(&r)
		if err != nil {
			return
		}
		again, ok := encode(&r, d)
		if !ok {
			return
		}
		if again.GetKey() != r.GetKey() {
			t.Fatalf("key %q became %q", r.GetKey(), again.GetKey())
		}
		d2, err := decode(again)
		if err != nil {
			t.Fatalf("what was decoded can't be decoded again: %v", err)
		}
		if diff := cmp.Diff(fmt.Sprint(deref(d)), fmt.Sprint(deref(d2)), equal...); diff != "" {
			t.Fatal(diff)
		}
	})
}

func publicKey(tb testing.TB, key crypto.PublicKey) []byte {
	tb.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// exchangeKey is a public key that agrees on secrets, and signs nothing.
func exchangeKey(tb testing.TB) *ecdh.PublicKey {
	tb.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key.PublicKey()
}

// A moment is rounded up: what a second is split for must not slip through.
func TestARevocationIsNotRoundedDown(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("us.example")
	id := spiffeid.RequireFromPath(td, "/ns/shop/sa/cart")
	d, err := decode(EncodeBundle(td, BundleData{RevokedIDs: map[spiffeid.ID]time.Time{id: time.Unix(1_700_000_000, 1)}}))
	if err != nil {
		t.Fatal(err)
	}
	if got := d.bundle.RevokedIDs[id]; !got.Equal(time.Unix(1_700_000_001, 0)) {
		t.Errorf("begun by %s", got)
	}
}

// encode is the inverse of decode, for a receiver that is in the key.
func encode(r *configv1.Resource, d decoded) (*configv1.Resource, bool) {
	_, rest, _ := strings.Cut(r.GetKey(), "/")
	switch {
	case d.self != nil:
		return EncodeSelf(rest, *d.self), true
	case d.bundle != nil:
		return EncodeBundle(d.domain, *d.bundle), true
	case d.gateway != nil:
		return EncodeGateway(*d.gateway), true
	case d.cluster != nil:
		return EncodeCluster(d.cluster), true
	case d.service != nil:
		return EncodeService(d.service), true
	case d.export != nil:
		return EncodeExport(d.export), true
	case d.inbound != nil:
		return EncodeInbound(rest[:strings.LastIndexByte(rest, '/')], d.inbound), true
	}
	return nil, false
}

// deref returns what d points to, for printing.
func deref(d decoded) any {
	switch {
	case d.self != nil:
		return *d.self
	case d.bundle != nil:
		keys := make(map[string]string, len(d.bundle.JWTAuthorities)) // fmt prints pointers as such
		for id, key := range d.bundle.JWTAuthorities {
			der, err := x509.MarshalPKIXPublicKey(key)
			keys[id] = fmt.Sprintf("%x %v", der, err)
		}
		return []any{d.bundle.Revoked, d.bundle.RevokedIDs, keys}
	case d.gateway != nil:
		return *d.gateway
	case d.cluster != nil:
		return *d.cluster
	case d.service != nil:
		s := *d.service
		s.Policy = nil
		return s
	case d.export != nil:
		return *d.export
	case d.inbound != nil:
		return *d.inbound
	}
	return nil
}
