package sidecar

import (
	"context"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/sidecar/conn"
	"github.com/isthmus-mesh/isthmus/sidecar/http1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Run serves until ctx ends, then stops accepting, lets what is in flight end for DrainGrace, and closes the rest. It returns
// early, with an error, when a listener fails.
func (s *Sidecar) Run(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	// What was accepted outlives ctx by the grace.
	work, endWork := context.WithCancelCause(context.WithoutCancel(ctx))
	stopWork := func() {
		endWork(errEnding)
		s.outbound.streams.hush()
		s.inbound.streams.hush()
	}
	defer stopWork()
	// What the work needs outlives the work.
	support, stopSupport := context.WithCancel(context.WithoutCancel(ctx))
	var serving, supporting sync.WaitGroup

	supporting.Go(func() { _ = s.sessions.Run(support) }) // never fails
	supporting.Go(func() { s.follow(support) })
	supporting.Go(func() { s.outbound.tend(support) })
	supporting.Go(func() { _ = s.inbound.users.Run(support) }) // never fails
	if s.config.Lease != nil {
		supporting.Go(func() { s.inbound.lease(support, s.config.Lease) })
	}

	var failed error
	var once sync.Once
	start := func(run func() error) {
		serving.Go(func() {
			if err := run(); err != nil {
				once.Do(func() { failed = err })
				fail(err)
			}
		})
	}
	s.startOutbound(ctx, work, start)
	if s.config.Inbound != nil {
		start(func() error { return s.inbound.run(ctx, work, s.config.Inbound) })
	}
	if s.config.DNS != nil || s.config.DNSStream != nil {
		start(func() error { return s.dns.Run(ctx, s.config.DNS, s.config.DNSStream) })
	}

	<-ctx.Done()
	s.tell(func(c *ready.Checks) { c.Waiting(checkServing, "ending") })
	s.drain(work, stopWork)
	stopWork()
	serving.Wait()
	s.outbound.udp.close()
	_ = s.outbound.work.Wait(support) // what runs in work has ended with it
	_ = s.inbound.work.Wait(support)
	s.outbound.resolver.end()
	stopSupport()
	supporting.Wait()
	s.inbound.apps.close()
	s.inbound.drills.Close()
	return failed
}

// lastWords is how much of the grace is left for telling those whose requests and streams have not ended by then that they won't.
const lastWords = time.Second

// drain lets everything in flight end, both ways at once. HTTP/2 connections are told at once to take no more requests (GOAWAY). What is left shortly before
// the end of the grace hears an answer, or a status of gRPC, in place of what it waits for: that is what stopWork does.
func (s *Sidecar) drain(work context.Context, stopWork func()) {
	end, cancel := context.WithTimeout(context.WithoutCancel(work), s.config.DrainGrace)
	defer cancel()
	grace, cancel := context.WithTimeout(work, s.config.DrainGrace-min(lastWords, s.config.DrainGrace/2))
	defer cancel()
	var wg sync.WaitGroup
	for _, server := range append(s.outbound.servers, s.inbound.server, s.inbound.narrow) {
		wg.Go(func() {
			if server.Shutdown(grace) != nil {
				stopWork()
				shutdown(end, server)
			}
		})
	}
	wg.Wait()
	// Connections that are no longer the servers'. What is left when work ends is cut off: at the end of the grace, or before the last words where
	// requests were still under way, too.
	_ = s.outbound.work.Wait(grace)
	_ = s.inbound.work.Wait(grace)
}

// follow keeps what is derived from the snapshot in step with it.
func (s *Sidecar) follow(ctx context.Context) {
	for {
		changed := s.config.Snapshots.Changed()
		if snapshot := s.config.Snapshots.Load(); snapshot != nil {
			s.outbound.resolver.keep(snapshot)
			s.inbound.apps.keep(snapshot)
			s.sayCaptured(ctx, snapshot)
			s.tell(func(c *ready.Checks) { c.Done(checkServing) })
		} else {
			s.tell(func(c *ready.Checks) { c.Waiting(checkServing, "no configuration from control yet") })
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// sayCaptured writes which addresses of pods of other clusters are to be captured.
func (s *Sidecar) sayCaptured(ctx context.Context, snapshot *topology.Snapshot) {
	if s.config.CaptureFile == "" {
		return
	}
	var lines strings.Builder
	for _, c := range snapshot.Clusters() {
		for _, p := range c.Pods {
			lines.WriteString(p.String() + "\n")
		}
	}
	before, err := os.ReadFile(s.config.CaptureFile)
	if err == nil && string(before) == lines.String() {
		return
	}
	if err := atomicfile.Write(s.config.CaptureFile, []byte(lines.String()), 0o644); err != nil {
		s.config.Log.ErrorContext(ctx, "addresses to be captured are not written", "error", err)
	}
}

func (s *Sidecar) tell(f func(*ready.Checks)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.checks {
		f(c)
	}
}

// queryKey is where the destination of a tunnel is in the context of the requests inside.
type queryKey struct{}

// startOutbound starts the listeners towards the application.
func (s *Sidecar) startOutbound(ctx, work context.Context, start func(func() error)) {
	o := s.outbound
	base := func(net.Listener) context.Context { return work }
	open := o.metrics.connections.WithLabelValues(outbound)
	counted := func(ln net.Listener) net.Listener {
		return &countedListener{Listener: ln, inc: open.Inc, dec: open.Dec}
	}

	var inside *conn.Handoff
	if s.config.Proxy != nil || s.config.Captured != nil {
		inside = s.startInside(ctx, base, start)
	}
	if captured := s.config.Captured; captured != nil {
		s.startCaptured(ctx, work, counted(captured), inside, start)
	}
	if proxy := s.config.Proxy; proxy != nil {
		requests := o.handler(named)
		server := o.newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodConnect {
				o.connect(w, r, inside)
				return
			}
			requests.ServeHTTP(w, r)
		}))
		server.BaseContext = base
		start(func() error { return serve(ctx, server, &strictListener{counted(proxy)}) })
	}
	for _, l := range s.config.UDP {
		s.startUDP(ctx, work, l, start)
	}
	for _, l := range s.config.Listeners {
		s.startListener(ctx, work, l, counted(l.Listener), start)
	}
}

// startInside serves requests on connections each of which is to one destination, which was settled before: those are *insideConn.
func (s *Sidecar) startInside(ctx context.Context, base func(net.Listener) context.Context, start func(func() error)) *conn.Handoff {
	o := s.outbound
	inside := conn.NewHandoff(&net.TCPAddr{})
	server := o.newServer(o.handler(func(r *http.Request) (topology.Query, *Failure) {
		q := r.Context().Value(queryKey{}).(topology.Query) // ConnContext puts it there
		return fixed(q)(r)
	}))
	server.BaseContext = base
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, queryKey{}, c.(*insideConn).query) // it is given nothing else
	}
	start(func() error { return serve(ctx, server, inside) })
	return inside
}

