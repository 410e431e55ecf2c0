package sidecar

import (
	"net/http"
	"testing"

	"github.com/isthmus-mesh/isthmus/topology"
)

func TestHTTP(t *testing.T) {
	w := newWorld(t)
	_, here := serveApp(t, answering("eu"))
	_, there := serveApp(t, answering("us"))
	near, far := w.server(eu, "checkout", topology.HTTP, here), w.server(us, "checkout", topology.HTTP, there)
	g := w.gateway("gateway-0", to(far))

	t.Run("own cluster", func(t *testing.T) {
		c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
		for range 3 {
			if resp, body := get(t, c.client(), checkoutURL+"a"); resp.StatusCode != http.StatusOK || body != "eu /a" {
				t.Fatalf("got %d %q", resp.StatusCode, body)
			}
		}
		if n := c.counter("isthmus_session_dials_total"); n != 1 {
			t.Errorf("%v inner sessions were opened, want 1", n)
		}
	})
	t.Run("another cluster", func(t *testing.T) {
		c := w.caller(view{remotes: []topology.Remote{remote(1, far)}}, nil)
		for range 3 {
			if resp, body := get(t, c.client(), checkoutURL+"b"); resp.StatusCode != http.StatusOK || body != "us /b" {
				t.Fatalf("got %d %q", resp.StatusCode, body)
			}
		}
		if n := g.streams(); n != 1 {
			t.Errorf("%d streams were opened, want 1", n)
		}
	})
}
