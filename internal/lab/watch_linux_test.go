package lab_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// canCapture returns why packets can't be read here.
func canCapture() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return fmt.Errorf("packets can't be read (socket of AF_PACKET: %w): it takes CAP_NET_RAW, as with: sudo go test ./internal/lab", err)
	}
	return unix.Close(fd)
}

// watcher reads every packet of the loopback interface and notes between which ports a text went in the clear.
// A text that is cut in two by packets of 64 KiB is missed; the text is sent many times.
type watcher struct {
	text []byte
	fd   int
	done chan struct{}
	once sync.Once

	reading sync.WaitGroup

	mu      sync.Mutex
	seen    map[flow]int // guarded by mu
	packets int          // guarded by mu
}

type flow struct{ from, to uint16 }

func newWatcher(text string) (*watcher, error) {
	const allProtocols = 0x0300 // htons(ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, allProtocols)
	if err != nil {
		return nil, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	// A read that ends by itself lets close be heard.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	w := &watcher{text: []byte(text), fd: fd, done: make(chan struct{}), seen: map[flow]int{}}
	w.reading.Go(w.read)
	return w, nil
}

// prove says the text in the clear, in a datagram, and waits until that is seen; then it forgets it.
func (w *watcher) prove() error {
	from, err := net.Dial("udp4", net.JoinHostPort("127.0.0.1", "9"))
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	for range 100 {
		_, _ = from.Write(w.text) // nobody takes it
		time.Sleep(20 * time.Millisecond)
		w.mu.Lock()
		seen := len(w.seen)
		w.mu.Unlock()
		if seen > 0 {
			time.Sleep(200 * time.Millisecond) // what was said before is seen by then
			w.mu.Lock()
			clear(w.seen)
			w.mu.Unlock()
			return nil
		}
	}
	return errors.New("what was said in the clear was not seen: the loopback interface can't be watched")
}

func (w *watcher) close() {
	w.once.Do(func() { close(w.done) })
	w.reading.Wait()
}

func (w *watcher) read() {
	defer func() { _ = unix.Close(w.fd) }()
	packet := make([]byte, 1<<17)
	for {
		select {
		case <-w.done:
			return
		default:
		}
		n, _, err := unix.Recvfrom(w.fd, packet, 0)
		if err != nil {
			if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
				continue
			}
			return
		}
		w.packet(packet[:n])
	}
}

// packet notes an IPv4 packet of TCP or UDP that holds the text.
func (w *watcher) packet(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packets++
	if len(b) < 20 || b[0]>>4 != 4 || b[9] != unix.IPPROTO_TCP && b[9] != unix.IPPROTO_UDP || !bytes.Contains(b, w.text) {
		return
	}
	head := int(b[0]&0x0f) * 4
	if len(b) < head+4 {
		return
	}
	w.seen[flow{binary.BigEndian.Uint16(b[head:]), binary.BigEndian.Uint16(b[head+2:])}]++
}

func (m *mesh) watch(ts *testscript.TestScript, args []string) (err error) {
	switch {
	case len(args) == 2 && args[0] == "start" && m.isNet:
		m.wires, err = m.pg.Eavesdrop(m.ctx, args[1]) // once it has heard a datagram that says it
		return err
	case len(args) == 2 && args[0] == "start":
		if m.watcher, err = newWatcher(args[1]); err != nil {
			return err
		}
		return m.watcher.prove()
	case len(args) == 1 && args[0] == "stop" && m.wires != nil:
		return m.judgeWires(ts)
	case len(args) == 1 && args[0] == "stop" && m.watcher != nil:
		m.watcher.close()
		return m.judge(ts)
	default:
		return errUsage
	}
}

// judgeWires tells what was heard between the test, which stands in for applications, and their sidecars from all else.
func (m *mesh) judgeWires(ts *testscript.TestScript) error {
	heard := m.wires.Close()
	own := 0
	var leaks []string
	for flow, n := range heard.Clear {
		from, to, _ := strings.Cut(flow, ">")
		if m.outside[hostOf(from)] || m.outside[hostOf(to)] {
			own += n
		} else {
			leaks = append(leaks, fmt.Sprintf("%d times %s", n, flow))
		}
	}
	ts.Logf("%d packets; in the clear: %d between an application and its sidecar, %v elsewhere", heard.Packets, own, leaks)
	if len(leaks) > 0 || own == 0 {
		return fmt.Errorf("of %d packets, in the clear: %d where it should be; where it should not: %v", heard.Packets, own, leaks)
	}
	return nil
}

func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

// judge tells the hops that are in the clear by design, between an application and its own sidecar, from all others.
func (m *mesh) judge(ts *testscript.TestScript) error {
	st, err := m.pg.Status(m.ctx)
	if err != nil {
		return err
	}
	own := map[uint16]string{}
	for _, c := range st.Clusters {
		for _, p := range c.Processes {
			for _, purpose := range []string{"proxy", "http", "tcp", "udp"} {
				if n, ok := p.Ports[purpose]; ok {
					own[uint16(n)] = c.Name + "/" + p.Name + " " + purpose
				}
			}
		}
	}
	w := m.watcher
	w.mu.Lock()
	defer w.mu.Unlock()
	hops := map[string]int{}
	var leaks []string
	for f, n := range w.seen {
		switch {
		case own[f.from] != "":
			hops[own[f.from]] += n
		case own[f.to] != "":
			hops[own[f.to]] += n
		default:
			leaks = append(leaks, fmt.Sprintf("%d times from port %d to port %d", n, f.from, f.to))
		}
	}
	ts.Logf("%d packets; in the clear: %v", w.packets, hops)
	if len(leaks) > 0 {
		return fmt.Errorf("%q was in the clear: %s", w.text, strings.Join(leaks, ", "))
	}
	// The proxy that was called and the application that answered: otherwise the watcher was blind.
	if len(hops) < 2 {
		return fmt.Errorf("%q was seen only at %v, of %d packets", w.text, slices.Collect(maps.Keys(hops)), w.packets)
	}
	return nil
}
