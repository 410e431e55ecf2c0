package gateway

import (
	"io"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
)

func TestBulkIsMuchAtOnce(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		b := newBulk()
		f := flow{of: b}
		for range 100 { // a long call: as much, but never much at once
			f.add(bulkAt / 10)
			time.Sleep(bulkSpell / 5)
		}
		if got := b.weight(time.Now()); got != 0 {
			t.Errorf("a long call weighs %d", got)
		}
		for range 40 {
			f.add(bulkAt / 4)
			time.Sleep(time.Millisecond)
		}
		heavy := b.weight(time.Now())
		if heavy < 8*bulkAt/bulkCall/2 {
			t.Errorf("bulk weighs %d", heavy)
		}
		time.Sleep(bulkSpell)
		if got := b.weight(time.Now()); got >= heavy || got == 0 {
			t.Errorf("a spell later it weighs %d, first %d", got, heavy)
		}
		time.Sleep(20 * bulkSpell)
		if got := b.weight(time.Now()); got != 0 {
			t.Errorf("long after it weighs %d", got)
		}
		none := flow{}
		none.add(1 << 30) // of no connection
	})
}

// Calls are not placed behind bulk, where each packet of it that is lost would hold them up: they go where it isn't.
func TestCallsAreNotBehindBulk(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1)
		us[0].c.export("flood.shop", nil, flood)
		w.publish()
		bulk := eu.download(1 << 40)
		defer func() { cut(bulk.raw) }()
		go func() { _, _ = io.Copy(io.Discard, bulk) }()
		time.Sleep(500 * time.Millisecond) // it gets going
		for range 12 {
			c := eu.open("us", "checkout.shop", "hello")
			defer func() { cut(c.raw) }()
			if _, err := preamble.ReadReply(c); err != nil {
				t.Fatal(err)
			}
		}
		heavy := 0
		for _, c := range (*eu.links.Load())[clusterName("us")].live() {
			if c.bulk.weight(time.Now()) == 0 {
				continue
			}
			heavy++
			if n := c.active.Load(); n != 1 {
				t.Errorf("the connection with bulk carries %d streams", n)
			}
		}
		if heavy != 1 {
			t.Errorf("bulk is on %d connections", heavy)
		}
	})
}
