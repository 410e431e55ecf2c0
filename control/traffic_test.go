package control_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/api/admin"
	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/internal/agent"
	"github.com/isthmus-mesh/isthmus/topology"
)

// teller is a sidecar that tells what a test says.
type teller struct {
	mu      sync.Mutex
	traffic []*configv1.Traffic // guarded by mu
	served  []*configv1.Served  // guarded by mu
}

func (t *teller) account(a *agent.Agent) {
	a.Stream.Account(func(bool) *configv1.Report {
		t.mu.Lock()
		defer t.mu.Unlock()
		return &configv1.Report{Traffic: t.traffic, Served: t.served}
	})
}

func (t *teller) say(m ...*configv1.Traffic) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.traffic = m
}

// What a sidecar counts can be asked for second by second: what grew since it was first heard, and nothing that makes no sense.
func TestTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		eu.registry.declare(t, clientManifest+peerOf(t, us))
		us.registry.declare(t, checkoutManifest+peerOf(t, eu))
		eventually(t, time.Second, func() error {
			if missing := append(eu.checks.Missing(), us.checks.Missing()...); len(missing) > 0 {
				return fmt.Errorf("missing: %q", missing)
			}
			return nil
		})
		var says teller
		says.say(&configv1.Traffic{Service: "checkout.shop", Cluster: "us", Requests: 1000}) // before it was first heard: not now
		client := eu.join(t, sidecarHello("shop/client"), eu.token(t, `{"workload":"shop/client"}`), says.account)
		checkout, err := topology.NewServiceName("shop", "checkout")
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, func() error { return client.Stream.Subscribe(t.Context(), checkout) })
		known := func() (total map[string]admin.TrafficSecond) {
			total = make(map[string]admin.TrafficSecond)
			for _, s := range get[admin.Traffic](t, eu, "/v1/traffic?service=checkout.shop&since=5m").Series {
				sum := admin.TrafficSecond{}
				for _, at := range s.Seconds {
					sum.Requests += at.Requests
					sum.Failed += at.Failed
					sum.Latency = at.Latency
				}
				total[s.Cluster] = sum
			}
			return total
		}
		time.Sleep(3 * time.Second)
		if got := known(); len(got) != 0 {
			t.Errorf("counted before the program was heard: %+v", got)
		}
		says.say(
			&configv1.Traffic{Service: "checkout.shop", Cluster: "us", Requests: 1010, Latency: []uint64{0, 7, 3}},
			&configv1.Traffic{Service: "checkout.shop", Requests: 2, Failed: 2},
			&configv1.Traffic{Service: "checkout.shop", Cluster: "mars", Requests: 5},                             // no such cluster
			&configv1.Traffic{Service: "pay.shop", Cluster: "us", Requests: 5},                                    // not asked for
			&configv1.Traffic{Service: "checkout.shop", Cluster: "eu", Requests: 1, Failed: 2},                    // more failed than there were
			&configv1.Traffic{Service: "check\nout", Cluster: "us", Requests: 5},                                  // no name
			&configv1.Traffic{Service: "checkout.shop", Cluster: "eu", Requests: 5, Latency: make([]uint64, 100)}, // too many buckets
		)
		time.Sleep(3 * time.Second)
		want := map[string]admin.TrafficSecond{"us": {Requests: 10, Latency: []uint64{0, 7, 3}}, "": {Requests: 2, Failed: 2}}
		if diff := cmp.Diff(want, known()); diff != "" {
			t.Errorf("traffic (-want +got)\n%s", diff)
		}
		says.say(&configv1.Traffic{Service: "checkout.shop", Cluster: "us", Requests: 1 << 60}) // no sidecar carries that
		time.Sleep(2 * time.Second)
		says.say(&configv1.Traffic{Service: "checkout.shop", Cluster: "us", Requests: 4}) // started again
		time.Sleep(2 * time.Second)
		if got := known()["us"].Requests; got != 14 {
			t.Errorf("%d requests, want 14", got)
		}
		if _, code := ask[any](t, eu, http.MethodGet, "/v1/traffic?service=nonsense", ""); code != http.StatusBadRequest {
			t.Errorf("a service that is none: %d", code)
		}
		if _, code := ask[any](t, eu, http.MethodGet, "/v1/traffic?service=checkout.shop&since=yesterday", ""); code != http.StatusBadRequest {
			t.Errorf("a moment that is none: %d", code)
		}
		time.Sleep(17 * time.Minute)
		says.say(&configv1.Traffic{Service: "checkout.shop", Cluster: "us", Requests: 5})
		time.Sleep(2 * time.Second)
		if got := get[admin.Traffic](t, eu, "/v1/traffic?service=checkout.shop&since=24h"); len(got.Series) != 1 || len(got.Series[0].Seconds) != 1 || got.Series[0].Seconds[0].Requests != 1 {
			t.Errorf("kept for longer than a quarter of an hour: %+v", got.Series)
		}
	})
}

