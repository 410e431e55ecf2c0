package netns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Eavesdropper reads every packet between the hosts of each site, and between the sites, and notes where a text went in the clear. What
// stays on a host is not heard.
//
// A text that is cut in two by packets is missed: send it many times.
type Eavesdropper struct {
	text []byte
	fds  []int
	done chan struct{}
	once sync.Once
	wait sync.WaitGroup

	mu    sync.Mutex
	heard Heard // guarded by mu
}

// Heard is what an Eavesdropper has heard.
type Heard struct {
	Packets uint64         `json:"packets"`
	Clear   map[string]int `json:"clear"` // packets with the text, by "ADDRESS>ADDRESS"
}

// Eavesdrop begins to listen for a text, once it has heard itself say it in the clear, from one site to another.
func (n Network) Eavesdrop(ctx context.Context, text string) (*Eavesdropper, error) {
	e := &Eavesdropper{text: []byte(text), done: make(chan struct{}), heard: Heard{Clear: make(map[string]int)}}
	for _, s := range n.Sites {
		err := Do(n.Router(s.Name), func() error {
			fd, err := packetSocket()
			if err == nil {
				e.fds = append(e.fds, fd)
			}
			return err
		})
		if err != nil {
			e.Close()
			return nil, fmt.Errorf("netns: listen in %s: %w", n.Router(s.Name), err)
		}
	}
	for _, fd := range e.fds {
		e.wait.Go(func() { e.read(fd) })
	}
	if err := e.prove(ctx, n); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

// prove says the text in the clear, from one site to another, and waits until that is heard; then it forgets it.
func (e *Eavesdropper) prove(ctx context.Context, n Network) error {
	from, to := n.Sites[0], n.Sites[len(n.Sites)-1]
	const discard = "9"
	c, err := Dial(ctx, n.Host(from.Name, from.Hosts[0]), "udp", net.JoinHostPort(n.Address(to.Name, to.Hosts[0]).String(), discard))
	if err != nil {
		return fmt.Errorf("netns: %w", err)
	}
	defer func() { _ = c.Close() }()
	for range 100 {
		if _, err := c.Write(e.text); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("netns: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
		if len(e.Heard().Clear) > 0 {
			break
		}
	}
	time.Sleep(200 * time.Millisecond) // what is on its way still
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.heard.Clear) == 0 {
		return errors.New("netns: what was said in the clear was not heard: the wires can't be listened to")
	}
	clear(e.heard.Clear)
	return nil
}

func packetSocket() (int, error) {
	const allProtocols = 0x0300 // htons(ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, allProtocols)
	if err != nil {
		return 0, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	// A packet is heard where it comes in: from its machine, or from the WAN. Once is enough, where the kernel knows of this (Linux 4.20).
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	// A read that ends by itself lets Close be heard.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		_ = unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

func (e *Eavesdropper) read(fd int) {
	packet := make([]byte, 1<<17)
	for {
		select {
		case <-e.done:
			return
		default:
		}
		n, _, err := unix.Recvfrom(fd, packet, 0)
		if err != nil {
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			return
		}
		e.packet(packet[:n])
	}
}

// packet notes one of IPv4 that holds the text.
func (e *Eavesdropper) packet(b []byte) {
	spoken := bytes.Contains(b, e.text)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard.Packets++
	const header = 20
	if !spoken || len(b) < header {
		return
	}
	end := func(address []byte, port int) string {
		a := netip.AddrFrom4([4]byte(address))
		if head := int(b[0]&0x0f) * 4; len(b) >= head+4 {
			return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[head+port:])).String()
		}
		return a.String()
	}
	e.heard.Clear[end(b[12:16], 0)+">"+end(b[16:20], 2)]++
}

// Heard returns what was heard so far.
func (e *Eavesdropper) Heard() Heard {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.heard
	h.Clear = maps.Clone(h.Clear)
	return h
}

// Close stops to listen, and returns what was heard.
func (e *Eavesdropper) Close() Heard {
	e.once.Do(func() {
		close(e.done)
		e.wait.Wait()
		for _, fd := range e.fds {
			_ = unix.Close(fd)
		}
	})
	return e.Heard()
}
