package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/quic-go/quic-go/quicvarint"
	"github.com/quic-go/quic-go/testutils/simnet"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/datagram"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
)

// datagramClusters is eu with one gateway and us with one; us exports dns.shop, whose UDP port 80 echoes every record.
func datagramClusters(w *world, handlers ...func(net.Conn)) (eu, us *testGateway) {
	w.t.Helper()
	home, away := w.cluster("eu"), w.cluster("us")
	eu, us = home.gateway("gateway-0"), away.gateway("gateway-0")
	if len(handlers) == 0 {
		handlers = append(handlers, echo)
	}
	e := away.export("dns.shop", nil, handlers...)
	e.Ports, e.UDPPorts = nil, e.Ports
	for i := range e.Endpoints {
		e.Endpoints[i].Ports, e.Endpoints[i].UDPPorts = nil, e.Endpoints[i].Ports
	}
	away.export("checkout.shop", nil, echo)
	w.publish()
	eu.up("us", eu.cfg.ConnectionsPerPeer)
	return eu, us
}

// openDatagrams opens a stream of records, with a TLS record in the first flight, and waits for that to come back.
func (g *testGateway) openDatagrams() (*call, *datagram.Reader) {
	g.c.w.t.Helper()
	c := g.dial()
	p := preamble.Preamble{Cluster: clusterName("us"), Service: serviceName("dns.shop"), Port: 80, Datagrams: true}
	if _, err := c.Write(append(p.Append(nil), hello...)); err != nil {
		g.c.w.t.Fatal(err)
	}
	if _, err := preamble.ReadReply(c); err != nil {
		g.c.w.t.Fatal(err)
	}
	records := datagram.NewReader(c)
	if r, err := records.Next(); err != nil || r.Datagram || string(r.Bytes) != hello {
		g.c.w.t.Fatalf("the hello came back as %q, %v", r.Bytes, err)
	}
	return c, records
}

// hello is a TLS record.
const hello = "\x16\x03\x01\x00\x05hello"

// sealed makes a record of a datagram that holds a number, of that size.
func sealed(n uint32, size int) []byte {
	record := datagram.AppendHeader(nil, size)
	record = append(record, make([]byte, size)...)
	binary.BigEndian.PutUint32(record[datagram.Header:], n)
	return record
}

func TestDatagramsCross(t *testing.T) {
	inBubble(t, func(w *world) {
		eu, us := datagramClusters(w)
		c, records := eu.openDatagrams()
		sizes := []int{4, 100, 1100, 3000, datagram.MaxBody}
		for i, size := range sizes {
			if _, err := c.Write(sealed(uint32(i), size)); err != nil {
				w.t.Fatal(err)
			}
			r, err := records.Next()
			if err != nil || !r.Datagram || len(r.Body()) != size || binary.BigEndian.Uint32(r.Body()) != uint32(i) {
				w.t.Fatalf("%d bytes: %d came, %v", size, len(r.Bytes), err)
			}
		}
		if _, err := c.Write([]byte(hello)); err != nil {
			w.t.Fatal(err)
		}
		if r, err := records.Next(); err != nil || r.Datagram {
			w.t.Fatalf("%+v, %v", r, err)
		}
		for _, g := range []*testGateway{eu, us} {
			if n := g.counterOf("isthmus_gateway_datagrams_total", "quic"); n != 3 {
				w.t.Errorf("%s: %v went beside the stream, want 3", g.id, n)
			}
			if n := g.counterOf("isthmus_gateway_datagrams_total", "stream"); n != 2 {
				w.t.Errorf("%s: %v went on the stream, want 2", g.id, n)
			}
		}
		_ = c.CloseWrite()
		if r, err := records.Next(); err == nil {
			w.t.Errorf("%+v after the end", r)
		}
		_ = c.Close()
		synctest.Wait()
		for _, g := range []*testGateway{eu, us} {
			for _, l := range g.datagrams.links {
				if len(l.streams) > 0 {
					w.t.Errorf("%s: %d streams that have ended are kept", g.id, len(l.streams))
				}
			}
		}
	})
}

// A datagram that is lost between the gateways is lost, and none of the others waits for it.
func TestDatagramsDontWaitForEachOther(t *testing.T) {
	inBubble(t, func(w *world) {
		eu, us := datagramClusters(w)
		c, records := eu.openDatagrams()
		const all, lost = 100, 50
		sent := make([]time.Time, all)
		w.wg.Go(func() {
			for i := range uint32(all) {
				if i == lost {
					w.router.dropIf(func(p simnet.Packet) bool { return p.To.(*net.UDPAddr).IP.Equal(us.ip) })
				}
				sent[i] = time.Now()
				_, _ = c.Write(sealed(i, 200))
				time.Sleep(time.Millisecond)
				if i == lost {
					w.router.dropIf(nil)
				}
			}
		})
		for i := range uint32(all) {
			if i == lost {
				continue
			}
			r, err := records.Next()
			if err != nil {
				w.t.Fatal(err)
			}
			if n := binary.BigEndian.Uint32(r.Body()); n != i {
				w.t.Fatalf("datagram %d came, want %d", n, i)
			}
			if took := time.Since(sent[i]); took > 2*oneWay+time.Millisecond {
				w.t.Errorf("datagram %d took %s: it waited", i, took)
			}
		}
		_ = c.Close()
	})
}

