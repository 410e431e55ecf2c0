package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// DrillRequest begins a drill: POST /v1/drills, at the control of the cluster that is to look dead. It is a lease: it ends when it is not renewed
// (PUT /v1/drills/{id}) in time, and after For in any case.
type DrillRequest struct {
	Service string        `json:"service"` // name.namespace
	For     time.Duration `json:"for_ns"`
	How     string        `json:"how,omitempty"`   // DrillRefuse, which is the default, or DrillSilent
	Force   bool          `json:"force,omitempty"` // even if no other cluster has a ready copy, or a drill of it is on elsewhere
	DryRun  bool          `json:"dry_run,omitempty"`
}

// How a drill makes copies look dead.
const (
	DrillRefuse = "refuse" // as if nothing listened: what is asked of them was not executed, and goes elsewhere
	DrillSilent = "silent" // as if packets were dropped
)

// Drill is a drill that is on, or was.
type Drill struct {
	ID        string    `json:"id"` // empty: it would begin, and has not (DryRun)
	Service   string    `json:"service"`
	Cluster   string    `json:"cluster"` // that looks dead
	How       string    `json:"how"`
	Began     time.Time `json:"began"`
	Ends      time.Time `json:"ends"`       // at the latest
	LeaseEnds time.Time `json:"lease_ends"` // if it is not renewed
	Now       time.Time `json:"now"`        // by control's clock, as all times here
	Ended     time.Time `json:"ended,omitzero"`
	Why       string    `json:"why,omitempty"` // it ended
	// Programs are those of the cluster that are to look dead: "sidecar/shop/checkout-0", "node/node-0".
	Programs []string `json:"programs,omitempty"`
	// Others are the clusters that have ready copies, as far as this cluster knows, with how many.
	Others map[string]int `json:"others,omitempty"`
}

// BeginDrill begins a drill.
func (c *Client) BeginDrill(ctx context.Context, r DrillRequest) (Drill, error) {
	return ask[Drill](ctx, c, http.MethodPost, "/v1/drills", r)
}

// RenewDrill keeps a drill on. An *Error with status 404 says that it is over.
func (c *Client) RenewDrill(ctx context.Context, id string) (Drill, error) {
	return ask[Drill](ctx, c, http.MethodPut, "/v1/drills/"+url.PathEscape(id), nil)
}

// EndDrill ends a drill.
func (c *Client) EndDrill(ctx context.Context, id string) (Drill, error) {
	return ask[Drill](ctx, c, http.MethodDelete, "/v1/drills/"+url.PathEscape(id), nil)
}

// Drills asks for the drills that are on, and for the last ones that were.
func (c *Client) Drills(ctx context.Context) ([]Drill, error) {
	return ask[[]Drill](ctx, c, http.MethodGet, "/v1/drills", nil)
}
