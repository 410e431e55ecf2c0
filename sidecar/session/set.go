package session

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/topology"
)

// tendEvery is how often sessions are looked after.
const tendEvery = 1 * time.Second

// Config is what a Set is made from.
type Config struct {
	Dialer *Dialer
	Tracer trace.Tracer
	// Opened is told of each attempt to open a session that a Pool made; the error is nil when it was opened. wanted is false when it was only to
	// be kept ready: failing proves nothing then.
	Opened func(to Destination, err error, wanted bool)
	// Count is told when a session begins (+1) and ends (-1).
	Count func(Destination, int)
}

// Set owns the pools. Run must run.
type Set struct {
	config Config
	dials  sync.WaitGroup
	ctx    context.Context //nolint:containedctx // of the dials: they outlive the request that wanted them, not the Set
	cancel context.CancelFunc

	mu    sync.Mutex
	pools map[key]*Pool // guarded by mu; nil once closed
}

// NewSet returns a Set without pools.
func NewSet(c Config) *Set {
	ctx, cancel := context.WithCancel(context.Background())
	return &Set{config: c, ctx: ctx, cancel: cancel, pools: make(map[key]*Pool)}
}

func (s *Set) now() time.Time { return s.config.Dialer.Now() }

// Pool returns the pool of that destination, made at need, and tells it the latest word on it.
func (s *Set) Pool(to Destination) *Pool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := to.key()
	p := s.pools[k]
	if p == nil {
		p = &Pool{set: s, used: s.now(), closed: s.pools == nil}
		if s.pools != nil {
			s.pools[k] = p
		}
	}
	p.mu.Lock()
	p.to = to
	p.mu.Unlock()
	return p
}

// Leave says that a place is given up: who waits for a session to it goes elsewhere, since nothing of his request was sent.
func (s *Set) Leave(t topology.Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, p := range s.pools {
		if k.target == t {
			p.leave()
		}
	}
}

// Run looks after the sessions until ctx ends; then it closes them all and returns when every dial has ended.
func (s *Set) Run(ctx context.Context) error {
	ticker := time.NewTicker(tendEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			s.close()
			return nil
		case <-ticker.C:
			s.tend()
		}
	}
}

func (s *Set) tend() {
	draining := s.config.Dialer.draining()
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, p := range s.pools {
		if p.tend(draining) {
			p.retire(false)
			delete(s.pools, k)
		}
	}
}

func (s *Set) close() {
	s.mu.Lock()
	pools := s.pools
	s.pools = nil
	s.mu.Unlock()
	for _, p := range pools {
		p.retire(true)
	}
	s.cancel()
	s.dials.Wait()
}

// open dials for a pool, within a span of its own.
func (s *Set) open(ctx context.Context, to Destination) (*Requests, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	conn, err := s.Dial(ctx, to, HTTP2)
	if err != nil {
		return nil, err
	}
	requests, err := newRequests(ctx, conn, s.now())
	if err != nil {
		return nil, &Error{balance.Broken, err}
	}
	return requests, nil
}

// Dial opens a session outside the pools.
func (s *Set) Dial(ctx context.Context, to Destination, protocol string) (*Conn, error) {
	ctx, span := s.config.Tracer.Start(ctx, "open session "+to.Service.String(), trace.WithSpanKind(trace.SpanKindClient))
	defer span.End()
	var ended atomic.Bool // or never began
	conn, err := s.config.Dialer.Dial(ctx, to, protocol, func() {
		if ended.Swap(true) {
			s.config.Count(to, -1)
		}
	})
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
		return nil, err
	}
	s.config.Count(to, 1)
	if ended.Swap(true) {
		s.config.Count(to, -1) // closed already
	}
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("isthmus.destination.cluster", to.Cluster.String()),
			attribute.String("isthmus.peer", conn.Peer.ID.String()),
			attribute.StringSlice("isthmus.path", conn.Path),
		)
	}
	return conn, nil
}

// DialRequests opens a session outside the pools that carries one HTTP request.
func (s *Set) DialRequests(ctx context.Context, to Destination, protocol string) (*Requests, error) {
	conn, err := s.Dial(ctx, to, protocol)
	if err != nil {
		return nil, err
	}
	requests, err := newRequests(ctx, conn, s.now())
	if err != nil {
		return nil, &Error{balance.Broken, fmt.Errorf("HTTP: %w", err)}
	}
	return requests, nil
}

// jitter spreads renewals over ± a fifth of maxAge.
func jitter() time.Duration {
	return rand.N(maxAge*2/5) - maxAge/5 //nolint:gosec // G404: it spreads load, it guards nothing
}
