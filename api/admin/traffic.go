package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Traffic is what the callers of one cluster saw of a service, second by second: GET /v1/traffic?service=checkout.shop&since=60s. It comes from
// their sidecars' reports, once a second: a request is in the second in which it was told of, the present one is not whole yet, and sidecars that
// are not connected are missing.
type Traffic struct {
	Service string    `json:"service"` // name.namespace
	Cluster string    `json:"cluster"` // whose workloads call
	Now     time.Time `json:"now"`     // by control's clock, as all times here
	Since   time.Time `json:"since"`   // from when on it is known
	// LatencyEnds is where the buckets of latencies end; the last has no end.
	LatencyEnds []time.Duration `json:"latency_ends_ns"`
	Series      []TrafficSeries `json:"series"`  // by cluster
	Callers     int             `json:"callers"` // sidecars that have told of the service
	// Served is what the cluster's own copies have to do for it, by what their sidecars and node proxies told last.
	Served []Served `json:"served"`
}

// Served is what one called program has to do for a service.
type Served struct {
	Program  string    `json:"program"`         // "sidecar/shop/checkout-0", "node/node-0"
	At       time.Time `json:"at"`              // when it changed last
	Active   int       `json:"active"`          // requests and connections that are open
	Requests uint64    `json:"requests"`        // begun since it started
	Shed     uint64    `json:"shed,omitempty"`  // refused because there were too many
	Limit    int       `json:"limit,omitempty"` // requests at a time; 0: none
}

// TrafficSeries is the requests that one cluster answered.
type TrafficSeries struct {
	Cluster string          `json:"cluster"` // empty: nobody answered
	Seconds []TrafficSecond `json:"seconds"` // oldest first; those without any are left out
}

// TrafficSecond is what was told in one second.
type TrafficSecond struct {
	At       time.Time `json:"at"` // its beginning
	Requests uint64    `json:"requests"`
	Failed   uint64    `json:"failed,omitempty"`
	Retried  uint64    `json:"retried,omitempty"`
	Hedged   uint64    `json:"hedged,omitempty"`
	Latency  []uint64  `json:"latency,omitempty"` // by bucket, without zeros at the end
}

// Traffic asks what the cluster's callers saw of a service ("name.namespace") since so long ago.
func (c *Client) Traffic(ctx context.Context, service string, ago time.Duration) (Traffic, error) {
	q := url.Values{"service": {service}, "since": {ago.String()}}
	return ask[Traffic](ctx, c, http.MethodGet, "/v1/traffic?"+q.Encode(), nil)
}
