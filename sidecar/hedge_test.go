package sidecar

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// hedging is a caller with a copy nearby that can be silenced, and one far away that is well.
type hedging struct {
	near, far *ledger
	silent    atomic.Bool
	slow      atomic.Bool // the near one answers later than the far one
	release   func()      // lets those go on that the silent copy holds
	first     *side       // the near one's
	caller    *side
	client    *http.Client
}

func newHedging(t *testing.T) *hedging {
	t.Helper()
	return newHedgingBy(t, nil)
}

// newHedgingBy is newHedging, by a clock.
func newHedgingBy(t *testing.T, by *clock) *hedging {
	t.Helper()
	w := newWorld(t)
	held := make(chan struct{})
	h := &hedging{release: sync.OnceFunc(func() { close(held) })}
	t.Cleanup(h.release)
	h.near = &ledger{name: "near", before: func(_ http.ResponseWriter, r *http.Request) {
		if h.silent.Load() || r.URL.Path == "/hold" {
			select {
			case <-held:
			case <-r.Context().Done():
			}
		}
		if h.slow.Load() {
			time.Sleep(15 * time.Millisecond)
		}
	}}
	h.far = &ledger{name: "far"}
	_, a := serveApp(t, h.near.ServeHTTP)
	_, b := serveApp(t, h.far.ServeHTTP)
	first, second := w.server(eu, "checkout", topology.HTTP, a), w.server(us, "checkout", topology.HTTP, b)
	w.gateway("gateway-0", to(second))
	h.first = first
	h.caller = w.caller(view{endpoints: []topology.Endpoint{first.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, second)}}, func(c *Config) {
		if by != nil {
			by.use(c)
		}
	})
	h.client = h.caller.client()
	for range 20 { // so that it is known how fast it is
		h.get(t, "warm", "near")
	}
	return h
}

func (h *hedging) get(t *testing.T, id, want string) {
	t.Helper()
	if resp, body := get(t, h.client, checkoutURL+"?id="+id); resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, want+" ") {
		t.Fatalf("%s: got %d %q, want it of %s", id, resp.StatusCode, body, want)
	}
}

// TestHedge: a copy falls silent, and no error tells of it. Each request is answered by the other; three prove enough, and from then on the silent
// one is left alone.
func TestHedge(t *testing.T) {
	h := newHedging(t)
	h.silent.Store(true)
	q := topology.Query{Service: checkout, Port: 80}
	row := func() topology.ExplanationRow {
		x := h.caller.Explain(t.Context(), q)
		return x.Rows[len(x.Rows)-1]
	}
	requests := 0
	for ; row().State != topology.LastResort; requests++ {
		if requests == 20 {
			t.Fatalf("%d requests in vain do not prove enough", requests)
		}
		h.get(t, "x", "far")
		time.Sleep(20 * time.Millisecond) // a moment's silence proves nothing, however many wait
	}
	if r := row(); requests < 3 || r.Endpoint != "checkout-0" || !strings.Contains(r.Reason, "silent for longer") {
		t.Errorf("explained after %d requests as %+v", requests, r)
	}
	for range 5 {
		h.get(t, "y", "far")
	}
	if x, y := h.near.times("x"), h.near.times("y"); x == 0 || y > 1 { // one may probe it
		t.Errorf("the silent copy was tried %d times, and %d times after it was known", x, y)
	}
	if n := h.caller.counter("isthmus_hedges_total", "destination_service=checkout.shop"); n != float64(requests) {
		t.Errorf("%v hedges of %d requests", n, requests)
	}
}

