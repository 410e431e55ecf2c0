package sidecar

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/sidecar/limit"
	"github.com/isthmus-mesh/isthmus/topology"
)

// overload makes a limiter believe that there is one, and fills it.
func overload(t *testing.T, l *limit.Limiter) {
	t.Helper()
	now, c := time.Now(), new(limit.Caller)
	for window := 0; l.Limit() == 0; window++ {
		if window == 20 {
			t.Fatal("no limit")
		}
		n, took := 200, time.Second
		if window < 3 {
			n, took = 20, time.Millisecond
		}
		for range n {
			l.Begin(c)
		}
		now = now.Add(101 * time.Millisecond)
		for range n {
			l.End(now, c, took)
		}
	}
	for l.Begin(new(limit.Caller)) {
	}
}

// TestShed: what is too much for an application is refused as not executed, goes to another copy, and is held against nobody. When there is none, the
// caller hears so.
func TestShed(t *testing.T) {
	w := newWorld(t)
	full, well := &ledger{name: "full"}, &ledger{name: "well"}
	_, a := serveApp(t, full.ServeHTTP)
	_, b := serveApp(t, well.ServeHTTP)
	first, second := w.server(eu, "checkout", topology.HTTP, a), w.server(us, "checkout", topology.HTTP, b)
	w.gateway("gateway-0", to(second))
	overload(t, first.Sidecar.inbound.services.of(checkout).limiter(80))
	caller := w.caller(view{endpoints: []topology.Endpoint{first.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, second)}}, nil)
	client := caller.client()
	for range 5 {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL+"?id=x", strings.NewReader("x"))
		if resp, body := do(t, client, req); resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "well ") {
			t.Errorf("got %d %q", resp.StatusCode, body)
		}
	}
	if n := first.counter("isthmus_shed_requests_total", "destination_service=checkout.shop"); n != 5 || full.times("x") != 0 {
		t.Errorf("%v were shed; the application saw %d", n, full.times("x"))
	}
	if n := caller.counter("isthmus_ejections_total"); n != 0 {
		t.Errorf("%v ejections", n)
	}
	if n := caller.counter("isthmus_session_dials_total", "destination_cluster=eu"); n != 1 {
		t.Errorf("%v sessions to the copy that is full", n)
	}
	reports := first.Sidecar.inbound.services.report(false, time.Now())
	if len(reports) != 1 || reports[0].GetShed() != 5 || reports[0].GetLimit() == 0 {
		t.Errorf("reported %v", reports)
	}
	alone := w.caller(view{endpoints: []topology.Endpoint{first.endpoint("checkout-0")}}, nil)
	resp, body := get(t, alone.client(), checkoutURL)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "more to do than it can") {
		t.Errorf("got %d %v %q", resp.StatusCode, resp.Header, body)
	}
}

// TestShedWhenCallersLeave: an application that answers nobody before its callers have gone is overloaded, though no answer says so.
func TestShedWhenCallersLeave(t *testing.T) {
	w := newWorld(t)
	var stuck atomic.Bool
	_, here := serveApp(t, func(_ http.ResponseWriter, r *http.Request) {
		if stuck.Load() {
			<-r.Context().Done()
		}
	})
	server := w.server(eu, "checkout", topology.HTTP, here)
	client := w.caller(view{endpoints: []topology.Endpoint{server.endpoint("checkout-0")}}, nil).client()
	limiter := server.Sidecar.inbound.services.of(checkout).limiter(80)
	wait := 100 * time.Millisecond
	ask := func() {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, checkoutURL, http.NoBody)
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close()
		}
	}
	waitFor(t, "a limit", func() bool {
		for range 20 {
			ask() // how long it takes when it is well
		}
		stuck.Store(true)
		defer stuck.Store(false)
		var asking sync.WaitGroup
		for range 64 {
			asking.Go(func() {
				for range 15 {
					if limiter.Limit() == 0 {
						ask()
					}
				}
			})
		}
		asking.Wait()
		wait *= 2 // on a busy machine the application was not even asked
		return limiter.Limit() > 0
	})
}

// TestShedNobodyForUnsentRequests: callers that leave before they have said what they want prove nothing against the application, and nobody is shed for them.
func TestShedNobodyForUnsentRequests(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	in := w.server(eu, "checkout", topology.HTTP, here).Sidecar.inbound
	limiter := in.services.of(checkout).limiter(80)
	a := &arrival{service: checkout, port: 80, limiter: limiter, share: new(limit.Caller)}
	request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL, strings.NewReader("x"))
	leave := func(whole bool) {
		visits := make([]*visit, 64)
		for i := range visits {
			limiter.Begin(a.share)
			visits[i] = &visit{arrival: a, limited: true, started: in.now().Add(-time.Second)}
			visits[i].whole.Store(whole)
		}
		time.Sleep(10 * time.Millisecond)
		for _, v := range visits {
			in.abandoned(v, request)
			v.leave(in.now(), 0)
		}
	}
	for range 100 {
		limiter.Begin(a.share)
		time.Sleep(2 * time.Millisecond)
		limiter.End(in.now(), a.share, time.Millisecond) // how long it takes
	}
	for range 200 {
		leave(false)
	}
	if n := limiter.Limit(); n != 0 {
		t.Errorf("the limit is %d", n)
	}
	waitFor(t, "a limit", func() bool { leave(true); return limiter.Limit() > 0 })
}
