package wan

import (
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// TestListen and TestDial are what runs in the namespaces: the test's own program, again.
func TestListen(t *testing.T) {
	at := os.Getenv("WAN_TEST_LISTEN")
	if at == "" {
		t.Skip("run by TestKernels")
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}()
	}
}

func TestDial(t *testing.T) {
	to := os.Getenv("WAN_TEST_DIAL")
	if to == "" {
		t.Skip("run by TestKernels")
	}
	var c net.Conn
	var err error
	for range 10 {
		if c, err = net.DialTimeout("tcp", to, time.Second); err == nil {
			break
		}
		if os.Getenv("WAN_TEST_ONCE") != "" {
			break
		}
		time.Sleep(50 * time.Millisecond) // the other end may be starting
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err = c.Write([]byte("echoed")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if _, err = io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.Write(got)
}
