package gateway

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/quic-go/quic-go/testutils/simnet"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
)

// Far gateways drain one after the other, as in a rolling restart, under load: nothing is lost.
func TestDrainFar(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 2)
		time.Sleep(time.Second)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					// Long enough to be in flight when the drain begins, short enough to end within its grace.
					c := eu.open("us", "checkout.shop", "")
					if _, err := preamble.ReadReply(c); err != nil {
						t.Errorf("opening: %v", err)
						return
					}
					for range 10 {
						_, _ = c.Write([]byte("word "))
						time.Sleep(50 * time.Millisecond)
					}
					_ = c.CloseWrite()
					if all, err := io.ReadAll(c); err != nil || string(all) != strings.Repeat("word ", 10) {
						t.Errorf("got %d bytes, %v", len(all), err)
					}
					_ = c.Close()
				}
			})
		}
		time.Sleep(700 * time.Millisecond)
		drainStart := time.Now()
		us[0].stop()
		err := <-us[0].done
		us[0].done <- err
		if err != nil {
			t.Error(err)
		}
		if took := time.Since(drainStart); took > 2*time.Second {
			t.Errorf("draining took %s, though every stream ends within one", took)
		}
		time.Sleep(time.Second)
		close(stop)
		wg.Wait()
		if lost := testutil.ToFloat64(eu.metrics.broken.WithLabelValues("eu", "us", "checkout.shop")); lost != 0 {
			t.Errorf("%v streams broke", lost)
		}
	})
}

// The near gateway drains: what is in flight ends by itself, nothing new is taken.
func TestDrainNear(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, _ := twoClusters(w, 1)
		c := eu.open("us", "checkout.shop", "")
		if _, err := preamble.ReadReply(c); err != nil {
			t.Fatal(err)
		}
		early := eu.dial() // has not said yet what it wants
		eu.stop()
		synctest.Wait()
		if _, err := eu.tryDial("/ns/shop/sa/web"); err == nil {
			t.Error("a draining gateway takes connections")
		}
		_, _ = early.Write(preamble.Preamble{Cluster: clusterName("us"), Service: serviceName("checkout.shop"), Port: 80}.Append(nil))
		if _, err := preamble.ReadReply(early); !isCode(err, streamv1.Code_CODE_DRAINING) {
			t.Errorf("a late preamble: %v", err)
		}
		_ = early.Close()
		time.Sleep(3 * time.Second)
		_, _ = c.Write([]byte("still here"))
		_ = c.CloseWrite()
		if all, err := io.ReadAll(c); err != nil || string(all) != "still here" {
			t.Errorf("got %q, %v", all, err)
		}
	})
}

// The end of a stream is lost on its way, and the gateway drains: it stays until the end has been sent again.
func TestDrainWaitsForWhatWasLost(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1)
		got := make(chan string, 1)
		us[0].c.export("greet.shop", nil, func(c net.Conn) {
			_, _ = c.Write([]byte("hello"))
			_ = c.(*memConn).CloseWrite()
			all, err := io.ReadAll(c)
			if err != nil {
				all = []byte(err.Error())
			}
			got <- string(all)
			_ = c.Close()
		})
		w.publish()
		time.Sleep(time.Second)
		c := eu.open("us", "greet.shop", "")
		if _, err := preamble.ReadReply(c); err != nil {
			t.Fatal(err)
		}
		if all, err := io.ReadAll(c); err != nil || string(all) != "hello" {
			t.Fatalf("got %q, %v", all, err)
		}
		w.router.dropIf(func(p simnet.Packet) bool { return p.From.(*net.UDPAddr).IP.Equal(eu.ip) })
		_, _ = c.Write([]byte("and goodbye"))
		_ = c.Close()
		eu.stop()
		time.Sleep(60 * time.Millisecond)
		w.router.dropIf(nil)
		if all := <-got; all != "and goodbye" {
			t.Errorf("the endpoint read %q", all)
		}
	})
}

// A stream that doesn't end within the grace is cut, visibly.
func TestDrainGraceEnds(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1)
		c := eu.open("us", "checkout.shop", "x")
		if _, err := preamble.ReadReply(c); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		us[0].stop()
		all, err := io.ReadAll(c)
		if err == nil || string(all) != "x" {
			t.Errorf("got %q, %v; want it cut after x", all, err)
		}
		if took := time.Since(start); took < defaultDrainGrace || took > defaultDrainGrace+time.Second {
			t.Errorf("cut after %s", took)
		}
	})
}

// A far gateway that refuses because it drains is not the last word while there is another.
func TestDrainingRefusalGoesElsewhere(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 2)
		us[0].drain.Start() // and nobody is told
		hold, ok := us[1].drain.Add()
		if !ok {
			t.Fatal("draining")
		}
		defer hold()
		for range 8 {
			path, _, err := eu.ask("us", "checkout.shop", "x")
			if err != nil || path[1] != "us/gateway-1" {
				t.Errorf("%q, %v", path, err)
			}
		}
		us[1].drain.Start()
		if _, _, err := eu.ask("us", "checkout.shop", "x"); !isCode(err, streamv1.Code_CODE_DRAINING) && !isCode(err, streamv1.Code_CODE_LINK_DOWN) {
			t.Errorf("both drain: %v", err)
		}
	})
}
