package federation

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// Merge makes the imports of cluster own out of all that it and other clusters export, by the rules of KEP-1645
// (section "Constraints and Conflict Resolution"): what can be merged is; for the rest the oldest export decides, and every export
// of the name is told so. Whole seconds count; exports of one second go by cluster name.
//
// Exports of other clusters whose audience leaves own out don't exist for it.
//
// It is pure: neither the order in which exports arrived nor what there was before has a say. A cluster exports a name
// once; the first counts.
func Merge(own topology.ClusterName, exports map[topology.ClusterName][]Export) Merged {
	named := make(map[topology.ServiceName][]claim)
	for cluster, list := range exports {
		seen := make(map[topology.ServiceName]bool, len(list))
		for i := range list {
			e := &list[i]
			if seen[e.Name] {
				continue
			}
			seen[e.Name] = true
			if cluster == own || e.Admits(own) {
				named[e.Name] = append(named[e.Name], newClaim(cluster, e))
			}
		}
	}
	m := Merged{
		Imports:    make([]Import, 0, len(named)),
		Conditions: make(map[topology.ServiceName]map[topology.ClusterName][]Condition, len(named)),
	}
	for _, name := range slices.SortedFunc(maps.Keys(named), topology.ServiceName.Compare) {
		claims := named[name]
		slices.SortFunc(claims, claim.compare)
		m.Imports = append(m.Imports, mergeOne(claims))
		condition := conflicts(claims)
		m.Conditions[name] = make(map[topology.ClusterName][]Condition, len(claims))
		for _, c := range claims {
			m.Conditions[name][c.cluster] = []Condition{condition}
		}
	}
	return m
}

// claim is one cluster's export with all defaults filled in, so that equal means equal.
type claim struct {
	Export
	cluster topology.ClusterName
	created int64 // Unix seconds
}

func newClaim(cluster topology.ClusterName, e *Export) claim {
	c := claim{Export: *e, cluster: cluster, created: e.Created.Unix()}
	c.Type = cmp.Or(c.Type, ClusterSetIP)
	c.SessionAffinity = cmp.Or(c.SessionAffinity, NoAffinity)
	c.SessionAffinityTimeout = cmp.Or(c.SessionAffinityTimeout.Truncate(time.Second), DefaultAffinityTimeout)
	if c.SessionAffinity == NoAffinity {
		c.SessionAffinityTimeout = 0
	}
	c.InternalTrafficPolicy = cmp.Or(c.InternalTrafficPolicy, defaultInternalTrafficPolicy)
	c.Ports = slices.Clone(c.Ports)
	for i := range c.Ports {
		c.Ports[i].Transport = cmp.Or(c.Ports[i].Transport, TCP)
	}
	return c
}

// defaultInternalTrafficPolicy is what core/v1 takes an unset internalTrafficPolicy for.
const defaultInternalTrafficPolicy = "Cluster"

// compare puts the oldest first.
func (c claim) compare(o claim) int {
	return cmp.Or(cmp.Compare(c.created, o.created), c.cluster.Compare(o.cluster))
}

// mergeOne makes the import of claims, oldest first.
func mergeOne(claims []claim) Import {
	oldest := claims[0]
	clusters := make([]topology.ClusterName, len(claims))
	for i, c := range claims {
		clusters[i] = c.cluster
	}
	slices.SortFunc(clusters, topology.ClusterName.Compare)
	return Import{
		Name:                   oldest.Name,
		Oldest:                 oldest.cluster,
		Type:                   oldest.Type,
		Ports:                  mergePorts(claims),
		SessionAffinity:        oldest.SessionAffinity,
		SessionAffinityTimeout: oldest.SessionAffinityTimeout,
		InternalTrafficPolicy:  oldest.InternalTrafficPolicy,
		TrafficDistribution:    oldest.TrafficDistribution,
		Labels:                 oldest.Labels,
		Annotations:            oldest.Annotations,
		Clusters:               clusters,
	}
}

