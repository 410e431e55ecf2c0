package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// A carrier over TCP keeps connections ready, because a stream that has to make its own waits two round trips longer.
const (
	// maxWarm is how many are ready at most, to one gateway.
	maxWarm = 32
	// maxDials is how many are being made at a time, and maxWaiting how many streams may wait for that.
	maxDials   = 16
	maxWaiting = 1024
	// warmIdle is how long one stays ready, unused. The far side gives up later (warmTimeout).
	warmIdle = 45 * time.Second
	// warmPause is how often the number is looked at, and how long a failure to make one is waited after, in such pauses.
	warmPause   = 200 * time.Millisecond
	warmBackoff = 5
)

// tcpCarrier is TLS connections over TCP to one gateway: one with the control stream, those with a stream each, and some ready for the
// next ones. A connection that has carried a stream is never used again.
type tcpCarrier struct {
	g        *Gateway
	gateway  topology.Gateway
	policy   trust.Policy
	config   *tls.Config     // of streams
	moving   *tls.Config     // of those that began on QUIC
	ctx      context.Context //nolint:containedctx // its own life, as a quic.Conn has one
	end      context.CancelCauseFunc
	ctl      *tcpStream
	cs       tls.ConnectionState
	peer     net.Addr
	wg       sync.WaitGroup
	dials    chan struct{} // a token for each dial under way
	few      chan struct{} // capacity 1: a ready connection was taken
	sent     atomic.Uint64
	received atomic.Uint64
	packets  atomic.Uint64 // of streams that have ended
	again    atomic.Uint64 // of them, those that were sent again
	floor    atomic.Int32  // how many are ready at least
	retired  atomic.Bool   // none needs to be

	mu       sync.Mutex
	streams  map[*tcpStream]struct{} // guarded by mu
	warm     []warmConn              // guarded by mu: oldest first
	warming  int                     // guarded by mu: being made
	waiting  int                     // guarded by mu: streams without a connection
	opened   int                     // guarded by mu: streams since the last look
	rate     float64                 // guarded by mu: of streams a second, smoothed
	dialTime time.Duration           // guarded by mu: smoothed
	rest     int                     // guarded by mu: looks to let pass after a failure
}

// warmConn is a connection that no stream has been on.
type warmConn struct {
	conn    *tls.Conn
	raw     net.Conn
	since   time.Time
	release func() // of the guard
}

// dialTCP makes the control connection to a gateway.
func (l *link) dialTCP(ctx, dialing context.Context, gw topology.Gateway, policy trust.Policy, domain spiffeid.TrustDomain) (carrier, error) {
	g := l.g
	config := func(protocol string) *tls.Config {
		return trust.ClientConfig(trust.TLS{
			Identity: g.cfg.Identity, Bundles: g.cfg.Bundles, Policy: policy, Protocols: []string{protocol}, ServerName: domain.Name(),
		})
	}
	c := &tcpCarrier{
		g: g, gateway: gw, policy: policy, config: config(preamble.ALPNLinkStream), moving: config(preamble.ALPNLinkMove),
		dials: make(chan struct{}, maxDials), few: make(chan struct{}, 1), streams: make(map[*tcpStream]struct{}),
	}
	began := time.Now()
	conn, raw, err := c.shake(dialing, config(preamble.ALPNLinkControl))
	if err != nil {
		return nil, err
	}
	c.dialTime = time.Since(began)
	c.ctx, c.end = context.WithCancelCause(context.WithoutCancel(ctx)) // whoever runs the connection closes it
	c.wg.Add(1)                                                        // close's
	c.cs, c.peer = conn.ConnectionState(), raw.RemoteAddr()
	c.ctl = newTCPStream(c.ctx, &c.wg, func() {})
	c.ctl.sent, c.ctl.received = &c.sent, &c.received
	c.ctl.attach(conn, raw, nil)
	c.wg.Go(c.keepWarm)
	return c, nil
}