// What a peer sends for streams that it has not opened, or that carry no datagrams, goes nowhere.
func TestStrayDatagrams(t *testing.T) {
	inBubble(t, func(w *world) {
		eu, us := datagramClusters(w)
		plain := eu.open("us", "checkout.shop", "hello")
		if _, err := preamble.ReadReply(plain); err != nil {
			w.t.Fatal(err)
		}
		c, records := eu.openDatagrams()
		all := [][]byte{nil, {0xff}, quicvarint.Append(nil, 1<<40), append(quicvarint.Append(nil, 0), 1, 2, 3)} // the last: of the control stream
		sent := 0
		for _, l := range (*eu.links.Load())[clusterName("us")].live() {
			q := l.conn.(*quicCarrier)
			for _, p := range all {
				if err := q.SendDatagram(p); err != nil {
					w.t.Fatal(err)
				}
				sent++
			}
		}
		time.Sleep(4 * oneWay)
		// Only the connection with a stream of datagrams is looked at; of the others quic-go holds what nobody takes.
		if n := us.metrics.datagram.stray; testutil.ToFloat64(n) != float64(len(all)) {
			w.t.Errorf("%v of %d stray datagrams are counted, want those of one connection: %d", testutil.ToFloat64(n), sent, len(all))
		}
		if _, err := c.Write(sealed(1, 10)); err != nil {
			w.t.Fatal(err)
		}
		if r, err := records.Next(); err != nil || len(r.Body()) != 10 {
			w.t.Errorf("%+v, %v: the stream that they were not for is broken", r, err)
		}
		_ = c.Close()
		_ = plain.Close()
	})
}

// A port for datagrams is none for connections, and the other way round.
func TestDatagramsAreAskedFor(t *testing.T) {
	inBubble(t, func(w *world) {
		eu, _ := datagramClusters(w)
		for service, datagrams := range map[string]bool{"dns.shop": false, "checkout.shop": true} {
			c := eu.dial()
			p := preamble.Preamble{Cluster: clusterName("us"), Service: serviceName(service), Port: 80, Datagrams: datagrams}
			_, _ = c.Write(append(p.Append(nil), hello...))
			if _, err := preamble.ReadReply(c); !errors.Is(err, &preamble.Refusal{Code: streamv1.Code_CODE_NOT_EXPORTED}) {
				w.t.Errorf("%s, datagrams %t: %v", service, datagrams, err)
			}
			_ = c.Close()
		}
	})
}

// Records that are none end the stream, and not the gateway.
func TestDatagramsMalformed(t *testing.T) {
	inBubble(t, func(w *world) {
		eu, _ := datagramClusters(w)
		c, records := eu.openDatagrams()
		_, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		if r, err := records.Next(); err == nil {
			w.t.Errorf("%+v", r)
		}
		_ = c.Close()
		again, _ := eu.openDatagrams()
		_ = again.Close()
	})
}

// Over TCP there are no datagrams: they stay on the stream.
func TestDatagramsOverTCP(t *testing.T) {
	g := &Gateway{}
	if l, _ := g.datagramWay(nil, &tcpStream{}); l != nil {
		t.Error("a stream over TCP has a way beside it")
	}
}

// A withdrawn UDP port ends the streams to it.
func TestDatagramsWithdrawn(t *testing.T) {
	inBubble(t, func(w *world) {
		eu, us := datagramClusters(w)
		c, records := eu.openDatagrams()
		us.c.exports[0] = &topology.Export{Name: serviceName("dns.shop"), Ports: []uint16{80}, Endpoints: us.c.exports[0].Endpoints}
		w.publish()
		if r, err := records.Next(); err == nil {
			w.t.Errorf("%+v: the stream goes on", r)
		}
		_ = c.Close()
	})
}

// A peer that acknowledges nothing keeps no stream: who has left is let go of, though quic-go still waits with his datagrams.
func TestDatagramsThatNobodyAcknowledges(t *testing.T) {
	inBubble(t, func(w *world) {
		patient := func(c *Config) { c.DeadAfter = 5 * time.Second }
		home, away := w.cluster("eu"), w.cluster("us")
		eu := home.gateway("gateway-0", patient)
		us := away.gateway("gateway-0", patient)
		e := away.export("dns.shop", nil, echo)
		e.UDPPorts, e.Endpoints[0].UDPPorts = e.Ports, e.Ports
		w.publish()
		eu.up("us", eu.cfg.ConnectionsPerPeer)
		var calls []*call
		for range 12 {
			c, _ := eu.openDatagrams()
			calls = append(calls, c)
		}
		w.router.dropIf(func(p simnet.Packet) bool { return p.From.(*net.UDPAddr).IP.Equal(us.ip) })
		for _, c := range calls {
			for i := range uint32(500) {
				if _, err := c.Write(sealed(i, 900)); err != nil {
					w.t.Fatal(err)
				}
			}
		}
		time.Sleep(4 * time.Second) // quic-go sends something again ever more seldom, and a datagram with it
		for _, c := range calls {
			cut(c.raw)
		}
		time.Sleep(100 * time.Millisecond)
		if n := eu.streams.Load(); n != 0 {
			w.t.Errorf("%d streams are held by a peer that acknowledges nothing", n)
		}
		if n := len((*eu.links.Load())[clusterName("us")].live()); n == 0 {
			w.t.Error("its connections were gone before that was looked at: nothing is proven")
		}
	})
}

