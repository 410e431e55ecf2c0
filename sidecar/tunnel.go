package sidecar

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/isthmus-mesh/isthmus/internal/relay"
	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/sidecar/conn"
	"github.com/isthmus-mesh/isthmus/sidecar/host"
	"github.com/isthmus-mesh/isthmus/sidecar/http1"
	"github.com/isthmus-mesh/isthmus/sidecar/session"
	"github.com/isthmus-mesh/isthmus/topology"
)

// An opaque connection begins with one byte from the called workload's sidecar: whether the application took the connection.
// Until then nothing was sent to it, so the caller may go to another copy; not where it is refused, which is as final as 403 and 429 are.
// A sidecar that does not know a byte takes it for tunnelAppDown.
const (
	tunnelOpen    = 0
	tunnelAppDown = 1
	tunnelRefused = 2 // the caller may not
	tunnelTooMany = 3 // above a quota
	// tunnelTimeout bounds the wait for it.
	tunnelTimeout = 5 * time.Second
)

var (
	errAppDown = errors.New("the application does not take connections")
	errNoPort  = errors.New("nothing listens at the application's port")
)

// tunnel is one opaque connection on its way.
type tunnel struct {
	*session.Conn
	target topology.Target
	tally  *tally
	tries  int
}

// openTunnel opens an opaque connection to one copy after another until one takes it. The error is a *Failure, or ctx's.
func (o *Outbound) openTunnel(ctx context.Context, p *plan) (*tunnel, error) {
	q := p.Query
	s := newSelection(p, o.health, o.now, true)
	for tries := range maxAttempts {
		c := s.next()
		if err := s.pause(ctx, c); err != nil {
			return nil, err
		}
		inner, err := o.tryTunnel(ctx, q, c)
		if err == nil {
			o.answered(c)
			return &tunnel{inner, c.candidate.Target, c.tally, tries}, nil
		}
		if refused, ok := errors.AsType[*Failure](err); ok {
			o.answered(c)
			return nil, refused
		}
		if ctx.Err() != nil {
			if c.probe {
				o.health.Cancel(c.candidate.Target)
			}
			return nil, ctx.Err()
		}
		s.failed(c, err.Error())
	}
	return nil, fail(http.StatusServiceUnavailable, CodeNoAnswer, "no copy of %s took the connection: %s", host.String(q), s.words())
}

// tryTunnel tries one copy. An error is a *Failure where it refuses, which no other copy is to be asked about.
func (o *Outbound) tryTunnel(ctx context.Context, q topology.Query, c choice) (*session.Conn, error) {
	protocol := session.TCP
	if q.Datagrams {
		protocol = session.UDP
	}
	inner, err := o.sessions.Dial(ctx, destination(q, c.candidate), protocol)
	if err != nil {
		o.notOpened(ctx, c, err, true)
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { inner.Abort(ctx.Err()) })
	defer stop()
	_ = inner.SetReadDeadline(o.now().Add(tunnelTimeout))
	var first [1]byte
	_, err = io.ReadFull(inner, first[:])
	if err == nil && first[0] != tunnelOpen {
		err = errAppDown
		if refused := tunnelRefusal(first[0], q, c.candidate.Target); refused != nil {
			inner.Abort(refused)
			return nil, refused
		}
	}
	if err != nil {
		inner.Abort(err)
		if ctx.Err() == nil {
			o.failed(c.candidate.Target, balance.Broken, err)
		}
		return nil, err
	}
	return inner, inner.SetReadDeadline(time.Time{})
}

// tunnelRefusal is what the application hears where the called side does not want its connection; nil where the answer says something else.
func tunnelRefusal(answer byte, q topology.Query, t topology.Target) *Failure {
	switch answer {
	case tunnelRefused:
		return fail(http.StatusForbidden, CodeNotAllowed, "%s refuses the connection to %s: this workload may not call it", place(t), host.String(q))
	case tunnelTooMany:
		return fail(http.StatusTooManyRequests, CodeTooMany, "%s refuses the connection to %s: a quota is used up", place(t), host.String(q))
	default:
		return nil
	}
}

