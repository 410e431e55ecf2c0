package gateway

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
)

// small is two clusters of one gateway each, of which one carries at most that many streams.
func small(w *world, name string, streams int) (eu, us *testGateway) {
	w.t.Helper()
	gateways := make(map[string]*testGateway)
	for _, n := range []string{"eu", "us"} {
		gateways[n] = w.cluster(n).gateway("gateway-0", func(c *Config) {
			if n == name {
				c.MaxStreams = streams
			}
		})
	}
	eu, us = gateways["eu"], gateways["us"]
	us.c.export("checkout.shop", nil, echo)
	w.publish()
	eu.up("us", eu.cfg.ConnectionsPerPeer)
	return eu, us
}

// openAs opens a stream as one workload of the gateway's cluster and returns how it was answered. It stays open.
func (g *testGateway) openAs(path, cluster, service string) error {
	g.c.w.t.Helper()
	c, err := g.tryDial(path)
	if err != nil {
		g.c.w.t.Fatal(err)
	}
	g.c.w.t.Cleanup(func() { _ = c.Close() })
	p := preamble.Preamble{Cluster: clusterName(cluster), Service: serviceName(service), Port: 80}
	if _, err = c.Write(p.Append(nil)); err != nil {
		g.c.w.t.Fatal(err)
	}
	_, err = preamble.ReadReply(c)
	return err
}

func TestOneCallerLeavesRoomForOthers(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, _ := small(w, "eu", 4)
		const greedy, modest = "/ns/shop/sa/web", "/ns/shop/sa/cart"
		for range 2 {
			if err := eu.openAs(greedy, "us", "checkout.shop"); err != nil {
				t.Fatal(err)
			}
		}
		if err := eu.openAs(greedy, "us", "checkout.shop"); !isCode(err, streamv1.Code_CODE_OVERLOADED) {
			t.Errorf("more than its share: %v, want overloaded", err)
		}
		if n := eu.streams.Load(); n != 2 {
			t.Errorf("%d streams are counted, want 2", n)
		}
		if err := eu.openAs(modest, "us", "checkout.shop"); err != nil {
			t.Errorf("another caller: %v", err)
		}
	})
}

// refusedIt reports whether a refusal was this gateway's own word.
func (g *testGateway) refusedIt(err error) bool {
	r, ok := errors.AsType[*preamble.Refusal](err)
	return ok && r.Path[len(r.Path)-1] == g.c.name.String()+"/"+g.id
}

func TestOnePeerLeavesRoomForOthers(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := small(w, "us", 4)
		ap := w.cluster("ap").gateway("gateway-0")
		w.publish()
		ap.up("us", ap.cfg.ConnectionsPerPeer)
		for range 2 {
			if err := eu.openAs("/ns/shop/sa/web", "us", "checkout.shop"); err != nil {
				t.Fatal(err)
			}
		}
		if err := eu.openAs("/ns/shop/sa/web", "us", "checkout.shop"); !isCode(err, streamv1.Code_CODE_OVERLOADED) || !us.refusedIt(err) {
			t.Errorf("more than a peer's share: %v, want overloaded by us", err)
		}
		if err := ap.openAs("/ns/shop/sa/web", "us", "checkout.shop"); err != nil {
			t.Errorf("another peer: %v", err)
		}
	})
}

// begin opens a stream on a connection to us and sends no more than the first byte of a preamble.
func begin(tb testing.TB, c *quic.Conn) *quic.Stream {
	tb.Helper()
	p := preamble.Preamble{Cluster: clusterName("us"), Service: serviceName("checkout.shop"), Port: 80}
	s, err := c.OpenStream()
	if err != nil {
		tb.Fatal(err)
	}
	if _, err = s.Write(p.Append(nil)[:1]); err != nil {
		tb.Fatal(err)
	}
	return s
}

// Streams that say nothing are counted from the moment they are accepted, and cost others nothing.
func TestSilentStreamsAreBounded(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := small(w, "us", 32)
		ap := w.cluster("ap").gateway("gateway-0")
		w.publish()
		ap.up("us", ap.cfg.ConnectionsPerPeer)
		const most, more = 8, 5
		conn := (*eu.links.Load())[clusterName("us")].live()[0].conn.(*quicCarrier).Conn
		var streams []*quic.Stream
		for range most + more {
			streams = append(streams, begin(t, conn))
		}
		time.Sleep(4 * oneWay)
		synctest.Wait()
		reset := 0
		for _, s := range streams {
			_ = s.SetReadDeadline(time.Now())
			if _, err := s.Read(make([]byte, 1)); err != nil {
				if streamErr, ok := errors.AsType[*quic.StreamError](err); ok && streamErr.Remote {
					reset++
				}
			}
		}
		us.silent.mu.Lock()
		held := us.silent.held[eu.c.name]
		us.silent.mu.Unlock()
		if reset != more || held != most {
			t.Errorf("%d streams were reset and %d wait, want %d and %d", reset, held, more, most)
		}
		if err := ap.openAs("/ns/shop/sa/web", "us", "checkout.shop"); err != nil {
			t.Errorf("another peer: %v", err)
		}
		time.Sleep(preambleTimeout)
		if err := eu.openAs("/ns/shop/sa/web", "us", "checkout.shop"); err != nil {
			t.Errorf("the same peer, once their time is over: %v", err)
		}
		us.silent.mu.Lock()
		left := len(us.silent.held)
		us.silent.mu.Unlock()
		if left != 0 {
			t.Errorf("silent streams of %d peers are counted, want none", left)
		}
	})
}

func TestAConnectionOfSilentStreamsIsClosed(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, _ := small(w, "us", 32)
		conn := (*eu.links.Load())[clusterName("us")].live()[0].conn.(*quicCarrier).Conn
		for range maxSilent + 8 {
			begin(t, conn)
		}
		time.Sleep(time.Second)
		if conn.Context().Err() != nil {
			t.Errorf("closed after %d silent streams: %v", maxSilent, context.Cause(conn.Context()))
		}
		for range 8 {
			begin(t, conn)
		}
		time.Sleep(time.Second)
		closed, ok := errors.AsType[*quic.ApplicationError](context.Cause(conn.Context()))
		if !ok || closed.ErrorCode != closeOverloaded {
			t.Errorf("after more: %v, want it closed as overloaded", context.Cause(conn.Context()))
		}
		eu.up("us", eu.cfg.ConnectionsPerPeer)
	})
}
