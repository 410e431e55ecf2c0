package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Expiry is when something ends that trust stands on.
type Expiry struct {
	What        string // svid, issuing, root, bundle, …: one word
	TrustDomain string
	At          time.Time // zero: not known, and not told
}

// expiryCollector tells of expiries as they are at the moment.
type expiryCollector struct {
	now func() time.Time
	of  func() []Expiry
}

// Expiries returns isthmus_trust_expiry_seconds: how long each has left, negative once it is over. Of several with the same labels the
// first to end is told.
func Expiries(now func() time.Time, of func() []Expiry) prometheus.Collector {
	return &expiryCollector{now, of}
}

var expirySeconds = prometheus.NewDesc("isthmus_trust_expiry_seconds",
	"How long it lasts yet; negative once it is over.", []string{"what", "trust_domain"}, nil)

func (*expiryCollector) Describe(ch chan<- *prometheus.Desc) { ch <- expirySeconds }

func (c *expiryCollector) Collect(ch chan<- prometheus.Metric) {
	now := c.now()
	type labels struct{ what, domain string }
	first := map[labels]time.Time{}
	for _, e := range c.of() {
		l := labels{e.What, e.TrustDomain}
		if at, ok := first[l]; !e.At.IsZero() && (!ok || e.At.Before(at)) {
			first[l] = e.At
		}
	}
	for l, at := range first {
		ch <- prometheus.MustNewConstMetric(expirySeconds, prometheus.GaugeValue, at.Sub(now).Seconds(), l.what, l.domain)
	}
}
