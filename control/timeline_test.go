package control_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/agent"
	"github.com/isthmus-mesh/isthmus/topology"
)

// turning is a sidecar that tells turns once.
type turning struct {
	mu    sync.Mutex
	turns []*configv1.Turn // guarded by mu
}

func (s *turning) account(a *agent.Agent) {
	a.Stream.Account(func(all bool) *configv1.Report {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.turns) == 0 && !all {
			return nil
		}
		r := &configv1.Report{Turns: s.turns}
		s.turns = nil
		return r
	})
}

func (s *turning) tell(turns ...*configv1.Turn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turns = append(s.turns, turns...)
}

func turn(service string, at time.Time, from, to, cause, detail string) *configv1.Turn {
	return &configv1.Turn{
		Service: service, Port: 80, AtMillis: at.UnixMilli(),
		Before: []*configv1.ClusterShare{{Cluster: from, Share: 1}}, After: []*configv1.ClusterShare{{Cluster: to, Share: 1}},
		Evidence: []*configv1.Evidence{{Cluster: from, Cause: cause, Detail: detail}},
	}
}

func eventWords(all []admin.TimelineEvent) []string {
	var out []string
	for _, e := range all {
		s := fmt.Sprintf("%s %s %s", e.Cluster, e.Kind, e.Service)
		if e.Kind == admin.EventTurn {
			s += fmt.Sprintf(" %d %v %v to %v", e.Count, e.Callers, e.Before, e.After)
			for _, v := range e.Evidence {
				s += fmt.Sprintf(" %s %s %s", v.Cluster, v.Cause, v.Detail)
			}
		} else {
			s += " " + e.Detail
		}
		out = append(out, s)
	}
	return out
}

// What callers decide and what happens beside it can be read afterwards, over a restart too. Nobody speaks of what it doesn't call.
func TestTimeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		second := strings.ReplaceAll(strings.ReplaceAll(clientManifest, "name: client}", "name: other}"), "10.2.0.1", "10.2.0.2")
		eu.registry.declare(t, clientManifest+"---"+second+"---"+checkoutManifest+peerOf(t, us))
		us.registry.declare(t, checkoutManifest+peerOf(t, eu))
		time.Sleep(30 * time.Second)
		checkout, err := topology.ParseServiceName("checkout.shop")
		if err != nil {
			t.Fatal(err)
		}
		var a, b turning
		for name, s := range map[string]*turning{"client": &a, "other": &b} {
			p := eu.join(t, sidecarHello("shop/"+name), eu.token(t, `{"workload":"shop/`+name+`"}`), s.account)
			eventually(t, 10*time.Second, func() error { return p.Stream.Subscribe(t.Context(), checkout) })
		}
		began := time.Now()
		moved := turn("checkout.shop", began, "eu", "us", "ejected", "3 resets\x1b[2J in a row")
		a.tell(moved, turn("secret.shop", began, "eu", "us", "ejected", ""))
		b.tell(turn("checkout.shop", began.Add(time.Millisecond), "eu", "us", "ejected", "a time-out"))
		time.Sleep(3 * time.Second)
		a.tell(moved) // again, as on a new stream
		if _, code := ask[any](t, us, http.MethodPut, "/v1/drains", `{"service":"checkout.shop","over_ns":1000000000}`); code != http.StatusOK {
			t.Fatal(code)
		}
		time.Sleep(10 * time.Second)
		a.tell(turn("checkout.shop", time.Now(), "us", "eu", "drained", ""))
		eu.registry.declare(t, clientManifest+"---"+second+"---"+checkoutManifest+peerOf(t, us)+`---
apiVersion: isthmus.dev/v1alpha1
kind: FailoverPolicy
metadata: {namespace: shop, name: order}
spec: {targetRefs: [{group: multicluster.x-k8s.io, kind: ServiceImport, name: checkout}], tiers: [{name: home, match: {cluster: Same}}]}
`)
		time.Sleep(3 * time.Second)
		us.registry.declare(t, strings.Replace(checkoutManifest, "address: 10.1.0.1", "ready: false, address: 10.1.0.1", 1)+peerOf(t, eu))
		time.Sleep(20 * time.Second)
		got := eventWords(get[admin.Timeline](t, eu, "/v1/timeline?service=checkout.shop&since=1m").Events)
		for i := range got {
			got[i] = strings.Replace(got[i], "[sidecar/shop/other sidecar/shop/client]", "[sidecar/shop/client sidecar/shop/other]", 1)
			got[i] = strings.Replace(got[i], "eu ejected a time-out eu ejected 3 resets[2J in a row", "eu ejected 3 resets[2J in a row eu ejected a time-out", 1)
		}
		want := []string{
			"eu turn checkout.shop 2 [sidecar/shop/client sidecar/shop/other] map[eu:1] to map[us:1] eu ejected 3 resets[2J in a row eu ejected a time-out",
			"eu drain checkout.shop us is drained, over 1s: its owner's word",
			"eu policy checkout.shop failover policy shop/order is in force",
			"eu turn checkout.shop 1 [sidecar/shop/client] map[us:1] to map[eu:1] us drained ",
			"eu capacity checkout.shop us has no ready copies",
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if got := eventWords(get[admin.Timeline](t, us, "/v1/timeline?service=checkout.shop").Events); !slices.Contains(got, "us drain checkout.shop us is drained, over 1s, by an operator") {
			t.Errorf("us: %q", got)
		}
		if e := get[admin.Timeline](t, eu, "/v1/timeline?service=secret.shop").Events; len(e) != 0 {
			t.Errorf("of what nobody calls: %+v", e)
		}
		if _, code := ask[any](t, eu, http.MethodGet, "/v1/timeline?service=nonsense", ""); code != http.StatusBadRequest {
			t.Error(code)
		}
		eu.stop()
		eu2 := m.start("eu", eu.dir, eu.registry)
		eu.listener.Store(eu2.listener.Load())
		time.Sleep(10 * time.Second)
		if after := get[admin.Timeline](t, eu2, "/v1/timeline?service=checkout.shop").Events; len(after) < len(want) {
			t.Errorf("after a restart: %q", eventWords(after))
		}
		// One that can't be read is no reason not to start.
		eu2.stop()
		if err := os.WriteFile(filepath.Join(eu.dir, "timeline.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		m.start("eu", eu.dir, eu.registry)
		time.Sleep(10 * time.Second)
	})
}

