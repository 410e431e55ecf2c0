package topology

// Explanation is a Plan told in words, for isthmus explain. Its JSON is part of the API: fields are added, never changed.
type Explanation struct {
	Service  ServiceName      `json:"service"`
	Port     uint16           `json:"port"`
	Protocol Protocol         `json:"protocol,omitempty"` // empty when the port isn't known
	Scope    Scope            `json:"scope"`              // "clusterset" or "cluster"
	Policy   string           `json:"policy,omitempty"`   // namespace/name; none: the default order
	From     Caller           `json:"from"`
	Rows     []ExplanationRow `json:"rows"`
	Error    *Failure         `json:"error,omitempty"` // why there is nowhere to go
}

// Caller is who asked.
type Caller struct {
	Cluster  ClusterName `json:"cluster"`
	Region   string      `json:"region,omitempty"`
	Zone     string      `json:"zone,omitempty"`
	Workload string      `json:"workload,omitempty"` // namespace/name
}

// ExplanationRow is one copy, or one other cluster's copies as a whole.
type ExplanationRow struct {
	Rank     int         `json:"rank"` // of its tier, from 1; 0: excluded
	Tier     string      `json:"tier,omitempty"`
	Cluster  ClusterName `json:"cluster"`
	Endpoint string      `json:"endpoint,omitempty"` // none: another cluster as a whole
	Address  string      `json:"address,omitempty"`
	Ready    int         `json:"ready"`   // copies behind it
	Share    float64     `json:"share"`   // of its tier's requests
	Traffic  float64     `json:"traffic"` // of all requests, as long as none fails
	State    State       `json:"state"`
	Cause    Cause       `json:"cause"`
	Reason   string      `json:"reason"` // the cause and its evidence in words
}

// State is what a copy is to a caller now.
type State string

// The states.
const (
	Active     State = "active"      // requests go there now
	Standby    State = "standby"     // requests go there when better tiers fail
	LastResort State = "last_resort" // suspected: requests go there when all else fails
	Excluded   State = "excluded"    // no request goes there
)

// Failure is an error of Choose.
type Failure struct {
	// Code is "unknown_service", "unknown_port", "not_imported", "no_candidates", or "error" for any other.
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Explain tells what Choose returned: the same plan, and the same error, in words.
func Explain(plan Plan, err error) Explanation {
	return Explanation{Service: plan.Query.Service, Port: plan.Query.Port, Scope: plan.Query.Scope}
}
