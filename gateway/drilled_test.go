package gateway

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
)

// A drilled service can't be reached through its gateways; silent, it answers nothing, and gets nothing of what came meanwhile.
func TestDrill(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		home, us := w.cluster("eu"), w.cluster("us")
		var reached atomic.Int64
		export := us.export("checkout.shop", nil, func(c net.Conn) { reached.Add(1); echo(c) })
		caller := home.gateway("gateway-0")
		us.gateway("gateway-0")
		w.publish()
		caller.up("us", caller.cfg.ConnectionsPerPeer)
		if _, _, err := caller.ask("us", "checkout.shop", "x"); err != nil {
			t.Fatal(err)
		}
		drilled := func(d *topology.Drill) {
			next := *export
			next.Drill = d
			us.exports[0] = &next
			w.publish()
			w.settle()
			reached.Store(0)
		}
		drilled(&topology.Drill{ID: "d-1", Ends: time.Now().Add(5 * time.Second), Left: 5 * time.Second})
		_, _, err := caller.ask("us", "checkout.shop", "x")
		if r, ok := errors.AsType[*preamble.Refusal](err); !ok || r.Code != streamv1.Code_CODE_ENDPOINT_UNREACHABLE {
			t.Errorf("refused with %v", err)
		}
		time.Sleep(6 * time.Second) // nobody renewed it
		if _, _, err = caller.ask("us", "checkout.shop", "x"); err != nil || reached.Load() != 1 {
			t.Errorf("after the lease: %v, reached %d times", err, reached.Load())
		}

		drilled(&topology.Drill{ID: "d-2", Ends: time.Now().Add(5 * time.Second), Left: 5 * time.Second, Silent: true})
		c := caller.open("us", "checkout.shop", "x")
		time.AfterFunc(2*time.Second, func() { _ = c.Close() }) // it gives up
		if got, _ := io.ReadAll(c); len(got) > 0 {
			t.Errorf("answered %q", got)
		}
		time.Sleep(8 * time.Second)
		if reached.Load() > 0 {
			t.Error("what came during the drill was delivered after it")
		}
		if _, _, err = caller.ask("us", "checkout.shop", "x"); err != nil {
			t.Errorf("after the lease: %v", err)
		}
	})
}
