package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/trust"
)

func TestBothGatewaysAreUsed(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, _ := twoClusters(w, 2)
		by := make(map[string]int)
		for range 40 {
			c := eu.open("us", "checkout.shop", "x")
			defer func() { _ = c.Close() }()
			reply, err := preamble.ReadReply(c)
			if err != nil {
				t.Fatal(err)
			}
			by[reply.Path[1]]++
		}
		if by["us/gateway-0"] != 20 || by["us/gateway-1"] != 20 {
			t.Errorf("40 streams went %v, want 20 each", by)
		}
	})
}

// A far gateway vanishes: no call fails, and from when its connections are given up none is even late.
func TestFarGatewayVanishes(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 2)
		time.Sleep(2 * time.Second) // for round trips to be measured
		open := eu.open("us", "checkout.shop", "x")
		reply, err := preamble.ReadReply(open)
		if err != nil {
			t.Fatal(err)
		}
		victim := us[0]
		if reply.Path[1] == "us/gateway-1" {
			victim = us[1]
		}
		w.blackhole(victim)
		killed := time.Now()

		var slowest time.Duration
		for time.Since(killed) < 2*time.Second {
			start := time.Now()
			path, _, err := eu.ask("us", "checkout.shop", "x")
			if err != nil {
				t.Fatalf("%s after the kill: %v", start.Sub(killed), err)
			}
			if path[1] == "us/"+victim.id {
				t.Fatalf("answered by the dead")
			}
			slowest = max(slowest, time.Since(start))
			if late := time.Since(start) - 4*oneWay; start.Sub(killed) > defaultDeadAfter+100*time.Millisecond && late > time.Millisecond {
				t.Errorf("%s after the kill a call was %s late", start.Sub(killed), late)
			}
		}
		// A call that fell to the dead gateway waits one round trip and a little, then goes the other way: handshake excluded,
		// two round trips more than nothing.
		if slowest > 4*oneWay+2*oneWay+50*time.Millisecond {
			t.Errorf("the slowest call took %s", slowest)
		}
		t.Logf("slowest call %s", slowest)

		// The stream that was open over it breaks when its connection is given up, and breaks visibly.
		_, _ = open.Read(make([]byte, 1))
		if _, err := open.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the stream over the dead gateway ended with %v", err)
		}
	})
}

// Streams that wait on a connection when it falls silent are moved, with what was said on them.
func TestFirstBytesAreReplayed(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 2)
		time.Sleep(time.Second)
		w.blackhole(us[0])
		// Before anybody can know. Some of these go to the dead gateway, in two pieces.
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				c := eu.open("us", "checkout.shop", "first, ")
				defer func() { _ = c.Close() }()
				_, _ = c.Write([]byte("second"))
				_ = c.CloseWrite()
				reply, err := preamble.ReadReply(c)
				if err != nil {
					t.Error(err)
					return
				}
				echoed, err := io.ReadAll(c)
				if err != nil || string(echoed) != "first, second" {
					t.Errorf("through %s: echoed %q, %v", reply.Path, echoed, err)
				}
			})
		}
		wg.Wait()
	})
}

// TestNobodyListens: what one connection hears of a gateway's address is true of all that lead there, and of no other.
func TestNobodyListens(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, _ := twoClusters(w, 2)
		l := (*eu.links.Load())[clusterName("us")]
		conns := slices.Clone(l.live())
		dead := conns[slices.IndexFunc(conns, func(c *connection) bool { return c.gateway.QUIC != "" })].gateway.QUIC
		l.refused(dead)
		synctest.Wait()
		ended := 0
		for _, c := range conns {
			wants := c.gateway.QUIC == dead
			if wants {
				ended++
			}
			if err := context.Cause(c.conn.Context()); (err != nil) != wants {
				t.Errorf("%s over %s: %v", c.gateway.ID, c.conn.transport(), err)
			}
		}
		if ended < 2 || ended == len(conns) {
			t.Fatalf("%d of %d connections led there", ended, len(conns))
		}
	})
}

