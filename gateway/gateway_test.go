package gateway

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
)

// twoClusters is eu with one gateway and us with n; us exports checkout.shop, which echoes.
func twoClusters(w *world, n int, options ...option) (eu *testGateway, us []*testGateway) {
	w.t.Helper()
	home, away := w.cluster("eu"), w.cluster("us")
	eu = home.gateway("gateway-0", options...)
	for i := range n {
		us = append(us, away.gateway("gateway-"+string(rune('0'+i)), options...))
	}
	away.export("checkout.shop", nil, echo)
	w.publish()
	eu.up("us", max(eu.cfg.ConnectionsPerPeer, n))
	return eu, us
}

func TestStreamEndToEnd(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, _ := twoClusters(w, 1)
		start := time.Now()
		path, echoed, err := eu.ask("us", "checkout.shop", "hello")
		if err != nil || echoed != "hello" {
			t.Fatalf("echoed %q, %v", echoed, err)
		}
		if diff := cmp.Diff([]string{"eu/gateway-0", "us/gateway-0"}, path); diff != "" {
			t.Errorf("path (-want +got):\n%s", diff)
		}
		// One round trip for preamble, first bytes, answer and echo, and one for the ends.
		if took := time.Since(start); took > 4*oneWay+oneWay/2 {
			t.Errorf("took %s", took)
		}
	})
}

func TestBothWaysAtOnceAndHalfClose(t *testing.T) {
	var up [3 << 20]byte
	_, _ = rand.Read(up[:])
	test := func(w *world, eu *testGateway) {
		// Reads to the end before it answers: the caller's half-close has to get there, and mustn't end the way back.
		w.clusters["us"].export("upload.shop", nil, func(c net.Conn) {
			all, err := io.ReadAll(c)
			if err != nil {
				cut(c)
				return
			}
			_, _ = c.Write(all[len(all)/2:])
			_ = c.Close()
		})
		w.publish()
		c := eu.open("us", "upload.shop", "")
		if _, err := preamble.ReadReply(c); err != nil {
			w.t.Fatal(err)
		}
		_, _ = c.Write(up[:])
		_ = c.CloseWrite()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, up[len(up)/2:]) {
			w.t.Errorf("got %d bytes, %v", len(got), err)
		}
	}
	t.Run(transportQUIC, func(t *testing.T) {
		inBubble(t, func(w *world) {
			eu, _ := twoClusters(w, 1)
			test(w, eu)
		})
	})
	t.Run(transportTCP, func(t *testing.T) {
		withoutUDP(t, 1, func(w *world, eu *testGateway, _ []*testGateway) { test(w, eu) })
	})
}

// A caller that sends a lot before the answer is held at what can be replayed, and then goes on.
func TestMoreThanCanBeReplayed(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, _ := twoClusters(w, 1)
		var up [200 << 10]byte
		_, _ = rand.Read(up[:])
		_, echoed, err := eu.ask("us", "checkout.shop", string(up[:]))
		if err != nil || echoed != string(up[:]) {
			t.Errorf("echoed %d bytes, %v", len(echoed), err)
		}
	})
}

