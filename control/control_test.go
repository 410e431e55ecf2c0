package control_test

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

const checkoutManifest = `
apiVersion: isthmus.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: checkout-0, labels: {app: checkout}}
spec: {serviceAccount: checkout, address: 10.1.0.1, ports: [{name: http, port: 8080}], sidecar: {inboundPort: 9443}}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: checkout}
spec: {selector: {app: checkout}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {namespace: shop, name: checkout, creationTimestamp: "2000-01-01T00:00:00Z"}
`

const clientManifest = `
apiVersion: isthmus.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: client}
spec: {serviceAccount: client, address: 10.2.0.1, sidecar: {inboundPort: 9443}}
`

// Two clusters find each other; what one exports can be called from the other; and what happens when one falls silent, when
// control starts again, and when the peer is no longer wanted.
func TestTwoClusters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		if missing := eu.checks.Missing(); len(missing) == 0 || !strings.HasPrefix(missing[0], "manifests") {
			t.Errorf("ready without manifests: %q", missing)
		}
		if _, code := ask[any](t, eu, http.MethodGet, "/v1/services", ""); code != http.StatusServiceUnavailable {
			t.Errorf("services before the manifests were read: %d", code)
		}
		eu.registry.declare(t, clientManifest+peerOf(t, us))
		us.registry.declare(t, checkoutManifest+peerOf(t, eu))
		eventually(t, time.Second, func() error {
			if missing := append(eu.checks.Missing(), us.checks.Missing()...); len(missing) > 0 {
				return fmt.Errorf("missing: %q", missing)
			}
			return nil
		})
		euGateway := eu.join(t, gatewayHello("gateway-0"), eu.token(t, `{"gateway":"gateway-0"}`))
		us.join(t, gatewayHello("gateway-0"), us.token(t, `{"gateway":"gateway-0"}`))
		client := eu.join(t, sidecarHello("shop/client"), eu.token(t, `{"workload":"shop/client"}`))
		checkout, err := topology.NewServiceName("shop", "checkout")
		if err != nil {
			t.Fatal(err)
		}
		remotes := func(want string) func() error {
			return func() error {
				if got := client.remotes(client.Stream.Snapshots().Load(), checkout); got != want {
					return fmt.Errorf("the client's remotes are %q, want %q", got, want)
				}
				return nil
			}
		}
		eventually(t, 10*time.Second, func() error { return client.Stream.Subscribe(t.Context(), checkout) })
		eventually(t, 30*time.Second, remotes("us"))
		eventually(t, 30*time.Second, func() error {
			s := euGateway.Stream.Snapshots().Load()
			if s == nil || len(s.Clusters()) != 1 || len(s.Clusters()[0].Gateways) != 1 {
				return fmt.Errorf("the gateway does not know the other side's: %+v", s)
			}
			if _, ok := euGateway.Bundles.Get(us.domain()); !ok {
				return fmt.Errorf("the gateway has no bundle of us")
			}
			return nil
		})

		// What the gateway reports reaches the sidecar, and the status.
		euGateway.Stream.Report(&configv1.Report{Links: []*configv1.LinkReport{{Cluster: "us", State: "up", Connections: 4, RttMicros: 80_400}}})
		eventually(t, time.Second, func() error {
			c := client.Stream.Snapshots().Load().Clusters()[0]
			if c.Link != topology.LinkUp || c.RTT != 80*time.Millisecond || len(c.Gateways) != 0 {
				return fmt.Errorf("the client's word on us: %+v", c)
			}
			return nil
		})
		status := get[admin.Status](t, eu, "/v1/status")
		if !status.Ready || len(status.Peers) != 1 || status.Peers[0].State != "Fresh" || status.Peers[0].Services != 1 ||
			len(status.Links) != 1 || len(status.Proxies) != 2 || !status.Proxies[0].Connected || status.Imports != 1 || status.RootExpires.IsZero() {
			t.Errorf("status: %+v", status)
		}
		endpoints := get[[]admin.Endpoint](t, eu, "/v1/endpoints")
		if diff := cmp.Diff([]admin.Endpoint{{
			Service: "checkout.shop", Cluster: "us", SPIFFEID: []string{"spiffe://us.example/ns/shop/sa/checkout"}, Ready: 1, Capacity: 1,
		}}, endpoints); diff != "" {
			t.Errorf("endpoints (-want +got)\n%s", diff)
		}
		imports := get[[]admin.Import](t, eu, "/v1/imports")
		if len(imports) != 1 || len(imports[0].IPs) != 1 {
			t.Fatalf("imports: %+v", imports)
		}
		exports := get[[]admin.Export](t, us, "/v1/exports")
		if len(exports) != 1 || len(exports[0].Conditions) != 3 || exports[0].Conditions[1].Reason != "Exported" {
			t.Errorf("exports: %+v", exports)
		}

		// Silence: said, and nothing else.
		us.stop()
		time.Sleep(30 * time.Second)
		if err := remotes("us")(); err != nil {
			t.Error(err)
		}
		eventually(t, time.Minute, remotes("us (stale)"))
		time.Sleep(10 * time.Minute)
		if err := remotes("us (stale)")(); err != nil {
			t.Error(err)
		}

		// A restart, with nobody to hear anything from: no snapshot may lack what was there.
		lacking := make(chan string, 1)
		watch, stopWatch := context.WithCancel(t.Context())
		go func() {
			defer close(lacking)
			for {
				changed := client.Stream.Snapshots().Changed()
				if got := client.remotes(client.Stream.Snapshots().Load(), checkout); got != "us (stale)" {
					lacking <- got
					return
				}
				select {
				case <-changed:
				case <-watch.Done():
					return
				}
			}
		}()
		eu.stop()
		time.Sleep(time.Minute)
		before := len(eu.registry.statuses())
		restarted := m.start("eu", eu.dir, eu.registry)
		eu.listener.Store(restarted.listener.Load())
		eventually(t, 2*time.Minute, func() error {
			if s := get[admin.Status](t, restarted, "/v1/status"); !s.Ready || len(s.Proxies) != 2 || !s.Proxies[0].Connected || !s.Proxies[1].Connected {
				return fmt.Errorf("after a restart: %+v", s)
			}
			return nil
		})
		stopWatch()
		if got, ok := <-lacking; ok {
			t.Errorf("after a restart the client's remotes were %q for a moment", got)
		}
		for _, s := range eu.registry.statuses()[before:] {
			if len(s.Imports) != 1 {
				t.Errorf("after a restart there were %d imports for a moment", len(s.Imports))
			}
		}
		if again := get[[]admin.Import](t, restarted, "/v1/imports"); len(again) != 1 || again[0].IPs[0] != imports[0].IPs[0] {
			t.Errorf("the import's address was %v, and is %+v after a restart", imports[0].IPs, again)
		}

		// The peer is no longer wanted: gone at once.
		if _, ok := client.Bundles.Get(us.domain()); !ok {
			t.Error("no bundle of us before its ClusterPeer was removed")
		}
		eu.registry.declare(t, clientManifest)
		eventually(t, time.Second, remotes("no service"))
		eventually(t, time.Second, func() error {
			if _, ok := client.Bundles.Get(us.domain()); ok {
				return fmt.Errorf("the bundle of us is still trusted")
			}
			return nil
		})
	})
}

