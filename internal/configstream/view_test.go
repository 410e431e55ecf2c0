package configstream

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

var genericAddress = netip.MustParseAddrPort("10.0.0.1:443")

func everything(string) bool { return true }

func TestVersionsFollowTheContent(t *testing.T) {
	version := func(n int) string {
		s := service(t, "checkout.shop", n)
		s.Remotes[0].Labels = map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}
		w := NewWorld([]*configv1.Resource{EncodeService(s)})
		return string(w.Resources()[0].GetVersion())
	}
	first := version(1)
	for range 20 { // maps have no order
		if version(1) != first {
			t.Fatal("the same content has two versions")
		}
	}
	if len(first) != versionSize || version(2) == first {
		t.Error("other content, same version")
	}
}

func TestOneBadResourceIsWithheldAlone(t *testing.T) {
	good, bad, huge := service(t, "good.shop", 1), service(t, "bad.shop", 1), service(t, "huge.shop", 1)
	bad.Ports[0].Protocol = "sctp"
	for i := range maxEndpoints {
		huge.Endpoints = append(huge.Endpoints, topology.Endpoint{
			ID: fmt.Sprint(i), Address: genericAddress, Server: spiffeid.RequireFromString("spiffe://eu.example/" + strings.Repeat("a", 200)),
		})
	}
	twice := EncodeGateway(topology.Gateway{ID: "g", Identity: spiffeid.RequireFromString("spiffe://eu.example/isthmus/gateway/g")})
	w := NewWorld([]*configv1.Resource{EncodeService(good), EncodeService(bad), EncodeService(huge), twice, twice})
	if got, want := slices.Sorted(maps.Keys(w.Withheld())), []string{"gateway/g", "service/bad.shop", "service/huge.shop"}; !slices.Equal(got, want) {
		t.Errorf("withheld %v, want %v", got, want)
	}
	if r := w.Resources(); len(r) != 1 || r[0].GetKey() != "service/good.shop" {
		t.Errorf("resources %v, want the good one", r)
	}
}

func TestWhatIsWithheldIsNotTakenAway(t *testing.T) {
	v, err := newView(&configv1.Hello{Services: []string{"a.shop", "b.shop"}}, "node/n", everything)
	if err != nil {
		t.Fatal(err)
	}
	gateway := EncodeGateway(topology.Gateway{ID: "g", Identity: spiffeid.RequireFromString("spiffe://eu.example/isthmus/gateway/g")})
	c := v.difference(NewWorld([]*configv1.Resource{EncodeService(service(t, "a.shop", 1)), gateway}))
	if len(c.upsert) != 2 || !slices.Equal(c.absent, []string{"b.shop"}) {
		t.Fatalf("first cut: %+v", c)
	}
	broken := proto.CloneOf(gateway)
	broken.GetGateway().SpiffeId = "nobody"
	bad := service(t, "a.shop", 2)
	bad.Ports[0].Protocol = "sctp"
	if c := v.difference(NewWorld([]*configv1.Resource{EncodeService(bad), broken})); c.changed {
		t.Errorf("what is broken was taken away: %+v", c)
	}
	if c := v.difference(NewWorld(nil)); len(c.remove) != 2 || len(c.absent) != 1 {
		t.Errorf("what is deleted stays: %+v", c)
	}
}

// Where a peer's gateways are is for gateways only. That one drains is for all, because what crosses it has to leave it.
func TestGatewaysOfPeers(t *testing.T) {
	peerWith := func(address string, draining bool) *World {
		return NewWorld([]*configv1.Resource{EncodeCluster(&topology.Cluster{
			Name: cluster(t, "us"), Domain: spiffeid.RequireTrustDomainFromString("us.example"),
			Gateways: []topology.Gateway{{
				ID: "g", QUIC: address, Identity: spiffeid.RequireFromString("spiffe://us.example/isthmus/gateway/g"), Draining: draining,
			}},
		})})
	}
	const before, after = "192.0.2.1:443", "192.0.2.2:443"
	for program, knows := range map[string]bool{ProgramGateway: true, ProgramSidecar: false, ProgramNode: false} {
		v, err := newView(&configv1.Hello{Program: program}, program+"/x", everything)
		if err != nil {
			t.Fatal(err)
		}
		gateways := func(c cut) []*configv1.Gateway { return c.upsert[0].resource.GetCluster().GetGateways() }
		if got := len(gateways(v.difference(peerWith(before, false)))); (got == 1) != knows {
			t.Errorf("%s: %d gateways of the peer", program, got)
		}
		if c := v.difference(peerWith(after, false)); c.changed != knows {
			t.Errorf("%s: told of a new address: %v", program, c.changed)
		}
		got := gateways(v.difference(peerWith(after, true)))
		if len(got) != 1 || !got[0].GetDraining() || (got[0].GetQuicAddress() != "") != knows {
			t.Errorf("%s: of a gateway that drains: %v", program, got)
		}
		if c := v.difference(peerWith(after, false)); !c.changed {
			t.Errorf("%s: not told that it drains no more", program)
		}
	}
}

func TestWhatIsAddressedToOthersIsNeverSent(t *testing.T) {
	in := &topology.Inbound{Name: service(t, "checkout.shop", 1).Name}
	self := topology.Self{Cluster: cluster(t, "eu"), Domain: spiffeid.RequireTrustDomainFromString("eu.example")}
	w := NewWorld([]*configv1.Resource{
		EncodeSelf("sidecar/shop/a", self), EncodeInbound("sidecar/shop/a", in),
		EncodeSelf("sidecar/shop/b", self), EncodeInbound("sidecar/shop/b", in),
	})
	v, err := newView(&configv1.Hello{Program: ProgramSidecar, Workload: "shop/a"}, "sidecar/shop/a", everything)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range v.difference(w).upsert {
		got = append(got, e.resource.GetKey())
	}
	if want := []string{"inbound/sidecar/shop/a/checkout.shop", "self/sidecar/shop/a"}; !slices.Equal(got, want) {
		t.Errorf("sent %v, want %v", got, want)
	}
}

