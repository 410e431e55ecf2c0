package gateway

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// How packets are received. The kernel may hand over a burst of one flow as one buffer (UDP_GRO, udp(7)), at a fraction of the cost of as many
// packets; quic-go reads packets through ReadBatch of a connection that has it, so they are cut apart here.
const (
	// maxBurst is the most that the kernel joins: what an IP packet may be.
	maxBurst = 1 << 16
	// burstsAtOnce is how many buffers are taken from the kernel with one call. Where nothing is joined, only the first bytes of a buffer are ever
	// touched.
	burstsAtOnce = 4
	// controlSize is room for what comes with a buffer: the size of its packets, ECN and the local address.
	controlSize = 128
)

// A connection of quic-go has room for 256 packets that it hasn't looked at, and drops what comes on top: a loss like any other, which halves the
// speed of a sender whose path has lost nothing. The kernel's buffer has room for thousands, so packets are left there while a connection is behind.
const (
	maxBehind = 192
	maxKnown  = 256
	// patienceAlone and patienceShared are how long a connection that is behind may keep its socket from being read: one of its own, or one that
	// others have a part in. It bounds what packets that no connection counts (a stranger's) can hold up, too.
	patienceAlone  = 5 * time.Millisecond
	patienceShared = time.Millisecond
	yieldFor       = 200 * time.Microsecond
	lookBehind     = 100 * time.Microsecond
	// lookForMoved is how often to look for a connection whose address has changed.
	lookForMoved = 100 * time.Millisecond
)

// served is a *quic.Conn, as far as a receiver knows it.
type served interface {
	Context() context.Context
	RemoteAddr() net.Addr
	ConnectionStats() quic.ConnectionStats
}

// receiver is a UDP socket that is read in bursts. One goroutine reads.
type receiver struct {
	*net.UDPConn
	batch  *ipv4.PacketConn // of IPv6, too: the messages are the same
	bursts []ipv4.Message
	next   int // of bursts, to be cut
	at     int // of its bytes

	refusals *refusals // nil: nobody wants to hear of them

	mu       sync.Mutex
	conns    []served                    // guarded by mu
	backlogs map[netip.AddrPort]*backlog // guarded by mu; by the peer's address
	searched time.Time                   // guarded by mu
}

// newReceiver returns c with receive offload, if the kernel has that.
func newReceiver(c *net.UDPConn) *receiver {
	if raw, err := c.SyscallConn(); err == nil {
		// Without it, there is one packet in a buffer.
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) })
	}
	r := &receiver{UDPConn: c, batch: ipv4.NewPacketConn(c), bursts: make([]ipv4.Message, burstsAtOnce)}
	for i := range r.bursts {
		r.bursts[i].Buffers = [][]byte{make([]byte, maxBurst)}
		r.bursts[i].OOB = make([]byte, controlSize)
	}
	r.bursts = r.bursts[:0]
	return r
}

// ReadBatch returns at least one packet, and no more than there are messages for. It is what quic-go looks for.
func (r *receiver) ReadBatch(messages []ipv4.Message, flags int) (n int, err error) {
	if r.next == len(r.bursts) {
		r.bursts, r.next, r.at = r.bursts[:burstsAtOnce], 0, 0
		got, err := r.batch.ReadBatch(r.bursts, flags)
		for err != nil && r.pending(err) {
			got, err = r.batch.ReadBatch(r.bursts, flags)
		}
		r.bursts = r.bursts[:max(got, 0)]
		if err != nil || got == 0 {
			return 0, err
		}
	}
	for n < len(messages) && r.next < len(r.bursts) {
		burst := &r.bursts[r.next]
		n += r.cut(burst, messages[n:])
		if r.at >= burst.N {
			r.next, r.at = r.next+1, 0
		}
	}
	return n, nil
}

