// Package telemetry makes what every program tells about itself: structured logs (log/slog), metrics (Prometheus) and traces
// (OpenTelemetry, W3C Trace Context). One Telemetry per process, made in cmd and handed down; nothing here is global.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Config says who reports.
type Config struct {
	Program string // "isthmus-gateway"
	Cluster string
	Name    string // of this instance: "gateway-0", "shop/checkout-0"
	Version string

	LogFormat string    // "text" or "json"; default text
	LogLevel  string    // "debug", "info", "warn", "error"; default info
	Stderr    io.Writer // where logs go; default os.Stderr
}

// Telemetry is what a program reports through.
type Telemetry struct {
	Log        *slog.Logger
	Metrics    *prometheus.Registry
	Tracer     trace.TracerProvider
	Propagator propagation.TextMapPropagator

	shutdown func(context.Context) error
}

// New sets up all three. Spans are exported when an OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_* variable says where to
// (OpenTelemetry's SDK environment variables all work); else none is recorded, and the context is still passed on.
func New(ctx context.Context, c Config) (*Telemetry, error) {
	log, err := newLogger(c)
	if err != nil {
		return nil, err
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		buildInfo(c),
	)
	t := &Telemetry{
		Log:        log,
		Metrics:    metrics,
		Propagator: propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}),
	}
	options := []sdktrace.TracerProviderOption{sdktrace.WithResource(describe(ctx, c))}
	if exportWanted(os.Environ()) {
		exporter, err := autoexport.NewSpanExporter(ctx)
		if err != nil {
			return nil, fmt.Errorf("telemetry: trace exporter: %w", err)
		}
		options = append(options, sdktrace.WithBatcher(exporter))
	} else {
		// A span that nobody will see still has an id to hand on; it costs no attributes and no memory.
		options = append(options, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
	}
	provider := sdktrace.NewTracerProvider(options...)
	t.Tracer, t.shutdown = provider, provider.Shutdown
	return t, nil
}

// Shutdown sends what is still held back, until ctx ends.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	if err := t.shutdown(ctx); err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	return nil
}

// ParseLevel reads a LogLevel; the empty one is the default.
func ParseLevel(s string) (level slog.Level, err error) {
	if s != "" && level.UnmarshalText([]byte(s)) != nil {
		return 0, fmt.Errorf("%q: want debug, info, warn or error", s)
	}
	return level, nil
}

// CheckFormat says whether a LogFormat is one; the empty one is the default.
func CheckFormat(s string) error {
	if s != "" && s != "text" && s != "json" {
		return fmt.Errorf("%q: want text or json", s)
	}
	return nil
}

func newLogger(c Config) (*slog.Logger, error) {
	level, err := ParseLevel(c.LogLevel)
	if err != nil {
		return nil, fmt.Errorf("log level %w", err)
	}
	if err := CheckFormat(c.LogFormat); err != nil {
		return nil, fmt.Errorf("log format %w", err)
	}
	out := c.Stderr
	if out == nil {
		out = os.Stderr
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(out, options)
	if c.LogFormat == "json" {
		handler = slog.NewJSONHandler(out, options)
	}
	logger := slog.New(handler).With(slog.String("program", c.Program))
	if c.Cluster != "" {
		logger = logger.With(slog.String("cluster", c.Cluster))
	}
	if c.Name != "" {
		logger = logger.With(slog.String("name", c.Name))
	}
	return logger, nil
}

func buildInfo(c Config) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "isthmus_build_info",
		Help:        "Always 1; the labels say which build this is.",
		ConstLabels: prometheus.Labels{"program": c.Program, "version": c.Version, "cluster": c.Cluster},
	})
	g.Set(1)
	return g
}

func describe(ctx context.Context, c Config) *resource.Resource {
	own := resource.NewSchemaless(
		attribute.String("service.name", c.Program),
		attribute.String("service.version", c.Version),
		attribute.String("service.instance.id", c.Cluster+"/"+c.Name),
		attribute.String("isthmus.cluster", c.Cluster),
	)
	// OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME win over ours. A part that can't be read is left out.
	env, err := resource.New(ctx, resource.WithFromEnv(), resource.WithTelemetrySDK())
	if env == nil || err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return own
	}
	merged, err := resource.Merge(own, env)
	if err != nil {
		return own
	}
	return merged
}

func exportWanted(environ []string) bool {
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case name == "OTEL_SDK_DISABLED" && strings.EqualFold(value, "true"):
			return false
		case name == "OTEL_TRACES_EXPORTER":
			return value != "none" && value != ""
		}
	}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		if value != "" && (name == "OTEL_EXPORTER_OTLP_ENDPOINT" || name == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
			return true
		}
	}
	return false
}
