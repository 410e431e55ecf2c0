package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"
)

// The loads.
const (
	loadOnce = "once" // one request
	loadKept = "kept" // requests on connections that are kept
	loadNew  = "new"  // a connection for each request
	loadBulk = "bulk" // one download

	keptConnections = 64
	newAtATime      = 32
	answerSize      = 1 << 10
	patience        = 10 * time.Second
)

// sample is what a load saw.
type sample struct {
	Done   int64         `json:"done"` // requests, or bytes
	Failed int           `json:"failed"`
	Why    string        `json:"why,omitempty"` // one of the failures
	P50    time.Duration `json:"p50"`
	P99    time.Duration `json:"p99"`
	P999   time.Duration `json:"p999"`
}

// runLoad is the child that is the client.
func runLoad(ctx context.Context, kind, lasts, spec string) error {
	var p path
	if err := json.Unmarshal([]byte(spec), &p); err != nil {
		return err
	}
	d, err := time.ParseDuration(lasts)
	if err != nil {
		return err
	}
	connect, err := p.dialer()
	if err != nil {
		return err
	}
	c := &client{dial: connect, end: time.Now().Add(d)}
	switch kind {
	case loadOnce:
		c.note(time.Now(), c.one(ctx))
	case loadKept:
		c.each(keptConnections, func() { c.keep(ctx) })
	case loadNew:
		c.each(newAtATime, func() {
			for time.Now().Before(c.end) && ctx.Err() == nil {
				began := time.Now()
				c.note(began, c.one(ctx))
			}
		})
	case loadBulk:
		c.download(ctx)
	default:
		return fmt.Errorf("load %q is not known", kind)
	}
	return json.NewEncoder(os.Stdout).Encode(c.result())
}

// client asks.
type client struct {
	dial dial
	end  time.Time

	mu   sync.Mutex      // guards what follows
	seen sample          // without quantiles
	took []time.Duration // of requests
}

func (c *client) note(began time.Time, err error) {
	took := time.Since(began)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.seen.Failed++
		c.seen.Why = err.Error()
		return
	}
	c.seen.Done++
	c.took = append(c.took, took)
}

func (c *client) result() sample {
	slices.Sort(c.took)
	at := func(q float64) time.Duration {
		if len(c.took) == 0 {
			return 0
		}
		return c.took[min(int(q*float64(len(c.took))), len(c.took)-1)]
	}
	c.seen.P50, c.seen.P99, c.seen.P999 = at(0.5), at(0.99), at(0.999)
	return c.seen
}

func (c *client) each(n int, f func()) {
	var wg sync.WaitGroup
	for range n {
		wg.Go(f)
	}
	wg.Wait()
}

// ask makes one request on a connection.
func ask(c io.ReadWriter, into []byte) error {
	request := make([]byte, requestSize)
	binary.BigEndian.PutUint64(request, uint64(len(into)))
	if _, err := c.Write(request); err != nil {
		return err
	}
	_, err := io.ReadFull(c, into)
	return err
}

// one makes one request on a connection of its own.
func (c *client) one(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	return ask(conn, make([]byte, answerSize))
}

// keep asks again and again on one connection.
func (c *client) keep(ctx context.Context) {
	conn, err := c.dial(ctx)
	if err != nil {
		c.note(time.Now(), err)
		return
	}
	defer func() { _ = conn.Close() }()
	into := make([]byte, answerSize)
	for time.Now().Before(c.end) && ctx.Err() == nil {
		began := time.Now()
		_ = conn.SetDeadline(began.Add(patience))
		err := ask(conn, into)
		c.note(began, err)
		if err != nil {
			return
		}
	}
}

// download takes one answer that does not end.
func (c *client) download(ctx context.Context) {
	conn, err := c.dial(ctx)
	if err != nil {
		c.note(time.Now(), err)
		return
	}
	defer func() { _ = conn.Close() }()
	request := make([]byte, requestSize)
	binary.BigEndian.PutUint64(request, 1<<62)
	if _, err := conn.Write(request); err != nil {
		c.note(time.Now(), err)
		return
	}
	_ = conn.SetReadDeadline(c.end)
	buffer := make([]byte, 256<<10)
	for time.Now().Before(c.end) {
		n, err := conn.Read(buffer)
		c.seen.Done += int64(n) // nobody else is here
		if err != nil {
			return
		}
	}
}
