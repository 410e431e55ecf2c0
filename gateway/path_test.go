package gateway

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
)

// flood answers with as many bytes as it is asked for.
func flood(c net.Conn) {
	var size [8]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		cut(c)
		return
	}
	chunk := make([]byte, 32<<10)
	for left := binary.BigEndian.Uint64(size[:]); left > 0; {
		n, err := c.Write(chunk[:min(left, uint64(len(chunk)))])
		if err != nil {
			cut(c)
			return
		}
		left -= uint64(n)
	}
	_ = c.Close()
}

// download opens a stream that is answered with size bytes.
func (g *testGateway) download(size uint64) *call {
	g.c.w.t.Helper()
	c := g.open("us", "flood.shop", string(binary.BigEndian.AppendUint64(nil, size)))
	if _, err := preamble.ReadReply(c); err != nil {
		g.c.w.t.Fatal(err)
	}
	return c
}

// A connection that has known a shorter way takes the longer one for a queue, and keeps its window small. Bulk gets it another path, where it
// finds out anew; nothing that it carries is lost or stands still.
func TestSlowBulkGetsAnotherPath(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1)
		us[0].c.export("flood.shop", nil, flood)
		w.publish()
		w.router.delay(60 * time.Millisecond)
		for range 20 { // its slow start is over
			if _, echoed, err := eu.ask("us", "checkout.shop", "hello"); err != nil || echoed != "hello" {
				t.Fatalf("%q, %v", echoed, err)
			}
		}
		const size = 32 << 20
		bulk := eu.download(size)
		defer func() { cut(bulk.raw) }()
		began := time.Now()
		read := make(chan int64)
		go func() {
			n, err := io.Copy(io.Discard, bulk)
			if err != nil {
				t.Errorf("bulk: %v", err)
			}
			read <- n
		}()
		var n int64
		for done := false; !done; {
			select {
			case n = <-read:
				done = true
			case <-time.After(100 * time.Millisecond):
				if _, echoed, err := eu.ask("us", "checkout.shop", "beside"); err != nil || echoed != "beside" {
					t.Fatalf("a call beside bulk: %q, %v", echoed, err)
				}
			}
		}
		if n != size {
			t.Errorf("%d bytes of %d", n, size)
		}
		if moved := eu.counterOf("isthmus_link_path_moves_total", "moved"); moved == 0 {
			t.Errorf("%v moves", moved)
		}
		t.Logf("%d bytes in %s", n, time.Since(began))
		synctest.Wait()
	})
}