// cut gives each message a packet of a burst, and returns how many.
func (r *receiver) cut(burst *ipv4.Message, messages []ipv4.Message) (n int) {
	b := r.backlog(burst.Addr)
	b.wait()
	size := joined(burst.OOB[:burst.NN])
	if size == 0 {
		size = burst.N
	}
	for n < len(messages) && (r.at < burst.N || n == 0) {
		m, packet := &messages[n], burst.Buffers[0][r.at:min(r.at+size, burst.N)]
		m.N = copy(m.Buffers[0], packet)
		m.NN = copy(m.OOB, burst.OOB[:burst.NN])
		m.Flags, m.Addr = burst.Flags, burst.Addr
		b.add(m.N)
		r.at += len(packet)
		if n++; len(packet) == 0 {
			break
		}
	}
	return n
}

// joined reads the size of the packets in a buffer; 0: there is one.
func joined(control []byte) int {
	for len(control) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return 0
		}
		if header.Level == unix.IPPROTO_UDP && header.Type == unix.UDP_GRO && len(data) >= 4 {
			return int(binary.NativeEndian.Uint32(data))
		}
		control = rest
	}
	return 0
}

// watch makes the receiver wait for c when it is behind, until c has ended.
func (r *receiver) watch(c served) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns = append(r.conns, c)
	r.backlogs = nil
}

// backlog returns the backlog of the connection with a peer's address; nil when there is none.
func (r *receiver) backlog(of net.Addr) *backlog {
	address, ok := plain(of)
	if !ok {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.backlogs[address]
	if ok && !b.ended() {
		return b
	}
	now := time.Now()
	if r.backlogs != nil && now.Sub(r.searched) < lookForMoved {
		return nil
	}
	r.searched = now
	// Connections come, go and move to other addresses.
	r.conns = slices.DeleteFunc(r.conns, func(c served) bool { return c.Context().Err() != nil })
	old := r.backlogs
	r.backlogs = make(map[netip.AddrPort]*backlog, len(r.conns))
	patience := patienceShared
	if len(r.conns) == 1 {
		patience = patienceAlone
	}
	for _, c := range r.conns {
		at, ok := plain(c.RemoteAddr())
		if !ok {
			continue
		}
		kept := old[at]
		if kept == nil || kept.conn != c {
			kept = &backlog{conn: c, total: c.ConnectionStats().BytesReceived}
		}
		kept.patience = patience
		r.backlogs[at] = kept
	}
	return r.backlogs[address]
}

// plain returns an address in the one form that can be compared.
func plain(a net.Addr) (netip.AddrPort, bool) {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	at := u.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), true
}

// backlog is what a connection was given and hasn't looked at. Only the reader uses it. A nil one is never behind.
type backlog struct {
	conn     served
	patience time.Duration
	total    uint64           // bytes that it was given, and those that it had before
	ends     [maxKnown]uint64 // of the packets that it was given: what total was after each
	from, to int              // of ends, never wrapped: the packets that it hasn't looked at
}

func (b *backlog) ended() bool { return b.conn.Context().Err() != nil }

// add notes a packet that will be given to it. Call wait before.
func (b *backlog) add(size int) {
	if b == nil {
		return
	}
	b.total += uint64(size) //nolint:gosec // G115: not negative
	b.ends[b.to%maxKnown] = b.total
	if b.to++; b.to-b.from > maxKnown {
		b.from++
	}
}

// look finds out what it has looked at since.
func (b *backlog) look() (behind int) {
	seen := b.conn.ConnectionStats().BytesReceived
	for b.from < b.to && b.ends[b.from%maxKnown] <= seen {
		b.from++
	}
	if b.from == b.to {
		b.total = max(b.total, seen) // it was given packets that came another way
	}
	return b.to - b.from
}

// wait waits while the connection is behind, but no longer than is good for it.
func (b *backlog) wait() {
	if b == nil || b.to-b.from < maxBehind {
		return
	}
	for began := time.Now(); b.look() >= maxBehind; {
		switch waited := time.Since(began); {
		case waited < yieldFor:
			runtime.Gosched() // it may wait for nothing but this processor
		case waited < b.patience:
			time.Sleep(lookBehind)
		default:
			// It never got some of them, or it is stuck. Start anew.
			b.from, b.total = b.to, b.conn.ConnectionStats().BytesReceived
			return
		}
	}
}
