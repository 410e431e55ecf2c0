package gateway

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
)

// bothWays is eu and us with one gateway each, and links over QUIC and TCP.
func bothWays(t *testing.T, f func(w *world, eu, us *testGateway)) {
	t.Helper()
	inBubble(t, func(w *world) {
		w.linkTCP = true
		home, away := w.cluster("eu"), w.cluster("us")
		eu, us := home.gateway("gateway-0"), away.gateway("gateway-0")
		away.export("checkout.shop", nil, echo)
		w.publish()
		eu.up("us", eu.cfg.ConnectionsPerPeer+1)
		time.Sleep(5 * time.Second) // until bulk may go over TCP
		f(w, eu, us)
	})
}

func (g *testGateway) movedTo(cluster string) float64 {
	return testutil.ToFloat64(g.metrics.relocations.WithLabelValues(cluster))
}

// What begins on QUIC and turns out to be bulk goes on over TCP, whole and in order, whichever way it goes and whoever has ended already.
func TestBulkGoesOnOverTCP(t *testing.T) {
	var data [4 << 20]byte
	_, _ = rand.Read(data[:])
	for name, tc := range map[string]struct {
		serve func(c net.Conn)
		up    []byte
		want  []byte
	}{
		"download": {serve: func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1))
			_, _ = c.Write(data[:])
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}, up: []byte("x"), want: data[:]},
		"upload": {serve: func(c net.Conn) {
			all, err := io.ReadAll(c)
			if err != nil {
				cut(c)
				return
			}
			_, _ = c.Write(all[len(all)-1000:])
			_ = c.Close()
		}, up: data[:], want: data[len(data)-1000:]},
		"both ways": {serve: echo, up: data[:], want: data[:]},
		"answered while it moves": {serve: func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1))
			_, _ = c.Write(data[:300<<10])
			_ = c.(interface{ CloseWrite() error }).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}, up: []byte("x"), want: data[:300<<10]},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(w *world, eu, us *testGateway) {
				us.c.export("bulk.shop", nil, tc.serve)
				w.publish()
				c := eu.open("us", "bulk.shop", "")
				if _, err := preamble.ReadReply(c); err != nil {
					t.Fatal(err)
				}
				w.wg.Go(func() {
					_, _ = c.Write(tc.up)
					if len(tc.up) > 1 {
						_ = c.CloseWrite()
					}
				})
				got := make([]byte, len(tc.want))
				if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, tc.want) {
					t.Fatalf("%d of %d bytes, or others, %v", n, len(tc.want), err)
				}
				_ = c.CloseWrite()
				if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
					t.Errorf("at the end: %d bytes, %v", n, err)
				}
				_ = c.Close()
				time.Sleep(5 * time.Second)
				if n := eu.movedTo("us"); len(tc.want)+len(tc.up) > 1<<20 && name != "both ways" && n != 1 {
					t.Errorf("%v streams have moved, want 1", n)
				}
				settled(t, eu, us)
			})
		})
	}
}

// settled reports what of a stream is left.
func settled(t *testing.T, eu, us *testGateway) {
	t.Helper()
	for _, g := range []*testGateway{eu, us} {
		if n := g.streams.Load(); n != 0 {
			t.Errorf("%s: %d streams are carried", g.c.name, n)
		}
	}
	for _, c := range (*eu.links.Load())[clusterName("us")].live() {
		if n := c.active.Load(); n != 0 {
			t.Errorf("%d streams are on the connection over %s", n, c.conn.transport())
		}
		if tcp, ok := c.conn.(*tcpCarrier); ok {
			tcp.mu.Lock()
			if n := len(tcp.streams); n != 0 {
				t.Errorf("%d connections over TCP have a stream", n)
			}
			tcp.mu.Unlock()
		}
	}
	us.movables.mu.Lock()
	defer us.movables.mu.Unlock()
	for _, i := range us.movables.conns {
		if len(i.streams) != 0 {
			t.Errorf("%d streams may be moved", len(i.streams))
		}
	}
}