// shake connects and does the handshake.
func (c *tcpCarrier) shake(ctx context.Context, config *tls.Config) (*tls.Conn, net.Conn, error) {
	raw, err := c.g.cfg.DialTCP(ctx, c.gateway.TCP)
	if err != nil {
		return nil, nil, err
	}
	tuneTCP(raw)
	under := &linkConn{wholeConn: wholeConn{raw}}
	under.own.Store(true)
	conn := tls.Client(under, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		cut(raw)
		return nil, nil, err
	}
	return conn, raw, nil
}

func (c *tcpCarrier) transport() string          { return transportTCP }
func (c *tcpCarrier) refused() <-chan struct{}   { return nil } // the connection is reset
func (c *tcpCarrier) control() (lane, error)     { return c.ctl, nil }
func (c *tcpCarrier) Context() context.Context   { return c.ctx }
func (c *tcpCarrier) state() tls.ConnectionState { return c.cs }
func (c *tcpCarrier) remote() net.Addr           { return c.peer }
func (c *tcpCarrier) wait()                      { c.wg.Wait() }

func (c *tcpCarrier) open() (lane, error) {
	s := c.stream()
	w, ready, err := c.admit(s)
	switch {
	case err != nil:
		s.end(err)
		return nil, err
	case ready:
		s.attach(w.conn, w.raw, w.release)
	}
	select {
	case c.few <- struct{}{}:
	default:
	}
	return s, nil
}

// branch makes a connection of its own for the rest of a stream, and waits for it.
func (c *tcpCarrier) branch() (*tcpStream, error) {
	w, err := c.make(c.ctx, c.moving)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	s := c.stream()
	c.mu.Lock()
	if err = context.Cause(c.ctx); err == nil {
		c.streams[s] = struct{}{}
	}
	c.mu.Unlock()
	if err != nil || !s.attach(w.conn, w.raw, w.release) {
		w.drop()
		s.abort(err)
		return nil, cmp.Or(err, context.Cause(s.ctx))
	}
	return s, nil
}

// stream returns one that has no connection yet.
func (c *tcpCarrier) stream() *tcpStream {
	var s *tcpStream
	s = newTCPStream(c.ctx, &c.wg, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.streams, s)
	})
	s.sent, s.received, s.parting = &c.sent, &c.received, c.count
	return s
}

// admit counts a stream in, and finds it a ready connection or has one made.
func (c *tcpCarrier) admit(s *tcpStream) (w warmConn, ready bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return w, false, context.Cause(c.ctx)
	}
	if w, ready = c.take(); !ready {
		if c.waiting >= maxWaiting {
			return w, false, quic.ErrWouldBlock
		}
		c.waiting++
		c.wg.Go(func() { c.connect(s) })
	}
	c.opened++
	c.streams[s] = struct{}{}
	return w, ready, nil
}

// take returns a ready connection, the youngest. mu is held.
func (c *tcpCarrier) take() (warmConn, bool) {
	for len(c.warm) > 0 {
		last := len(c.warm) - 1
		w := c.warm[last]
		c.warm[last] = warmConn{}
		c.warm = c.warm[:last]
		if untouched(w.raw) {
			return w, true
		}
		w.drop()
	}
	return warmConn{}, false
}

// isReady reports whether a stream would find a connection ready.
func (c *tcpCarrier) isReady() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.warm) > 0
}

// count takes in what the kernel says of a stream's connection that ends.
func (c *tcpCarrier) count(raw net.Conn) {
	sent, again := segments(raw)
	c.packets.Add(sent)
	c.again.Add(again)
}

func (c *tcpCarrier) counts() counts {
	n := counts{sent: c.sent.Load(), received: c.received.Load(), packets: c.packets.Load(), lost: c.again.Load()}
	sent, again := segments(c.ctl.raw)
	n.packets += sent
	n.lost += again
	return n
}

func (w warmConn) drop() {
	w.release()
	cut(w.raw)
}

// connect makes a connection for s.
func (c *tcpCarrier) connect(s *tcpStream) {
	w, err := c.make(s.ctx, c.config)
	c.mu.Lock()
	c.waiting--
	c.mu.Unlock()
	switch {
	case err != nil:
		s.abort(fmt.Errorf("dial: %w", err))
	case !s.attach(w.conn, w.raw, w.release):
		c.offer(w) // the caller has left, or another way was quicker
	}
}

