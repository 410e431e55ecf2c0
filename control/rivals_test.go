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
)

// Of two drills of a service that begin at the same instant in two clusters one stays; and while a control knows of a drill elsewhere, it begins none.
func TestDrillsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		eu.registry.declare(t, checkoutManifest+peerOf(t, us))
		us.registry.declare(t, strings.ReplaceAll(checkoutManifest, "10.1.0.1", "10.2.0.2")+peerOf(t, eu))
		begin := func(c *cluster) (admin.Drill, int) {
			return ask[admin.Drill](t, c, http.MethodPost, "/v1/drills", `{"service":"checkout.shop","for_ns":600000000000}`)
		}
		var first, second admin.Drill
		eventually(t, time.Minute, func() error {
			for _, c := range []*cluster{eu, us} {
				if _, code := ask[any](t, c, http.MethodPost, "/v1/drills", `{"service":"checkout.shop","for_ns":600000000000,"dry_run":true}`); code != http.StatusOK {
					return fmt.Errorf("%d", code)
				}
			}
			return nil
		})
		first, _ = begin(eu)
		second, _ = begin(us)
		if first.ID == "" || second.ID == "" {
			t.Fatalf("%+v %+v", first, second)
		}
		on := func(c *cluster, id string) string {
			ask[any](t, c, http.MethodPut, "/v1/drills/"+id, "")
			for _, d := range get[[]admin.Drill](t, c, "/v1/drills") {
				if d.ID == id {
					return d.Why
				}
			}
			return "gone"
		}
		eventually(t, 10*time.Second, func() error {
			if why := on(us, second.ID); !strings.Contains(why, "a drill in eu since") {
				return fmt.Errorf("us: %s", why)
			}
			return nil
		})
		for range 10 {
			time.Sleep(time.Second)
			if why := on(eu, first.ID); why != "" {
				t.Fatalf("eu's ended too: %s", why)
			}
		}
		if _, code := begin(us); code != http.StatusConflict {
			t.Errorf("while there is one in eu: %d", code)
		}
		// What looks dead there can't be what is left to callers.
		if _, code := ask[any](t, us, http.MethodPut, "/v1/drains", `{"service":"checkout.shop","over_ns":1000000000}`); code != http.StatusConflict {
			t.Errorf("a drain in us: %d", code)
		}
		// A peer whose drill never ends keeps nobody from rehearsing who means it.
		forced, code := ask[admin.Drill](t, us, http.MethodPost, "/v1/drills", `{"service":"checkout.shop","for_ns":600000000000,"force":true}`)
		for range 5 {
			time.Sleep(time.Second)
			if why := on(us, forced.ID); why != "" || code != http.StatusOK {
				t.Fatalf("by force: %d, %s", code, why)
			}
			on(eu, first.ID)
		}
		ask[any](t, us, http.MethodDelete, "/v1/drills/"+forced.ID, "")
		ask[any](t, eu, http.MethodDelete, "/v1/drills/"+first.ID, "")
		eventually(t, 10*time.Second, func() error {
			if _, code := begin(us); code != http.StatusOK {
				return fmt.Errorf("after it: %d", code)
			}
			return nil
		})
	})
}
