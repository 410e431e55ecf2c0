package control_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/api/admin"
	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/internal/agent"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/topology"
)

// drainOf is how long the copies of a service in a cluster take to be drained, as a program knows; negative: they are not drained.
func (p *program) drainOf(service topology.ServiceName, cluster string) time.Duration {
	s := p.Stream.Snapshots().Load()
	if s == nil || s.Service(service) == nil {
		return -2
	}
	d := s.Service(service).Drain
	if s.Self().Cluster.String() != cluster {
		d = nil
		for _, r := range s.Service(service).Remotes {
			if r.Cluster.String() == cluster {
				d = r.Drain
			}
		}
	}
	if d == nil {
		return -1
	}
	return d.Over
}

// A drain is told to own and foreign callers, outlives control, is refused where nothing else could serve, and can be undone.
func TestDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		if _, code := ask[any](t, us, http.MethodPut, "/v1/drains", `{"service":"checkout.shop"}`); code != http.StatusServiceUnavailable {
			t.Errorf("before the manifests were read: %d", code)
		}
		const local = `---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: local}
spec: {selector: {app: checkout}, ports: [{name: http, port: 81, targetPort: http}]}
`
		eu.registry.declare(t, clientManifest+peerOf(t, us))
		us.registry.declare(t, checkoutManifest+local+peerOf(t, eu))
		checkout, err := topology.ParseServiceName("checkout.shop")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		foreign := eu.join(t, sidecarHello("shop/client"), eu.token(t, `{"workload":"shop/client"}`))
		own := us.join(t, sidecarHello("shop/checkout-0"), us.token(t, `{"workload":"shop/checkout-0"}`))
		told := func(want time.Duration) func() error {
			return func() error {
				if a, b := foreign.drainOf(checkout, "us"), own.drainOf(checkout, "us"); a != want || b != want {
					return fmt.Errorf("abroad: %v, at home: %v; want %v", a, b, want)
				}
				return nil
			}
		}
		eventually(t, 10*time.Second, func() error { return foreign.Stream.Subscribe(t.Context(), checkout) })
		eventually(t, 10*time.Second, func() error { return own.Stream.Subscribe(t.Context(), checkout) })
		eventually(t, 30*time.Second, told(-1))

		// Nothing else serves it: refused, with and without a name, until it is forced.
		for _, body := range []string{`{}`, `{"service":"checkout.shop","over_ns":10000000000}`, `{"service":"local.shop"}`, `{"dry_run":true}`} {
			if _, code := ask[any](t, us, http.MethodPut, "/v1/drains", body); code != http.StatusConflict {
				t.Errorf("%s: %d", body, code)
			}
		}
		for body, want := range map[string]int{
			`{"service":"nothing.shop"}`:        http.StatusNotFound,
			`{"service":"checkout"}`:            http.StatusBadRequest,
			`{"over_ns":90000000000000}`:        http.StatusBadRequest,
			`{"over_ns":-1000000000}`:           http.StatusBadRequest,
			`{"what":"ever"}`:                   http.StatusBadRequest,
			`{"service":"../x","dry_run":true}`: http.StatusBadRequest,
		} {
			if _, code := ask[any](t, us, http.MethodPut, "/v1/drains", body); code != want {
				t.Errorf("%s: %d, want %d", body, code, want)
			}
		}
		if d := get[admin.Drains](t, us, "/v1/drains"); len(d.Drains)+len(d.Services) != 0 || d.Safe {
			t.Errorf("nothing is drained: %+v", d)
		}

		// eu exports it too.
		eu.registry.declare(t, clientManifest+"---"+checkoutManifest+peerOf(t, us))
		eventually(t, 30*time.Second, func() error {
			if _, code := ask[any](t, us, http.MethodPut, "/v1/drains", `{"dry_run":true}`); code != http.StatusOK {
				return fmt.Errorf("%d", code)
			}
			return nil
		})
		if err := told(-1)(); err != nil {
			t.Errorf("a dry run did something: %v", err)
		}
		// Nobody waits for it any more.
		gone, leave := context.WithCancel(t.Context())
		leave()
		for method, path := range map[string]string{http.MethodPut: "/v1/drains", http.MethodDelete: "/v1/drains", http.MethodPost: "/v1/drills"} {
			w := httptest.NewRecorder()
			us.API().ServeHTTP(w, httptest.NewRequestWithContext(gone, method, path, strings.NewReader(`{}`)))
			if drained := get[admin.Drains](t, us, "/v1/drains").Drains; w.Code != http.StatusRequestTimeout || len(drained) > 0 {
				t.Errorf("%s %s: %d, drained %v", method, path, w.Code, drained)
			}
		}
		d, code := ask[admin.Drains](t, us, http.MethodPut, "/v1/drains", `{"over_ns":7000000000}`)
		if code != http.StatusOK || d.Already || len(d.Services) != 1 || d.Services[0].Service != "checkout.shop" || len(d.Untouched) != 1 || d.Untouched[0] != "local.shop" {
			t.Fatalf("%d %+v", code, d)
		}
		if e := d.Services[0].Elsewhere; len(e) != 1 || e[0].Cluster != "eu" || e[0].Problem != "" {
			t.Errorf("elsewhere: %+v", e)
		}
		eventually(t, 10*time.Second, told(7*time.Second))
		if d, code = ask[admin.Drains](t, us, http.MethodPut, "/v1/drains", `{"over_ns":1000000000}`); code != http.StatusOK || !d.Already || d.Drains[0].Over != 7*time.Second {
			t.Errorf("a second time: %d %+v", code, d)
		}
		// Both at once would leave it to nobody.
		eventually(t, 10*time.Second, func() error {
			if _, other := ask[any](t, eu, http.MethodPut, "/v1/drains", `{}`); other != http.StatusConflict {
				return fmt.Errorf("%d", other)
			}
			return nil
		})

		// Nor may what is drained by name already, when the cluster is.
		eventually(t, 10*time.Second, func() error {
			if _, other := ask[any](t, eu, http.MethodPut, "/v1/drains", `{"service":"checkout.shop","force":true}`); other != http.StatusOK {
				return fmt.Errorf("%d", other)
			}
			return nil
		})
		eventually(t, 10*time.Second, func() error {
			if _, other := ask[any](t, eu, http.MethodPut, "/v1/drains", `{}`); other != http.StatusConflict {
				return fmt.Errorf("%d", other)
			}
			return nil
		})
		if _, code = ask[any](t, eu, http.MethodDelete, "/v1/drains?service=checkout.shop", ""); code != http.StatusOK {
			t.Error(code)
		}

		// A restart forgets nothing.
		us.stop()
		us2 := m.start("us", us.dir, us.registry)
		us.listener.Store(us2.listener.Load())
		time.Sleep(30 * time.Second)
		if err := told(7 * time.Second)(); err != nil {
			t.Errorf("after a restart: %v", err)
		}
		if d = get[admin.Drains](t, us2, "/v1/drains"); len(d.Drains) != 1 || d.Drains[0].Service != "" {
			t.Errorf("after a restart: %+v", d)
		}

		// Undone, once and again.
		if d, code = ask[admin.Drains](t, us2, http.MethodDelete, "/v1/drains?dry_run=true", ""); code != http.StatusOK || d.Already || len(d.Drains) != 0 {
			t.Errorf("%d %+v", code, d)
		}
		if d, code = ask[admin.Drains](t, us2, http.MethodDelete, "/v1/drains", ""); code != http.StatusOK || d.Already {
			t.Errorf("%d %+v", code, d)
		}
		eventually(t, 10*time.Second, told(-1))
		if d, code = ask[admin.Drains](t, us2, http.MethodDelete, "/v1/drains?service=checkout.shop", ""); code != http.StatusOK || !d.Already {
			t.Errorf("what is not drained: %d %+v", code, d)
		}
		if _, code = ask[any](t, us2, http.MethodDelete, "/v1/drains?service=chekcout.shop", ""); code != http.StatusNotFound {
			t.Errorf("what is no service: %d", code)
		}
	})
}

