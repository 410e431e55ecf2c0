package gateway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/trust"
)

// What was cut short must not look complete, wherever it was cut.
func TestCutIsNoEnd(t *testing.T) {
	type ends struct {
		w        *world
		caller   *call
		endpoint net.Conn
		eu, us   *testGateway
	}
	for name, tc := range map[string]struct {
		cut                 func(e ends)
		callerSees, farSees bool // an error, where the cut can be told
	}{
		"the endpoint resets":               {cut: func(e ends) { cut(e.endpoint) }, callerSees: true},
		"the caller resets":                 {cut: func(e ends) { cut(e.caller.raw) }, farSees: true},
		"the caller dies, and sends FIN":    {cut: func(e ends) { _ = e.caller.raw.CloseWrite() }, farSees: true, callerSees: true},
		"the near gateway loses trust":      {cut: func(e ends) { e.eu.c.bundles.Remove(e.us.c.domain) }, callerSees: true, farSees: true},
		"the far gateway loses trust":       {cut: func(e ends) { e.us.c.bundles.Remove(e.eu.c.domain) }, callerSees: true, farSees: true},
		"the path goes":                     {cut: func(e ends) { e.w.blackhole(e.us) }, callerSees: true, farSees: true},
		"the caller's domain is taken away": {cut: func(e ends) { e.eu.c.bundles.Remove(e.eu.c.domain) }, callerSees: true, farSees: true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				t := w.t
				eu, us := twoClusters(w, 1)
				accepted := make(chan net.Conn, 1)
				us[0].c.export("talk.shop", nil, func(c net.Conn) { accepted <- c })
				w.publish()
				caller := eu.open("us", "talk.shop", "half of ")
				endpoint := <-accepted
				_, _ = endpoint.Write([]byte("half of "))
				if _, err := preamble.ReadReply(caller); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				tc.cut(ends{w, caller, endpoint, eu, us[0]})
				read := func(who string, c net.Conn, want bool) {
					_ = c.SetReadDeadline(time.Now().Add(time.Minute))
					got, err := io.ReadAll(c)
					if want && (err == nil || errors.Is(err, net.ErrClosed)) {
						t.Errorf("%s read %q to a clean end", who, got)
					}
					if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() && want {
						t.Errorf("%s was told nothing for a minute", who)
					}
				}
				if tc.callerSees {
					read("the caller", caller, true)
				}
				if tc.farSees {
					read("the endpoint", endpoint, true)
				}
				cut(caller.raw)
				cut(endpoint)
			})
		})
	}
}

// The other way round: what has ended by itself ends cleanly, in either order.
func TestEndIsNoCut(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1)
		us[0].c.export("greet.shop", nil, func(c net.Conn) {
			_, _ = c.Write([]byte("hello"))
			_ = c.(*memConn).CloseWrite()
			if all, err := io.ReadAll(c); err != nil || string(all) != "and goodbye" {
				t.Errorf("the endpoint read %q, %v", all, err)
			}
			_ = c.Close()
		})
		w.publish()
		for range 3 {
			c := eu.open("us", "greet.shop", "")
			if _, err := preamble.ReadReply(c); err != nil {
				t.Fatal(err)
			}
			if all, err := io.ReadAll(c); err != nil || string(all) != "hello" {
				t.Errorf("the caller read %q, %v", all, err)
			}
			_, _ = c.Write([]byte("and goodbye"))
			_ = c.Close()
			time.Sleep(time.Second)
		}
		for _, g := range []*testGateway{eu, us[0]} {
			if n := testutil.ToFloat64(g.metrics.broken.WithLabelValues("eu", "us", "greet.shop")); n != 0 {
				t.Errorf("%s/%s counts %v broken streams", g.c.name, g.id, n)
			}
			if n := g.streams.Load(); n != 0 {
				t.Errorf("%s/%s still carries %d streams", g.c.name, g.id, n)
			}
		}
	})
}

