package topology

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"
	"strings"
	"time"
)

// spot is a copy on its way into a Plan: what a selector sees of it, and what it ends up as.
type spot struct {
	Candidate
	own    bool // in the caller's cluster
	region string
	zone   string
	labels map[string]string
	copies uint64 // ready ones behind it
	total  uint64 // ready or not
	key    rankKey
	weight uint64 // of its cluster, by the policy's tier
}

// rankKey orders tiers. Spots of one key make one tier.
type rankKey struct {
	index   int         // the policy's tier, or the default order's class
	bucket  int         // of the round-trip time; zero but for classOther
	cluster ClusterName // zero but for classOther: there, each cluster is a tier
	id      TierID      // follows from the others, as all below
	name    string
	weights bool
}

func (k rankKey) compare(o rankKey) int {
	return cmp.Or(cmp.Compare(k.index, o.index), cmp.Compare(k.bucket, o.bucket), k.cluster.Compare(o.cluster))
}

// The classes of the default order.
const (
	classZone      = iota // own cluster, caller's zone
	classCluster          // own cluster, caller's region
	classRegion           // other clusters, caller's region
	classElsewhere        // own cluster, another region
	classOther            // other clusters, nearest first
)

func choose(s *Snapshot, q Query, load Load) (Plan, error) {
	plan := Plan{Query: q, Caller: s.self}
	service := s.Service(q.Service)
	if service == nil {
		return plan, fmt.Errorf("service %s: %w", q.Service, ErrUnknownService)
	}
	if service.Policy != nil {
		plan.Policy = service.Policy.Name
	}
	if q.Scope == ClusterSet && !service.Imported {
		return plan, fmt.Errorf("service %s: %w", q.Service, ErrNotImported)
	}
	port, ok := service.port(q.Port, q.Datagrams)
	if !ok {
		return plan, fmt.Errorf("service %s, port %d: %w", q.Service, q.Port, ErrUnknownPort)
	}
	plan.Port = port

	if !q.Host.IsZero() {
		return chooseHost(s, service, plan, load)
	}
	ranked, excluded := rungs(s, service, q, load)
	plan.Excluded = excluded
	plan.Tiers = arrange(ranked, service.Policy, load)
	if len(plan.Tiers) == 0 {
		return plan, fmt.Errorf("service %s, port %d: %w%s", q.Service, q.Port, ErrNoCandidates, tally(plan.Excluded))
	}
	return plan, nil
}

// spots lists every copy of the service, the own cluster's one by one, as q calls them.
func spots(s *Snapshot, service *Service, q Query) []spot {
	out := make([]spot, 0, len(service.Endpoints)+len(service.Remotes))
	for i := range service.Endpoints {
		e := &service.Endpoints[i]
		out = append(out, spot{
			Candidate: Candidate{
				Target:   q.Target(s.self.Cluster, e.ID),
				Cluster:  s.self.Cluster,
				Endpoint: e,
			},
			own:    true,
			region: cmp.Or(e.Locality.Region, s.self.Locality.Region), // a cluster is in one region, unless it says otherwise
			zone:   e.Locality.Zone,
			labels: e.Labels,
			copies: uint64(max(e.Capacity, 1)),
			total:  uint64(max(e.Total, e.Capacity, 1)),
		})
	}
	for i := range service.Remotes {
		r := &service.Remotes[i]
		c := spot{
			Candidate: Candidate{
				Target:  q.Target(r.Cluster, ""),
				Cluster: r.Cluster,
				Remote:  r,
			},
			labels: r.Labels,
			copies: uint64(max(r.Ready, 0)),
			total:  uint64(max(r.Total, r.Ready, 0)),
		}
		if cluster := s.Cluster(r.Cluster); cluster != nil {
			c.region = cluster.Region
		}
		out = append(out, c)
	}
	return out
}

