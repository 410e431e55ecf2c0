package gateway

import (
	"bytes"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// TestRefusalHeardByAnother: a call that fails for a refusal which another goroutine has heard meanwhile is made again. Errors of the socket itself are errors.
func TestRefusalHeardByAnother(t *testing.T) {
	r := newReceiver(udpSocket(t))
	r.listen(func() { t.Error("nothing was refused") })
	for errno, want := range map[unix.Errno]bool{unix.ECONNREFUSED: true, unix.EHOSTUNREACH: true, unix.EMSGSIZE: true, unix.EBADF: false, unix.ENOBUFS: false} {
		err := &net.OpError{Op: "read", Net: "udp", Err: os.NewSyscallError("recvmsg", errno)}
		if got := r.pending(err); got != want {
			t.Errorf("%v: made again: %t, want %t", err, got, want)
		}
	}
}

// TestRefusalIsHeard: a socket hears that nobody listens where it sends to, believes it only of packets that it has sent, and goes on.
func TestRefusalIsHeard(t *testing.T) {
	for _, local := range []string{"127.0.0.1:0", "[::]:0"} {
		t.Run(local, func(t *testing.T) {
			c, err := net.ListenPacket("udp", local)
			if err != nil {
				t.Skip(err)
			}
			defer func() { _ = c.Close() }()
			told := make(chan struct{}, 1)
			r := newReceiver(c.(*net.UDPConn))
			r.listen(func() {
				select {
				case told <- struct{}{}:
				default:
				}
			})

			listener := udpSocket(t)
			nobody := udpSocket(t)
			nowhere := nobody.LocalAddr().(*net.UDPAddr)
			_ = nobody.Close()

			packet := func(b byte) []byte { return bytes.Repeat([]byte{b}, fingerprintSize) }
			read := func(want error) {
				t.Helper()
				_ = r.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				m := []ipv4.Message{{Buffers: [][]byte{make([]byte, 100)}, OOB: make([]byte, controlSize)}}
				if _, err := r.ReadBatch(m, 0); !errors.Is(err, want) {
					t.Fatalf("ReadBatch: %v, want %v", err, want)
				}
			}

			// A refusal of what it has not sent, as a stranger would send one.
			if _, _, err := r.UDPConn.WriteMsgUDP(packet(1), nil, nowhere); err != nil {
				t.Fatal(err)
			}
			read(os.ErrDeadlineExceeded) // and no error for quic-go, which would give the socket up
			select {
			case <-told:
				t.Fatal("a refusal of a packet that was never sent is believed")
			default:
			}

			// The first is the one that is refused, the second the one that the kernel fails for it.
			for range 2 {
				if _, _, err := r.WriteMsgUDP(packet(2), nil, nowhere); err != nil {
					t.Fatal(err)
				}
			}
			read(os.ErrDeadlineExceeded)
			select {
			case <-told:
			default:
				t.Fatal("a refusal isn't heard")
			}

			if _, _, err := r.WriteMsgUDP(packet(3), nil, listener.LocalAddr().(*net.UDPAddr)); err != nil {
				t.Fatal(err)
			}
			_ = listener.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, from, err := listener.ReadFrom(make([]byte, 100)); err != nil {
				t.Fatal(err)
			} else if _, err := listener.WriteTo(packet(4), from); err != nil {
				t.Fatal(err)
			}
			_ = r.SetReadDeadline(time.Now().Add(10 * time.Second))
			m := []ipv4.Message{{Buffers: [][]byte{make([]byte, 100)}, OOB: make([]byte, controlSize)}}
			if n, err := r.ReadBatch(m, 0); err != nil || n != 1 {
				t.Fatalf("ReadBatch: %d, %v: the socket is no good any more", n, err)
			}
		})
	}
}
