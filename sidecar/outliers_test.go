package sidecar

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// TestOutlier: a copy that answers with a gateway's error is left alone when its peers do better, the evidence is there for Explain, and an answer of
// the same kind does not bring it back. One that has no peers in its tier is not.
func TestOutlier(t *testing.T) {
	w := newWorld(t)
	bad := &ledger{name: "bad", before: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }}
	_, a := serveApp(t, bad.ServeHTTP)
	_, b := serveApp(t, (&ledger{name: "well"}).ServeHTTP)
	q := topology.Query{Service: checkout, Port: 80}
	sick, well := w.server(eu, "checkout", topology.HTTP, a), w.server(eu, "checkout", topology.HTTP, b)
	reason := func(s *side) string {
		for _, r := range s.Explain(t.Context(), q).Rows {
			if r.Endpoint == "sick" && r.State == topology.LastResort {
				return r.Reason
			}
		}
		return ""
	}
	t.Run("with a peer", func(t *testing.T) {
		c := w.caller(view{endpoints: []topology.Endpoint{sick.endpoint("sick"), well.endpoint("well")}}, nil)
		client := c.client()
		waitFor(t, "an ejection", func() bool {
			for range 50 {
				get(t, client, checkoutURL)
			}
			return reason(c) != ""
		})
		if r := reason(c); !strings.Contains(r, "0 of ") || !strings.HasSuffix(r, "answered, peers 100 %") && !strings.Contains(r, "answered a probe with 503") {
			t.Errorf("explained as %q", r)
		}
		waitFor(t, "a probe that fails", func() bool {
			get(t, client, checkoutURL)
			return strings.Contains(reason(c), "answered a probe with 503")
		})
	})
	t.Run("alone in its tier", func(t *testing.T) {
		_, there := serveApp(t, (&ledger{name: "far"}).ServeHTTP)
		far := w.server(us, "checkout", topology.HTTP, there)
		w.gateway("gateway-0", to(far))
		c := w.caller(view{endpoints: []topology.Endpoint{sick.endpoint("sick")}, remotes: []topology.Remote{remote(1, far)}}, nil)
		client := c.client()
		for range 50 {
			get(t, client, checkoutURL)
		}
		c.outbound.ejectOutliers()
		time.Sleep(time.Second) // the next second
		c.outbound.ejectOutliers()
		if r := reason(c); r != "" {
			t.Errorf("ejected: %q", r)
		}
	})
}
