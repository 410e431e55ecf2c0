package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// connection is one carrier that this gateway has dialed to a gateway of a peer cluster.
type connection struct {
	conn    carrier
	gateway topology.Gateway // the one that it leads to
	pulse   *pulse
	bulk    *bulk     // what its streams move
	empty   emptiness // what the far gateway says of its services
	meter   meter
	since   time.Time

	active   atomic.Int64 // streams
	released atomic.Int64 // when the last one ended, Unix nanoseconds
	draining atomic.Bool  // no new streams
	stays    atomic.Bool  // its streams can't be moved
	aged     atomic.Bool  // new streams only where there is no other way: a successor is on its way
}

// life is what bounds a connection from outside. A handshake proves who is there only until the first of both SVIDs ends.
type life struct {
	retired <-chan struct{} // closed when the connection isn't wanted any more: its streams may end within grace
	grace   time.Duration
	renewIn time.Duration // when to ask for a successor
	endIn   time.Duration // when the proof ends
	up      func()        // the peer has let us in
	renew   func()        // a successor is to be dialed
	heir    func() bool   // whether it is there
	other   func() bool   // whether new streams can do without this one
	idle    func() bool   // whether nothing waits on the link
}

// minSettle is for how long a connection that isn't needed any more is kept after its last stream has ended: the end of what was
// sent on it may have been lost and be on its way again, and closing would drop it.
const minSettle = 500 * time.Millisecond

// leave counts a stream out.
func (c *connection) leave() {
	c.released.Store(time.Now().UnixNano())
	c.active.Add(-1)
}

// settled reports whether nothing is on its way any more.
func (c *connection) settled(now time.Time) bool {
	return c.active.Load() == 0 && now.Sub(time.Unix(0, c.released.Load())) >= max(minSettle, 4*c.pulse.rtt())
}

// usable reports whether new streams may be placed here.
func (c *connection) usable() bool {
	return !c.draining.Load() && c.conn.Context().Err() == nil
}

// run speaks on the control stream until the connection has ended, and returns why. The peer has let us in once it has spoken (a
// TLS 1.3 client's handshake is over before the server has judged it). When ctx ends, its streams are cut.
func (c *connection) run(ctx context.Context, l life) error {
	var wg sync.WaitGroup
	defer c.conn.wait()
	defer wg.Wait()
	stream, err := c.conn.control()
	if err != nil {
		return c.close(closeProtocol, err)
	}
	writer := &controlWriter{stream: stream}

	wg.Go(func() {
		_ = c.close(closeProtocol, c.listen(stream, l.up))
	})

	ticker := time.NewTicker(c.pulse.interval)
	defer ticker.Stop()
	renew := time.NewTimer(l.renewIn)
	defer renew.Stop()
	end := time.NewTimer(l.endIn)
	defer end.Stop()
	verdict := time.NewTimer(c.pulse.deadAfter) // a tick would find it up to an interval late
	defer verdict.Stop()
	ticked := true
	var leaveBy time.Time // once retired
	for {
		now := time.Now()
		if !leaveBy.IsZero() && (l.other() || now.After(leaveBy)) {
			c.draining.Store(true)
		}
		seq := uint64(0)
		if ticked {
			seq = c.pulse.tick(now, l.idle())
		}
		ticked = false
		if c.pulse.dead(now) {
			return c.close(closeDead, errDead)
		}
		if (c.draining.Load() || c.aged.Load() && l.heir()) && c.settled(now) {
			return c.close(closeUnwanted, errUnwanted)
		}
		if seq > 0 {
			writer.send(probe(seq)) // when there is no room, the silence will tell
		}

		verdict.Reset(c.pulse.next(now))
		select {
		case <-ticker.C:
			ticked = true
		case <-verdict.C:
		case <-renew.C:
			c.aged.Store(true)
			l.renew()
		case <-l.retired:
			// Its gateway may have another address now: until it is reached there, this is the only way.
			c.aged.Store(true)
			leaveBy = time.Now().Add(dialTimeout)
			l.retired = nil
			end.Reset(min(l.grace, l.endIn))
		case <-end.C:
			return c.close(closeUnwanted, errUnwanted)
		case <-ctx.Done():
			code := closeUnwanted
			if errors.Is(context.Cause(ctx), errShutdown) {
				code = closeShutdown
			}
			return c.close(code, context.Cause(ctx))
		case <-c.conn.refused():
			return c.close(closeDead, errRefused)
		case <-c.conn.Context().Done():
			return context.Cause(c.conn.Context())
		}
	}
}

// listen reads the control stream to its end. It always returns an error.
func (c *connection) listen(stream io.Reader, up func()) error {
	buf := make([]byte, maxControl)
	spoken := false
	for {
		m, err := readControl(stream, buf)
		if err != nil {
			return err
		}
		now := time.Now()
		c.pulse.hear(now)
		switch m := m.GetMessage().(type) {
		case *streamv1.LinkMessage_ProbeReply:
			c.pulse.reply(m.ProbeReply.GetSeq(), now)
		case *streamv1.LinkMessage_Capacity:
			if err := c.empty.apply(m.Capacity); err != nil {
				return err
			}
		case *streamv1.LinkMessage_Draining:
			c.draining.Store(true)
		}
		if !spoken {
			spoken = true
			up()
		}
	}
}

// close ends the connection, unless it has ended already, and returns why it did.
func (c *connection) close(code quic.ApplicationErrorCode, reason error) error {
	if c.conn.Context().Err() != nil {
		return context.Cause(c.conn.Context())
	}
	c.conn.close(code, reason.Error())
	return fmt.Errorf("closed: %w", reason)
}