func TestLimitsOfARequest(t *testing.T) {
	names := func(n int) []string {
		var out []string
		for i := range n {
			out = append(out, fmt.Sprintf("s%d.shop", i))
		}
		return out
	}
	v, err := newView(&configv1.Hello{Services: names(MaxSubscriptions)}, "node/n", everything)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.subscribe([]string{"one-more.shop"}, nil); err == nil {
		t.Error("one subscription too many, and no error")
	}
	if err := v.subscribe([]string{"instead.shop"}, []string{"one-more.shop", "s1.shop", "s2.shop"}); err != nil {
		t.Error(err)
	}
	if err := v.subscribe(nil, []string{"No.Service.At.All"}); err == nil {
		t.Error("a name that is none, and no error")
	}
	for name, h := range map[string]*configv1.Hello{
		"services": {Services: names(MaxSubscriptions + 1)},
		"have":     {Have: make([]*configv1.Have, MaxHave+1)},
		"key":      {Have: []*configv1.Have{{Key: strings.Repeat("k", MaxKey+1)}}},
		"version":  {Have: []*configv1.Have{{Key: "k", Version: make([]byte, versionSize+1)}}},
	} {
		if _, err := newView(h, "node/n", everything); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMessagesAreBoundedAndOneIsComplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c cut
		size := rapid.IntRange(0, MaxResource)
		for range rapid.IntRange(0, 30).Draw(t, "upsert") {
			n := size.Draw(t, "size")
			c.upsert = append(c.upsert, &entry{resource: &configv1.Resource{Version: make([]byte, n)}, size: n})
		}
		for range rapid.IntRange(0, 20).Draw(t, "remove") {
			c.remove = append(c.remove, strings.Repeat("k", MaxMessage/rapid.IntRange(1, 100).Draw(t, "part")))
		}
		var upsert, remove, complete, messages int
		for m := range c.messages() {
			messages++
			if complete > 0 {
				t.Fatal("a message after the complete one")
			}
			if m.GetComplete() {
				complete++
			}
			if n := len(m.GetUpsert()) + len(m.GetRemove()); n > 1 && proto.Size(m) > MaxMessage+64 {
				t.Fatalf("%d bytes in a message of %d", proto.Size(m), n)
			}
			upsert, remove = upsert+len(m.GetUpsert()), remove+len(m.GetRemove())
		}
		if complete != 1 || upsert != len(c.upsert) || remove != len(c.remove) {
			t.Fatalf("%d complete, %d of %d upserts, %d of %d removals", complete, upsert, len(c.upsert), remove, len(c.remove))
		}
	})
}

// TestDifferencesAddUp drives a view through random Worlds and subscriptions and holds a client's store, fed by what would
// be sent, against what the client should hold.
func TestDifferencesAddUp(t *testing.T) {
	names := []string{"a.shop", "b.shop", "c.shop", "d.other"}
	rapid.Check(t, func(t *rapid.T) {
		var hidden string
		visible := func(key string) bool { return key != hidden }
		v, err := newView(&configv1.Hello{Program: ProgramNode, Workload: "n"}, "node/n", visible)
		if err != nil {
			t.Fatal(err)
		}
		store := newStore()
		wanted := make(map[string]bool)
		world := NewWorld(nil)
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1:
				var resources []*configv1.Resource
				for _, n := range names {
					if k := rapid.IntRange(0, 3).Draw(t, n); k > 0 {
						var parsed topology.ServiceName
						if parsed, err = topology.ParseServiceName(n); err != nil {
							t.Fatal(err)
						}
						resources = append(resources, EncodeService(&topology.Service{Name: parsed, Imported: k == 1, Headless: k == 2}))
					}
				}
				if rapid.Bool().Draw(t, "gateway") {
					resources = append(resources, EncodeGateway(topology.Gateway{ID: "g", Identity: spiffeid.RequireFromString("spiffe://eu.example/g")}))
				}
				world = NewWorld(resources)
			case 2:
				n := rapid.SampledFrom(names).Draw(t, "add")
				wanted[n] = true
				err = v.subscribe([]string{n}, nil)
			case 3:
				n := rapid.SampledFrom(names).Draw(t, "remove")
				delete(wanted, n)
				err = v.subscribe(nil, []string{n})
			case 4: // what is visible counts when the World changes
				world = NewWorld(world.Resources())
				hidden = rapid.SampledFrom([]string{"", "gateway/g", "service/a.shop"}).Draw(t, "hidden")
			}
			if err != nil {
				t.Fatal(err)
			}
			var told stage
			for m := range v.difference(world).messages() {
				if err = told.add(m); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := store.apply(told); err != nil {
				t.Fatal(err)
			}
			for _, absent := range told.absent {
				if store.has(ServiceKey(absent)) {
					t.Fatalf("%s is absent and present", absent)
				}
			}
			want := make(map[string]string)
			for _, r := range world.Resources() {
				name, isService := serviceOf(r.GetKey())
				if (!isService || wanted[name.String()]) && visible(r.GetKey()) {
					want[r.GetKey()] = string(r.GetVersion())
				}
			}
			got := make(map[string]string)
			for key, h := range store.held {
				got[key] = string(h.resource.GetVersion())
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("the client holds something else (-want +got):\n%s", diff)
			}
			if c := v.difference(world); c.changed {
				t.Fatalf("told twice: %+v", c)
			}
		}
	})
}
