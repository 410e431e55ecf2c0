package sidecar

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	records "github.com/isthmus-mesh/isthmus/internal/datagram"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
)

// between takes connections, and has each, and one to the server, carried by carry until both are closed; it closes them with the test.
func between(tb testing.TB, server *side, carry func(near, far net.Conn)) netip.AddrPort {
	tb.Helper()
	ln := listenTCP(tb)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn // guarded by mu
	ended := false      // guarded by mu
	wg.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", server.inbound.String())
			if err != nil {
				_ = near.Close()
				continue
			}
			mu.Lock()
			if open = append(open, near, far); ended {
				_, _ = near.Close(), far.Close()
			}
			mu.Unlock()
			wg.Go(func() {
				carry(near, far)
				_, _ = near.Close(), far.Close()
			})
		}
	})
	tb.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		ended = true
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return addrOf(ln)
}

// meddler does with the datagrams of one stream what a gateway that has been taken over could.
type meddler struct{ was [][]byte }

func newMeddler(tb testing.TB, server *side) netip.AddrPort {
	tb.Helper()
	return between(tb, server, func(near, far net.Conn) {
		var mu sync.Mutex // held while near is written to
		var wg sync.WaitGroup
		wg.Go(func() { back(far, near, &mu); _ = near.Close() })
		new(meddler).there(near, far, &mu)
		_ = far.Close()
		wg.Wait()
	})
}

// there passes on what goes to the server, each datagram in much company.
func (m *meddler) there(near, far net.Conn, mu *sync.Mutex) {
	read := records.NewReader(near)
	for {
		r, err := read.Next()
		if err != nil {
			return
		}
		if !r.Datagram {
			if _, err = far.Write(r.Bytes); err != nil {
				return
			}
			continue
		}
		flipped := slices.Clone(r.Bytes)
		flipped[len(flipped)/2] ^= 1
		renumbered := slices.Clone(r.Bytes)
		renumbered[records.Header] ^= 0x40 // far ahead
		short := append(records.AppendHeader(nil, 3), 1, 2, 3)
		for _, b := range append([][]byte{flipped, renumbered, short, r.Bytes, r.Bytes, flipped}, m.was...) {
			_, _ = far.Write(b)
		}
		m.was = append(m.was, r.Bytes)
		mu.Lock()
		_, _ = near.Write(r.Bytes) // reflected
		mu.Unlock()
	}
}

func back(far, near net.Conn, mu *sync.Mutex) {
	read := records.NewReader(far)
	for {
		r, err := read.Next()
		if err != nil {
			return
		}
		mu.Lock()
		_, err = near.Write(r.Bytes)
		if r.Datagram {
			_, err = near.Write(r.Bytes)
		}
		mu.Unlock()
		if err != nil {
			return
		}
	}
}

// A gateway that replays, flips, renumbers, makes up and reflects datagrams gets none of them taken: each arrives once, as it was sent, both ways.
func TestDatagramsMeddledWith(t *testing.T) {
	w := newWorld(t)
	app := newUDPApp(t, "app")
	served := w.server(us, "checkout", topology.UDP, app.at())
	at := newMeddler(t, served)
	w.gateway("gateway-0", func(preamble.Preamble) (netip.AddrPort, *preamble.Refusal) { return at, nil })
	c, listener := w.udpCaller(view{remotes: []topology.Remote{remote(1, served)}}, 0)
	client := newUDPClient(t, listener)
	const n = 20
	heard := make(map[string]int)
	var got atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 100)
		for {
			_ = client.c.SetReadDeadline(time.Now().Add(time.Second))
			m, err := client.c.Read(buffer)
			if err != nil {
				return
			}
			heard[string(buffer[:m])]++
			got.Add(1)
		}
	}()
	for i := range n {
		_, _ = client.c.Write(fmt.Append(nil, i))
		waitFor(t, "it is answered", func() bool { return got.Load() > int64(i) })
	}
	<-done
	if app.got() != n || len(heard) != n {
		t.Errorf("the application got %d datagrams, the client %d kinds of answers; %d were sent", app.got(), len(heard), n)
	}
	for i := range n {
		if text := fmt.Sprint("app ", i); heard[text] != 1 {
			t.Errorf("%q was heard %d times", text, heard[text])
		}
	}
	_ = c.stop()
	waitFor(t, "what was refused is counted", func() bool {
		return served.counter("isthmus_udp_dropped_total", "direction=inbound", "reason=forged") >= 5*n &&
			c.counter("isthmus_udp_dropped_total", "direction=outbound", "reason=forged") >= n
	})
}

// Bytes that are no records end that session alone.
func TestDatagramsGarbage(t *testing.T) {
	w := newWorld(t)
	app := newUDPApp(t, "app")
	served := w.server(us, "checkout", topology.UDP, app.at())
	var bad atomic.Bool
	at := between(t, served, func(near, far net.Conn) {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { _, _ = io.Copy(near, far); _ = near.Close() })
		read := records.NewReader(near)
		for {
			r, err := read.Next()
			if err == nil && bad.Load() && r.Datagram {
				bad.Store(false)
				r.Bytes = []byte("GET / HTTP/1.1\r\n\r\n")
			}
			if err == nil {
				_, err = far.Write(r.Bytes)
			}
			if err != nil {
				_ = far.Close()
				return
			}
		}
	})
	w.gateway("gateway-0", func(preamble.Preamble) (netip.AddrPort, *preamble.Refusal) { return at, nil })
	_, listener := w.udpCaller(view{remotes: []topology.Remote{remote(1, served)}}, 0)
	client := newUDPClient(t, listener)
	client.ask("a")
	bad.Store(true)
	if got := client.ask("b"); got != "app b" {
		t.Errorf("got %q", got)
	}
}