// MaxImportPorts is how many ports an import has: what the config stream can tell of one service. Each cluster may have maxPorts, and they add up.
const MaxImportPorts = 256

// mergePorts makes the union of ports, oldest first. A name, and a pair of transport and number, belongs to who had it first:
// a service with two ports of one name, or of one pair, would be none. A cluster serves a port of the union when it exposes
// that pair, under whatever name: calls carry the number, not the name. Past MaxImportPorts those of the younger exports are left out.
func mergePorts(claims []claim) []ImportPort {
	type pair struct {
		transport Transport
		number    uint16
	}
	var (
		union  []ImportPort
		names  = make(map[string]bool)
		byPair = make(map[pair]int) // index into union
	)
	for _, c := range claims {
		for _, p := range c.Ports {
			key := pair{p.Transport, p.Number}
			if _, taken := byPair[key]; taken || names[p.Name] || len(union) >= MaxImportPorts {
				continue
			}
			names[p.Name], byPair[key] = true, len(union)
			union = append(union, ImportPort{Port: p})
		}
	}
	for _, c := range claims {
		for _, p := range c.Ports {
			i, ok := byPair[pair{p.Transport, p.Number}]
			if ok && !slices.Contains(union[i].Clusters, c.cluster) {
				union[i].Clusters = append(union[i].Clusters, c.cluster)
			}
		}
	}
	for i := range union {
		slices.SortFunc(union[i].Clusters, topology.ClusterName.Compare)
	}
	return union
}

// conflicts compares every claim with the oldest. All of them get the same condition.
func conflicts(claims []claim) Condition {
	oldest := claims[0]
	var reasons, messages []string
	for _, property := range properties {
		var differ []string
		for _, c := range claims[1:] {
			if !property.same(&oldest, &c) {
				differ = append(differ, c.cluster.String())
			}
		}
		if len(differ) > 0 {
			slices.Sort(differ)
			reasons = append(reasons, property.reason)
			messages = append(messages, property.name+" of "+strings.Join(differ, ", "))
		}
	}
	if len(reasons) == 0 {
		return Condition{Type: Conflict, Reason: NoConflicts}
	}
	return Condition{
		Type:    Conflict,
		Status:  true,
		Reason:  strings.Join(reasons, ","),
		Message: "not as in " + oldest.cluster.String() + ", whose export is the oldest and decides: " + strings.Join(messages, "; "),
	}
}

// properties are what exports of one name should agree on, in the order of reasons.
var properties = [...]struct {
	reason string
	name   string
	same   func(a, b *claim) bool
}{
	{PortConflict, "ports", samePorts},
	{TypeConflict, "type", func(a, b *claim) bool { return a.Type == b.Type }},
	{SessionAffinityConflict, "sessionAffinity", func(a, b *claim) bool { return a.SessionAffinity == b.SessionAffinity }},
	{SessionAffinityConfigConflict, "sessionAffinityConfig", func(a, b *claim) bool {
		// Without the same affinity there is nothing to compare.
		return a.SessionAffinity != b.SessionAffinity || a.SessionAffinityTimeout == b.SessionAffinityTimeout
	}},
	{InternalTrafficPolicyConflict, "internalTrafficPolicy", func(a, b *claim) bool { return a.InternalTrafficPolicy == b.InternalTrafficPolicy }},
	{TrafficDistributionConflict, "trafficDistribution", func(a, b *claim) bool { return a.TrafficDistribution == b.TrafficDistribution }},
	{LabelsConflict, "exportedLabels", func(a, b *claim) bool { return maps.Equal(a.Labels, b.Labels) }},
	{AnnotationsConflict, "exportedAnnotations", func(a, b *claim) bool { return maps.Equal(a.Annotations, b.Annotations) }},
}

// samePorts compares as sets.
func samePorts(a, b *claim) bool {
	return maps.Equal(portSet(a.Ports), portSet(b.Ports))
}

func portSet(ports []Port) map[Port]struct{} {
	set := make(map[Port]struct{}, len(ports))
	for _, p := range ports {
		set[p] = struct{}{}
	}
	return set
}
