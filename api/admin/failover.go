package admin

// FailoverPolicy is a FailoverPolicy and what became of it.
type FailoverPolicy struct {
	Namespace  string        `json:"namespace"`
	Name       string        `json:"name"`
	At         string        `json:"at,omitempty"` // file:line
	Conditions []Condition   `json:"conditions"`   // Active
	Clusters   []FailoverRow `json:"clusters"`     // where calls from this cluster go by it, as far as control knows
}

// FailoverRow is a cluster's copies of one service in one tier.
type FailoverRow struct {
	Service string `json:"service"`
	Cluster string `json:"cluster"`
	Tier    string `json:"tier,omitempty"`
	Ready   int    `json:"ready"`
	Total   int    `json:"total"`
	State   string `json:"state"` // Active, Spill, Standby, Inert or Excluded
	Why     string `json:"why,omitempty"`
}
