package control

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/topology"
)

// conditionActive is the condition of a FailoverPolicy, and why it may not be.
const (
	conditionActive  = "Active"
	reasonInForce    = "InForce"
	reasonNoTarget   = "NoTarget"
	reasonOverruled  = "Overruled"
	reasonNoCopies   = "NoCopies"
	kindNamespace    = "Namespace"
	maxFailoverRows  = 256
	maxNamedServices = 8 // in a message
)

// FailoverStatus is the status of a FailoverPolicy.
type FailoverStatus struct {
	Namespace, Name string
	Generation      int64
	Source          Source
	Conditions      []Condition // Active
	// Rows are where calls from this cluster go by it, as far as control knows; at most maxFailoverRows.
	Rows []FailoverRow
}

// Object returns "Kind namespace/name".
func (s *FailoverStatus) Object() string {
	return Meta{Kind: "FailoverPolicy", Namespace: s.Namespace, Name: s.Name}.Object()
}

// FailoverRow is a cluster's copies of one service in one tier.
type FailoverRow struct {
	Service topology.ServiceName
	Cluster string
	Tier    string // empty: none
	Ready   int
	Total   int
	State   FailoverState
	Why     string
}

// FailoverState is what a row's copies are to callers in this cluster.
type FailoverState string

// The states.
const (
	FailoverActive   FailoverState = "Active"   // calls go there
	FailoverSpill    FailoverState = "Spill"    // calls go there that a better tier leaves
	FailoverStandby  FailoverState = "Standby"  // when better tiers fail
	FailoverInert    FailoverState = "Inert"    // it is named, and has no copies of the service
	FailoverExcluded FailoverState = "Excluded" // no call goes there
)

// reign is what a FailoverPolicy is in force for, and what another is instead.
type reign struct {
	services  []topology.ServiceName
	overruled []string // "checkout: FailoverPolicy shop/a is for it too and is in force; this one is not"
}

// policies returns the policy of each service. One that names the service is before one of its namespace; of several of a kind the first by name is
// in force.
func (w *world) policies(names map[topology.ServiceName]struct{}) map[topology.ServiceName]*topology.Policy {
	out := make(map[topology.ServiceName]*topology.Policy)
	inNamespace := make(map[string]*FailoverPolicy)
	byNamespace := make(map[string][]topology.ServiceName)
	for name := range names {
		byNamespace[name.Namespace()] = append(byNamespace[name.Namespace()], name)
	}
	w.reigns = make([]reign, len(w.in.objects.Policies))
	for i := range w.in.objects.Policies {
		p, r := &w.in.objects.Policies[i], &w.reigns[i]
		overruled := func(what, other string) {
			r.overruled = append(r.overruled, fmt.Sprintf("%s: FailoverPolicy %s is for it too and is in force; this one is not", what, other))
		}
		for _, t := range p.Targets {
			if t.Service.IsZero() {
				if other := inNamespace[p.Namespace]; other != nil {
					overruled(kindNamespace+" "+p.Namespace, other.Policy.Name)
					continue
				}
				inNamespace[p.Namespace] = p
				continue
			}
			if _, there := names[t.Service]; !there {
				continue
			}
			if other := out[t.Service]; other != nil && other != &p.Policy {
				overruled(t.Kind+" "+t.Service.Name(), other.Name)
				continue
			}
			out[t.Service] = &p.Policy
		}
	}
	for i := range w.in.objects.Policies {
		p := &w.in.objects.Policies[i]
		if inNamespace[p.Namespace] != p {
			continue
		}
		for _, name := range slices.SortedFunc(slices.Values(byNamespace[p.Namespace]), topology.ServiceName.Compare) {
			if out[name] == nil {
				out[name] = &p.Policy
			}
		}
	}
	for i := range w.in.objects.Policies {
		for name, p := range out {
			if p == &w.in.objects.Policies[i].Policy {
				w.reigns[i].services = append(w.reigns[i].services, name)
			}
		}
		slices.SortFunc(w.reigns[i].services, topology.ServiceName.Compare)
	}
	return out
}