// TestHedgeRecovers: a copy that was silent, and left alone for that, answers again, though slower than the one in its place: whoever tries it waits for
// it, and it is back at the first try. Were that late from the start, for all the silence before, the other would answer first, and the next try be due
// after twice the time.
func TestHedgeRecovers(t *testing.T) {
	h := newHedging(t)
	h.first.rehearse(&topology.Drill{ID: "d-1", Ends: time.Now().Add(time.Hour), Left: time.Hour, Silent: true}) // nothing at all comes from it
	q := topology.Query{Service: checkout, Port: 80}
	excluded := func() bool {
		x := h.caller.Explain(t.Context(), q)
		return x.Rows[len(x.Rows)-1].State == topology.LastResort
	}
	for until := time.Now().Add(10 * time.Second); !excluded(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the silent copy is not left alone")
		}
		h.get(t, "x", "far")
	}
	h.slow.Store(true)
	h.first.rehearse(nil)
	hedges := func() float64 {
		return h.caller.counter("isthmus_hedges_total", "destination_service=checkout.shop")
	}
	before := hedges()
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, body := get(t, h.client, checkoutURL+"?id=y")
		if n := hedges() - before; n > 0 || time.Now().After(until) {
			t.Fatalf("it is well, and %v requests that tried it were tried elsewhere, too; answered: %q", n, body)
		}
		if strings.HasPrefix(body, "near ") {
			return
		}
	}
}

// TestHedgeMany: many wait for a copy that falls silent, more than may be hedged. A few find out, and the others are told.
func TestHedgeMany(t *testing.T) {
	h := newHedging(t)
	h.silent.Store(true)
	const many = 60
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() {
			if _, body := get(t, h.caller.client(), checkoutURL+"?id=many"); !strings.HasPrefix(body, "far ") {
				t.Errorf("answered %q", body)
			}
		})
	}
	wg.Wait()
	if n := h.caller.counter("isthmus_hedges_total", "destination_service=checkout.shop"); n <= 10 {
		t.Errorf("only %v were hedged, and the others?", n)
	}
}

// TestNoHedge: what may not be repeated waits for its answer, and so does what is slow at a copy that answers others meanwhile.
func TestNoHedge(t *testing.T) {
	t.Run("a POST", func(t *testing.T) {
		clock := newClock()
		h := newHedgingBy(t, clock)
		h.silent.Store(true)
		go func() {
			for h.near.times("post") == 0 {
				time.Sleep(time.Millisecond)
			}
			clock.advance(time.Second)
			time.Sleep(4 * 30 * time.Millisecond) // several times what its answers take: whoever looks for what is late has looked
			h.release()
		}()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL+"?id=post", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		if _, body := do(t, h.client, req); !strings.HasPrefix(body, "near ") || h.far.times("post") != 0 {
			t.Errorf("answered %q; the other copy saw it %d times", body, h.far.times("post"))
		}
	})
	t.Run("a DELETE", func(t *testing.T) {
		clock := newClock()
		h := newHedgingBy(t, clock)
		h.silent.Store(true)
		go func() {
			for h.near.times("delete") == 0 {
				time.Sleep(time.Millisecond)
			}
			clock.advance(time.Second)
			time.Sleep(4 * 30 * time.Millisecond)
			h.release()
		}()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, checkoutURL+"?id=delete", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, body := do(t, h.client, req); !strings.HasPrefix(body, "near ") || h.far.times("delete") != 0 {
			t.Errorf("answered %q; the other copy saw it %d times", body, h.far.times("delete"))
		}
	})
	t.Run("a slow answer of a copy that lives", func(t *testing.T) {
		clock := newClock()
		h := newHedgingBy(t, clock)
		done := make(chan string, 1)
		go func() {
			_, body := get(t, h.client, strings.TrimSuffix(checkoutURL, "/")+"/hold?id=slow")
			done <- body
		}()
		for h.near.times("slow") == 0 {
			time.Sleep(time.Millisecond)
		}
		other := h.caller.client()
		for range 100 {
			if _, body := get(t, other, checkoutURL); !strings.HasPrefix(body, "near ") {
				t.Fatalf("answered %q", body)
			}
			clock.advance(2 * time.Millisecond)
			time.Sleep(2 * time.Millisecond)
		}
		h.release()
		if body := <-done; !strings.HasPrefix(body, "near ") || h.far.times("slow") != 0 {
			t.Errorf("answered %q; the other copy saw it %d times", body, h.far.times("slow"))
		}
	})
}