// What can't be read keeps control from starting: it would send traffic to what may be gone.
func TestDrainsDamaged(t *testing.T) {
	for _, text := range []string{
		"{", `[{"service":"a"}]`, `[{"over_seconds":-1}]`, `[{"over_seconds":1}]`, `[{"began":"1812-01-01T00:00:00Z"}]`,
		`[{"began":"2026-01-01T00:00:00Z"},{"began":"2026-01-01T00:00:00Z"}]`,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "drains.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := control.New(control.Config{
			Cluster: clusterName(t, "eu"), Domain: spiffeid.RequireTrustDomainFromString("eu.example"), StateDir: dir,
			Registry: &registry{objects: new(live.Value[*control.Objects])}, Courier: &courier{newMesh(t), "eu"}, GRPC: nobody{},
		})
		if err == nil || !strings.Contains(err.Error(), "drains.json") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// What is drained is safe to take away when all that serve it say so, and nothing has come in for ten seconds.
func TestDrainedSafely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		eu.registry.declare(t, checkoutManifest+peerOf(t, us))
		us.registry.declare(t, checkoutManifest+peerOf(t, eu))
		time.Sleep(30 * time.Second)
		service := func() admin.DrainedService {
			d := get[admin.Drains](t, us, "/v1/drains")
			if len(d.Services) != 1 || d.Safe != d.Services[0].Safe {
				t.Fatalf("%+v", d)
			}
			return d.Services[0]
		}
		if _, code := ask[any](t, us, http.MethodPut, "/v1/drains", `{"service":"checkout.shop"}`); code != http.StatusOK {
			t.Fatal(code)
		}
		time.Sleep(time.Minute)
		if s := service(); s.Safe || len(s.Silent) != 1 || s.Silent[0] != "sidecar/shop/checkout-0" {
			t.Errorf("nobody said anything: %+v", s)
		}

		var mu sync.Mutex
		now := &configv1.Served{Service: "checkout.shop", Requests: 100, Active: 1, Callers: []*configv1.ServedCaller{{Cluster: "eu", Requests: 100, Active: 1}}}
		told := false
		checkout := us.join(t, sidecarHello("shop/checkout-0"), us.token(t, `{"workload":"shop/checkout-0"}`), func(a *agent.Agent) {
			a.Stream.Account(func(all bool) *configv1.Report {
				mu.Lock()
				defer mu.Unlock()
				if told && !all {
					return nil
				}
				told = true
				return &configv1.Report{Served: []*configv1.Served{proto.CloneOf(now)}}
			})
		})
		tell := func(active uint32, requests uint64) {
			mu.Lock()
			defer mu.Unlock()
			now.Active, now.Requests, told = active, requests, false
			now.Callers[0].Active, now.Callers[0].Requests = active, requests
		}
		time.Sleep(3 * time.Second)
		if s := service(); s.Safe || s.Active != 1 || s.Rate != 0 || len(s.Callers) != 1 || s.Callers[0].Cluster != "eu" || s.Callers[0].Active != 1 || len(s.Silent) != 0 {
			t.Errorf("a WebSocket is open: %+v", s)
		}
		tell(1, 105)
		time.Sleep(1500 * time.Millisecond)
		if s := service(); s.Safe || s.Rate != 5 || s.Callers[0].Rate != 5 {
			t.Errorf("five a second: %+v", s)
		}
		time.Sleep(time.Minute)
		if s := service(); s.Safe || s.Active != 1 || s.Rate != 0 {
			t.Errorf("it is open still: %+v", s)
		}
		tell(0, 105)
		time.Sleep(9 * time.Second)
		if s := service(); s.Safe || s.Active != 0 || len(s.Callers) != 0 {
			t.Errorf("it has ended just now: %+v", s)
		}
		time.Sleep(2 * time.Second)
		if s := service(); !s.Safe {
			t.Errorf("quiet for ten seconds: %+v", s)
		}
		tell(0, 106)
		time.Sleep(5 * time.Second)
		if s := service(); s.Safe {
			t.Errorf("one came in: %+v", s)
		}
		time.Sleep(10 * time.Second)
		checkout.stop()
		time.Sleep(20 * time.Second)
		if s := service(); s.Safe || len(s.Silent) != 1 {
			t.Errorf("it is away: %+v", s)
		}
	})
}
