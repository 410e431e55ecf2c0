package control

import (
	"net/netip"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/quota"
)

// TestLeases: a copy gets a share of the quotas that it enforces, and of no others, whatever it says to be.
func TestLeases(t *testing.T) {
	domain := spiffeid.RequireTrustDomainFromString("eu.example")
	service, err := topology.NewServiceName("shop", "checkout")
	if err != nil {
		t.Fatal(err)
	}
	o := &Objects{
		Services: []Service{{
			Meta: Meta{Kind: "Service", Namespace: "shop", Name: "checkout"}, ID: service, Selector: map[string]string{"app": "a"},
			Ports: []ServicePort{{Name: "http", Number: 80, TargetNumber: 8080, Transport: "TCP"}},
		}},
		Quotas: []QuotaPolicy{{
			Meta:    Meta{Kind: "QuotaPolicy", Namespace: "shop", Name: "q"},
			Selects: Selection{Labels: map[string]string{"app": "a"}},
			Limits: []QuotaLimit{
				{Name: "shared", Per: "service", Requests: 100, Window: time.Second, Burst: 100, Shared: true},
				{Name: "each", Per: "caller", Requests: 100, Window: time.Second, Burst: 100},
			},
		}},
	}
	for _, name := range []string{"a-0", "a-1", "b-0"} {
		o.Workloads = append(o.Workloads, Workload{
			Meta: Meta{Kind: "Workload", Namespace: "shop", Name: name}, Labels: map[string]string{"app": name[:1]}, ServiceAccount: name[:1],
			Address: netip.MustParseAddr("10.0.0.1"), Inbound: 9443, Ready: true,
		})
	}
	now := time.Unix(1_700_000_000, 0)
	d := &directory{domain: domain, registry: stated{live.NewValue(o)}}
	l := newLeases(d, func() time.Time { return now })
	w := build(inputs{self: Self{Domain: domain}, objects: o, cidr: DefaultClusterSetCIDR})
	if err := l.set(w.policing); err != nil {
		t.Fatal(err)
	}
	id := func(account string) spiffeid.ID {
		out, err := trust.WorkloadID(domain, "shop", account)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	ask := configstream.Demands{"shop/q/shared": {{Bucket: "all", Rate: 50}}, "shop/q/each": nil, "shop/q/none": nil}
	if shares, _ := l.lease(id("a"), "sidecar/shop/a-0", ask); len(shares) != 0 {
		t.Errorf("before leases of a predecessor have ended: %v", shares)
	}
	now = now.Add(quota.DefaultTTL)
	shares, ttl := l.lease(id("a"), "sidecar/shop/a-0", ask)
	if len(shares) != 1 || len(shares["shop/q/shared"]) != 1 || ttl != quota.DefaultTTL {
		t.Fatalf("%v, %v", shares, ttl)
	}
	if share := shares["shop/q/shared"][0]; share.Bucket != "all" || share.Rate <= 0 || share.Rate > 50 {
		t.Errorf("%+v: want no more than the half that the other copy may fall back to", share)
	}
	if shares, _ := l.lease(id("a"), "sidecar/shop/a-0", ask); len(shares) != 0 {
		t.Errorf("asked again at once: %v", shares)
	}
	now = now.Add(time.Second)
	for what, x := range map[string]struct {
		id       spiffeid.ID
		receiver string
	}{
		"another workload's copy":          {id("b"), "sidecar/shop/a-0"},
		"a workload without quotas":        {id("b"), "sidecar/shop/b-0"},
		"a workload that does not exist":   {id("a"), "sidecar/shop/a-9"},
		"a program that there is none of":  {id("a"), "toaster/a"},
		"a name that is none":              {id("a"), ""},
		"a gateway of the workload's name": {id("a"), "gateway/a-0"},
	} {
		if shares, _ := l.lease(x.id, x.receiver, ask); len(shares) != 0 {
			t.Errorf("%s got %v", what, shares)
		}
	}
	// What is gone is not divided any more.
	o2 := *o
	o2.Quotas = nil
	if err := l.set(build(inputs{self: Self{Domain: domain}, objects: &o2, cidr: DefaultClusterSetCIDR}).policing); err != nil {
		t.Fatal(err)
	}
	if shares, _ := l.lease(id("a"), "sidecar/shop/a-0", ask); len(shares) != 0 {
		t.Errorf("of a policy that is gone: %v", shares)
	}
}
