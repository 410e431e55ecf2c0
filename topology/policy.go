package topology

// Same, as a selector's cluster, region or zone, means the caller's own.
const Same = "Same"

// Selector picks places a call can go. Every field that is set must match; the empty selector matches all.
type Selector struct {
	Cluster string            `json:"cluster,omitempty"` // a name, or Same
	Region  string            `json:"region,omitempty"`
	Zone    string            `json:"zone,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// Tier is one rank of a failover order.
type Tier struct {
	Name    string
	Match   Selector
	Weights map[string]uint32 // share by cluster name within the tier; none: by ready copies
}

// Policy is a FailoverPolicy as Choose needs it.
type Policy struct {
	Name  string // namespace/name of the object it came from
	Tiers []Tier
	Never []Selector
}
