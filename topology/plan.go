package topology

import (
	"iter"
	"net/netip"
)

// Plan is where calls to one port of a service go: tiers, best first. It is immutable.
//
// To send a request: take a number from [0,1), range over Walk, and in each tier Pick a candidate (or choose among
// them by Share and by load of one's own).
type Plan struct {
	Query  Query
	Caller Self   // who asked
	Port   Port   // zero when the port isn't known
	Policy string // Policy.Name; empty: the default order
	// Tiers are ordered: all that is trusted by rank, then what is drained, then what is suspected, each by rank again.
	Tiers []PlanTier
	// Excluded are the copies that no request may go to, ordered by target.
	Excluded []Exclusion
}

// PlanTier is one rank of a Plan. Its candidates' shares add to one.
type PlanTier struct {
	ID   TierID
	Name string // of the policy's tier, or of the default order's
	// LastResort: every candidate is suspected. Used when all before it failed.
	LastResort bool
	// Drained: every candidate is, by its owner's word. Used when nothing is left that isn't, but before what is suspected.
	Drained bool
	// Portion of the requests begins in this tier, from 0 to 1; over all tiers they add to one. The others begin
	// elsewhere and come here when their tier fails them.
	Portion float64
	// Limits are why it gets less than all that it is offered, or anything at all.
	Limits     []Reason
	Candidates []Candidate // ordered by target; never empty
}

// Candidate is a copy, or a cluster's copies as a whole, that a request may go to.
type Candidate struct {
	Target   Target
	Cluster  ClusterName
	Endpoint *Endpoint  // a copy in the own cluster, else nil
	Remote   *Remote    // another cluster, else nil
	Host     netip.Addr // of Remote: the one copy there that is called; invalid: any
	Share    float64    // of the tier's requests, from 0 to 1; 0 only while its level is
	Reason   Reason     // why it is in this tier
	Limits   []Reason   // why its share is less than its copies, or its weight, would give it
}

// Exclusion is a copy that no request may go to.
type Exclusion struct {
	Target   Target
	Endpoint *Endpoint // as in Candidate
	Remote   *Remote
	Reason   Reason
}

// Reason is why a copy is where it is in a Plan.
type Reason struct {
	Cause  Cause
	Detail string // evidence in words; may be empty
}

// String returns the cause and its detail in words.
func (r Reason) String() string {
	if r.Detail == "" {
		return r.Cause.words()
	}
	return r.Cause.words() + ": " + r.Detail
}

// Cause is the kind of a Reason. The names are part of the JSON of an Explanation: they are added to, never changed.
type Cause string

// Why a copy is a candidate.
const (
	SameZone    Cause = "same_zone"    // own copy in the caller's zone
	SameCluster Cause = "same_cluster" // own copy
	SameRegion  Cause = "same_region"  // another cluster of the caller's region
	ByRTT       Cause = "by_rtt"       // another cluster, by measured round-trip time
	ByPolicy    Cause = "by_policy"    // the policy's tier matches
	ByName      Cause = "by_name"      // it is the one copy that was named
)

// Why a copy is a candidate of last resort only.
const (
	Ejected Cause = "ejected"   // the caller's own requests found it wanting
	NoLink  Cause = "link_down" // the gateways report no link to its cluster
)

// Drained is why a copy is behind the others: its owner asked for that. It is also a limit, while that is on its way.
const Drained Cause = "drained"

// Why a tier or a cluster in it gets less than it would, or more.
const (
	Spilling Cause = "spill"    // too few of its copies are healthy
	Recovery Cause = "failback" // it was down lately
	Overflow Cause = "overflow" // a tier before it leaves requests
)

// Why a copy is excluded.
const (
	NotReady      Cause = "not_ready"       // its owner says that it isn't ready, or that none is
	NeverPolicy   Cause = "never_policy"    // the policy's never
	NoTier        Cause = "no_tier"         // no tier of the policy matches
	NoWeight      Cause = "no_weight"       // its tier has weights, and none for its cluster
	PortNotServed Cause = "port_not_served" // it doesn't serve the port
	NotExported   Cause = "not_exported"    // a clusterset name was asked for, and the own cluster doesn't export it
	ScopeLocal    Cause = "scope_local"     // a cluster-local name was asked for, and it is in another cluster
)

func (c Cause) words() string {
	switch c {
	case SameZone:
		return "same zone"
	case SameCluster:
		return "own cluster"
	case SameRegion:
		return "same region"
	case ByRTT:
		return "round trip"
	case ByPolicy:
		return "policy"
	case ByName:
		return "named"
	case Ejected:
		return "ejected"
	case NoLink:
		return "link down"
	case Drained:
		return "drained"
	case Spilling:
		return "spill"
	case Recovery:
		return "failback"
	case Overflow:
		return "gets what the tiers before it leave"
	case NotReady:
		return "not ready"
	case NeverPolicy:
		return "never by policy"
	case NoTier:
		return "in no tier of the policy"
	case NoWeight:
		return "without weight"
	case PortNotServed:
		return "not serving the port"
	case NotExported:
		return "not exported by its cluster"
	case ScopeLocal:
		return "outside the own cluster"
	default:
		return string(c)
	}
}

// Walk yields the tiers in the order in which one request tries them: first where it begins, by u from [0,1)
// and the tiers' portions, then the others by rank.
func (p *Plan) Walk(u float64) iter.Seq[*PlanTier] {
	return func(yield func(*PlanTier) bool) {
		first := p.begin(u)
		if first < 0 || !yield(&p.Tiers[first]) {
			return
		}
		for i := range p.Tiers {
			if i != first && !yield(&p.Tiers[i]) {
				return
			}
		}
	}
}

func (p *Plan) begin(u float64) int {
	last := -1 // rounding may leave u above the sum
	for i := range p.Tiers {
		if p.Tiers[i].Portion <= 0 {
			continue
		}
		if u < p.Tiers[i].Portion {
			return i
		}
		u -= p.Tiers[i].Portion
		last = i
	}
	return last
}

// Pick returns the index of a candidate, by u from [0,1) and the candidates' shares.
func (t *PlanTier) Pick(u float64) int {
	for i := range t.Candidates {
		if u < t.Candidates[i].Share {
			return i
		}
		u -= t.Candidates[i].Share
	}
	return len(t.Candidates) - 1
}
