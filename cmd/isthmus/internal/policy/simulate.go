package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

// Plan is what a cluster's policies would be.
type Plan struct {
	now      admin.Policies
	domains  map[string]spiffeid.TrustDomain
	existing map[string]access.Policy
	proposed []control.AccessPolicy
	removed  []string
	enforced []string // those proposed that are in audit mode, by name
}

// NewPlan puts proposed policies in the place of those of their names, or beside the others, and takes out those that are removed
// ("namespace/name"). Those in audit mode are taken as if they were enforced: in audit mode nothing ever changes.
func NewPlan(now admin.Policies, proposed []control.AccessPolicy, removed []string) (*Plan, error) {
	p := &Plan{now: now, proposed: proposed, removed: removed, domains: make(map[string]spiffeid.TrustDomain), existing: make(map[string]access.Policy)}
	for name, text := range now.Clusters {
		d, err := spiffeid.TrustDomainFromString(text)
		if err != nil {
			return nil, fmt.Errorf("control of %s: trust domain of %s: %w", now.Cluster, name, err)
		}
		p.domains[name] = d
	}
	p.domains[topology.Same] = p.domains[now.Cluster]
	for _, a := range now.Policies {
		if len(a.Access) == 0 {
			continue
		}
		var policy access.Policy
		if err := json.Unmarshal(a.Access, &policy); err != nil {
			return nil, fmt.Errorf("control of %s: policy %s/%s: %w", now.Cluster, a.Namespace, a.Name, err)
		}
		p.existing[policy.Name] = policy
	}
	for i := range proposed {
		if proposed[i].Audit {
			p.enforced = append(p.enforced, proposed[i].Namespace+"/"+proposed[i].Name)
		}
	}
	for _, name := range removed {
		if _, ok := p.existing[name]; !ok {
			return nil, fmt.Errorf("there is no AccessPolicy %s in %s", name, now.Cluster)
		}
	}
	return p, nil
}

// AsEnforced returns the proposed policies in audit mode, "namespace/name", which are taken as if they were enforced.
func (p *Plan) AsEnforced() []string { return p.enforced }

// sets returns what is for a workload now, and what would be.
func (p *Plan) sets(w *admin.PolicedWorkload) (before, after []access.Policy) {
	replaced := make(map[string]bool)
	for _, name := range p.removed {
		replaced[name] = true
	}
	for i := range p.proposed {
		replaced[p.proposed[i].Namespace+"/"+p.proposed[i].Name] = true
	}
	for _, a := range w.Access {
		policy := p.existing[a.Policy]
		if a.Perhaps {
			policy = control.Perhaps(policy)
		}
		before = append(before, policy)
		if !replaced[a.Policy] {
			after = append(after, policy)
		}
	}
	var services []topology.ServiceName
	for _, s := range w.Services {
		if name, err := topology.NewServiceName(w.Namespace, s); err == nil {
			services = append(services, name)
		}
	}
	for i := range p.proposed {
		if x := &p.proposed[i]; x.Namespace == w.Namespace && x.Selects.Picks(w.Labels, services) {
			policy := x.Resolve(func(name string) spiffeid.TrustDomain { return p.domains[name] })
			policy.Audit = false
			after = append(after, policy)
		}
	}
	return before, after
}

// Touched returns the workloads for which something else would be in force, by what enforces it.
func (p *Plan) Touched() map[string][]admin.PolicedWorkload {
	out := make(map[string][]admin.PolicedWorkload)
	names := make(map[string]bool)
	for _, name := range p.removed {
		names[name] = true
	}
	for i := range p.proposed {
		names[p.proposed[i].Namespace+"/"+p.proposed[i].Name] = true
	}
	for i := range p.now.Workloads {
		w := &p.now.Workloads[i]
		before, after := p.sets(w)
		named := func(l []access.Policy) bool {
			return slices.ContainsFunc(l, func(x access.Policy) bool { return names[x.Name] })
		}
		if !named(before) && !named(after) {
			continue
		}
		for _, receiver := range w.Enforced {
			out[receiver] = append(out[receiver], *w)
		}
	}
	return out
}

