package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// TimelinePath is where decisions and what led to them are shown: GET /v1/timeline?service=S[&since=D].
const TimelinePath = "/v1/timeline"

// Timeline is what one cluster's control knows of where calls to a service went, and why: GET /v1/timeline.
type Timeline struct {
	Service string          `json:"service"` // name.namespace
	Cluster string          `json:"cluster"` // whose control tells
	Now     time.Time       `json:"now"`     // by its clock
	Since   time.Time       `json:"since"`
	Events  []TimelineEvent `json:"events"` // oldest first
}

// The kinds of TimelineEvent. They are added to, never changed.
const (
	EventTurn     = "turn"     // a caller shares its requests otherwise: its own word
	EventDrain    = "drain"    // copies are drained
	EventUndrain  = "undrain"  // they are in use again
	EventDrill    = "drill"    // a drill begins or ends
	EventLink     = "link"     // the link to a cluster comes up or goes down
	EventCapacity = "capacity" // a cluster has no ready copies, or has some again
	EventPolicy   = "policy"   // another failover policy is in force, or the same says something else
)

// TimelineEvent is one thing that happened.
type TimelineEvent struct {
	ID      uint64    `json:"id"` // of that control, since it began; grows
	At      time.Time `json:"at"` // of a turn: by the caller's clock
	Cluster string    `json:"cluster"`
	Kind    string    `json:"kind"`
	Service string    `json:"service,omitempty"` // empty: the cluster as a whole
	Port    uint16    `json:"port,omitempty"`
	// Callers are, of a turn, who told it: "sidecar/shop/web". Count is how many told the same at the same time; not all are named.
	Callers []string `json:"callers,omitempty"`
	Count   int      `json:"count,omitempty"`
	// Before and After are the shares by cluster, from 0 to 1; none: there was nowhere to go.
	Before   map[string]float64 `json:"before,omitempty"`
	After    map[string]float64 `json:"after,omitempty"`
	Evidence []TimelineEvidence `json:"evidence,omitempty"`
	Detail   string             `json:"detail,omitempty"` // in words
}

// TimelineEvidence says of a copy, or of a cluster's copies as a whole, why it is where it is.
type TimelineEvidence struct {
	Cluster  string `json:"cluster,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	Cause    string `json:"cause"` // topology.Cause; "gone": no longer told of; "policy": another policy
	Detail   string `json:"detail,omitempty"`
}

// Timeline asks what happened to calls to a service (name.namespace) since so long ago.
func (c *Client) Timeline(ctx context.Context, service string, ago time.Duration) (Timeline, error) {
	q := url.Values{"service": {service}, "since": {ago.String()}}
	return ask[Timeline](ctx, c, http.MethodGet, TimelinePath+"?"+q.Encode(), nil)
}