func TestRefusals(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1, func(c *Config) { c.MaxStreams = 4 }) // two for each caller
		away := us[0].c
		away.export("private.shop", []string{"ap"}, echo)
		away.export("nobody.shop", nil)
		broken := away.export("broken.shop", nil, nil, nil)
		away.export("waking.shop", nil, echo).Endpoints[0].Ready = false
		ghost := w.cluster("ap") // a peer without a gateway
		w.publish()
		synctest.Wait()
		_ = broken
		_ = ghost

		refused := func(cluster, service string, port uint16) *preamble.Refusal {
			t.Helper()
			c := eu.dial()
			defer func() { _ = c.Close() }()
			p := preamble.Preamble{Cluster: clusterName(cluster), Service: serviceName(service), Port: port}
			_, _ = c.Write(append(p.Append(nil), "first bytes"...))
			_, err := preamble.ReadReply(c)
			r, ok := errors.AsType[*preamble.Refusal](err)
			if !ok {
				t.Fatalf("%s in %s: %v; want a refusal", service, cluster, err)
			}
			if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("after the refusal: %d bytes, %v; want EOF", n, err)
			}
			return r
		}
		for _, tc := range []struct {
			cluster, service string
			port             uint16
			code             streamv1.Code
			by               string
		}{
			{"us", "unheard-of.shop", 80, streamv1.Code_CODE_NOT_EXPORTED, "us/gateway-0"},
			{"us", "checkout.shop", 81, streamv1.Code_CODE_NOT_EXPORTED, "us/gateway-0"},
			{"us", "private.shop", 80, streamv1.Code_CODE_NOT_ALLOWED, "us/gateway-0"},
			{"us", "nobody.shop", 80, streamv1.Code_CODE_NO_ENDPOINT, "eu/gateway-0"},
			{"us", "waking.shop", 80, streamv1.Code_CODE_NO_ENDPOINT, "eu/gateway-0"},
			{"us", "broken.shop", 80, streamv1.Code_CODE_ENDPOINT_UNREACHABLE, "us/gateway-0"},
			{"atlantis", "checkout.shop", 80, streamv1.Code_CODE_UNKNOWN_CLUSTER, "eu/gateway-0"},
			{"eu", "checkout.shop", 80, streamv1.Code_CODE_UNKNOWN_CLUSTER, "eu/gateway-0"},
			{"ap", "checkout.shop", 80, streamv1.Code_CODE_LINK_DOWN, "eu/gateway-0"},
		} {
			// Once the capacity has crossed.
			time.Sleep(2 * oneWay)
			r := refused(tc.cluster, tc.service, tc.port)
			if r.Code != tc.code || r.Path[len(r.Path)-1] != tc.by || r.Path[0] != "eu/gateway-0" {
				t.Errorf("%s:%d in %s: %v, path %q; want %s by %s", tc.service, tc.port, tc.cluster, r, r.Path, tc.code, tc.by)
			}
		}

		malformed := eu.dial()
		_, _ = malformed.Write([]byte("GET / HTTP/1.1\r\nHost: checkout.shop\r\n\r\n"))
		if _, err := preamble.ReadReply(malformed); !isCode(err, streamv1.Code_CODE_BAD_PREAMBLE) {
			t.Errorf("HTTP: %v", err)
		}
		_ = malformed.Close()

		silent := eu.dial()
		if _, err := silent.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("after %s of silence: %v; want it cut", preambleTimeout, err)
		}
		_ = silent.Close()

		for range 2 {
			c := eu.open("us", "checkout.shop", "x")
			defer func() { _ = c.Close() }()
			if _, err := preamble.ReadReply(c); err != nil {
				t.Fatal(err)
			}
		}
		if r := refused("us", "checkout.shop", 80); r.Code != streamv1.Code_CODE_OVERLOADED {
			t.Errorf("third stream of two: %v", r)
		}
		want := testutil.ToFloat64(eu.metrics.streams.WithLabelValues("eu", "us", "private.shop", "not_allowed"))
		if want != 1 {
			t.Errorf("counted %v refusals of private.shop, want 1", want)
		}
	})
}

func isCode(err error, c streamv1.Code) bool {
	r, ok := errors.AsType[*preamble.Refusal](err)
	return ok && r.Code == c
}

// Before a configuration there is nothing to serve, and a caller is told so.
func TestNoConfigurationYet(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		g := w.cluster("eu").gateway("gateway-0")
		if _, _, err := g.ask("us", "checkout.shop", "x"); !isCode(err, streamv1.Code_CODE_INTERNAL) {
			t.Errorf("got %v", err)
		}
	})
}