// failoverStatus says of each FailoverPolicy what became of it, ordered by namespace and name.
func (w *world) failoverStatus() []FailoverStatus {
	services := make(map[topology.ServiceName]*topology.Service, len(w.callable))
	for _, s := range w.callable {
		services[s.Name] = s
	}
	var clusters []*topology.Cluster
	for _, p := range w.peers {
		clusters = append(clusters, w.cluster(p))
	}
	refused := make(map[string]*RefusedPolicy, len(w.in.objects.Refused))
	for i := range w.in.objects.Refused {
		refused[w.in.objects.Refused[i].Object()] = &w.in.objects.Refused[i]
	}
	var out []FailoverStatus
	for i := range w.in.objects.Policies {
		p, r := &w.in.objects.Policies[i], &w.reigns[i]
		s := FailoverStatus{Namespace: p.Namespace, Name: p.Name, Generation: p.Generation, Source: p.Source}
		if now := refused[p.Object()]; now != nil { // what is said is said of what stands there now
			s.Generation = now.Generation
			delete(refused, p.Object())
		}
		some := false
		for _, name := range r.services {
			rows, used := w.failoverRows(services[name], clusters)
			some = some || used
			s.Rows = append(s.Rows, rows[:min(len(rows), maxFailoverRows-len(s.Rows))]...)
		}
		s.Conditions = []Condition{w.active(p, r, some)}
		if c := s.Conditions[0]; c.Status == False && c.Reason != reasonInvalid {
			w.doubtful(&p.Meta, "inert: %s", c.Message)
		} else {
			for _, o := range r.overruled {
				w.doubtful(&p.Meta, "%s", o)
			}
		}
		out = append(out, s)
	}
	for _, p := range refused {
		out = append(out, FailoverStatus{
			Namespace: p.Namespace, Name: p.Name, Generation: p.Generation, Source: p.Source,
			Conditions: []Condition{{Type: conditionActive, Status: False, Reason: reasonInvalid, Message: "no version of it is known that is understood: " + p.Reason}},
		})
	}
	slices.SortFunc(out, func(a, b FailoverStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// active says whether a policy decides where calls go.
func (w *world) active(p *FailoverPolicy, r *reign, some bool) Condition {
	out := Condition{Type: conditionActive, Status: False}
	for _, problem := range w.in.objects.Problems {
		if problem.Object == p.Object() {
			out.Reason, out.Message = reasonInvalid, "an earlier version is in force: "+problem.Reason
			return out
		}
	}
	switch {
	case len(r.services) == 0 && len(r.overruled) > 0:
		out.Reason, out.Message = reasonOverruled, strings.Join(r.overruled, "; ")
	case len(r.services) == 0:
		out.Reason, out.Message = reasonNoTarget, "none of its targets is a Service here or an import that this policy decides"
	case !some:
		out.Reason = reasonNoCopies
		out.Message = fmt.Sprintf("no copy of %s is in one of its tiers, so that calls go nowhere: there is none, its tiers match none, or never, or weights, exclude them all", servicesText(r.services))
	default:
		out.Status, out.Reason, out.Message = True, reasonInForce, "for "+servicesText(r.services)
		if len(r.overruled) > 0 {
			out.Message += "; but " + strings.Join(r.overruled, "; ")
		}
	}
	return out
}

func servicesText(names []topology.ServiceName) string {
	var out []string
	for _, n := range names[:min(len(names), maxNamedServices)] {
		out = append(out, n.Name())
	}
	if more := len(names) - len(out); more > 0 {
		out = append(out, fmt.Sprintf("%d more", more))
	}
	return strings.Join(out, ", ")
}

// failoverRows asks where a caller in this cluster would go, as far as control knows. used: some copy is in a tier, be it not ready now.
func (w *world) failoverRows(s *topology.Service, clusters []*topology.Cluster) (rows []FailoverRow, used bool) {
	if len(s.Ports) == 0 {
		return nil, false
	}
	q := topology.Query{Service: s.Name, Port: s.Ports[0].Number, Datagrams: s.Ports[0].Protocol == topology.UDP}
	if !s.Imported {
		q.Scope = topology.ClusterLocal
	}
	snapshot := topology.NewSnapshot(topology.SnapshotSpec{Self: w.selfOf("", "", ""), Services: []*topology.Service{s}, Clusters: clusters})
	x := topology.Explain(topology.Choose(snapshot, q, topology.Load{Levels: drainedLevels(w.in.self.Cluster, s)}))
	if x.Error != nil && x.Error.Code != "no_candidates" {
		return nil, false
	}
	totals := totalsOf(w.in.self.Cluster, s)
	type place struct{ cluster, tier, why string }
	at := make(map[place]int)
	for i := range x.Rows {
		r := &x.Rows[i]
		state, why := rowState(r), strings.Join(append([]string{r.Reason}, r.Limits...), "; ")
		used = used || r.Rank > 0 || r.Cause == topology.NotReady
		k := place{r.Cluster.String(), r.Tier, ""}
		if state == FailoverExcluded {
			k.why = why
		}
		j, seen := at[k]
		if !seen {
			j = len(rows)
			at[k] = j
			rows = append(rows, FailoverRow{Service: s.Name, Cluster: k.cluster, Tier: r.Tier, State: state, Why: why})
		}
		rows[j].Ready += r.Ready
		rows[j].Total += totals(r)
	}
	for _, c := range namedClusters(s.Policy) {
		if !slices.ContainsFunc(rows, func(r FailoverRow) bool { return r.Cluster == c }) {
			rows = append(rows, FailoverRow{Service: s.Name, Cluster: c, State: FailoverInert, Why: w.inertWhy(c, s)})
		}
	}
	return rows, used
}

func rowState(r *topology.ExplanationRow) FailoverState {
	switch {
	case r.State == topology.Excluded:
		return FailoverExcluded
	case r.Traffic > 0 && slices.Contains(r.Limits, topology.Reason{Cause: topology.Overflow}.String()):
		return FailoverSpill
	case r.Traffic > 0:
		return FailoverActive
	default:
		return FailoverStandby
	}
}

// drainedLevels is what callers that know of a drain for a while send there.
func drainedLevels(self topology.ClusterName, s *topology.Service) map[topology.LevelKey]topology.Level {
	out := make(map[topology.LevelKey]topology.Level)
	add := func(c topology.ClusterName, d *topology.Drain) {
		if d != nil {
			out[topology.LevelKey{Cluster: c}] = topology.Level{Why: "by its owner"}
		}
	}
	add(self, s.Drain)
	for i := range s.Remotes {
		add(s.Remotes[i].Cluster, s.Remotes[i].Drain)
	}
	return out
}

func totalsOf(self topology.ClusterName, s *topology.Service) func(*topology.ExplanationRow) int {
	return func(r *topology.ExplanationRow) int {
		if r.Cluster != self {
			for i := range s.Remotes {
				if s.Remotes[i].Cluster == r.Cluster {
					return max(s.Remotes[i].Total, s.Remotes[i].Ready)
				}
			}
		}
		for i := range s.Endpoints {
			if e := &s.Endpoints[i]; r.Cluster == self && e.ID == r.Endpoint {
				return max(e.Total, e.Capacity, 1)
			}
		}
		return 0
	}
}

// namedClusters are those that a policy asks for by name.
func namedClusters(p *topology.Policy) []string {
	named := make(map[string]bool)
	for _, t := range p.Tiers {
		if t.Match.Cluster != topology.Same && t.Match.Cluster != "" {
			named[t.Match.Cluster] = true
		}
		for c := range t.Weights {
			named[c] = true
		}
	}
	return slices.Sorted(maps.Keys(named))
}

func (w *world) inertWhy(c string, s *topology.Service) string {
	known := c == w.in.self.Cluster.String() || slices.ContainsFunc(w.peers, func(p ClusterPeer) bool { return p.Cluster.String() == c })
	return cmp.Or(map[bool]string{false: "neither this cluster nor a peer has that name"}[known], "it has no copies of "+s.Name.Name()+" that this cluster may call")
}
