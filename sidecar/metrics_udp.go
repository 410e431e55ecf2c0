package sidecar

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/topology"
)

// Why a datagram was dropped.
const (
	udpForged      = "forged"      // it came, and did not open: replayed, forged or damaged
	udpQueueFull   = "queue_full"  // the oldest of those that waited to be sent
	udpNoCopy      = "no_copy"     // there was no copy to send it to
	udpRefused     = "refused"     // the called side may not take it, or the caller is above a quota
	udpUnreachable = "unreachable" // nothing listens at the application's port
	udpEnding      = "ending"      // the called sidecar takes nothing new any more
	udpWriteFailed = "write"       // the own application did not take it
)

// udpMetrics are what a sidecar counts of datagrams.
type udpMetrics struct {
	flows     *prometheus.GaugeVec
	datagrams *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	dropped   *prometheus.CounterVec
	moved     *prometheus.CounterVec
}

func newUDPMetrics() udpMetrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return udpMetrics{
		flows: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "isthmus_udp_flows", Help: "Flows of datagrams that are open: outbound from the own application, inbound to it.",
		}, []string{"direction"}),
		datagrams: counter("isthmus_udp_datagrams_total", "Datagrams that were sent on. way: sent is from the caller to the called.", "direction", "destination_cluster", "destination_service", "way"),
		bytes:     counter("isthmus_udp_bytes_total", "Payload of datagrams that were sent on, in bytes.", "direction", "destination_cluster", "destination_service", "way"),
		dropped: counter("isthmus_udp_dropped_total", "Datagrams that were dropped here. reason: forged (it does not open), queue_full, no_copy, refused, unreachable (nothing listens at the port), ending, write.",
			"direction", "destination_service", "reason"),
		moved: counter("isthmus_udp_flows_moved_total", "Flows that went on at another copy, because theirs failed or is gone.", "destination_service"),
	}
}

func (m *udpMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.flows, m.datagrams, m.bytes, m.dropped, m.moved}
}

func (m *udpMetrics) drop(direction string, service topology.ServiceName, reason string, n uint64) {
	if n > 0 {
		m.dropped.WithLabelValues(direction, service.String(), reason).Add(float64(n))
	}
}

// udpCounts count what is carried to and from one place.
type udpCounts struct{ sent, received udpCount }

type udpCount struct{ datagrams, bytes prometheus.Counter }

func (c *udpCount) add(bytes int) {
	c.datagrams.Inc()
	c.bytes.Add(float64(bytes))
}

func (m *udpMetrics) of(direction, cluster, service string) udpCounts {
	way := func(w string) udpCount {
		return udpCount{m.datagrams.WithLabelValues(direction, cluster, service, w), m.bytes.WithLabelValues(direction, cluster, service, w)}
	}
	return udpCounts{sent: way("sent"), received: way("received")}
}
