package telemetry_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// Who has sent a request and gone, before anybody looked at it, does not wait for it. Who is there does, be it silent or not.
func TestAwaited(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	say := func(close bool) net.Conn {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = io.WriteString(c, "PUT / HTTP/1.1\r\nHost: control\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
			t.Fatal(err)
		}
		if close {
			_ = c.Close()
		}
		return c
	}
	say(true) // all of this before the server takes a connection: as if it had been paused
	awaited := make(chan bool)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- telemetry.ServeHTTP(ctx, ln, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			awaited <- telemetry.Awaited(r)
		}))
	}()
	if <-awaited {
		t.Error("who had gone is waited for")
	}
	there := say(false)
	if !<-awaited {
		t.Error("who is there is not waited for")
	}
	_ = there.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
