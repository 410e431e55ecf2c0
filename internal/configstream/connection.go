package configstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
)

// connect opens a stream and serves it until it ends, always with an error unless control ended it. It reports whether a cut
// was applied on it.
func (c *Client) connect(ctx context.Context) (applied bool, err error) {
	conn, err := c.cfg.Dial(ctx)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	c.conn.Store(&conn)
	defer c.conn.Store(nil)

	ctx, cancel := context.WithCancelCause(ctx)
	var children sync.WaitGroup
	defer children.Wait()
	defer cancel(nil)
	rpc, err := configv1.NewConfigClient(conn).Stream(ctx)
	if err != nil {
		return false, err
	}
	hello, replace := c.hello()
	children.Go(func() {
		if err := c.send(ctx, rpc, hello); err != nil {
			cancel(err)
		}
	})
	received := make(chan *configv1.Response)
	ended := make(chan error, 1)
	children.Go(func() { ended <- receive(ctx, rpc, received) })

	next := stage{replace: replace}
	for {
		select {
		case m := <-received:
			if err := next.add(m); err != nil {
				return applied, c.refuse(ctx, err)
			}
			if !m.GetComplete() {
				continue
			}
			if err := c.apply(ctx, next); err != nil {
				return applied, c.refuse(ctx, err)
			}
			c.cuts.Store(Cut{c.stream, m.GetRevision()}) // after what it brought
			applied = true
			next = stage{}
		case err := <-ended:
			return applied, err
		case <-ctx.Done():
			return applied, context.Cause(ctx)
		}
	}
}

// apply puts a complete cut in force, or returns an error and changes nothing.
func (c *Client) apply(ctx context.Context, cut stage) error {
	v, err := c.store.apply(cut)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.problem = nil
	c.mu.Unlock()
	c.publish(v) // before what follows: who waits for that finds the new state
	c.connected(ctx)
	c.answer(cut)
	c.keep()
	return nil
}

// keep has the present state written to disk, soon.
func (c *Client) keep() {
	if c.saver == nil {
		return
	}
	held, now := c.store.held, c.cfg.Now() // the map is not changed once it is the store's
	c.saver.keep(func() ([]byte, error) {
		c.mu.Lock()
		services := c.names()
		c.mu.Unlock()
		return encodeState(c.cfg.Hello, services, resourcesOf(held), now)
	})
}

// refuse notes that a cut was refused; the last good state stays in force, and the stream is begun anew, so that control's
// idea of what this client holds is true again.
func (c *Client) refuse(ctx context.Context, err error) error {
	err = fmt.Errorf("configuration refused, the last good one stays in force: %w", err)
	c.mu.Lock()
	c.problem = fmt.Errorf("configstream: %w", err)
	c.mu.Unlock()
	c.cfg.Log.ErrorContext(ctx, "configuration refused", "error", err)
	return err
}

// send says hello, and then what is in the outbox and gives account, until ctx ends.
func (c *Client) send(ctx context.Context, rpc grpc.BidiStreamingClient[configv1.Request, configv1.Response], hello *configv1.Hello) error {
	requests := []*configv1.Request{{Message: &configv1.Request_Hello{Hello: hello}}}
	var due <-chan time.Time
	if c.account != nil {
		ticker := time.NewTicker(accountEvery)
		defer ticker.Stop()
		due = ticker.C
	}
	all := true
	for {
		for _, r := range requests {
			if err := rpc.Send(r); err != nil {
				if errors.Is(err, io.EOF) { // the reason is with the receiver
					return nil
				}
				return err
			}
		}
		select {
		case <-c.outbox.wake:
			requests = c.next()
		case <-due:
			requests = requests[:0]
			if r := c.account(all); r != nil {
				requests, all = append(requests, &configv1.Request{Message: &configv1.Request_Report{Report: r}}), false
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// receive hands over what control says until there is no more.
func receive(ctx context.Context, rpc grpc.BidiStreamingClient[configv1.Request, configv1.Response], to chan<- *configv1.Response) error {
	for {
		m, err := rpc.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		select {
		case to <- m:
		case <-ctx.Done():
			return nil
		}
	}
}