// Change is a kind of request that something else would become of.
type Change struct {
	Cluster  string               `json:"cluster"`
	Workload string               `json:"workload"`
	Asked    admin.Decision       `json:"asked"`
	Before   Outcome              `json:"before"`
	After    Outcome              `json:"after"`
	Service  topology.ServiceName `json:"-"`
}

// Outcome is what would be decided.
type Outcome struct {
	// Decision is "allow" or "deny"; "depends", where it hangs on headers or claims, which sidecars don't remember.
	Decision string `json:"decision"`
	Policy   string `json:"policy,omitempty"`
	Rule     string `json:"rule,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

const depends = "depends"

// Simulate says which of the requests that a sidecar remembers would be decided in another way, and how many there are in all.
func (p *Plan) Simulate(w *admin.PolicedWorkload, asked []admin.Decision) (changes []Change, requests uint64, err error) {
	before, after := p.sets(w)
	now, err := newDecider(before)
	if err != nil {
		return nil, 0, err
	}
	then, err := newDecider(after)
	if err != nil {
		return nil, 0, fmt.Errorf("the policies that would be for %s are more than a sidecar takes: %w", w.ID, err)
	}
	for _, a := range asked {
		// A node proxy serves other workloads too.
		if name, err := topology.ParseServiceName(a.Service); err != nil || name.Namespace() != w.Namespace || !slices.Contains(w.Services, name.Name()) {
			continue
		}
		requests += a.Count
		x, y := now.decide(&a), then.decide(&a)
		if x.Decision != y.Decision {
			changes = append(changes, Change{Cluster: p.now.Cluster, Workload: w.ID, Asked: a, Before: x, After: y})
		}
	}
	slices.SortStableFunc(changes, func(a, b Change) int { return cmp.Compare(a.After.Decision, b.After.Decision) })
	return changes, requests, nil
}

// decider decides without knowing headers and end users: once as if they were whatever lets through, once as if they were whatever refuses.
// Of opaque bytes nothing is unknown.
type decider struct{ opaque, open, closed *access.Set }

func newDecider(policies []access.Policy) (decider, error) {
	var d decider
	for _, x := range []struct {
		into *(*access.Set)
		of   []access.Policy
	}{{&d.opaque, policies}, {&d.open, suppose(policies, true)}, {&d.closed, suppose(policies, false)}} {
		var err error
		if *x.into, err = access.Compile([][]access.Policy{x.of}); err != nil {
			return d, err
		}
	}
	return d, nil
}

// suppose makes of each condition on what isn't known one that is met by rules that allow and not met by those that deny, or the other way
// round.
func suppose(policies []access.Policy, open bool) []access.Policy {
	out := make([]access.Policy, 0, len(policies))
	for _, p := range policies {
		rules := make([]access.Rule, 0, len(p.Rules))
		for _, r := range p.Rules {
			met := r.Deny != open // whether unknown conditions of this rule are taken to be met
			if len(r.Users) > 0 && !met {
				continue
			}
			r.Users = nil
			var operations []access.Operation
			for _, o := range r.To {
				if len(o.Headers) > 0 && !met {
					continue
				}
				o.Headers = nil
				operations = append(operations, o)
			}
			if len(r.To) > 0 && len(operations) == 0 {
				continue
			}
			for _, o := range operations {
				if len(o.Methods)+len(o.Paths)+len(o.Ports) == 0 {
					operations = nil // everything
					break
				}
			}
			r.To = operations
			rules = append(rules, r)
		}
		p.Rules = rules
		out = append(out, p)
	}
	return out
}

func (d decider) decide(a *admin.Decision) Outcome {
	caller, err := spiffeid.FromString(a.Caller)
	if err != nil {
		return Outcome{Decision: deny, Reason: err.Error()}
	}
	q := &access.Request{Caller: caller, HTTP: !a.Opaque, Method: a.Method, Path: a.Path, Port: a.Port}
	open, closed := d.open.Decide(q), d.closed.Decide(q)
	if a.Opaque {
		open = d.opaque.Decide(q)
		closed = open
	}
	if open.Allowed != closed.Allowed {
		return Outcome{Decision: depends, Policy: open.Policy, Rule: open.Rule, Reason: "on headers or claims"}
	}
	v := open.Verdict
	return Outcome{Decision: word(v), Policy: v.Policy, Rule: v.Rule, Reason: v.Reason.String()}
}
