package gateway

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
)

// A caller that reads slowly reads the end, too: it isn't cut off when the last of it has to wait.
func TestASlowCallerReadsTheEnd(t *testing.T) {
	inBubble(t, func(w *world) {
		more := make(chan int)
		eu, us := twoClusters(w, 1)
		us[0].c.export("fill.shop", nil, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1))
			for n := range more {
				_, _ = c.Write(make([]byte, n))
			}
			_ = c.Close()
		})
		w.publish()
		c := eu.open("us", "fill.shop", "x")
		if _, err := preamble.ReadReply(c); err != nil {
			t.Fatal(err)
		}
		sent := 0
		send := func(n int) {
			more <- n
			sent += n
			time.Sleep(4 * oneWay)
		}
		room := func() int {
			c.raw.in.mu.Lock()
			defer c.raw.in.mu.Unlock()
			return memBuffer - len(c.raw.in.buf)
		}
		const closeNotify = 24 // a record of an alert
		send(memBuffer - 8<<10)
		for room() >= closeNotify {
			send(1)
		}
		close(more)
		time.Sleep(time.Minute)
		if all, err := io.ReadAll(c); err != nil || len(all) != sent {
			t.Errorf("read %d of %d bytes, %v", len(all), sent, err)
		}
		_ = c.Close()
	})
}
