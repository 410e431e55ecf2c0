package control_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
)

// A drill is told to those who are to look dead, for as long as somebody renews it.
func TestDrill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		eu.registry.declare(t, checkoutManifest+peerOf(t, us))
		us.registry.declare(t, clientManifest+peerOf(t, eu))
		eventually(t, time.Second, func() error {
			if missing := append(eu.checks.Missing(), us.checks.Missing()...); len(missing) > 0 {
				return fmt.Errorf("missing: %q", missing)
			}
			return nil
		})
		gateway := eu.join(t, gatewayHello("gateway-0"), eu.token(t, `{"gateway":"gateway-0"}`))
		called := eu.join(t, sidecarHello("shop/checkout-0"), eu.token(t, `{"workload":"shop/checkout-0"}`))
		checkout, err := topology.NewServiceName("shop", "checkout")
		if err != nil {
			t.Fatal(err)
		}
		told := func() (string, error) {
			s, g := called.Stream.Snapshots().Load(), gateway.Stream.Snapshots().Load()
			if s == nil || s.Inbound(checkout) == nil || g == nil || g.Export(checkout) == nil {
				return "", fmt.Errorf("not configured yet")
			}
			in, out := s.Inbound(checkout).Drill, g.Export(checkout).Drill
			switch {
			case (in == nil) != (out == nil):
				return "", fmt.Errorf("the sidecar has %v, the gateway %v", in, out)
			case in == nil:
				return "", nil
			case in.Left > 5*time.Second || in.ID != out.ID:
				return "", fmt.Errorf("the sidecar has %+v, the gateway %+v", in, out)
			}
			return in.ID, nil
		}
		is := func(want string) func() error {
			return func() error {
				if got, err := told(); err != nil || got != want {
					return fmt.Errorf("told of %q, want %q; %w", got, want, err)
				}
				return nil
			}
		}
		eventually(t, 30*time.Second, is(""))
		no := func(body string, code int) {
			t.Helper()
			if _, got := ask[any](t, eu, http.MethodPost, "/v1/drills", body); got != code {
				t.Errorf("%s: %d, want %d", body, got, code)
			}
		}
		no(`{"service":"checkout.shop","for_ns":20000000000}`, http.StatusConflict)
		no(`{"service":"pay.shop","for_ns":20000000000}`, http.StatusNotFound)
		no(`{"service":"checkout.shop","for_ns":1}`, http.StatusBadRequest)
		no(`{"service":"checkout.shop","for_ns":20000000000,"how":"loudly"}`, http.StatusBadRequest)
		us.registry.declare(t, clientManifest+"---\n"+strings.ReplaceAll(checkoutManifest, "10.1.0.1", "10.2.0.2")+peerOf(t, eu))
		begin := `{"service":"checkout.shop","for_ns":20000000000}`
		eventually(t, 30*time.Second, func() error {
			d, code := ask[admin.Drill](t, eu, http.MethodPost, "/v1/drills", strings.Replace(begin, "{", `{"dry_run":true,`, 1))
			if code != http.StatusOK || d.ID != "" || d.Others["us"] != 1 || len(d.Programs) != 1 {
				return fmt.Errorf("%d %+v", code, d)
			}
			return nil
		})
		eventually(t, time.Second, is("")) // that was dry

		d, code := ask[admin.Drill](t, eu, http.MethodPost, "/v1/drills", begin)
		if code != http.StatusOK || d.ID == "" {
			t.Fatalf("%d %+v", code, d)
		}
		eventually(t, time.Second, is(d.ID))
		no(begin, http.StatusConflict)
		for range 6 {
			time.Sleep(2 * time.Second)
			if _, code = ask[admin.Drill](t, eu, http.MethodPut, "/v1/drills/"+d.ID, ""); code != http.StatusOK {
				t.Fatalf("renewed: %d", code)
			}
			eventually(t, time.Second, is(d.ID))
		}
		time.Sleep(4500 * time.Millisecond)
		eventually(t, time.Second, is("")) // nobody renewed it
		if _, code = ask[admin.Drill](t, eu, http.MethodPut, "/v1/drills/"+d.ID, ""); code != http.StatusNotFound {
			t.Errorf("renewed after it was over: %d", code)
		}
		if all := get[[]admin.Drill](t, eu, "/v1/drills"); len(all) != 1 || !strings.Contains(all[0].Why, "not renewed") {
			t.Errorf("drills: %+v", all)
		}

		d, _ = ask[admin.Drill](t, eu, http.MethodPost, "/v1/drills", begin)
		eventually(t, time.Second, is(d.ID))
		ask[admin.Drill](t, eu, http.MethodDelete, "/v1/drills/"+d.ID, "")
		eventually(t, time.Second, is(""))

		d, _ = ask[admin.Drill](t, eu, http.MethodPost, "/v1/drills", begin) // it has a hard end
		for range 11 {
			time.Sleep(2 * time.Second)
			_, code = ask[admin.Drill](t, eu, http.MethodPut, "/v1/drills/"+d.ID, "")
		}
		if code != http.StatusNotFound {
			t.Errorf("renewed for longer than it may be on: %d", code)
		}
		eventually(t, time.Second, is(""))
	})
}