func TestBlackHole(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 2)
		time.Sleep(3 * time.Second) // for the links to be known
		w.blackhole(us...)
		start := time.Now()
		if _, _, err := eu.ask("us", "checkout.shop", "x"); !isCode(err, streamv1.Code_CODE_LINK_DOWN) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took > defaultDeadAfter+2*defaultProbeInterval {
			t.Errorf("the first call took %s to be refused", took)
		}
		start = time.Now()
		_, _, err := eu.ask("us", "checkout.shop", "x")
		if !isCode(err, streamv1.Code_CODE_LINK_DOWN) || time.Since(start) > time.Millisecond {
			t.Errorf("after that: %v in %s, want it refused at once", err, time.Since(start))
		}
		w.blackhole()
		eu.up("us", 4)
		if healed := time.Since(start); healed > dialTimeout+maxBackoff+time.Second {
			t.Errorf("took %s to be back", healed)
		}
		if _, _, err := eu.ask("us", "checkout.shop", "x"); err != nil {
			t.Error(err)
		}
	})
}

// Packets that get through in one direction only are as none.
func TestOneWayPartition(t *testing.T) {
	for name, from := range map[string]string{"to the peer": "eu", "from the peer": "us"} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				t := w.t
				eu, _ := twoClusters(w, 1)
				time.Sleep(time.Second)
				lost := w.clusters[from].gateways[0].ip
				w.router.dropIf(func(p simnet.Packet) bool { return p.From.(*net.UDPAddr).IP.Equal(lost) })
				time.Sleep(defaultDeadAfter + 2*defaultProbeInterval)
				if _, _, err := eu.ask("us", "checkout.shop", "x"); !isCode(err, streamv1.Code_CODE_LINK_DOWN) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

// The far side takes the trust domain away: what is open is closed, and nothing opens again until it is back.
func TestTrustDomainRemoved(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1)
		open := eu.open("us", "checkout.shop", "x")
		if _, err := preamble.ReadReply(open); err != nil {
			t.Fatal(err)
		}
		_, _ = open.Read(make([]byte, 1))
		us[0].c.bundles.Remove(eu.c.domain)
		time.Sleep(2 * oneWay)
		synctest.Wait()
		if _, err := open.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the open stream ended with %v", err)
		}
		for range 5 {
			if _, _, err := eu.ask("us", "checkout.shop", "x"); !isCode(err, streamv1.Code_CODE_LINK_DOWN) {
				t.Errorf("got %v", err)
			}
			time.Sleep(time.Second)
		}
		us[0].c.bundles.Set(eu.c.domain, trust.Bundle{Authorities: eu.c.authority.Roots()})
		eu.up("us", 4)
		if _, _, err := eu.ask("us", "checkout.shop", "x"); err != nil {
			t.Error(err)
		}
	})
}

// A cluster that is no peer any more is left at once, though its bundle stays.
func TestPeerRemoved(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1)
		us[0].up("eu", 4)
		us[0].c.peers["eu"] = false
		w.publish()
		time.Sleep(2 * oneWay)
		synctest.Wait()
		if _, _, err := us[0].ask("eu", "checkout.shop", "x"); !isCode(err, streamv1.Code_CODE_UNKNOWN_CLUSTER) {
			t.Errorf("from us: %v", err)
		}
		time.Sleep(2 * time.Second)
		if _, _, err := eu.ask("us", "checkout.shop", "x"); !isCode(err, streamv1.Code_CODE_LINK_DOWN) {
			t.Errorf("to us: %v", err)
		}
	})
}

// Strangers: no member of a peer's domain but a gateway links, no member of another domain or gateway calls.
func TestWhoMaySpeak(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1)
		for path, want := range map[string]bool{"/ns/shop/sa/web": true, "/isthmus/node/node-0": true, "/isthmus/gateway/gateway-9": false, "/isthmus/control": false} {
			c, err := eu.tryDial(path)
			if err == nil {
				_, _ = c.Write(preamble.Preamble{Cluster: clusterName("us"), Service: serviceName("checkout.shop"), Port: 80}.Append(nil))
				_, err = preamble.ReadReply(c)
				_ = c.Close()
			}
			if (err == nil) != want {
				t.Errorf("%s of the own domain: %v", path, err)
			}
		}
		c, err := eu.dialAs(us[0].c.identity("/ns/shop/sa/web"))
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		if err == nil {
			t.Error("a workload of another domain was let in")
		}

		// A workload of eu, with a good SVID, as a gateway.
		us0 := us[0]
		before := us0.metricsOf("isthmus_link_up")
		eu.identity.Set(mustSVID(t, eu.c.identity("/ns/shop/sa/web")))
		for _, conn := range (*eu.links.Load())[clusterName("us")].live() {
			conn.conn.close(0, "")
		}
		time.Sleep(5 * time.Second)
		if n := len((*eu.links.Load())[clusterName("us")].live()); n != 0 || before != 1 {
			t.Errorf("a workload has %d connections", n)
		}
	})
}
