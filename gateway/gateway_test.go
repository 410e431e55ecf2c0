package gateway

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStreamEndToEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		eu, us := w.cluster("eu"), w.cluster("us")
		g, _ := eu.gateway("gateway-0"), us.gateway("gateway-0")
		us.export("checkout.shop", nil, echo)
		w.publish()
		g.up("us", 4)

		path, echoed, err := g.ask("us", "checkout.shop", "hello")
		if err != nil || echoed != "hello" {
			t.Fatalf("echoed %q, %v", echoed, err)
		}
		if diff := cmp.Diff([]string{"eu/gateway-0", "us/gateway-0"}, path); diff != "" {
			t.Errorf("path (-want +got):\n%s", diff)
		}
	})
}
