package sidecar

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/isthmus-mesh/isthmus/sidecar/host"
	"github.com/isthmus-mesh/isthmus/sidecar/session"
	"github.com/isthmus-mesh/isthmus/topology"
)

// call is one request of the own application, and what came of it. It belongs to the goroutine that serves the request.
type call struct {
	query   topology.Query
	plan    *plan
	started time.Time
	span    trace.Span

	inner   *session.Requests // that brought the answer
	target  topology.Target
	tally   *tally        // of the cluster that answered; nil: none did
	took    time.Duration // until the answer's header
	retries int
	hedged  bool // a second try was made beside the first
	status  int  // 0: none was written
	failure *Failure
	// writer is that of a request that came over HTTP/2; nil: another.
	writer http.ResponseWriter
	// endStream ends a gRPC call, with what it ends with; nil: it is no gRPC call.
	endStream context.CancelCauseFunc
}

func (c *call) hush() { hush(c.writer) }

// event notes a failed attempt on the call's span.
func (c *call) event(tried choice, out outcome) {
	if !c.span.IsRecording() {
		return
	}
	c.span.AddEvent("attempt failed", trace.WithAttributes(
		attribute.String("isthmus.target", place(tried.candidate.Target)),
		attribute.Bool("isthmus.unsent", out.unsent),
		attribute.String("error", out.err.Error()),
	))
}

// begin starts a call and its span, as a child of the span that the application says it is in.
func (o *Outbound) begin(r *http.Request, q topology.Query) (context.Context, *call) {
	ctx := o.propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	c := &call{query: q, started: o.now()}
	ctx, c.span = o.tracer.Start(ctx, r.Method+" "+q.Service.String(), trace.WithSpanKind(trace.SpanKindClient))
	return context.WithValue(ctx, callKey{}, c), c
}

// end records a call.
func (o *Outbound) end(r *http.Request, c *call) {
	took := o.now().Sub(c.started)
	o.tally(c)
	service, cluster := c.query.Service.String(), c.target.Cluster.String()
	var code Code
	if c.failure != nil {
		code = c.failure.Code
		if code == CodeUnknown || code == CodeNotImported {
			service = "unknown" // an application must not make label values up
		}
	}
	self := o.self()
	o.metrics.requests.WithLabelValues(outbound, self.Cluster.String(), workload(self), cluster, service,
		portLabel(c.query.Port), codeLabel(c.status), string(code)).Inc()
	o.metrics.duration.WithLabelValues(outbound, cluster, service).Observe(took.Seconds())
	if c.span.IsRecording() {
		c.describe(r)
	}
	c.span.End()
	if !o.log.Enabled(r.Context(), o.requestLevel) {
		return
	}
	attrs := []slog.Attr{
		slog.String("direction", outbound),
		slog.String("method", r.Method),
		slog.String("destination", c.destination(r)),
		slog.Int("port", int(c.query.Port)),
		slog.String("target", place(c.target)),
		slog.Int("status", c.status),
		slog.Duration("duration", took),
		slog.Int("retries", c.retries),
		slog.String("trace_id", c.span.SpanContext().TraceID().String()),
	}
	if c.hedged {
		attrs = append(attrs, slog.Bool("hedged", true))
	}
	if c.failure != nil {
		attrs = append(attrs, slog.String("code", string(c.failure.Code)), slog.String("error", c.failure.Text))
	}
	o.log.LogAttrs(r.Context(), o.requestLevel, "request", attrs...)
}

// tally counts a call for control, if it was to a service that is known.
func (o *Outbound) tally(c *call) {
	failed := c.failure != nil && c.failure.Code != CodeMoved || c.status == 0
	counts := c.tally
	if counts == nil {
		if c.plan == nil && (c.failure == nil || c.failure.Code != CodeNoCopy) {
			return
		}
		counts = o.tallies.of(c.query.Service, topology.ClusterName{})
	}
	counts.ended(c.took, failed, c.retries, c.hedged)
}

// destination returns what was called, as far as it is known.
func (c *call) destination(r *http.Request) string {
	if c.query.Service.IsZero() {
		return r.Host[:min(len(r.Host), maxLoggedHost)]
	}
	return host.String(c.query)
}

// maxLoggedHost bounds what a Host that is no name of the mesh takes in a log line: the longest DNS name.
const maxLoggedHost = 253

// describe puts on the span what is known at the end, the hops among it.
func (c *call) describe(r *http.Request) {
	c.span.SetAttributes(
		attribute.String("http.request.method", r.Method),
		attribute.Int("http.response.status_code", c.status),
		attribute.String("server.address", c.destination(r)),
		attribute.Int("server.port", int(c.query.Port)),
		attribute.Int("isthmus.retries", c.retries),
		attribute.Bool("isthmus.hedged", c.hedged),
		attribute.String("isthmus.destination.cluster", c.target.Cluster.String()),
		attribute.String("isthmus.destination.endpoint", c.target.Endpoint),
	)
	if c.inner != nil {
		c.span.SetAttributes(
			attribute.String("isthmus.peer", c.inner.Peer.ID.String()),
			attribute.StringSlice("isthmus.path", c.inner.Path),
		)
	}
	if c.failure != nil {
		c.span.SetAttributes(attribute.String("error.type", string(c.failure.Code)))
		c.span.SetStatus(codes.Error, c.failure.Text)
	}
}

// workload names who we are: "shop/checkout-0", or the node's name.
func workload(s topology.Self) string {
	if s.Namespace == "" {
		return s.Workload
	}
	return s.Namespace + "/" + s.Workload
}
