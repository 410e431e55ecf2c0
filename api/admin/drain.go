package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// DrainsPath is where drains are shown (GET), begun (PUT) and ended (DELETE, with the service in the query).
const DrainsPath = "/v1/drains"

// DrainRequest takes a service's copies in this cluster, or the whole cluster, out of use: PUT /v1/drains → Drains. What is drained already goes on
// as it is. Refused with 409 where nothing else could serve.
type DrainRequest struct {
	Service string        `json:"service,omitempty"` // name.namespace; empty: all that the cluster exports
	Over    time.Duration `json:"over_ns"`           // whole seconds; how long the share of each takes to go to zero
	Force   bool          `json:"force,omitempty"`   // though nothing else serves some of it
	DryRun  bool          `json:"dry_run,omitempty"`
}

// Drains is what is drained in a cluster, and how far that has come: GET /v1/drains.
type Drains struct {
	Cluster  string           `json:"cluster"`
	Now      time.Time        `json:"now"` // by control's clock
	Drains   []Drain          `json:"drains"`
	Services []DrainedService `json:"services"`
	// Untouched are, while the whole cluster is drained, its services that are not exported: only it can serve them, so they go on.
	Untouched []string `json:"untouched,omitempty"`
	// Safe: something is drained, and nothing of it has come in for Quiet.
	Safe  bool          `json:"safe"`
	Quiet time.Duration `json:"quiet_ns"`
	// DryRun: this is how it would be.
	DryRun bool `json:"dry_run,omitempty"`
	// Already: what was asked for was so before.
	Already bool `json:"already,omitempty"`
}

// Drain is one word of the operator.
type Drain struct {
	Service string        `json:"service,omitempty"` // name.namespace; empty: the cluster
	Began   time.Time     `json:"began"`
	Over    time.Duration `json:"over_ns"`
}

// DrainedService is a service whose copies in this cluster are drained.
type DrainedService struct {
	Service   string           `json:"service"` // name.namespace
	Began     time.Time        `json:"began"`
	Over      time.Duration    `json:"over_ns"`
	Copies    int              `json:"copies"` // here, ready ones
	Elsewhere []DrainElsewhere `json:"elsewhere"`
	// Active is how many requests, streams and connections are open on its copies here, and Rate how many begin each second.
	Active  uint64        `json:"active"`
	Rate    float64       `json:"rate"`
	Callers []DrainCaller `json:"callers,omitempty"`
	// Last is when something came in last, as far as it is known since control started.
	Last time.Time `json:"last,omitzero"`
	// Silent are the programs that serve it and do not say how much they have to do: sidecars and node proxies that are away, or older than that.
	Silent []string `json:"silent,omitempty"`
	Safe   bool     `json:"safe"`
	Why    string   `json:"why"` // it is safe, or is not
}

// DrainElsewhere is another cluster that serves the same.
type DrainElsewhere struct {
	Cluster string `json:"cluster"`
	Ready   int    `json:"ready"`
	Problem string `json:"problem,omitempty"` // why it does not count: no ready copies, drained itself, no link
}

// DrainCaller is a cluster from which something still comes in.
type DrainCaller struct {
	Cluster string  `json:"cluster"`
	Active  uint64  `json:"active"`
	Rate    float64 `json:"rate"`
}

// Drains asks what is drained, and how far that has come.
func (c *Client) Drains(ctx context.Context) (Drains, error) {
	return ask[Drains](ctx, c, http.MethodGet, DrainsPath, nil)
}

// Drain takes something out of use.
func (c *Client) Drain(ctx context.Context, r DrainRequest) (Drains, error) {
	return ask[Drains](ctx, c, http.MethodPut, DrainsPath, r)
}

// Undrain takes a service, by name.namespace, or the whole cluster (an empty name) into use again. Already says that it was not drained.
func (c *Client) Undrain(ctx context.Context, service string, dryRun bool) (Drains, error) {
	query := url.Values{"service": {service}}
	if dryRun {
		query.Set("dry_run", "true")
	}
	return ask[Drains](ctx, c, http.MethodDelete, DrainsPath+"?"+query.Encode(), nil)
}