// A reader that doesn't read holds up his own stream, at a known size, and nobody else's.
func TestSlowReaderIsBounded(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1)
		sent := make(chan *memHalf, 8)
		us[0].c.export("flood.shop", nil, func(c net.Conn) {
			sent <- c.(*memConn).out
			chunk := bytes.Repeat([]byte("x"), 32<<10)
			for {
				if _, err := c.Write(chunk); err != nil {
					return
				}
			}
		})
		w.publish()
		var slow []*call
		for range 8 {
			c := eu.open("us", "flood.shop", "")
			defer func() { cut(c.raw) }()
			if _, err := preamble.ReadReply(c); err != nil {
				t.Fatal(err)
			}
			slow = append(slow, c)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		// TCP's buffers on both sides, the relays' two, the stream's window, and what QUIC has cut into frames.
		const bound = 2*memBuffer + 2*(256<<10) + streamWindow + 64<<10
		for range slow {
			half := <-sent
			half.mu.Lock()
			total := half.total
			half.mu.Unlock()
			if total > bound {
				t.Errorf("%d bytes were taken for a reader that doesn't read; want at most %d", total, bound)
			}
			if total < streamWindow/2 {
				t.Errorf("only %d bytes were taken: is anything sent?", total)
			}
		}
		for range 8 {
			if _, echoed, err := eu.ask("us", "checkout.shop", "quick"); err != nil || echoed != "quick" {
				t.Errorf("beside slow readers: %q, %v", echoed, err)
			}
		}
	})
}

// Connections outlive the SVIDs that opened them, because each is replaced in time, and not before its heir is there.
func TestConnectionsAreRenewed(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1, func(c *Config) {
			c.ConnectionsPerPeer, c.ProbeInterval, c.DeadAfter = 1, time.Second, 4*time.Second
		})
		stop := make(chan struct{})
		for _, g := range []*testGateway{eu, us[0]} {
			w.wg.Go(func() {
				for {
					select {
					case <-time.After(30 * time.Minute):
						g.c.renew(g.identity, "/isthmus/gateway/"+g.id)
					case <-stop:
						return
					}
				}
			})
		}
		start := time.Now()
		for time.Since(start) < 2*time.Hour {
			if len((*eu.links.Load())[clusterName("us")].live()) == 0 {
				t.Fatalf("no connection after %s", time.Since(start))
			}
			time.Sleep(2 * oneWay)
		}
		if _, _, err := eu.ask("us", "checkout.shop", "x"); err != nil {
			t.Error(err)
		}
		close(stop)
		if lost := testutil.ToFloat64(eu.metrics.lost.WithLabelValues("us", "gateway-0")); lost != 0 {
			t.Errorf("%v connections were lost", lost)
		}
		if n := len((*eu.links.Load())[clusterName("us")].live()); n > 2 {
			t.Errorf("%d connections after two hours", n)
		}
	})
}

// When nobody renews, the proof ends, and with it what rested on it.
func TestExpiredIdentityEndsConnections(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, _ := twoClusters(w, 1, func(c *Config) { c.ProbeInterval = MaxProbeInterval })
		caller := eu.c.identity("/ns/shop/sa/web")
		time.Sleep(59 * time.Minute)
		c, err := eu.dialAs(caller)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the caller's connection: %v", err)
		}
		if n := len((*eu.links.Load())[clusterName("us")].live()); n != 0 {
			t.Errorf("%d connections stand without a valid SVID", n)
		}
	})
}

// TestIdleLinkLives: what probes an idle link as seldom as it may keeps its connections.
func TestIdleLinkLives(t *testing.T) {
	inBubble(t, func(w *world) {
		eu, _ := twoClusters(w, 1, func(c *Config) { c.ProbeInterval = MaxProbeInterval })
		link := (*eu.links.Load())[clusterName("us")]
		before := link.live()
		time.Sleep(2 * time.Minute)
		if after := link.live(); !slices.Equal(before, after) || len(after) == 0 {
			w.t.Errorf("%d connections, %d of them the same after two minutes", len(before), len(after))
		}
	})
}

// The same gateway's SVID, revoked: its connections go, the other's stay.
func TestRevokedGateway(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 2)
		svid := mustSVID(t, us[0].identity)
		eu.c.bundles.Set(us[0].c.domain, trust.Bundle{
			Authorities: us[0].c.authority.Roots(),
			Revoked:     map[[32]byte]struct{}{trust.Fingerprint(svid.Certificates[0]): {}},
		})
		time.Sleep(time.Second)
		for range 8 {
			if path, _, err := eu.ask("us", "checkout.shop", "x"); err != nil || path[1] != "us/gateway-1" {
				t.Errorf("%q, %v", path, err)
			}
		}
	})
}
