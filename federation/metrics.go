package federation

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are isthmus_federation_*. The gauges are read from the views when they are asked for.
type metrics struct {
	accepted  *prometheus.CounterVec // by cluster, type
	refused   *prometheus.CounterVec // by reason
	published *prometheus.CounterVec // by kind: own, passed_on, answer, want
	dropped   prometheus.Counter     // messages that a bus didn't take
	gaps      prometheus.Counter

	registry   prometheus.Registerer
	collectors []prometheus.Collector
}

const metricPrefix = "isthmus_federation_"

func newMetrics(registry prometheus.Registerer, views func() *Views, now func() time.Time) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricPrefix + name, Help: help}, labels)
	}
	m := &metrics{
		accepted:  counter("accepted_total", "Records accepted from peers.", "cluster", "type"),
		refused:   counter("refused_total", "Records refused, by reason.", "reason"),
		published: counter("published_total", "Messages published, by what they were.", "kind"),
		dropped:   prometheus.NewCounter(prometheus.CounterOpts{Name: metricPrefix + "dropped_total", Help: "Messages that a bus did not take."}),
		gaps:      prometheus.NewCounter(prometheus.CounterOpts{Name: metricPrefix + "gaps_total", Help: "Subscriptions that ended because messages may have been lost."}),
		registry:  registry,
	}
	m.collectors = []prometheus.Collector{m.accepted, m.refused, m.published, m.dropped, m.gaps, &viewCollector{views, now}}
	if registry == nil {
		return m, nil
	}
	for i, c := range m.collectors {
		if err := registry.Register(c); err != nil {
			m.collectors = m.collectors[:i]
			m.unregister()
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) unregister() {
	if m.registry == nil {
		return
	}
	for _, c := range m.collectors {
		m.registry.Unregister(c)
	}
}

// refuse counts err, if it is a Refusal.
func (m *metrics) refuse(err error) {
	if r, ok := errors.AsType[*Refusal](err); ok {
		m.refused.WithLabelValues(string(r.Reason)).Inc()
	}
}

// viewCollector tells of the views as they are at the moment.
type viewCollector struct {
	views func() *Views
	now   func() time.Time
}

var (
	headAge = prometheus.NewDesc(metricPrefix+"head_age_seconds",
		"Age of the last Head of a peer that is in force, by both clocks.", []string{"cluster"}, nil)
	viewCount = prometheus.NewDesc(metricPrefix+"views", "Peers by state.", []string{"state"}, nil)
	headSkew  = prometheus.NewDesc(metricPrefix+"head_transit_seconds",
		"Between a peer's signing of its last Head and our receiving it: time in transit and the clocks' difference.", []string{"cluster"}, nil)
)

func (c *viewCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- headAge
	ch <- viewCount
	ch <- headSkew
}

func (c *viewCollector) Collect(ch chan<- prometheus.Metric) {
	states := map[string]int{
		string(Waiting): 0, string(Fresh): 0, string(Stale): 0, string(Frozen): 0, string(Expired): 0, quarantined: 0,
	}
	now := c.now()
	for _, v := range c.views().All() {
		states[v.State()]++
		if v.Freshness == Waiting {
			continue
		}
		cluster := v.Cluster.String()
		ch <- prometheus.MustNewConstMetric(headAge, prometheus.GaugeValue, now.Sub(v.Issued).Seconds(), cluster)
		ch <- prometheus.MustNewConstMetric(headSkew, prometheus.GaugeValue, v.Received.Sub(v.Issued).Seconds(), cluster)
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(viewCount, prometheus.GaugeValue, float64(n), state)
	}
}
