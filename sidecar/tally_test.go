package sidecar

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// counts returns what a report says, by cluster.
func counts(r *configv1.Report) map[string]*configv1.Traffic {
	out := make(map[string]*configv1.Traffic)
	for _, m := range r.GetTraffic() {
		var n uint64
		for _, b := range m.GetLatency() {
			n += b
		}
		m.Latency = []uint64{n} // how many were answered; how fast is not asserted
		out[m.GetService()+" "+m.GetCluster()] = m
	}
	return out
}

// TestAccount: control is told how many requests each cluster answered, and then only of what is new.
func TestAccount(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	_, there := serveApp(t, answering("us"))
	near, far := w.server(eu, "checkout", topology.HTTP, here), w.server(us, "checkout", topology.HTTP, there)
	w.gateway("gateway-0", to(far))
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, far)}}, newClock().use)
	if r := c.Account(false); r != nil {
		t.Errorf("told before anything was called: %v", r)
	}
	if r := c.Account(true); r == nil {
		t.Error("all of nothing is not told: control would not know from when on it counts")
	}
	for range 3 {
		get(t, c.client(), checkoutURL+"a")
	}
	want := map[string]*configv1.Traffic{"checkout.shop eu": {Service: "checkout.shop", Cluster: "eu", Requests: 3, Latency: []uint64{3}}}
	check := func(got *configv1.Report) {
		t.Helper()
		if diff := cmp.Diff(want, counts(got), cmp.Comparer(func(a, b *configv1.Traffic) bool { return proto.Equal(a, b) })); diff != "" {
			t.Errorf("traffic (-want +got)\n%s", diff)
		}
	}
	var told *configv1.Report
	waitFor(t, "it is counted", func() bool { told = c.Account(true); return counts(told)["checkout.shop eu"].GetRequests() == 3 })
	check(told)
	if served := near.Account(true).GetServed(); len(served) != 1 || served[0].GetRequests() != 3 || served[0].GetActive() != 0 || served[0].GetService() != "checkout.shop" {
		t.Errorf("served: %v", served)
	}
	if r := c.Account(false); r != nil {
		t.Errorf("told twice: %v", r)
	}
	_ = near.stop()
	if resp, _ := get(t, c.client(), checkoutURL+"b"); resp.StatusCode != http.StatusOK {
		t.Fatalf("got %d", resp.StatusCode)
	}
	waitFor(t, "it is counted", func() bool { told = c.Account(false); return told != nil })
	want = map[string]*configv1.Traffic{"checkout.shop us": {Service: "checkout.shop", Cluster: "us", Requests: 1, Retried: 1, Latency: []uint64{1}}}
	if n := counts(told)["checkout.shop us"].GetRetried(); n > 1 {
		want["checkout.shop us"].Retried = n
	}
	check(told)
	_ = far.stop()
	get(t, c.client(), checkoutURL+"c")
	waitFor(t, "it is counted", func() bool { told = c.Account(false); return told != nil })
	if m := counts(told)["checkout.shop "]; m.GetRequests() != 1 || m.GetFailed() != 1 || m.GetLatency()[0] != 0 {
		t.Errorf("a request that nobody answered: %v", told)
	}
}
