package gateway

import (
	"testing"

	"github.com/quic-go/quic-go"
	"pgregory.net/rapid"
)

// A peer that takes all the window memory that it can get leaves as much for whoever comes next.
func TestWindowsLeaveRoom(t *testing.T) {
	var w windows
	const step = 1 << 20
	take := func(cluster string, most uint64) (got uint64) {
		for range 64 { // connections
			c := new(quic.Conn)
			w.assign(c, clusterName(cluster))
			for got < most && w.grow(c, step) {
				got += step
			}
		}
		return got
	}
	if got := take("hostile", 1<<60); got != windowBudget/2 {
		t.Errorf("one peer got %d of %d", got, windowBudget)
	}
	if got := take("accomplice", 1<<60); got > windowBudget/4 {
		t.Errorf("a second one got %d", got)
	}
	if got := take("honest", maxConnectionWindow); got != maxConnectionWindow {
		t.Errorf("beside the two, a third one got %d of %d", got, maxConnectionWindow)
	}
	if w.grow(new(quic.Conn), 1) {
		t.Error("a connection of nobody was granted more")
	}
	for c := range w.conns {
		w.release(c)
		w.release(c)
	}
	if w.total != 0 || len(w.of) != 0 || len(w.conns) != 0 {
		t.Errorf("when all have ended, %d bytes are held, by %v", w.total, w.of)
	}
}

// Whatever is taken and given back, in whatever order: the sums are right, and no peer has more than is free.
func TestWindowsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w windows
		conns := make([]*quic.Conn, 12)
		for i := range conns {
			conns[i] = new(quic.Conn)
		}
		names := []string{"a", "b", "c"}
		t.Repeat(map[string]func(*rapid.T){
			"assign": func(t *rapid.T) {
				i := rapid.IntRange(0, len(conns)-1).Draw(t, "conn")
				w.release(conns[i])
				w.assign(conns[i], clusterName(names[i%len(names)]))
			},
			"grow": func(t *rapid.T) {
				c := conns[rapid.IntRange(0, len(conns)-1).Draw(t, "conn")]
				delta := rapid.Uint64Range(1, windowBudget).Draw(t, "bytes")
				if w.grow(c, delta) {
					if own := w.of[w.conns[c].cluster]; own > windowBudget-w.total {
						t.Fatalf("a peer was granted %d with %d left", own, windowBudget-w.total)
					}
				}
			},
			"release": func(t *rapid.T) { w.release(conns[rapid.IntRange(0, len(conns)-1).Draw(t, "conn")]) },
			"": func(t *rapid.T) {
				var total uint64
				for _, g := range w.conns {
					total += g.bytes
				}
				var of uint64
				for _, n := range w.of {
					of += n
				}
				if total != w.total || of != w.total || total > windowBudget {
					t.Fatalf("granted %d, by peer %d, noted %d", total, of, w.total)
				}
			},
		})
	})
}
