package sidecar

import (
	"net/http"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/topology"
)

// TestTurnedAway: what comes on a session that is turned away after its handshake, as too many are open or the sidecar ends, is known not to have been carried
// out: a POST goes to another copy.
func TestTurnedAway(t *testing.T) {
	w := newWorld(t)
	_, app := serveApp(t, answering("app"))
	full := w.server(eu, "full", topology.HTTP, app)
	other := w.server(us, "checkout", topology.HTTP, app)
	w.gateway("gateway-0", to(other))
	full.Sidecar.inbound.door.mu.Lock()
	full.Sidecar.inbound.door.total = maxSessions
	full.Sidecar.inbound.door.mu.Unlock()
	c := w.caller(view{endpoints: []topology.Endpoint{full.endpoint("full")}, remotes: []topology.Remote{remote(1, other)}}, nil)
	for i := range 30 {
		resp, err := c.client().Post(checkoutURL, "text/plain", strings.NewReader("once"))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("POST %d: %s, %s", i, resp.Status, resp.Header.Get(headerError))
		}
	}
}
