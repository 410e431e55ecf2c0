package sidecar

import (
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// homing is a caller with a policy whose home is its own cluster, by a clock that the test moves.
type homing struct {
	*side
	t     *testing.T
	w     *world
	clock atomic.Int64
	home  topology.Endpoint
	away  *side
	get   func() string
}

func newHoming(t *testing.T, home func() bool) *homing {
	t.Helper()
	w := newWorld(t)
	h := &homing{t: t, w: w}
	well := &ledger{name: "home"}
	_, a := serveApp(t, func(rw http.ResponseWriter, r *http.Request) {
		if !home() {
			panic(http.ErrAbortHandler)
		}
		well.ServeHTTP(rw, r)
	})
	_, b := serveApp(t, (&ledger{name: "away"}).ServeHTTP)
	near := w.server(eu, "checkout", topology.HTTP, a)
	h.away = w.server(us, "checkout", topology.HTTP, b)
	h.home = near.endpoint("checkout-0")
	w.gateway("gateway-0", to(h.away))
	began := time.Now()
	h.side = w.caller(h.view(true), func(c *Config) { c.Now = func() time.Time { return began.Add(time.Duration(h.clock.Load())) } })
	client := h.client()
	h.get = func() string {
		t.Helper()
		resp, body := get(t, client, checkoutURL)
		if resp.StatusCode != 200 {
			t.Fatalf("got %s %q", resp.Status, body)
		}
		place, _, _ := strings.Cut(body, " ")
		return place
	}
	return h
}

func (h *homing) view(ready bool) view {
	h.home.Ready = ready
	return view{endpoints: []topology.Endpoint{h.home}, remotes: []topology.Remote{remote(1, h.away)}, policy: &topology.Policy{
		Name: "shop/checkout", Tiers: []topology.Tier{{Name: "home", Match: topology.Selector{Cluster: topology.Same}}, {Name: "away"}},
		Failback: topology.Failback{After: 30 * time.Second, Ramp: time.Minute},
	}}
}

func (h *homing) pass(d time.Duration) { h.clock.Add(int64(d)) }

// share is home's part of n requests.
func (h *homing) share(n int) float64 {
	h.t.Helper()
	home := 0
	for range n {
		if strings.HasPrefix(h.get(), "home") {
			home++
		}
	}
	return float64(home) / float64(n)
}

func (h *homing) explained() topology.ExplanationRow {
	h.t.Helper()
	for _, r := range h.Explain(h.t.Context(), topology.Query{Service: checkout, Port: 80}).Rows {
		if r.Endpoint == "checkout-0" {
			return r
		}
	}
	h.t.Fatal("home is not explained")
	return topology.ExplanationRow{}
}

// TestFailback: home is not ready, and is again: requests come back after the wait, over the ramp.
func TestFailback(t *testing.T) {
	h := newHoming(t, func() bool { return true })
	if got := h.share(20); got != 1 {
		t.Fatalf("home gets %v at first", got)
	}
	h.snapshots.Store(h.w.snapshot(h.view(false)))
	if got := h.share(20); got != 0 {
		t.Fatalf("home gets %v though it isn't ready", got)
	}
	h.snapshots.Store(h.w.snapshot(h.view(true)))
	if got := h.share(20); got > .05 { // one tries it
		t.Fatalf("home gets %v at once", got)
	}
	if r := h.explained(); r.Traffic != 0 || r.State != topology.Standby || len(r.Limits) == 0 || !strings.Contains(r.Limits[0], "failback: at 0 %, more in 30s") {
		t.Errorf("explained as %+v", r)
	}
	h.pass(31 * time.Second)
	h.pass(29 * time.Second)
	h.get()
	r := h.explained()
	if math.Abs(r.Traffic-.5) > .05 || len(r.Limits) != 1 || !strings.HasPrefix(r.Limits[0], "failback: at 50 %, all of it in 30s") {
		t.Errorf("explained as %+v", r)
	}
	if got := h.share(400); math.Abs(got-.5) > .15 {
		t.Errorf("home gets %v in the middle of its ramp", got)
	}
	h.pass(31 * time.Second)
	if got := h.share(20); got != 1 {
		t.Errorf("home gets %v in the end", got)
	}
	if r := h.explained(); len(r.Limits) > 0 {
		t.Errorf("explained as %+v", r)
	}
}

// TestFailbackWaitsForAnAnswer: home is said to be ready, but nothing answers there: one request a second finds out and is answered elsewhere, and no ramp begins.
func TestFailbackWaitsForAnAnswer(t *testing.T) {
	var well atomic.Bool
	h := newHoming(t, well.Load)
	h.share(4) // ejects it
	for range 120 {
		h.pass(time.Second)
		if place := h.get(); place != "away" {
			t.Fatalf("answered by %q", place)
		}
	}
	if r := h.explained(); r.Traffic != 0 {
		t.Errorf("explained as %+v", r)
	}
	well.Store(true)
	for range 70 { // at most the longest ejection, then the wait
		h.pass(time.Second)
		h.get()
	}
	if r := h.explained(); r.Traffic <= 0 || r.Traffic >= 1 {
		t.Errorf("explained as %+v", r)
	}
	h.pass(time.Minute)
	if got := h.share(10); got != 1 {
		t.Errorf("home gets %v in the end", got)
	}
}

// TestDrained: what is drained gets less, then nothing, and is there for when nothing else is.
func TestDrained(t *testing.T) {
	h := newHoming(t, func() bool { return true })
	h.get()
	drained := func(v view) *topology.Snapshot {
		s := h.w.snapshot(v)
		s.Service(checkout).Drain = &topology.Drain{Began: time.Unix(1_000_000_000, 0), Over: 10 * time.Second}
		return s
	}
	h.snapshots.Store(drained(h.view(true)))
	h.get()
	if r := h.explained(); r.Traffic != 1 {
		t.Errorf("explained as %+v", r)
	}
	h.pass(5 * time.Second)
	if r := h.explained(); math.Abs(r.Traffic-.5) > .01 || !strings.Contains(strings.Join(r.Limits, ";"), "drained: since 2001-09-09T01:46:40Z, at 50 %") {
		t.Errorf("explained as %+v", r)
	}
	h.pass(6 * time.Second)
	if got := h.share(20); got != 0 {
		t.Errorf("home gets %v though it is drained", got)
	}
	if r := h.explained(); r.Cause != topology.Drained || r.State != topology.Standby {
		t.Errorf("explained as %+v", r)
	}
	v := h.view(true)
	v.remotes = nil
	h.snapshots.Store(drained(v))
	if got := h.share(20); got != 1 {
		t.Errorf("home gets %v though nothing else is left", got)
	}
}

// TestQuietWhenNothingMoves: no plan is made as long as nothing changes.
func TestQuietWhenNothingMoves(t *testing.T) {
	h := newHoming(t, func() bool { return true })
	h.get()
	q := topology.Query{Service: checkout, Port: 80}
	plan := func() *plan {
		h.outbound.resolver.mu.RLock()
		defer h.outbound.resolver.mu.RUnlock()
		return h.outbound.resolver.plans[q]
	}
	first := plan()
	for range 100 {
		h.pass(10 * time.Second)
		h.get()
	}
	if first == nil || plan() != first {
		t.Error("another plan was made though nothing changed")
	}
}
