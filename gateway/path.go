package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/quic-go/quic-go"
)

// A path is given another try. Slow start happens once in the life of a connection, and ours live for half an hour: it ends at the first call that
// is answered a few milliseconds late, long before there is anything to send fast, at a window of some 45 KB; from there it is a packet more each
// round trip. quic-go offers no other congestion control, and no way to its state but one: a connection that moves to another path starts there anew,
// at both ends (RFC 9000 section 9.4). So when bulk comes to a connection and stays slow, its dialer moves it to another socket.
const (
	// pathSettles is when a connection's own slow start is over, if it has any.
	pathSettles = 500 * time.Millisecond
	// pathRest is the shortest time between two moves. It doubles with each that has brought nothing.
	pathRest    = 2 * time.Second
	maxPathRest = 10 * time.Minute
	// pathGain is by how much a move has to make bulk faster to have been worth it.
	pathGain = 1.3
	// Bulk is slow when what is on its way at a time is between these: less is no bulk, more is a window that does its work.
	narrowPath = 16 << 10
	widePath   = 2 << 20
	// nearPath is a round trip within which any window is fast.
	nearPath = 2 * time.Millisecond

	probeTimeout = 2 * time.Second
)

// paths moves a dialed connection between two sockets.
type paths struct {
	conn    *quic.Conn
	open    func() (net.PacketConn, *quic.Transport, error)
	sockets [2]*quic.Transport // the second is opened when it is needed
	packets net.PacketConn     // of the second
	active  int
	path    *quic.Path // the present one, if it isn't the first
	onMove  func(moved bool)
}

// run tries anew when bulk is slow, until ctx ends.
func (p *paths) run(ctx context.Context, b *bulk) {
	pause := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
	rest := pathRest
	for pause(pathSettles) {
		select {
		case <-b.began:
		case <-ctx.Done():
			return
		}
		was, ok := p.observe(ctx)
		if !ok || !was.stuck() {
			continue
		}
		err := p.move(ctx)
		p.onMove(err == nil)
		if err == nil {
			if !pause(pathSettles) {
				return
			}
			is, ok := p.observe(ctx)
			if ok && is.rate > pathGain*was.rate {
				rest = pathRest
			} else {
				rest = min(2*rest, maxPathRest)
			}
		}
		if !pause(rest) {
			return
		}
		select {
		case <-b.began: // while it rested
		default:
		}
	}
}

// pace is how fast a connection goes.
type pace struct {
	rate  float64 // bytes a second, of the faster direction
	grows bool    // while it was looked at
	lost  bool    // packets that were sent
	rtt   time.Duration
}

// stuck reports whether another path may be faster.
func (p pace) stuck() bool {
	window := p.rate * p.rtt.Seconds()
	return p.rtt >= nearPath && !p.grows && !p.lost && window >= narrowPath && window < widePath
}

// observe looks at the connection for ten round trips.
func (p *paths) observe(ctx context.Context) (pace, bool) {
	before := p.conn.ConnectionStats()
	half := max(5*before.SmoothedRTT, 50*time.Millisecond)
	var moved [2]float64
	for i := range moved {
		from := p.conn.ConnectionStats()
		select {
		case <-time.After(half):
		case <-ctx.Done():
			return pace{}, false
		}
		to := p.conn.ConnectionStats()
		moved[i] = float64(max(to.BytesReceived-from.BytesReceived, to.BytesSent-from.BytesSent))
	}
	after := p.conn.ConnectionStats()
	return pace{
		rate: (moved[0] + moved[1]) / (2 * half).Seconds(), grows: moved[1] > pathGain*moved[0],
		lost: after.PacketsLost > before.PacketsLost, rtt: after.SmoothedRTT,
	}, true
}

// move takes the connection to its other socket.
func (p *paths) move(ctx context.Context) error {
	to := 1 - p.active
	if p.sockets[to] == nil {
		packets, transport, err := p.open()
		if err != nil {
			return fmt.Errorf("open a socket: %w", err)
		}
		watch(transport.Conn, p.conn)
		p.packets, p.sockets[to] = packets, transport
	}
	path, err := p.conn.AddPath(p.sockets[to])
	if err != nil {
		return err
	}
	probing, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if err = path.Probe(probing); err == nil {
		err = path.Switch()
	}
	if err != nil {
		return errors.Join(err, path.Close())
	}
	if p.path != nil {
		_ = p.path.Close() // it isn't active any more
	}
	p.active, p.path = to, path
	return nil
}

// close closes the second socket. After run, when the connection has ended.
func (p *paths) close() {
	if p.packets != nil {
		_ = p.sockets[1].Close()
		_ = p.packets.Close()
	}
}
