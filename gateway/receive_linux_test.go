package gateway

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

func cmsg(b []byte) *unix.Cmsghdr { return (*unix.Cmsghdr)(unsafe.Pointer(&b[0])) }

func udpSocket(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// batch is as quic-go reads: eight messages of a packet's size.
func batch() []ipv4.Message {
	m := make([]ipv4.Message, 8)
	for i := range m {
		m[i] = ipv4.Message{Buffers: [][]byte{make([]byte, 1452)}, OOB: make([]byte, 128)}
	}
	return m
}

// TestBurstsAreCut: what was sent as one buffer comes as the packets that it was made of, in order, and with its sender's address.
func TestBurstsAreCut(t *testing.T) {
	to, from := udpSocket(t), udpSocket(t)
	r := newReceiver(to)
	const size = 1200
	sent := 0
	send := func(packets, last int) {
		t.Helper()
		var burst []byte
		for i := range packets {
			p := make([]byte, size)
			if i == packets-1 {
				p = p[:last]
			}
			copy(p, fmt.Sprintf("%06d", sent))
			sent++
			burst = append(burst, p...)
		}
		control := make([]byte, unix.CmsgSpace(2))
		h := cmsg(control)
		h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
		h.SetLen(unix.CmsgLen(2))
		copy(control[unix.CmsgLen(0):], []byte{size & 0xff, size >> 8})
		if _, _, err := from.WriteMsgUDP(burst, control, to.LocalAddr().(*net.UDPAddr)); err != nil {
			t.Fatal(err)
		}
	}
	want := []int{}
	for _, b := range []struct{ packets, last int }{{40, size}, {1, 30}, {17, 7}, {2, size}} {
		send(b.packets, b.last)
		for i := range b.packets {
			if i == b.packets-1 {
				want = append(want, b.last)
			} else {
				want = append(want, size)
			}
		}
	}
	messages := batch()
	_ = to.SetReadDeadline(time.Now().Add(5 * time.Second))
	for got := 0; got < len(want); {
		n, err := r.ReadBatch(messages, 0)
		if err != nil {
			t.Fatalf("after %d packets of %d: %v", got, len(want), err)
		}
		for _, m := range messages[:n] {
			if m.N != want[got] || string(m.Buffers[0][:6]) != fmt.Sprintf("%06d", got) {
				t.Fatalf("packet %d: %d bytes that begin with %q; want %d", got, m.N, m.Buffers[0][:6], want[got])
			}
			if m.Addr.String() != from.LocalAddr().String() {
				t.Fatalf("packet %d is from %s", got, m.Addr)
			}
			got++
		}
	}
}

// TestEmptyPacketEndsNothing: a packet without a byte is one, too.
func TestEmptyPacketEndsNothing(t *testing.T) {
	to, from := udpSocket(t), udpSocket(t)
	r := newReceiver(to)
	for _, p := range []string{"", "after"} {
		if _, err := from.WriteTo([]byte(p), to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	_ = to.SetReadDeadline(time.Now().Add(5 * time.Second))
	var got []string
	for len(got) < 2 {
		messages := batch()
		n, err := r.ReadBatch(messages, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages[:n] {
			got = append(got, string(m.Buffers[0][:m.N]))
		}
	}
	if got[0] != "" || got[1] != "after" {
		t.Errorf("got %q", got)
	}
}

// slowConn looks at what it was given when it is told to.
type slowConn struct {
	ctx  context.Context //nolint:containedctx // as a connection has one
	from net.Addr
	seen atomic.Uint64
}

func (c *slowConn) Context() context.Context { return c.ctx }
func (c *slowConn) RemoteAddr() net.Addr     { return c.from }
func (c *slowConn) ConnectionStats() quic.ConnectionStats {
	return quic.ConnectionStats{BytesReceived: c.seen.Load()}
}

// TestNoMoreThanAConnectionTakes: packets wait in the kernel while a connection is behind, and come when it has caught up.
func TestNoMoreThanAConnectionTakes(t *testing.T) {
	to, from := udpSocket(t), udpSocket(t)
	_ = to.SetReadBuffer(1 << 20)
	r := newReceiver(to)
	c := &slowConn{ctx: t.Context(), from: from.LocalAddr()}
	r.watch(c)
	r.backlog(from.LocalAddr()).patience = time.Hour // whoever is behind stays so until the test says otherwise
	const packets = 3 * maxKnown
	const size = 100
	go func() {
		for i := range packets {
			_, _ = from.WriteTo(make([]byte, size), to.LocalAddr())
			if i%50 == 0 {
				time.Sleep(time.Millisecond) // so that the kernel's buffer has room
			}
		}
	}()
	var given atomic.Int64
	done := make(chan error, 1)
	_ = to.SetReadDeadline(time.Now().Add(20 * time.Second))
	go func() {
		messages := batch()
		for given.Load() < packets {
			n, err := r.ReadBatch(messages, 0)
			if err != nil {
				done <- err
				return
			}
			given.Add(int64(n))
		}
		done <- nil
	}()
	for looked := int64(0); looked < packets; {
		for given.Load() <= looked {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(2 * time.Millisecond) // what it may be given comes
		if behind := given.Load() - looked; behind > maxKnown {
			t.Fatalf("it was given %d packets that it hasn't looked at", behind)
		}
		looked = given.Load()
		c.seen.Store(uint64(looked) * size)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestAConnectionThatIsStuckHoldsUpNobodyForLong: nor do packets that no connection counts.
func TestAConnectionThatIsStuckHoldsUpNobodyForLong(t *testing.T) {
	to, from := udpSocket(t), udpSocket(t)
	r := newReceiver(to)
	r.watch(&slowConn{ctx: t.Context(), from: from.LocalAddr()})
	_ = to.SetReadDeadline(time.Now().Add(20 * time.Second))
	messages := batch()
	for range 10 * maxKnown {
		if _, err := from.WriteTo(make([]byte, 100), to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadBatch(messages, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBacklogIsOfTheAddress: a connection that has moved is found again, one that has ended is forgotten.
func TestBacklogIsOfTheAddress(t *testing.T) {
	r := newReceiver(udpSocket(t))
	ctx, cancel := context.WithCancel(t.Context())
	one, two := net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}, net.UDPAddr{IP: net.IPv4(192, 0, 2, 1).To4(), Port: 2}
	c := &slowConn{ctx: ctx, from: &one}
	r.watch(c)
	if b := r.backlog(&one); b == nil || b.conn != c || b.patience != patienceAlone {
		t.Errorf("its address: %+v", b)
	}
	if b := r.backlog(&two); b != nil {
		t.Errorf("a stranger's address: %+v", b)
	}
	c.from = &two
	r.searched = time.Time{}
	if b := r.backlog(&two); b == nil || b.conn != c {
		t.Errorf("the address that it moved to: %+v", b)
	}
	cancel()
	r.searched = time.Time{}
	if b := r.backlog(&two); b != nil || len(r.conns) != 0 {
		t.Errorf("after its end: %+v, %d connections", b, len(r.conns))
	}
}
