package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/relay"
	"github.com/isthmus-mesh/isthmus/sidecar/conn"
	"github.com/isthmus-mesh/isthmus/sidecar/http1"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	// strangerFor is how long an address is known to be no service's: a service that gets it is found after that.
	strangerFor = 5 * time.Second
	// maxStrangers bounds the addresses that are remembered as such.
	maxStrangers = 4096
)

// startCaptured serves connections that the kernel brought here, each to where it was opened to.
func (s *Sidecar) startCaptured(ctx, work context.Context, ln net.Listener, inside *conn.Handoff, start func(func() error)) {
	start(func() error {
		defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
		var all sync.WaitGroup
		defer all.Wait()
		for {
			c, err := acceptFrom(ctx, ln)
			if c == nil {
				return err
			}
			all.Go(func() { s.outbound.captured(work, c, inside) })
		}
	})
}

// captured serves one captured connection.
func (o *Outbound) captured(ctx context.Context, c net.Conn, inside *conn.Handoff) {
	to, err := o.original(c)
	if err != nil || to.String() == c.LocalAddr().String() { // opened to this very listener: passing it on would go in circles
		o.log.DebugContext(ctx, "not a captured connection", slog.String("from", c.RemoteAddr().String()), slog.Any("error", err))
		conn.Reset(c)
		return
	}
	q, known, err := o.resolver.at(ctx, to)
	switch {
	case err != nil: // it may be a service's: passed on, what belongs into the mesh would go in the clear
		o.log.WarnContext(ctx, "a captured connection is reset: control can't be asked whose address it is", slog.String("to", to.String()), slog.Any("error", err))
		conn.Reset(c)
		return
	case !known:
		o.pass(ctx, c, to)
		return
	}
	p, err := o.resolver.plan(ctx, q)
	switch {
	case err != nil && o.plain(q):
		o.pass(ctx, c, to)
	case err != nil || p.Port.Protocol.IsHTTP(): // a reason in words is worth more than a reset
		inside.Give(&insideConn{Conn: http1.Strict(c), query: q})
	default:
		o.opaque(ctx, p, c)
	}
}

// plain reports whether a call is none of the mesh's affair: of the own cluster, to copies or to a port that the mesh does not carry.
func (o *Outbound) plain(q topology.Query) bool {
	if q.Scope != topology.ClusterLocal {
		return false
	}
	service := o.resolver.snapshots.Load().Service(q.Service)
	if service == nil {
		return true
	}
	_, carried := service.Port(q.Port)
	return !carried || len(service.Endpoints) == 0
}

// pass carries a connection on to where it was opened to, as it is.
func (o *Outbound) pass(ctx context.Context, c net.Conn, to netip.AddrPort) {
	done, ok := o.work.Add()
	if !ok || !o.passThrough {
		if ok {
			done()
		}
		conn.Reset(c)
		return
	}
	defer done()
	o.metrics.passed.Inc()
	far, err := o.connectTo(ctx, to.String())
	if err == nil {
		_, err = relay.Pipe(ctx, c, far)
	} else {
		conn.Reset(c) // as the far end would have done
	}
	if err != nil {
		o.log.DebugContext(ctx, "a connection outside of the mesh broke", slog.String("to", to.String()), slog.Any("error", err))
	}
}

// at returns the query that a connection to an address and port stands for, having asked control for an address that the snapshot does
// not hold; known is false when it is no service's.
func (r *resolver) at(ctx context.Context, to netip.AddrPort) (q topology.Query, known bool, err error) {
	find := func(s *topology.Snapshot) bool {
		place, ok := s.At(to.Addr())
		if ok {
			q = place.Query(to.Port())
		}
		return ok
	}
	snapshot := r.snapshots.Load()
	if snapshot == nil {
		return q, false, fail(http.StatusServiceUnavailable, CodeNotReady, "no configuration yet")
	}
	if find(snapshot) {
		return q, true, nil
	}
	was, lately := r.isStranger(to.Addr())
	if r.resolve == nil || lately {
		return q, false, nil
	}
	asking, cancel := context.WithTimeout(ctx, subscribeTimeout)
	defer cancel()
	name, ok, err := r.resolve(asking, to.Addr())
	switch {
	case err != nil && was: // the last that is known
		return q, false, nil
	case err != nil:
		return q, false, err
	case !ok:
		r.noteStranger(to.Addr())
		return q, false, nil
	}
	if snapshot, err = r.snapshot(ctx, name); err != nil {
		return q, false, err
	}
	if !find(snapshot) {
		return q, false, errors.New("control names " + name.String() + " for it, and does not tell of it")
	}
	return q, true, nil
}

// isStranger reports whether an address was no service's when control was last asked, and whether that was lately.
func (r *resolver) isStranger(a netip.Addr) (was, lately bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	at, was := r.strangers[a]
	return was, was && r.now().Sub(at) < strangerFor
}

func (r *resolver) noteStranger(a netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.strangers) >= maxStrangers {
		clear(r.strangers) // asking again costs little
	}
	r.strangers[a] = r.now()
}
