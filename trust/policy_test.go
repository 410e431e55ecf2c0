package trust

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestIDs(t *testing.T) {
	for _, test := range []struct {
		want string // none when it must fail
		id   func() (spiffeid.ID, error)
	}{
		{"spiffe://a.test/ns/shop/sa/checkout", func() (spiffeid.ID, error) { return WorkloadID(domainA, "shop", "checkout") }},
		{"spiffe://a.test/isthmus/control", func() (spiffeid.ID, error) { return ControlID(domainA) }},
		{"spiffe://a.test/isthmus/gateway/0", func() (spiffeid.ID, error) { return GatewayID(domainA, "0") }},
		{"spiffe://a.test/isthmus/node/worker-1.example", func() (spiffeid.ID, error) { return NodeID(domainA, "worker-1.example") }},
		{"", func() (spiffeid.ID, error) { return WorkloadID(domainA, "", "checkout") }},
		{"", func() (spiffeid.ID, error) { return WorkloadID(domainA, "shop", "") }},
		{"", func() (spiffeid.ID, error) { return WorkloadID(domainA, "shop/sa/root", "x") }},
		{"", func() (spiffeid.ID, error) { return WorkloadID(domainA, "..", "x") }},
		{"", func() (spiffeid.ID, error) { return WorkloadID(domainA, "shop", "a b") }},
		{"", func() (spiffeid.ID, error) { return WorkloadID(spiffeid.TrustDomain{}, "shop", "checkout") }},
		{"", func() (spiffeid.ID, error) { return GatewayID(domainA, "") }},
		{"", func() (spiffeid.ID, error) { return NodeID(domainA, strings.Repeat("x", maxID)) }},
		{"", func() (spiffeid.ID, error) { return ControlID(spiffeid.TrustDomain{}) }},
	} {
		id, err := test.id()
		if id.String() != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%s, %v; want %q", id, err, test.want)
		}
	}
}

func TestParseIDs(t *testing.T) {
	for id, want := range map[string]string{
		"spiffe://a.test/ns/shop/sa/checkout":      "workload shop checkout",
		"spiffe://a.test/ns/sa/sa/sa":              "workload sa sa",
		"spiffe://a.test/ns/shop/sa/checkout/x":    "",
		"spiffe://a.test/ns/shop/x/sa/checkout":    "",
		"spiffe://a.test/ns/shop":                  "",
		"spiffe://a.test/x/ns/shop/sa/checkout":    "",
		"spiffe://a.test/isthmus/control":          "control",
		"spiffe://a.test/isthmus/control/x":        "",
		"spiffe://a.test/isthmus/gateway/0":        "gateway 0",
		"spiffe://a.test/isthmus/gateway/0/1":      "",
		"spiffe://a.test/isthmus/gateway":          "",
		"spiffe://a.test/isthmus/node/n":           "node n",
		"spiffe://a.test/x/isthmus/gateway/0":      "",
		"spiffe://a.test/ns/isthmus/sa/control":    "workload isthmus control",
		"spiffe://a.test/isthmus/gateway-spoof/0":  "",
		"spiffe://a.test/ns/isthmus/gateway/sa/x":  "",
		"spiffe://a.test/isthmus/Gateway/0":        "",
		"spiffe://a.test/ns/shop/sa/isthmus":       "workload shop isthmus",
		"spiffe://a.test/isthmus/node/gateway.eu1": "node gateway.eu1",
	} {
		id := spiffeid.RequireFromString(id)
		var got []string
		if ns, sa, ok := ParseWorkload(id); ok {
			got = append(got, "workload "+ns+" "+sa)
		}
		if name, ok := ParseGateway(id); ok {
			got = append(got, "gateway "+name)
		}
		if name, ok := ParseNode(id); ok {
			got = append(got, "node "+name)
		}
		if IsControl(id) {
			got = append(got, "control")
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s is %q, want %q", id, got, want)
		}
	}
}

func TestPolicies(t *testing.T) {
	control := spiffeid.RequireFromPath(domainA, "/isthmus/control")
	workload := spiffeid.RequireFromPath(domainA, "/ns/shop/sa/checkout")
	all := []spiffeid.ID{control, workload, gatewayA, gatewayB}
	for name, test := range map[string]struct {
		policy Policy
		allows []spiffeid.ID
	}{
		"none":              {nil, nil},
		"any":               {AllowAny(), all},
		"no IDs":            {AllowIDs(), nil},
		"one ID":            {AllowIDs(workload), []spiffeid.ID{workload}},
		"IDs":               {AllowIDs(workload, gatewayB), []spiffeid.ID{workload, gatewayB}},
		"domain":            {AllowDomain(domainA), []spiffeid.ID{control, workload, gatewayA}},
		"zero domain":       {AllowDomain(spiffeid.TrustDomain{}), nil},
		"control":           {AllowControl(domainA), []spiffeid.ID{control}},
		"others' control":   {AllowControl(domainB), nil},
		"no gateways":       {AllowGateways(), nil},
		"gateways":          {AllowGateways(domainB), []spiffeid.ID{gatewayB}},
		"gateways of both":  {AllowGateways(domainA, domainB), []spiffeid.ID{gatewayA, gatewayB}},
		"any gateway":       {AllowAnyGateway(), []spiffeid.ID{gatewayA, gatewayB}},
		"any of none":       {AllowAnyOf(), nil},
		"any of nil":        {AllowAnyOf(nil, nil), nil},
		"any of, one's nil": {AllowAnyOf(nil, AllowIDs(workload)), []spiffeid.ID{workload}},
		"any of":            {AllowAnyOf(AllowControl(domainA), AllowGateways(domainB)), []spiffeid.ID{control, gatewayB}},
	} {
		for _, id := range all {
			want := false
			for _, allowed := range test.allows {
				want = want || allowed == id
			}
			err := test.policy.check(Peer{ID: id})
			if (err == nil) != want {
				t.Errorf("%s: %s: %v, want allowed: %v", name, id, err, want)
			}
			if err != nil && reasonOf(t, err) != NotAllowed {
				t.Errorf("%s: %v, want %q", name, err, NotAllowed)
			}
		}
	}
	ids := []spiffeid.ID{workload}
	p := AllowIDs(ids...)
	ids[0] = control
	if p.check(Peer{ID: control}) == nil {
		t.Error("a policy changes with its arguments")
	}
}
