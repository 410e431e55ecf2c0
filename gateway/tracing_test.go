package gateway

import (
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
)

// A stream's opening is a span on each gateway, one below the other, below the caller's; it is over while the stream goes on.
func TestTraceCrossesBothGateways(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		spans := tracetest.NewSpanRecorder()
		provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
		eu, _ := twoClusters(w, 1, func(c *Config) { c.Tracer = provider })
		c := eu.dial()
		p := preamble.Preamble{
			Cluster: clusterName("us"), Service: serviceName("checkout.shop"), Port: 80,
			Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Tracestate: "vendor=1",
		}
		_, _ = c.Write(p.Append(nil))
		if _, err := preamble.ReadReply(c); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // the stream is open still

		defer c.Close()
		by := make(map[string]sdktrace.ReadOnlySpan)
		for _, s := range spans.Ended() {
			by[s.Name()] = s
		}
		near, far := by["stream to peer"], by["stream from peer"]
		if near == nil || far == nil {
			t.Fatalf("spans ended: %v", by)
		}
		if got := near.Parent().SpanID().String(); got != "00f067aa0ba902b7" {
			t.Errorf("the near span is below %s", got)
		}
		if far.Parent().SpanID() != near.SpanContext().SpanID() || far.SpanContext().TraceID().String() != "4bf92f3577b34da6a3ce929d0e0e4736" {
			t.Errorf("the far span is below %s in trace %s", far.Parent().SpanID(), far.SpanContext().TraceID())
		}
		if got := far.SpanContext().TraceState().String(); got != "vendor=1" {
			t.Errorf("tracestate %q", got)
		}
	})
}

// Without a tracer the caller's trace goes on unchanged.
func TestTraceContextWithoutTracer(t *testing.T) {
	g, err := New(Config{
		ID: "gateway-0", Identity: newTestIdentity(), Bundles: newTestBundles(), Guard: newTestGuard(), Snapshots: newTestSnapshots(),
		Streams: newMemnet().listen("x"), Link: nopPacketConn{}, DialPacket: nopDial,
	})
	if err != nil {
		t.Fatal(err)
	}
	const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	s := g.startSpan(t.Context(), "stream to peer", preamble.Preamble{Traceparent: traceparent}, labels{})
	if got, _ := s.carry(); got != traceparent {
		t.Errorf("carries %q", got)
	}
	s.end(streamv1.Code_CODE_OK, nil, nil)
	s = g.startSpan(t.Context(), "stream to peer", preamble.Preamble{Traceparent: "nonsense"}, labels{})
	if got, _ := s.carry(); got != "" {
		t.Errorf("made %q of nonsense", got)
	}
}
