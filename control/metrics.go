package control

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are isthmus_control_*.
type metrics struct {
	services prometheus.Gauge
	exports  prometheus.Gauge
	imports  prometheus.Gauge
	problems prometheus.Gauge
	computed prometheus.Histogram
	shed     prometheus.Counter
}

func newMetrics(registry *prometheus.Registry, streams func() float64, more ...prometheus.Collector) (*metrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "isthmus_control_" + name, Help: help})
	}
	m := &metrics{
		services: gauge("services", "Services of the own cluster."),
		exports:  gauge("exports", "ServiceExports that are valid."),
		imports:  gauge("imports", "Services that the clusterset offers."),
		problems: gauge("manifest_problems", "Things wrong in the manifests."),
		computed: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "isthmus_control_compute_seconds", Help: "Time to compute what follows from the present state.",
			NativeHistogramBucketFactor: 1.1,
		}),
		shed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "isthmus_control_connections_shed_total", Help: "Connections without an SVID that were closed: too many, or open for too long.",
		}),
	}
	for _, c := range append([]prometheus.Collector{
		m.services, m.exports, m.imports, m.problems, m.computed, m.shed,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "isthmus_control_config_streams", Help: "Config streams that are open."}, streams),
	}, more...) {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("control: metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) observe(w *world, problems int) {
	m.services.Set(float64(len(w.services)))
	m.exports.Set(float64(len(w.own.Exports)))
	m.imports.Set(float64(len(w.imports)))
	m.problems.Set(float64(problems))
}