// make makes a connection for a stream.
func (c *tcpCarrier) make(ctx context.Context, config *tls.Config) (warmConn, error) {
	select {
	case c.dials <- struct{}{}:
		defer func() { <-c.dials }()
	case <-ctx.Done():
		return warmConn{}, context.Cause(ctx)
	}
	dialing, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("no answer in %s", dialTimeout))
	defer cancel()
	began := time.Now()
	conn, raw, err := c.shake(dialing, config)
	if err != nil {
		return warmConn{}, cmp.Or(context.Cause(dialing), err)
	}
	w := warmConn{conn: conn, raw: raw, since: time.Now()}
	w.release = c.g.cfg.Guard.Watch(conn.ConnectionState(), c.policy, func(error) { cut(raw) })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialTime += (w.since.Sub(began) - c.dialTime) / 4
	return w, nil
}

// offer keeps w for a stream that comes, unless there are enough.
func (c *tcpCarrier) offer(w warmConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil || len(c.warm) >= maxWarm {
		w.drop()
		return
	}
	c.warm = append(c.warm, w)
}

// keepWarm keeps connections ready until the carrier ends.
func (c *tcpCarrier) keepWarm() {
	ticker := time.NewTicker(warmPause)
	defer ticker.Stop()
	for {
		tick := false
		select {
		case <-ticker.C:
			tick = true
		case <-c.few:
		case <-c.ctx.Done():
			return
		}
		for range c.look(time.Now(), tick) {
			c.wg.Go(func() {
				w, err := c.make(c.ctx, c.config)
				c.mu.Lock()
				c.warming--
				if err != nil {
					c.rest = warmBackoff
				}
				c.mu.Unlock()
				if err == nil {
					c.offer(w)
				}
			})
		}
	}
}

// look drops what was ready for too long, and returns how many connections are to be made.
func (c *tcpCarrier) look(now time.Time, tick bool) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.warm) > 0 && now.Sub(c.warm[0].since) > warmIdle {
		c.warm[0].drop()
		c.warm = c.warm[1:]
	}
	if tick {
		c.rate += (float64(c.opened)/warmPause.Seconds() - c.rate) / 8
		c.opened = 0
		if c.rest > 0 {
			c.rest--
		}
	}
	if c.rest > 0 || c.retired.Load() {
		return 0
	}
	more := max(0, min(warmWanted(c.rate, c.dialTime, int(c.floor.Load()))-len(c.warm)-c.warming, maxDials))
	c.warming += more
	return more
}

// warmWanted is how many connections to have ready where streams come at a rate, in streams a second, and making one takes as long: twice as
// many as come meanwhile, because they don't come evenly.
func warmWanted(rate float64, dialTime time.Duration, floor int) int {
	const seldom = 0.1
	if rate < seldom {
		return min(floor, maxWarm)
	}
	return min(max(floor, int(math.Ceil(2*rate*dialTime.Seconds())), 1), maxWarm)
}

// close ends the carrier and all its streams.
func (c *tcpCarrier) close(code quic.ApplicationErrorCode, why string) {
	c.mu.Lock()
	if c.ctx.Err() != nil {
		c.mu.Unlock()
		return
	}
	reason := &quic.ApplicationError{ErrorCode: code, ErrorMessage: why}
	c.end(reason) // nothing is added from here on
	warm := c.warm
	c.warm = nil
	streams := make([]*tcpStream, 0, len(c.streams))
	for s := range c.streams {
		streams = append(streams, s)
	}
	c.mu.Unlock()
	defer c.wg.Done()
	for _, w := range warm {
		w.drop()
	}
	for _, s := range streams {
		s.abort(reason)
	}
	if code == closeDead || code == closeUntrusted {
		c.ctl.abort(reason)
		return
	}
	c.ctl.finish(reason) // the peer has nothing to take for a failure
}
