package gateway

import (
	"net"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

type nopPacketConn struct{ net.PacketConn }

func nopDial() (net.PacketConn, error) { return nil, net.ErrClosed }

func newTestIdentity() *trust.Identity                  { return trust.NewIdentity() }
func newTestBundles() *trust.Bundles                    { return trust.NewBundles() }
func newTestGuard() *trust.Guard                        { return trust.NewGuard(nil, nil, nil) }
func newTestSnapshots() *live.Value[*topology.Snapshot] { return new(live.Value[*topology.Snapshot]) }

func TestConfigIsChecked(t *testing.T) {
	whole := Config{
		ID: "gateway-0", Identity: newTestIdentity(), Bundles: newTestBundles(), Guard: newTestGuard(), Snapshots: newTestSnapshots(),
		Streams: newMemnet().listen("x"), Link: nopPacketConn{}, DialPacket: nopDial,
	}
	if _, err := New(whole); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"ID": func(c *Config) { c.ID = "" }, "Identity": func(c *Config) { c.Identity = nil }, "Bundles": func(c *Config) { c.Bundles = nil },
		"Guard": func(c *Config) { c.Guard = nil }, "Snapshots": func(c *Config) { c.Snapshots = nil }, "Streams": func(c *Config) { c.Streams = nil },
		"Link": func(c *Config) { c.Link = nil }, "DialPacket": func(c *Config) { c.DialPacket = nil },
		"negative": func(c *Config) { c.DeadAfter = -1 },
	} {
		c := whole
		spoil(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestResolve(t *testing.T) {
	for in, want := range map[string]string{"10.0.0.1:443": "10.0.0.1:443", "[2001:db8::1]:443": "[2001:db8::1]:443", "localhost:443": ":443"} {
		a, err := resolve(t.Context(), in)
		if err != nil || !strings.HasSuffix(a.String(), want) {
			t.Errorf("%s: %v, %v", in, a, err)
		}
	}
	for _, bad := range []string{"", "10.0.0.1", "10.0.0.1:no-such-port"} {
		if a, err := resolve(t.Context(), bad); err == nil {
			t.Errorf("%q: %v", bad, a)
		}
	}
}

// Ready when there is a configuration, and not while draining.
func TestReadiness(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		c := w.cluster("eu")
		checks := ready.New()
		g := c.gateway("gateway-0")
		g.Checks(checks)
		if len(checks.Missing()) == 0 {
			t.Error("ready without a configuration")
		}
		w.publish()
		g.c.w.settle()
		if missing := checks.Missing(); len(missing) != 0 {
			t.Errorf("not ready: %v", missing)
		}
		hold, _ := g.drain.Add()
		defer hold()
		g.stop()
		g.c.w.settle()
		if missing := checks.Missing(); len(missing) != 1 || !strings.Contains(missing[0], "draining") {
			t.Errorf("draining, and missing: %v", missing)
		}
	})
}

// A listener that breaks ends Run with an error: better a restart than a gateway that is deaf.
func TestDeafGatewayEnds(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		g := w.cluster("eu").gateway("gateway-0")
		_ = g.cfg.Streams.Close()
		if err := <-g.done; err == nil {
			t.Error("Run returned nil")
		}
		g.done <- nil
	})
}