// A caller that tells without end drives out what it told itself, and nothing of others.
func TestTimelineIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		second := strings.ReplaceAll(strings.ReplaceAll(clientManifest, "name: client}", "name: other}"), "10.2.0.1", "10.2.0.2")
		eu.registry.declare(t, clientManifest+"---"+second+"---"+checkoutManifest)
		time.Sleep(30 * time.Second)
		checkout, err := topology.ParseServiceName("checkout.shop")
		if err != nil {
			t.Fatal(err)
		}
		var honest, hostile turning
		for name, s := range map[string]*turning{"client": &honest, "other": &hostile} {
			p := eu.join(t, sidecarHello("shop/"+name), eu.token(t, `{"workload":"shop/`+name+`"}`), s.account)
			eventually(t, 10*time.Second, func() error { return p.Stream.Subscribe(t.Context(), checkout) })
		}
		for range 5 {
			honest.tell(turn("checkout.shop", time.Now(), "eu", "us", "ejected", ""))
			time.Sleep(20 * time.Second)
		}
		long := strings.Repeat("ß", 5000)
		for i := range 3000 {
			hostile.tell(turn("checkout.shop", time.Now().Add(-time.Duration(i)*time.Minute), "eu", "us", long, long))
			if i%200 == 0 {
				time.Sleep(2 * time.Second)
			}
		}
		time.Sleep(20 * time.Second)
		count := map[string]int{}
		for _, e := range get[admin.Timeline](t, eu, "/v1/timeline?service=checkout.shop&since=1000h").Events {
			count[e.Callers[0]]++
			if len(e.Evidence[0].Detail) > 256 || len(e.Evidence[0].Cause) > 256 {
				t.Fatalf("%d bytes", len(e.Evidence[0].Detail))
			}
		}
		if count["sidecar/shop/client"] != 5 || count["sidecar/shop/other"] < 100 || count["sidecar/shop/other"] > 512 {
			t.Errorf("%v", count)
		}
	})
}