// A caller who has said all, to a peer that takes nothing, isn't held for ever either.
func TestDatagramsEndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, to := io.Pipe()
		never, end := io.Pipe()
		defer func() { _ = end.Close() }()
		over := make(chan struct{})
		abort := sync.OnceFunc(func() {
			close(over)
			_ = never.CloseWithError(io.ErrClosedPipe)
		})
		far := &stuckHalf{Reader: never, over: over}
		done := make(chan error, 1)
		metrics := newDatagramMetrics()
		g := &Gateway{waiting: datagram.NewBudget(1 << 20)}
		go func() {
			done <- g.relayDatagrams(t.Context(), &datagramRelay{
				near: &stuckHalf{Reader: from, over: over}, far: &abortable{far, abort},
				way:    func() (*datagramLink, uint64) { return nil, 0 },
				counts: metrics.of(labels{}, prometheus.NewCounter(prometheus.CounterOpts{Name: "sent"})),
			})
		}()
		_, _ = to.Write(sealed(1, 10))
		_ = to.Close()
		select {
		case err := <-done:
			if !errors.Is(err, errHeldOpen) {
				t.Errorf("it ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("it is held after a minute")
			abort()
			t.Logf("it ended with %v", <-done)
		}
	})
}

// abortable is a half that does something when it is aborted.
type abortable struct {
	half
	abort func()
}

func (h *abortable) Abort(error) { h.abort() }

func FuzzParseDatagram(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(quicvarint.Append(nil, 7), "body"...))
	f.Fuzz(func(t *testing.T, p []byte) {
		stream, record, ok := parseDatagram(p)
		if !ok {
			return
		}
		isDatagram, size, err := datagram.ParseHeader(record)
		if err != nil || !isDatagram || size != len(record)-datagram.Header {
			t.Errorf("stream %d: a record of %d bytes that reads as %t, %d, %v", stream, len(record), isDatagram, size, err)
		}
	})
}

// stuckHalf is a side of a stream: what is read comes from a pipe, and what is written is handed over, or waits for ever.
type stuckHalf struct {
	io.Reader
	taken chan []byte // nil: nobody takes
	over  chan struct{}
}

func (h *stuckHalf) Write(p []byte) (int, error) {
	select {
	case h.taken <- slices.Clone(p):
		return len(p), nil
	case <-h.over:
		return 0, io.ErrClosedPipe
	}
}

func (h *stuckHalf) CloseWrite() error { return nil }
func (h *stuckHalf) Abort(error)       {}
func (h *stuckHalf) Close() error      { return nil }

// A peer that takes nothing of what is sent to it on many streams leaves the room that datagrams of others wait in.
func TestAPeerThatTakesNothingLeavesRoomForDatagramsOfOthers(t *testing.T) {
	const streams, each, size = 40, 10, 100
	w := newDatagramMetrics()
	g := &Gateway{waiting: datagram.NewBudget(streams * each * size / 4)}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	var wg sync.WaitGroup
	ends := make([]io.Closer, 0, streams+1)
	stream := func(owner string, taken chan []byte) *io.PipeWriter {
		from, to := io.Pipe()
		answers, end := io.Pipe()
		ends = append(ends, to, end)
		wg.Go(func() {
			_ = g.relayDatagrams(ctx, &datagramRelay{
				near: &stuckHalf{Reader: from, over: over}, far: &stuckHalf{Reader: answers, taken: taken, over: over},
				nearOwner: "checkout.shop", farOwner: owner,
				way:    func() (*datagramLink, uint64) { return nil, 0 },
				counts: w.of(labels{}, prometheus.NewCounter(prometheus.CounterOpts{Name: "sent"})),
			})
		})
		return to
	}
	for range streams {
		s := stream("hostile", nil)
		for i := range each {
			_, _ = s.Write(sealed(uint32(i), size))
		}
	}
	taken := make(chan []byte)
	honest := stream("honest", taken)
	_, _ = honest.Write(sealed(7, size))
	select {
	case p := <-taken:
		if len(p) != datagram.Header+size {
			t.Errorf("%d bytes came", len(p))
		}
	case <-time.After(10 * time.Second):
		t.Error("a datagram for another peer was dropped")
	}
	close(over)
	for _, e := range ends {
		_ = e.Close()
	}
	cancel()
	wg.Wait()
}
