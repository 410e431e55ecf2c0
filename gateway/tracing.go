package gateway

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
)

// span is the trace of one stream's opening: from its preamble to its answer. It doesn't last as long as the stream, which carries
// many requests and would show in no trace until it ends.
type span struct {
	trace.Span
}

// startSpan continues the trace that the preamble names.
func (g *Gateway) startSpan(ctx context.Context, name string, p preamble.Preamble, who labels) span {
	carrier := propagation.MapCarrier{"traceparent": p.Traceparent, "tracestate": p.Tracestate}
	ctx = propagation.TraceContext{}.Extract(ctx, carrier)
	_, s := g.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
	if s.IsRecording() {
		s.SetAttributes(
			attribute.String("isthmus.gateway", g.cfg.ID),
			attribute.String("isthmus.source_cluster", who.source),
			attribute.String("isthmus.destination_cluster", p.Cluster.String()),
			attribute.String("isthmus.service", p.Service.String()),
			attribute.Int("isthmus.port", int(p.Port)),
		)
	}
	return span{s}
}

// carry returns the trace context for the next gateway: this span is its parent.
func (s span) carry() (traceparent, tracestate string) {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpan(context.Background(), s.Span), carrier)
	return carrier["traceparent"], carrier["tracestate"]
}

// end says how the stream was answered, or what broke it before that.
func (s span) end(code streamv1.Code, refusal *preamble.Refusal, err error) {
	s.SetAttributes(attribute.String("isthmus.code", codeLabel(code)))
	switch {
	case refusal != nil:
		s.SetStatus(codes.Error, refusal.Error())
	case err != nil:
		s.SetStatus(codes.Error, err.Error())
	}
	s.End()
}
