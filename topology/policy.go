package topology

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// Same means the caller's own, as a selector's cluster, region or zone.
const Same = "Same"

// Selector picks places a call can go. Every field that is set must match; the empty selector matches all.
type Selector struct {
	Cluster string            `json:"cluster,omitempty"` // a name, or Same
	Region  string            `json:"region,omitempty"`
	Zone    string            `json:"zone,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// String returns what is set: "cluster=eu region=Same labels=a=1,b=2"; "any" for the empty selector.
func (s Selector) String() string {
	var parts []string
	for _, f := range [...]struct{ key, value string }{{"cluster", s.Cluster}, {"region", s.Region}, {"zone", s.Zone}} {
		if f.value != "" {
			parts = append(parts, f.key+"="+f.value)
		}
	}
	if len(s.Labels) > 0 {
		labels := make([]string, 0, len(s.Labels))
		for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
			labels = append(labels, k+"="+s.Labels[k])
		}
		parts = append(parts, "labels="+strings.Join(labels, ","))
	}
	if len(parts) == 0 {
		return "any"
	}
	return strings.Join(parts, " ")
}

// matches reports whether every field that is set fits c. What is unknown, of the caller or of c, fits nothing; so another
// cluster as a whole is in no zone.
func (s *Selector) matches(self Self, c *spot) bool {
	switch s.Cluster {
	case "":
	case Same:
		if !c.own {
			return false
		}
	default:
		if s.Cluster != c.Cluster.String() {
			return false
		}
	}
	if !fits(s.Region, self.Locality.Region, c.region) || !fits(s.Zone, self.Locality.Zone, c.zone) {
		return false
	}
	for k, v := range s.Labels {
		if have, ok := c.labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func fits(want, own, have string) bool {
	if want == "" {
		return true
	}
	if want == Same {
		want = own
	}
	return want != "" && want == have
}

// Tier is one rank of a failover order.
type Tier struct {
	Name    string
	Match   Selector
	Weights map[string]uint32 // share by cluster name within the tier, and no other cluster is used; none: by ready copies
}

// Policy is a FailoverPolicy as Choose needs it. A copy belongs to the first tier that matches it, and is not used when none
// does, or when one of Never does.
type Policy struct {
	Name     string // namespace/name of the object it came from
	Tiers    []Tier
	Never    []Selector
	Spill    Spill
	Failback Failback
}

// Spill is when a tier gives away a part of what it would get.
type Spill struct {
	// BelowHealthyPercent of its copies being healthy, the missing share goes to the next tier: 1 to 100; 0: none does, as long as one
	// copy is left.
	BelowHealthyPercent int
}

// Failback is how a place that recovers gets its requests back. The zero Failback gives them at once.
type Failback struct {
	After time.Duration // it must be well for so long before it gets any more
	Ramp  time.Duration // over which it then gets them
}

// IsZero reports whether requests come back at once.
func (f Failback) IsZero() bool { return f == Failback{} }
