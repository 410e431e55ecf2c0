package gateway

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// labels says whose a stream is. An empty field is not known, or not believed.
type labels struct{ source, destination, service string }

// maxServices bounds the services that have series of their own: a caller may ask for any name. The others share "other".
const maxServices = 2000

type metrics struct {
	streams     *prometheus.CounterVec
	broken      *prometheus.CounterVec
	carried     *prometheus.CounterVec
	active      *prometheus.GaugeVec
	answer      *prometheus.HistogramVec
	hedges      *prometheus.CounterVec
	failed      *prometheus.CounterVec
	endpoints   *prometheus.CounterVec
	lost        *prometheus.CounterVec
	paths       *prometheus.CounterVec
	relocations *prometheus.CounterVec
	shed        prometheus.Counter

	mu       sync.Mutex
	services map[topology.ServiceName]struct{} // guarded by mu

	datagram datagramMetrics
}

func newMetrics(r prometheus.Registerer, g *Gateway) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		streams: counter("isthmus_gateway_streams_total", "Streams by how they were answered: ok, the code of a refusal, or aborted by the caller before.",
			"source_cluster", "destination_cluster", "service", "code"),
		broken: counter("isthmus_gateway_streams_broken_total", "Streams that were open and ended with an error on either side.",
			"source_cluster", "destination_cluster", "service"),
		carried: counter("isthmus_gateway_stream_bytes_total", "Bytes of streams on links, ciphertext as carried; sent or received by this gateway.",
			"source_cluster", "destination_cluster", "service", "direction"),
		active: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "isthmus_gateway_streams_active", Help: "Streams carried now."},
			[]string{"source_cluster", "destination_cluster"}),
		answer: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "isthmus_gateway_answer_seconds", Help: "From a stream's arrival to its answer.",
			Buckets:                     []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
		}, []string{"source_cluster", "destination_cluster"}),
		hedges: counter("isthmus_gateway_hedges_total", "Second connections tried beside a slow one.", "destination_cluster"),
		failed: counter("isthmus_gateway_handshake_failures_total", "Handshakes of sidecars that failed, by reason.", "listener", "reason"),
		endpoints: counter("isthmus_gateway_endpoint_failures_total", "Connects to copies of exported services that failed.",
			"service"),
		lost:        counter("isthmus_link_connections_lost_total", "Connections to peer gateways that were up and ended unasked.", "cluster", "gateway"),
		paths:       counter("isthmus_link_path_moves_total", "Attempts to move a QUIC connection whose bulk was slow to another path, by result.", "cluster", "result"),
		relocations: counter("isthmus_link_stream_moves_total", "Streams that turned out to be bulk and went on over TCP.", "cluster"),
		shed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "isthmus_gateway_connections_shed_total", Help: "Connections of sidecars that were dropped because there were too many.",
		}),
		services: make(map[topology.ServiceName]struct{}),
		datagram: newDatagramMetrics(),
	}
	var errs []error
	for _, c := range append(m.datagram.collectors(),
		m.streams, m.broken, m.carried, m.active, m.answer, m.hedges, m.failed, m.endpoints, m.lost, m.paths, m.relocations, m.shed, &linkCollector{g},
	) {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

// service returns the label for s.
func (m *metrics) service(s topology.ServiceName) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.services[s]; !ok {
		if len(m.services) >= maxServices {
			return "other"
		}
		m.services[s] = struct{}{}
	}
	return s.String()
}

// moved notes that a connection was moved to another path, or was not.
func (m *metrics) moved(c topology.ClusterName, ok bool) {
	result := "failed"
	if ok {
		result = "moved"
	}
	m.paths.WithLabelValues(c.String(), result).Inc()
}

// relocated notes that a stream went on over TCP.
func (m *metrics) relocated(c topology.ClusterName) { m.relocations.WithLabelValues(c.String()).Inc() }

// codeLabel is a code as metrics and traces spell it. Without a code the caller left before there was one.
func codeLabel(c streamv1.Code) string {
	if c == streamv1.Code_CODE_UNSPECIFIED {
		return "aborted"
	}
	return preamble.Label(c)
}

func (m *metrics) answered(l labels, c streamv1.Code, arrived time.Time) {
	m.streams.WithLabelValues(l.source, l.destination, l.service, codeLabel(c)).Inc()
	m.answer.WithLabelValues(l.source, l.destination).Observe(time.Since(arrived).Seconds())
}

func (m *metrics) broke(l labels) {
	m.broken.WithLabelValues(l.source, l.destination, l.service).Inc()
}

func (m *metrics) hedged(l labels) { m.hedges.WithLabelValues(l.destination).Inc() }

func (m *metrics) endpointFailed(s topology.ServiceName) {
	m.endpoints.WithLabelValues(m.service(s)).Inc()
}

func (m *metrics) linkLost(c topology.ClusterName, gateway string) {
	m.lost.WithLabelValues(c.String(), gateway).Inc()
}

// carrying counts a stream as active until the returned function is called.
func (m *metrics) carrying(l labels) (done func()) {
	gauge := m.active.WithLabelValues(l.source, l.destination)
	gauge.Inc()
	return gauge.Dec
}

func (m *metrics) bytes(l labels) (received, sent prometheus.Counter) {
	return m.carried.WithLabelValues(l.source, l.destination, l.service, "received"),
		m.carried.WithLabelValues(l.source, l.destination, l.service, "sent")
}

func (m *metrics) handshakeFailed(listener string, err error) {
	reason := "tls"
	if v, ok := errors.AsType[*trust.VerifyError](err); ok {
		reason = v.Reason.String()
	}
	m.failed.WithLabelValues(listener, reason).Inc()
}

// linkCollector reads the state of the links when it is scraped.
type linkCollector struct{ g *Gateway }

var (
	linkUpDesc = prometheus.NewDesc("isthmus_link_up", "Whether streams can be opened to the cluster.", []string{"cluster"}, nil)
	linkRTT    = prometheus.NewDesc("isthmus_link_rtt_seconds", "Smoothed round trip to a peer gateway, by probes.",
		[]string{"cluster", "gateway"}, nil)
	linkConnections = prometheus.NewDesc("isthmus_link_connections", "Connections to a peer gateway: over QUIC, and one over TCP for what goes there.", []string{"cluster", "gateway"}, nil)
)

// Describe implements prometheus.Collector.
func (c *linkCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- linkUpDesc
	ch <- linkRTT
	ch <- linkConnections
}

// Collect implements prometheus.Collector.
func (c *linkCollector) Collect(ch chan<- prometheus.Metric) {
	for _, l := range c.g.linkReports() {
		up := 0.0
		if l.GetState() != string(topology.LinkDown) {
			up = 1
		}
		ch <- prometheus.MustNewConstMetric(linkUpDesc, prometheus.GaugeValue, up, l.GetCluster())
		for _, gw := range l.GetGateways() {
			ch <- prometheus.MustNewConstMetric(linkConnections, prometheus.GaugeValue, float64(gw.GetConnections()), l.GetCluster(), gw.GetId())
			if gw.GetRttMicros() > 0 {
				rtt := time.Duration(gw.GetRttMicros()) * time.Microsecond //nolint:gosec // G115: made from a Duration
				ch <- prometheus.MustNewConstMetric(linkRTT, prometheus.GaugeValue, rtt.Seconds(), l.GetCluster(), gw.GetId())
			}
		}
	}
}