// A peer's gateway gets what is exported here, and is not carried on to a third cluster.
func TestNoTransit(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, _ := twoClusters(w, 1)
		ap := w.cluster("ap")
		ap.gateway("gateway-0")
		ap.export("checkout.shop", nil, echo)
		w.publish()
		eu.up("ap", 4)
		// What a modified gateway of eu could ask us for.
		l := (*eu.links.Load())[clusterName("us")]
		stream, err := l.live()[0].conn.open()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = stream.Write(preamble.Preamble{Cluster: clusterName("ap"), Service: serviceName("checkout.shop"), Port: 80}.Append(nil))
		if _, err := preamble.ReadReply(stream); !isCode(err, streamv1.Code_CODE_UNKNOWN_CLUSTER) {
			t.Errorf("got %v", err)
		}
	})
}

// A service without copies is refused without asking, as soon as the far side has said so, and served again likewise.
func TestCapacityInBand(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 2)
		if _, _, err := eu.ask("us", "checkout.shop", "x"); err != nil {
			t.Fatal(err)
		}
		set := func(ready bool) {
			e := *us[0].c.exports[0]
			e.Endpoints = append([]topology.Endpoint(nil), e.Endpoints...)
			e.Endpoints[0].Ready = ready
			us[0].c.exports = []*topology.Export{&e}
			w.publish()
			time.Sleep(oneWay + time.Millisecond) // one way, and it is known
			synctest.Wait()
		}
		set(false)
		start := time.Now()
		if _, _, err := eu.ask("us", "checkout.shop", "x"); !isCode(err, streamv1.Code_CODE_NO_ENDPOINT) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took > time.Millisecond {
			t.Errorf("refused after %s: the far side was asked", took)
		}
		set(true)
		if _, _, err := eu.ask("us", "checkout.shop", "x"); err != nil {
			t.Error(err)
		}
	})
}

func TestReport(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 2)
		time.Sleep(time.Second)
		last := func() string {
			eu.mu.Lock()
			defer eu.mu.Unlock()
			r := eu.reports[len(eu.reports)-1].GetLinks()
			if len(r) != 1 {
				return "nothing"
			}
			s := r[0].GetCluster() + " " + r[0].GetState()
			for _, g := range r[0].GetGateways() {
				s += " " + g.GetId() + " " + g.GetState()
			}
			if rtt := time.Duration(r[0].GetRttMicros()) * time.Microsecond; r[0].GetState() == "up" && (rtt < 2*oneWay || rtt > 3*oneWay) {
				t.Errorf("reports a round trip of %s", rtt)
			}
			return s
		}
		if got, want := last(), "us up gateway-0 up gateway-1 up"; got != want {
			t.Errorf("reported %q, want %q", got, want)
		}
		w.blackhole(us[1])
		time.Sleep(2 * time.Second)
		if got, want := last(), "us up gateway-0 up gateway-1 down"; got != want {
			t.Errorf("reported %q, want %q", got, want)
		}
		w.blackhole(us...)
		time.Sleep(time.Second)
		if got, want := last(), "us down gateway-0 down gateway-1 down"; got != want {
			t.Errorf("reported %q, want %q", got, want)
		}
		w.blackhole()
		time.Sleep(10 * time.Second)
		if got, want := last(), "us up gateway-0 up gateway-1 up"; got != want {
			t.Errorf("reported %q, want %q", got, want)
		}
		if err := testutil.GatherAndCompare(eu.registry, bytes.NewBufferString(`
# HELP isthmus_link_connections Connections to a peer gateway: over QUIC, and one over TCP for what goes there.
# TYPE isthmus_link_connections gauge
isthmus_link_connections{cluster="us",gateway="gateway-0"} 2
isthmus_link_connections{cluster="us",gateway="gateway-1"} 2
# HELP isthmus_link_up Whether streams can be opened to the cluster.
# TYPE isthmus_link_up gauge
isthmus_link_up{cluster="us"} 1
`), "isthmus_link_up", "isthmus_link_connections"); err != nil {
			t.Error(err)
		}
	})
}