func (c *cluster) domain() spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString(c.name + ".example")
}

// An own service reaches sidecars and gateways, with and without sidecars; who goes is gone.
func TestOneCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		const web = `---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.3.0.1]}, {addresses: [10.3.0.2]}]
`
		eu.registry.declare(t, checkoutManifest+web)
		eventually(t, time.Second, func() error {
			problems := get[[]admin.Problem](t, eu, "/v1/problems")
			if len(problems) != 1 || !strings.Contains(problems[0].Reason, "no node proxy has joined") {
				return fmt.Errorf("problems: %+v", problems)
			}
			return nil
		})
		sidecar := eu.join(t, sidecarHello("shop/checkout-0"), eu.token(t, `{"workload":"shop/checkout-0"}`))
		gateway := eu.join(t, gatewayHello("gateway-0"), eu.token(t, `{"gateway":"gateway-0"}`))
		node := eu.join(t, &configv1.Hello{Program: "node", Workload: "node-0", InboundAddress: "10.0.0.5:9443"}, eu.token(t, `{"node":"node-0"}`))
		name := func(s string) topology.ServiceName {
			n, err := topology.ParseServiceName(s)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		eventually(t, 10*time.Second, func() error { return sidecar.Stream.Subscribe(t.Context(), name("web.shop")) })
		eventually(t, 10*time.Second, func() error {
			s := sidecar.Stream.Snapshots().Load()
			web := s.Service(name("web.shop"))
			if web == nil || len(web.Endpoints) != 1 || !web.Endpoints[0].StandIn || web.Endpoints[0].Capacity != 2 {
				return fmt.Errorf("the sidecar's web: %+v", web)
			}
			if in := s.Inbounds(); len(in) != 1 || in[0].Name != name("checkout.shop") || in[0].Ports[0].Targets[0].String() != "10.1.0.1:8080" {
				return fmt.Errorf("the sidecar's inbounds: %+v", in)
			}
			if len(s.Exports()) != 0 || len(s.Gateways()) != 1 || s.Self().Workload != "checkout-0" {
				return fmt.Errorf("the sidecar's exports, gateways, self: %v %v %v", s.Exports(), s.Gateways(), s.Self())
			}
			if n := node.Stream.Snapshots().Load(); n == nil || len(n.Inbounds()) != 1 || len(n.Inbounds()[0].Ports[0].Targets) != 2 {
				return fmt.Errorf("the node proxy's inbounds")
			}
			g := gateway.Stream.Snapshots().Load()
			if g == nil || len(g.Exports()) != 1 || len(g.Inbounds()) != 0 || len(g.Services()) != 0 {
				return fmt.Errorf("the gateway's export table")
			}
			return nil
		})
		if problems := get[[]admin.Problem](t, eu, "/v1/problems"); len(problems) != 0 {
			t.Errorf("problems: %+v", problems)
		}
		services := get[[]admin.Service](t, eu, "/v1/services")
		if diff := cmp.Diff([]admin.Service{
			{Namespace: "shop", Name: "checkout", Ports: []string{"80/http"}, Endpoints: 1, Ready: 1, Exported: true, Imported: true},
			{Namespace: "shop", Name: "web", Ports: []string{"80/tcp"}, Endpoints: 2, Ready: 2},
		}, services); diff != "" {
			t.Errorf("services (-want +got)\n%s", diff)
		}

		// A gateway that stops stays where it was: that control doesn't hear it is no word on whether it serves.
		gateway.stop()
		time.Sleep(10 * time.Minute)
		if n := len(sidecar.Stream.Snapshots().Load().Gateways()); n != 1 {
			t.Errorf("%d gateways after one fell silent, want 1", n)
		}
		if _, code := ask[any](t, eu, http.MethodDelete, "/v1/proxies/gateway/gateway-0", ""); code != http.StatusNoContent {
			t.Errorf("removing it: %d", code)
		}
		eventually(t, time.Second, func() error {
			if n := len(sidecar.Stream.Snapshots().Load().Gateways()); n != 0 {
				return fmt.Errorf("%d gateways after the only one was removed", n)
			}
			return nil
		})
		for _, r := range []struct {
			path string
			want int
		}{{"gateway/gateway-0", http.StatusNotFound}, {"sidecar/x", http.StatusBadRequest}, {"gateway/", http.StatusNotFound}} {
			if _, code := ask[any](t, eu, http.MethodDelete, "/v1/proxies/"+r.path, ""); code != r.want {
				t.Errorf("DELETE %s: %d, want %d", r.path, code, r.want)
			}
		}
	})
}

func TestAdminRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newMesh(t).start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		if _, code := ask[any](t, eu, http.MethodPost, "/v1/tokens", `{"workload":"shop/checkout-0"}`); code != http.StatusServiceUnavailable {
			t.Errorf("a token before the manifests were read: %d", code)
		}
		eu.registry.declare(t, checkoutManifest)
		synctest.Wait()
		for body, want := range map[string]int{
			`{"workload":"shop/checkout-0"}`:  http.StatusOK,
			`{"workload":"shop/nobody"}`:      http.StatusNotFound,
			`{"node":"node-9"}`:               http.StatusNotFound,
			`{"gateway":"../control"}`:        http.StatusNotFound,
			`{"gateway":"a","node":"node-0"}`: http.StatusBadRequest,
			`{}`:                              http.StatusBadRequest,
			`{"what":"ever"}`:                 http.StatusBadRequest,
			`{"gateway":"` + strings.Repeat("x", 10_000) + `"}`: http.StatusBadRequest,
			``: http.StatusBadRequest,
		} {
			if _, code := ask[any](t, eu, http.MethodPost, "/v1/tokens", body); code != want {
				t.Errorf("POST /v1/tokens %.60s: %d, want %d", body, code, want)
			}
		}
		if _, code := ask[any](t, eu, http.MethodGet, "/v1/nothing", ""); code != http.StatusNotFound {
			t.Errorf("an unknown path: %d", code)
		}
	})
}
