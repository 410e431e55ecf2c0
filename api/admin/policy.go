package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// Policies is which policies a cluster has, and for what: GET /v1/policies.
type Policies struct {
	Cluster     string            `json:"cluster"`
	TrustDomain string            `json:"trust_domain"`
	Clusters    map[string]string `json:"clusters"` // trust domains, by the names of clusters that policies may use
	Policies    []Policy          `json:"policies"` // AccessPolicies, then QuotaPolicies; each by namespace and name
	Workloads   []PolicedWorkload `json:"workloads"`
	Failover    []FailoverPolicy  `json:"failover"` // by namespace and name
}

// Policy is an AccessPolicy or a QuotaPolicy that is in force.
type Policy struct {
	Kind       string      `json:"kind"`
	Namespace  string      `json:"namespace"`
	Name       string      `json:"name"`
	At         string      `json:"at,omitempty"`     // file:line
	Audit      bool        `json:"audit"`            // what it would refuse is told, and let through
	Closed     bool        `json:"closed,omitempty"` // it is not understood, and refuses everything
	Workloads  int         `json:"workloads"`
	Conditions []Condition `json:"conditions"`
	// Access is an AccessPolicy as sidecars have it (trust/access Policy), with trust domains in the place of clusters.
	Access json.RawMessage `json:"access,omitempty"`
	Limits []QuotaLimit    `json:"limits,omitempty"`
}

// QuotaLimit is one bound of a QuotaPolicy.
type QuotaLimit struct {
	Name     string        `json:"name"`
	Per      string        `json:"per"` // caller, end-user or service
	Requests uint32        `json:"requests"`
	Window   time.Duration `json:"window_ns"`
	Burst    uint32        `json:"burst"`
	Shared   bool          `json:"shared"`
}

// PolicedWorkload is a copy of an application, and what is for it.
type PolicedWorkload struct {
	// ID is "namespace/name" of a Workload, "Pod namespace/name" of a Pod without a sidecar, or the address of what only an EndpointSlice names.
	ID        string            `json:"id"`
	Namespace string            `json:"namespace"`
	Labels    map[string]string `json:"labels,omitempty"`
	Services  []string          `json:"services"`    // that it is behind: names in its namespace
	Enforced  []string          `json:"enforced_by"` // "sidecar/shop/checkout-0", "node/node-0"
	Access    []AppliedPolicy   `json:"access"`
	Quotas    []AppliedPolicy   `json:"quotas"`
}

// AppliedPolicy is a policy that is for a workload.
type AppliedPolicy struct {
	Policy string `json:"policy"` // namespace/name
	// Perhaps: nobody tells the labels of the workload, so it can't be told whether the policy is for it. What it denies counts, and what it
	// allows does not.
	Perhaps bool `json:"perhaps,omitempty"`
}

// Policies asks which policies there are, and for what.
func (c *Client) Policies(ctx context.Context) (Policies, error) {
	return ask[Policies](ctx, c, http.MethodGet, "/v1/policies", nil)
}