// connect serves CONNECT: requests inside of it when the port speaks HTTP, else opaque bytes.
func (o *Outbound) connect(w http.ResponseWriter, r *http.Request, inside *conn.Handoff) {
	if r.ProtoMajor != 1 {
		fail(http.StatusNotImplemented, CodeUnsupported, "CONNECT is served over HTTP/1.1 only; requests can be sent to this proxy directly").write(w, r)
		return
	}
	p, failure := o.connectPlan(r)
	if failure != nil {
		o.refuse(w, r, failure)
		return
	}
	if p.Port.Protocol.IsHTTP() {
		c, err := accept(w)
		if err == nil {
			inside.Give(&insideConn{Conn: http1.Strict(c), query: p.Query})
		}
		return
	}
	ctx := o.propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	o.tunnel(ctx, p, func(err error) (net.Conn, error) {
		if err != nil {
			failure, ok := errors.AsType[*Failure](err)
			if !ok {
				return nil, err // the application went away
			}
			failure.write(w, r)
			return nil, failure
		}
		return accept(w)
	})
}

func (o *Outbound) connectPlan(r *http.Request) (*plan, *Failure) {
	q, err := host.Parse(r.URL.Host, 0)
	if failure := nameFailure(r.URL.Host, err); failure != nil {
		return nil, failure
	}
	p, err := o.resolver.plan(r.Context(), q)
	if err != nil {
		failure, _ := errors.AsType[*Failure](err)
		return nil, failure
	}
	return p, nil
}

// refuse answers a CONNECT that led nowhere.
func (o *Outbound) refuse(w http.ResponseWriter, r *http.Request, f *Failure) {
	o.metrics.requests.WithLabelValues(outbound, o.self().Cluster.String(), workload(o.self()), "", "unknown", "0", codeLabel(f.Status), string(f.Code)).Inc()
	closeAfterConnect(w, r)
	f.write(w, r)
}

// tallyTunnel counts a connection for control, when it is open or could not be.
func (o *Outbound) tallyTunnel(ctx context.Context, q topology.Query, far *tunnel, took time.Duration, err error) {
	switch {
	case far != nil:
		far.tally.ended(took, false, far.tries, false)
	case ctx.Err() == nil:
		refused, _ := errors.AsType[*Failure](err)
		o.tallies.of(q.Service, topology.ClusterName{}).ended(0, refused == nil || !refused.final(), 0, false)
	}
}

// final reports whether the called side does not want what was asked: nothing has failed.
func (f *Failure) final() bool { return f.Code == CodeNotAllowed || f.Code == CodeTooMany }

// accept tells the application that its tunnel is open, and takes the connection over.
func accept(w http.ResponseWriter) (net.Conn, error) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		_ = c.Close()
		return nil, err
	}
	return conn.Unread(c, rw.Reader), nil
}

// insideConn is a connection inside of which requests to one destination travel.
type insideConn struct {
	*http1.Conn
	query topology.Query
}

// tunnel opens an opaque connection and relays until both sides are done. ready is told whether it was opened, and returns the
// application's side.
func (o *Outbound) tunnel(ctx context.Context, p *plan, ready func(error) (net.Conn, error)) {
	q, began := p.Query, o.now()
	ctx, span := o.tracer.Start(ctx, "tcp "+q.Service.String(), trace.WithSpanKind(trace.SpanKindClient))
	defer span.End()
	done, ok := o.work.Add()
	if !ok {
		_, _ = ready(ending()) // fails with just that
		return
	}
	defer done()
	far, err := o.openTunnel(ctx, p)
	o.tallyTunnel(ctx, q, far, o.now().Sub(began), err)
	near, nearErr := ready(err)
	var stats relay.Stats
	switch {
	case err != nil:
	case nearErr != nil:
		err = nearErr
		far.Abort(err)
	default:
		stats, err = relay.Pipe(ctx, near, far)
	}
	var target topology.Target
	if far != nil {
		target = far.target
		span.SetAttributes(attribute.String("isthmus.target", place(target)), attribute.StringSlice("isthmus.path", far.Path))
	}
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	cluster, service := target.Cluster.String(), q.Service.String()
	o.metrics.bytes.WithLabelValues(outbound, cluster, service, "sent").Add(float64(stats.AToB))
	o.metrics.bytes.WithLabelValues(outbound, cluster, service, "received").Add(float64(stats.BToA))
	if o.log.Enabled(ctx, o.requestLevel) {
		o.log.LogAttrs(ctx, o.requestLevel, "connection",
			slog.String("direction", outbound), slog.String("destination", host.String(q)), slog.Int("port", int(q.Port)),
			slog.String("target", place(target)), slog.Int64("sent", stats.AToB), slog.Int64("received", stats.BToA),
			slog.Duration("duration", o.now().Sub(began)), slog.Any("error", err))
	}
}
