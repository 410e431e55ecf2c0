package gateway

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// memnet is TCP in memory, for virtual time: half-closes, resets and full buffers are as the kernel's.
type memnet struct {
	mu        sync.Mutex
	listeners map[string]*memListener // guarded by mu, by address
	ports     uint16                  // guarded by mu
	latency   time.Duration           // one way, of what dialFar dials
}

const memBuffer = 64 << 10

func newMemnet() *memnet { return &memnet{listeners: make(map[string]*memListener)} }

func (n *memnet) listen(address string) *memListener {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &memListener{net: n, addr: memAddr(address), queue: make(chan net.Conn, 16), closed: make(chan struct{})}
	n.listeners[address] = l
	return l
}

func (n *memnet) dial(address string) (*memConn, error) { return n.dialFor(address, 0) }

func (n *memnet) dialFor(address string, latency time.Duration) (*memConn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.ports++
	from := memAddr(fmt.Sprintf("192.0.2.1:%d", n.ports))
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("dial %s: %w", address, syscall.ECONNREFUSED)
	}
	up, down := newMemHalf(), newMemHalf()
	up.latency, down.latency = latency, latency
	client := &memConn{in: down, out: up, local: from, remote: l.addr}
	server := &memConn{in: up, out: down, local: l.addr, remote: from}
	select {
	case l.queue <- server:
		return client, nil
	case <-l.closed:
		return nil, fmt.Errorf("dial %s: %w", address, syscall.ECONNREFUSED)
	}
}

// dialFar is dial across a network on which bytes travel for latency.
func (n *memnet) dialFar(address string) (*memConn, error) {
	c, err := n.dialFor(address, n.latency)
	if err == nil {
		time.Sleep(2 * n.latency) // SYN, and its answer
	}
	return c, err
}

func (n *memnet) dialAddrPort(a netip.AddrPort) (net.Conn, error) {
	c, err := n.dial(a.String())
	if err != nil {
		return nil, err
	}
	return c, nil
}

type memAddr string

func (memAddr) Network() string  { return "tcp" }
func (a memAddr) String() string { return string(a) }

type memListener struct {
	net    *memnet
	addr   memAddr
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() {
		l.net.mu.Lock()
		defer l.net.mu.Unlock()
		delete(l.net.listeners, string(l.addr))
		close(l.closed)
	})
	return nil
}

func (l *memListener) Addr() net.Addr { return l.addr }

// memHalf is one direction.
type memHalf struct {
	mu       sync.Mutex
	cond     *sync.Cond
	buf      []byte
	eof      bool  // the writer has sent FIN
	reset    error // somebody has sent RST
	noReader bool  // the reader has closed
	total    int64 // bytes ever written

	latency time.Duration
	flying  []memFlight // on the way
	inAir   int         // bytes of them
}

// memFlight is what was written and hasn't arrived.
type memFlight struct {
	at    time.Time
	bytes []byte
	eof   bool
}

// send puts p, or the end, on its way. mu is held.
func (h *memHalf) send(p []byte, eof bool) {
	if h.latency == 0 {
		h.buf = append(h.buf, p...)
		h.eof = h.eof || eof
		return
	}
	h.flying = append(h.flying, memFlight{time.Now().Add(h.latency), append([]byte(nil), p...), eof})
	h.inAir += len(p)
	time.AfterFunc(h.latency, func() {
		h.update(func() {
			for len(h.flying) > 0 && !h.flying[0].at.After(time.Now()) {
				f := h.flying[0]
				h.flying = h.flying[1:]
				h.inAir -= len(f.bytes)
				h.buf = append(h.buf, f.bytes...)
				h.eof = h.eof || f.eof
			}
		})
	})
}

func newMemHalf() *memHalf {
	h := new(memHalf)
	h.cond = sync.NewCond(&h.mu)
	return h
}

func (h *memHalf) update(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	h.cond.Broadcast()
}

type memConn struct {
	in, out       *memHalf
	local, remote memAddr

	mu     sync.Mutex
	linger bool // guarded by mu: SetLinger(0)
	closed bool // guarded by mu

	readBy, writeBy memDeadline
}

// memDeadline is guarded by the mutex of the half that it is for.
type memDeadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *memDeadline) set(h *memHalf, at time.Time) {
	h.update(func() {
		d.at = at
		if d.timer != nil {
			d.timer.Stop()
		}
		if !at.IsZero() {
			d.timer = time.AfterFunc(time.Until(at), func() { h.update(func() {}) })
		}
	})
}

func (d *memDeadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (c *memConn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c *memConn) Read(p []byte) (int, error) {
	h := c.in
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case c.isClosed():
			return 0, net.ErrClosed
		case h.reset != nil:
			return 0, h.reset
		case c.readBy.passed():
			return 0, os.ErrDeadlineExceeded
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			h.buf = h.buf[n:]
			h.cond.Broadcast()
			return n, nil
		case h.eof:
			return 0, io.EOF
		}
		h.cond.Wait()
	}
}

func (c *memConn) Write(p []byte) (n int, err error) {
	h := c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case c.isClosed():
			return n, net.ErrClosed
		case h.reset != nil:
			return n, h.reset
		case h.noReader, h.eof:
			return n, syscall.EPIPE
		case c.writeBy.passed():
			return n, os.ErrDeadlineExceeded
		}
		room := min(memBuffer-len(h.buf)-h.inAir, len(p))
		h.send(p[:room], false)
		h.total += int64(room)
		n += room
		p = p[room:]
		h.cond.Broadcast()
		if len(p) == 0 {
			return n, nil
		}
		h.cond.Wait()
	}
}

func (c *memConn) CloseWrite() error {
	c.out.update(func() { c.out.send(nil, true) })
	return nil
}

func (c *memConn) SetLinger(sec int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.linger = sec == 0
	return nil
}

func (c *memConn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	rst := c.linger
	c.mu.Unlock()
	c.in.update(func() {
		rst = rst || len(c.in.buf) > 0 // as the kernel does
		c.in.noReader = true
		if rst {
			c.in.reset = syscall.ECONNRESET
		}
	})
	c.out.update(func() {
		c.out.send(nil, true)
		if rst {
			c.out.reset = syscall.ECONNRESET
		}
	})
	c.readBy.set(c.in, time.Time{})
	c.writeBy.set(c.out, time.Time{})
	return nil
}

func (c *memConn) LocalAddr() net.Addr  { return c.local }
func (c *memConn) RemoteAddr() net.Addr { return c.remote }

func (c *memConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.readBy.set(c.in, t)
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.writeBy.set(c.out, t)
	return nil
}

var _ net.Conn = (*memConn)(nil)
