package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/isthmus-mesh/isthmus/internal/ready"
)

func TestLogsSayWho(t *testing.T) {
	var out bytes.Buffer
	tel, err := New(t.Context(), Config{Program: "isthmus-gateway", Cluster: "eu", Name: "gateway-0", LogFormat: "json", Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	tel.Log.Info("link up")
	tel.Log.Debug("not at this level")
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%v in %q", err, out.String())
	}
	if line["program"] != "isthmus-gateway" || line["cluster"] != "eu" || line["name"] != "gateway-0" || line["msg"] != "link up" {
		t.Errorf("got %v", line)
	}
}

func TestRefusesWhatItCannotDo(t *testing.T) {
	for _, c := range []Config{{LogLevel: "loud"}, {LogFormat: "xml"}} {
		if _, err := New(t.Context(), c); err == nil || !strings.Contains(err.Error(), "want") {
			t.Errorf("%+v: got %v, want an error that says what is taken", c, err)
		}
	}
}

func TestContextIsPassedOnThoughNothingIsExported(t *testing.T) {
	tel, err := New(t.Context(), Config{Program: "p", Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	in := propagation.MapCarrier{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	ctx := tel.Propagator.Extract(t.Context(), in)
	ctx, span := tel.Tracer.Tracer("t").Start(ctx, "hop")
	defer span.End()
	out := propagation.MapCarrier{}
	tel.Propagator.Inject(ctx, out)
	if got := out["traceparent"]; !strings.HasPrefix(got, "00-0af7651916cd43dd8448eb211c80319c-") || got == in["traceparent"] {
		t.Errorf("traceparent %q: want the same trace, another span", got)
	}
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		t.Error("the caller sampled, we did not")
	}
}

func TestExportIsWantedBySayingSo(t *testing.T) {
	for _, c := range []struct {
		env  string
		want bool
	}{
		{"", false},
		{"OTEL_TRACES_EXPORTER=console", true},
		{"OTEL_TRACES_EXPORTER=none OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318", false},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318", true},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:4318", true},
		{"OTEL_SDK_DISABLED=true OTEL_TRACES_EXPORTER=otlp", false},
	} {
		if got := exportWanted(strings.Fields(c.env)); got != c.want {
			t.Errorf("%q: got %t", c.env, got)
		}
	}
}

func TestAdminServesUntilTheEnd(t *testing.T) {
	tel, err := New(t.Context(), Config{Program: "p", Cluster: "eu", Version: "v9", Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	checks := ready.New()
	checks.Waiting("identity", "none yet")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- ServeHTTP(ctx, ln, Admin(tel.Metrics, checks)) }()
	for path, want := range map[string]string{"/metrics": `isthmus_build_info{cluster="eu",program="p",version="v9"} 1`, "/livez": "identity", "/readyz": "none yet"} {
		resp, err := http.Get("http://" + ln.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(body), want) {
			t.Errorf("%s: no %q in %s", path, want, body)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("ServeHTTP: %v", err)
	}
}
