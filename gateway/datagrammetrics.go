package gateway

import "github.com/prometheus/client_golang/prometheus"

// datagramMetrics count what is carried of datagrams.
type datagramMetrics struct {
	datagrams *prometheus.CounterVec
	dropped   *prometheus.CounterVec
	stray     prometheus.Counter
}

func newDatagramMetrics() datagramMetrics {
	return datagramMetrics{
		datagrams: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "isthmus_gateway_datagrams_total",
			Help: "Sealed datagrams of UDP services. way: quic (sent beside the stream, as a QUIC datagram), stream (sent on it: too long, or the carrier has none), received.",
		}, []string{"source_cluster", "destination_cluster", "service", "way"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "isthmus_gateway_datagrams_dropped_total", Help: "Sealed datagrams that made room for newer ones, because the next hop took none; counted when the stream ends.",
		}, []string{"source_cluster", "destination_cluster", "service"}),
		stray: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "isthmus_gateway_datagrams_stray_total", Help: "QUIC datagrams of peers for streams that are not open here, or carry no datagrams.",
		}),
	}
}

func (m *datagramMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.datagrams, m.dropped, m.stray}
}

// datagramCounts are those of one stream.
type datagramCounts struct{ beside, within, received, dropped, bytes prometheus.Counter }

// of returns the counters of a stream; sent counts the bytes of what goes beside it.
func (m *datagramMetrics) of(l labels, sent prometheus.Counter) datagramCounts {
	way := func(w string) prometheus.Counter {
		return m.datagrams.WithLabelValues(l.source, l.destination, l.service, w)
	}
	return datagramCounts{
		beside: way("quic"), within: way("stream"), received: way("received"), bytes: sent,
		dropped: m.dropped.WithLabelValues(l.source, l.destination, l.service),
	}
}