// As many clusters as are kept go on being told of, and no more are.
func TestServedCallersBounded(t *testing.T) {
	var before, after []*configv1.ServedCaller
	for i := range 100 {
		before = append(before, &configv1.ServedCaller{Cluster: fmt.Sprintf("c%d", i), Active: 1})
		after = append(after, &configv1.ServedCaller{Cluster: fmt.Sprintf("c%d", i)})
	}
	kept := control.CallersKept(before, after)
	if len(kept) != 64 {
		t.Errorf("%d are kept", len(kept))
	}
	for c, active := range kept {
		if active != 0 {
			t.Errorf("%s has %d open, which have ended", c, active)
		}
	}
}

// However much one program tells of, what others tell of is kept.
func TestTrafficShared(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := control.NewTraffic(func() time.Time { return now })
	requests := uint64(0)
	loud := func(services int) {
		requests += 10
		for first := 0; first < services; first += 1000 { // as many as a report has
			var told []*configv1.Traffic
			for i := range min(1000, services-first) {
				told = append(told, &configv1.Traffic{Service: fmt.Sprintf("s%d.loud", first+i), Requests: requests})
			}
			s.Report("sidecar/shop/loud", told...)
		}
	}
	quiet := func(n uint64) {
		s.Report("sidecar/shop/web", &configv1.Traffic{Service: "checkout.shop", Cluster: "us", Requests: n})
		s.Report("sidecar/shop/other", &configv1.Traffic{Service: "s7.loud", Requests: n}) // the loud one told of it first
	}
	loud(1)
	quiet(1)
	for i := range 17 {
		now = now.Add(time.Minute)
		loud(5_000)
		quiet(uint64(i+1) * 100)
		now = now.Add(time.Second)
		loud(5_000)
	}
	for service, want := range map[string]int{"checkout.shop": 14, "s7.loud": 14} {
		if got := s.Minutes(service); got < want {
			t.Errorf("%s: %d minutes are kept, want %d at least", service, got, want)
		}
	}
	if series, minutes := s.Held(); series > 4_096 || minutes > 4_096 || minutes < 3_000 {
		t.Errorf("%d series and %d minutes are kept", series, minutes)
	}
}

// An application that has more to do than it can is shown in the status, for a while, and in the timeline of what it serves.
func TestOverloadShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		eu.registry.declare(t, checkoutManifest)
		time.Sleep(time.Second)
		var says teller
		busy := func(shed uint64, limit uint32) {
			says.mu.Lock()
			defer says.mu.Unlock()
			says.served = []*configv1.Served{{Service: "checkout.shop", Requests: 100 + shed, Shed: shed, Limit: limit}}
		}
		busy(7, 0) // before it was first heard: not now
		eu.join(t, sidecarHello("shop/checkout-0"), eu.token(t, `{"workload":"shop/checkout-0"}`), says.account)
		shown := func(want ...admin.Overload) {
			t.Helper()
			time.Sleep(5 * time.Second)
			got := get[admin.Status](t, eu, "/v1/status").Overloads
			for i := range got {
				got[i].Last = time.Time{}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("overloads (-want +got):\n%s", d)
			}
		}
		shown()
		busy(12, 40)
		shown(admin.Overload{Service: "checkout.shop", Program: "sidecar/shop/checkout-0", Limit: 40, Shed: 12})
		busy(12, 0)
		shown(admin.Overload{Service: "checkout.shop", Program: "sidecar/shop/checkout-0", Shed: 12})
		time.Sleep(time.Minute)
		shown()
		var said []string
		for _, e := range get[admin.Timeline](t, eu, "/v1/timeline?service=checkout.shop").Events {
			if e.Kind == admin.EventCapacity {
				said = append(said, e.Detail)
			}
		}
		want := []string{
			"sidecar/shop/checkout-0 in eu has more to do than it can: it takes 40 requests at a time, and the rest goes elsewhere",
			"sidecar/shop/checkout-0 in eu takes all requests again",
		}
		if d := cmp.Diff(want, said); d != "" {
			t.Errorf("timeline (-want +got):\n%s", d)
		}
	})
}