// forbid reports why c must not be used, wherever it would stand.
func forbid(s *Snapshot, service *Service, q Query, c *spot) (Reason, bool) {
	var ports []uint16
	switch {
	case !c.own && q.Scope == ClusterLocal:
		return Reason{Cause: ScopeLocal}, true
	case c.own && q.Scope == ClusterSet && !service.Exported:
		return Reason{Cause: NotExported}, true
	case c.own && q.Datagrams:
		ports = c.Endpoint.UDPPorts
	case c.own:
		ports = c.Endpoint.Ports
	case q.Datagrams:
		ports = c.Remote.UDPPorts
	default:
		ports = c.Remote.Ports
	}
	if !slices.Contains(ports, q.Port) {
		return Reason{Cause: PortNotServed}, true
	}
	if p := service.Policy; p != nil {
		for i := range p.Never {
			if p.Never[i].matches(s.self, c) {
				return Reason{NeverPolicy, p.Never[i].String()}, true
			}
		}
	}
	if c.own && !c.Endpoint.Ready || c.copies == 0 {
		return Reason{Cause: NotReady}, true
	}
	return Reason{}, false
}

// byPolicy ranks c by the first tier that matches it.
func byPolicy(self Self, p *Policy, c *spot) (Reason, bool) {
	for i := range p.Tiers {
		t := &p.Tiers[i]
		if !t.Match.matches(self, c) {
			continue
		}
		c.key = rankKey{index: i, id: tierNumber(i), name: cmp.Or(t.Name, fmt.Sprintf("tier-%d", i+1)), weights: len(t.Weights) > 0}
		c.Reason = Reason{ByPolicy, t.Match.String()}
		c.weight = uint64(t.Weights[c.Cluster.String()])
		if c.key.weights && c.weight == 0 {
			return Reason{NoWeight, "tier " + c.key.name}, true
		}
		return Reason{}, false
	}
	return Reason{Cause: NoTier}, true
}

// byDefault ranks c by distance.
func byDefault(s *Snapshot, c *spot) {
	self := s.self
	sameRegion := c.region == self.Locality.Region
	switch {
	case c.own && sameRegion && c.zone != "" && c.zone == self.Locality.Zone:
		c.key, c.Reason = rankKey{index: classZone, id: "zone", name: "zone"}, Reason{SameZone, c.zone}
	case c.own && sameRegion:
		c.key, c.Reason = rankKey{index: classCluster, id: "cluster", name: "cluster"}, Reason{Cause: SameCluster}
	case sameRegion && c.region != "":
		c.key, c.Reason = rankKey{index: classRegion, id: "region", name: "region"}, Reason{SameRegion, c.region}
	case c.own:
		c.key, c.Reason = rankKey{index: classElsewhere, id: "elsewhere", name: "elsewhere"}, Reason{SameCluster, "region " + c.region}
	default:
		var rtt time.Duration
		if cluster := s.Cluster(c.Cluster); cluster != nil {
			rtt = cluster.RTT
		}
		c.key = rankKey{index: classOther, bucket: rttBucket(rtt), cluster: c.Cluster, id: TierID("other/" + c.Cluster.String()), name: c.Cluster.String()}
		c.Reason = Reason{ByRTT, "not measured"}
		if rtt > 0 {
			c.Reason.Detail = rtt.String()
		}
	}
}

// rttBucket makes round-trip times that differ by noise only compare equal: bucket 0 ends at 1 ms, and each further one
// is √2 wide. Integers only, so that every machine agrees. Unknown times come last.
func rttBucket(rtt time.Duration) int {
	if rtt <= 0 {
		return math.MaxInt
	}
	us := uint64(min(rtt, time.Hour).Microseconds()) //nolint:gosec // G115: positive by the check above
	return bits.Len64(us * us / 1_000_000)           // an hour's square fits
}

// suspect reports why c is not to be trusted now.
func suspect(s *Snapshot, c *spot, load Load) (Reason, bool) {
	if evidence, ok := load.Suspected[c.Target]; ok {
		return Reason{Ejected, evidence}, true
	}
	if !c.own {
		if cluster := s.Cluster(c.Cluster); cluster != nil && cluster.Link == LinkDown {
			return Reason{Cause: NoLink}, true
		}
	}
	return Reason{}, false
}

// tally says in words how often which cause excluded a copy: ": 2 not ready, 1 never by policy".
func tally(excluded []Exclusion) string {
	count := make(map[Cause]int)
	for _, e := range excluded {
		count[e.Reason.Cause]++
	}
	if len(count) == 0 {
		return ": it has none"
	}
	var parts []string
	for _, cause := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%d %s", count[cause], cause.words()))
	}
	return ": " + strings.Join(parts, ", ")
}