// startListener serves one service: requests, or opaque connections, as its port says at the time.
func (s *Sidecar) startListener(ctx, work context.Context, l LocalListener, ln net.Listener, start func(func() error)) {
	o := s.outbound
	q := topology.Query{Service: l.Service, Port: l.Port, Scope: l.Scope}
	requests := conn.NewHandoff(ln.Addr())
	server := o.newServer(o.handler(fixed(q)))
	server.BaseContext = func(net.Listener) context.Context { return work }
	start(func() error { return serve(ctx, server, requests) })
	start(func() error {
		defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
		var tunnels sync.WaitGroup
		defer tunnels.Wait()
		for {
			c, err := acceptFrom(ctx, ln)
			if c == nil {
				return err
			}
			tunnels.Go(func() {
				p, err := o.resolver.plan(work, q)
				// A service that is not known is answered in HTTP: a reason in words is worth more than a reset.
				if err != nil || p.Port.Protocol.IsHTTP() {
					requests.Give(http1.Strict(c))
					return
				}
				o.opaque(work, p, c)
			})
		}
	})
}

// opaque carries one connection of opaque bytes.
func (o *Outbound) opaque(ctx context.Context, p *plan, c net.Conn) {
	o.tunnel(ctx, p, func(err error) (net.Conn, error) {
		if err != nil {
			conn.Reset(c)
			return nil, err
		}
		return c, nil
	})
}

// strictListener takes strict requests only.
type strictListener struct{ net.Listener }

// Accept returns the next connection.
func (l *strictListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return http1.Strict(c), nil
}

// countedListener counts its connections that are open.
type countedListener struct {
	net.Listener
	inc, dec func()
}

// Accept returns the next connection.
func (l *countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.inc()
	return conn.Tell(c, l.dec), nil
}
