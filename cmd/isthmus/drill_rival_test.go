package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
)

// lessor is a control that has drills, and nothing else. Each drill that it begins, it begins at its own time.
type lessor struct {
	cluster string
	clock   time.Time
	gate    chan struct{} // what begins is answered when it is closed

	mu sync.Mutex
	on []admin.Drill // guarded by mu
}

func (l *lessor) target(t *testing.T) target {
	t.Helper()
	return target{Client: admin.NewClient(serve(t, l)), cluster: l.cluster}
}

func (l *lessor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		defer func() { <-l.gate }()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = io.Copy(io.Discard, r.Body)
	var answer any
	switch {
	case r.URL.Path == "/v1/status":
		answer = admin.Status{Cluster: l.cluster}
	case r.Method == http.MethodPost:
		d := admin.Drill{ID: "d-" + l.cluster, Service: "checkout.shop", Cluster: l.cluster, Began: l.clock, Now: l.clock, LeaseEnds: l.clock.Add(time.Minute), Ends: l.clock.Add(time.Hour)}
		l.on = append(l.on, d)
		answer = d
	case r.Method == http.MethodGet:
		answer = l.on
	case len(l.on) == 0:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodDelete:
		answer = l.on[0]
		l.on = nil
	default:
		answer = l.on[0]
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (l *lessor) drills() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.on)
}

// Of two drills of a service that begin at the same instant in two clusters, one is taken back, and the same one by whoever looks.
func TestDrillsAtOnce(t *testing.T) {
	name, err := topology.NewServiceName("shop", "checkout")
	if err != nil {
		t.Fatal(err)
	}
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for what, clocks := range map[string][2]time.Time{
		"the same time": {noon, noon}, "one first": {noon.Add(time.Second), noon}, "the other first": {noon, noon.Add(time.Second)},
	} {
		t.Run(what, func(t *testing.T) {
			eu := &lessor{cluster: "eu", clock: clocks[0], gate: make(chan struct{})}
			us := &lessor{cluster: "us", clock: clocks[1], gate: make(chan struct{})}
			controls := []target{eu.target(t), us.target(t)}
			began := make(chan error, len(controls))
			for _, c := range controls {
				f := &failover{global: &global{timeout: 10 * time.Second}, service: name, cluster: c.cluster, controls: controls, chat: chatter{io.Discard, time.Now()}}
				go func() {
					_, err := f.begin(t.Context(), c, admin.DrillRequest{Service: name.String()})
					began <- err
				}()
			}
			for eu.drills()+us.drills() < 2 { // both have begun before either has looked
				time.Sleep(time.Millisecond)
			}
			close(eu.gate)
			close(us.gate)
			refused := ""
			for range controls {
				if err := <-began; err != nil {
					refused += err.Error()
				}
			}
			stays := eu
			if clocks[1].Before(clocks[0]) {
				stays = us
			}
			if eu.drills()+us.drills() != 1 || stays.drills() != 1 || strings.Count(refused, "taken back") != 1 || !strings.Contains(refused, "drill stop d-"+stays.cluster) {
				t.Errorf("%d on in eu, %d in us: %s", eu.drills(), us.drills(), refused)
			}
		})
	}
}

// A drill gives way later too, to one that claims to have begun before it: clocks differ.
func TestDrillGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		noon := time.Now()
		for want, to := range map[string]admin.Drill{
			"the drill d-us of checkout.shop in us began": {ID: "d-us", Cluster: "us", Service: "checkout.shop", Began: noon.Add(-time.Second)},
			"": {},
		} {
			own := admin.Drill{ID: "d-eu", Cluster: "eu", Service: "checkout.shop", Began: noon, Now: noon, LeaseEnds: noon.Add(time.Hour)}
			l := &lease{drill: own, control: target{Client: admin.NewClientOver("eu", nil)}, rival: func(context.Context, *admin.Drill) (admin.Drill, bool) { return to, to.ID != "" }}
			l.renew = func(context.Context) error { return nil }
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			l.keep(ctx)
			cancel()
			if got := l.early(); want == "" && got != "" || !strings.Contains(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		}
	})
}
