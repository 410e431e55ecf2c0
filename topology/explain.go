package topology

import (
	"errors"
	"slices"
	"time"
)

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
	AsIf     []string         `json:"as_if,omitempty"` // places that were supposed to be down, for AsIf of the rows
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
	Ready    int         `json:"ready"`           // copies behind it
	Stale    bool        `json:"stale,omitempty"` // its cluster's last word is old; still in use
	Share    float64     `json:"share"`           // of its tier's requests
	Traffic  float64     `json:"traffic"`         // of all requests, as long as none fails
	State    State       `json:"state"`
	Cause    Cause       `json:"cause"`
	Reason   string      `json:"reason"` // the cause and its evidence in words
	// Limits are why it gets less than its place would give it, or more, in words: "spill: 40 % healthy, below 70 %".
	Limits []string `json:"limits,omitempty"`
	// NextTry is, of an ejected copy, from when on a request tries it again. Explain doesn't know it: who keeps health sets it.
	NextTry time.Time `json:"next_try,omitzero"`
	AsIf    *AsIf     `json:"as_if,omitempty"` // what it would be; only where something was supposed
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

// Explain tells what Choose returned: the same plan, and the same error, in words. Rows are in the plan's order.
func Explain(plan Plan, err error) Explanation {
	x := Explanation{
		Service:  plan.Query.Service,
		Port:     plan.Query.Port,
		Protocol: plan.Port.Protocol,
		Scope:    plan.Query.Scope,
		Policy:   plan.Policy,
		From: Caller{
			Cluster: plan.Caller.Cluster,
			Region:  plan.Caller.Locality.Region,
			Zone:    plan.Caller.Locality.Zone,
		},
		Rows: []ExplanationRow{},
	}
	if plan.Caller.Workload != "" {
		x.From.Workload = plan.Caller.Namespace + "/" + plan.Caller.Workload
	}
	for i := range plan.Tiers {
		t := &plan.Tiers[i]
		for j := range t.Candidates {
			c := &t.Candidates[j]
			row := newRow(c.Target, c.Endpoint, c.Remote, c.Reason)
			row.Rank, row.Tier, row.Share, row.Traffic, row.State = i+1, t.Name, c.Share, t.Portion*c.Share, stateOf(t, c)
			row.Limits = limits(t, c)
			x.Rows = append(x.Rows, row)
		}
	}
	for _, e := range plan.Excluded {
		row := newRow(e.Target, e.Endpoint, e.Remote, e.Reason)
		row.State = Excluded
		x.Rows = append(x.Rows, row)
	}
	if err != nil {
		x.Error = &Failure{Code: failureCode(err), Message: err.Error()}
	}
	return x
}

func newRow(target Target, e *Endpoint, r *Remote, reason Reason) ExplanationRow {
	row := ExplanationRow{Cluster: target.Cluster, Endpoint: target.Endpoint, Cause: reason.Cause, Reason: reason.String()}
	if e != nil {
		row.Address = e.Address.String()
		if e.Ready {
			row.Ready = max(e.Capacity, 1)
		}
	}
	if r != nil {
		row.Ready, row.Stale = r.Ready, r.Stale
	}
	return row
}

// limits are the tier's and the candidate's, each told once.
func limits(t *PlanTier, c *Candidate) []string {
	var out []string
	for _, r := range slices.Concat(t.Limits, c.Limits) {
		if words := r.String(); !slices.Contains(out, words) {
			out = append(out, words)
		}
	}
	return out
}

func stateOf(t *PlanTier, c *Candidate) State {
	switch {
	case t.LastResort:
		return LastResort
	case t.Portion > 0 && c.Share > 0:
		return Active
	default:
		return Standby
	}
}

func failureCode(err error) string {
	switch {
	case errors.Is(err, ErrUnknownService):
		return "unknown_service"
	case errors.Is(err, ErrUnknownPort):
		return "unknown_port"
	case errors.Is(err, ErrNotImported):
		return "not_imported"
	case errors.Is(err, ErrNoCandidates):
		return "no_candidates"
	default:
		return "error"
	}
}
