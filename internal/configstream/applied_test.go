package configstream_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/configstream"
)

// Control hears what is in force in a program, once the program says so, and by the numbers of the stream that it came on.
func TestApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		news := 0
		p := newPlane(t, func(cfg *configstream.ServerConfig) { cfg.OnApplied = func(*configstream.Session) { news++ } })
		for n := range 5 { // before it connects: of those that follow it is told what is new to it, which a service is not that it does not use
			p.server.Set(world(gateway("gateway-0"), service(t, "checkout.shop", n)))
		}
		c := startClient(t, p, nil)
		applied := func() uint64 {
			synctest.Wait()
			return p.server.Sessions()[0].Applied()
		}
		if got := applied(); got != 0 {
			t.Errorf("revision %d, and the program has said nothing", got)
		}
		c.Applied(configstream.Cut{})
		first := c.Cuts().Load()
		c.Applied(first)
		if got := applied(); got != 5 || news != 1 {
			t.Errorf("revision %d and %d times told, want 5 and once", got, news)
		}
		c.Applied(first)
		if p.server.Set(world(gateway("gateway-0"), gateway("gateway-1"))) != 6 {
			t.Error("revisions are not numbered in turn")
		}
		synctest.Wait()
		second := c.Cuts().Load()
		c.Applied(second)
		c.Applied(first)
		if got := applied(); got != 6 || news != 2 {
			t.Errorf("revision %d and %d times told, want 6 and twice", got, news)
		}
		// Another control counts from 1: what the last one's numbers were must not read as in force.
		p.stop()
		p.start()
		time.Sleep(time.Minute)
		c.Applied(second)
		if got := applied(); got != 0 {
			t.Errorf("revision %d of a stream that is over", got)
		}
		c.Applied(c.Cuts().Load())
		if got := applied(); got != 6 {
			t.Errorf("revision %d, want 6", got)
		}
	})
}