// A stream that has moved and is cut short on either side, or whose connection is, doesn't look complete on the other.
func TestMovedBulkThatIsCutShort(t *testing.T) {
	for name, cutIt := range map[string]func(c *call, copy net.Conn, eu *testGateway){
		"by the caller": func(c *call, _ net.Conn, _ *testGateway) { cut(c.raw) },
		"by the copy":   func(_ *call, copy net.Conn, _ *testGateway) { cut(copy) },
		"on the way": func(_ *call, _ net.Conn, eu *testGateway) {
			for _, c := range (*eu.links.Load())[clusterName("us")].live() {
				if tcp, ok := c.conn.(*tcpCarrier); ok {
					tcp.mu.Lock()
					var raw net.Conn
					for s := range tcp.streams {
						raw = s.raw
					}
					tcp.mu.Unlock()
					cut(raw)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(w *world, eu, us *testGateway) {
				seen, copies := make(chan error, 1), make(chan net.Conn, 1)
				us.c.export("bulk.shop", nil, func(c net.Conn) {
					copies <- c
					w.wg.Go(func() {
						for {
							if _, err := c.Write(make([]byte, 64<<10)); err != nil {
								return
							}
						}
					})
					_, err := io.Copy(io.Discard, c)
					seen <- err
					cut(c)
				})
				w.publish()
				c := eu.open("us", "bulk.shop", "x")
				if _, err := preamble.ReadReply(c); err != nil {
					t.Fatal(err)
				}
				for eu.movedTo("us") == 0 {
					if _, err := io.CopyN(io.Discard, c, 64<<10); err != nil {
						t.Fatal(err)
					}
				}
				cutIt(c, <-copies, eu)
				if _, err := io.Copy(io.Discard, c); err == nil {
					t.Error("the caller reads an end")
				}
				if err := <-seen; err == nil {
					t.Error("the copy reads an end")
				}
				time.Sleep(5 * time.Second)
				settled(t, eu, us)
			})
		})
	}
}

// Whoever does not know what only the two ends of a connection know moves nothing, nor does another gateway that has found out.
func TestNobodyElseMovesAStream(t *testing.T) {
	bothWays(t, func(w *world, eu, us *testGateway) {
		c := eu.open("us", "checkout.shop", "x")
		if _, err := preamble.ReadReply(c); err != nil {
			t.Fatal(err)
		}
		us.movables.mu.Lock()
		defer us.movables.mu.Unlock()
		found := 0
		for secret, i := range us.movables.conns {
			who := i.peer
			other := who
			other.ID = mustSVID(t, us.identity).ID
			for id := range i.streams {
				found++
				request := [moveRequest]byte(binary.BigEndian.AppendUint64(secret[:], id))
				us.movables.mu.Unlock()
				if us.movables.find(request, other) != nil {
					t.Error("another gateway may move it")
				}
				if us.movables.find(request, who) == nil {
					t.Error("its own may not")
				}
				request[0]++
				if us.movables.find(request, who) != nil {
					t.Error("whoever guesses may move it")
				}
				us.movables.mu.Lock()
			}
		}
		if found != 1 {
			t.Errorf("%d streams may be moved, want 1", found)
		}
		w.wg.Go(func() { cut(c.raw) })
	})
}

// An end is the stream's end where nothing moves; where it may have been the end of a first part alone, it is none.
func TestWhatAnEndOfTheFirstLaneIs(t *testing.T) {
	for name, tc := range map[string]struct {
		asks  bool
		known func(*linkStream, *move)
		want  error // nil: it is the end
	}{
		"who asks has not said go":         {asks: true, known: func(*linkStream, *move) {}},
		"who is asked hears that it stays": {known: func(s *linkStream, m *move) { s.settle(m, nil, nil) }},
		"who is asked hears no more":       {known: func(s *linkStream, m *move) { s.settle(m, nil, errMoveBroken) }, want: errMoveBroken},
	} {
		s := new(linkStream)
		m := s.mayMove(tc.asks)
		tc.known(s, m)
		if there, err := s.elsewhere(); there != nil || !errors.Is(err, tc.want) {
			t.Errorf("%s: it goes on at %v, %v; want %v", name, there, err, tc.want)
		}
		if s.settle(m, new(tcpStream), nil) {
			t.Errorf("%s: and then it moves", name)
		}
		if s.mayMove(tc.asks) != nil {
			t.Errorf("%s: and may move again", name)
		}
	}
}
