package control

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

// copyID is one copy of an application, whatever Services of its namespace it is behind: "namespace/name" of its Workload, "Pod namespace/name", or
// "Address namespace/" and where it listens.
type copyID string

// picked is a policy that is for a copy.
type picked struct {
	policy int // place in the list of its kind
	// perhaps: it can't be told whether it is for the copy. Then what it denies counts, and what it allows does not.
	perhaps bool
}

// policing tells which policies are for which copies.
type policing struct {
	w *world
	// Of the copies that are known: what they are, and where.
	workloads map[copyID]*Workload
	at        map[netip.AddrPort]copyID // where they listen
	others    map[copyID]*other
	labelled  map[label][]copyID  // workloads that have a label
	inside    map[string][]copyID // workloads of a namespace
	outside   map[string][]copyID // others of a namespace

	access map[copyID][]picked
	copies [][]copyID // by AccessPolicy: those that it is for, ordered
	sets   map[string]*configv1.AccessSet

	quotas    map[copyID][]picked
	limited   [][]copyID                  // by QuotaPolicy: those that it is for, ordered
	receivers map[string]map[int]struct{} // by receiver: the QuotaPolicies of what it serves
	limits    map[int][]*configv1.Quota   // by QuotaPolicy
}

// other is a copy that is no Workload: nobody tells of its labels, but for what the selectors of its Services say of them.
type other struct {
	namespace string
	selectors []map[string]string
}

// newPolicing finds out which policies are for which copies. Services must be resolved.
func newPolicing(w *world) *policing {
	p := newExplorer(w)
	o := w.in.objects
	if len(o.Access)+len(o.Quotas) == 0 {
		return p
	}
	members := p.explore()
	for i := range o.Access {
		p.copies = append(p.copies, p.pick(p.access, i, o.Access[i].Namespace, o.Access[i].Selects, members))
	}
	for i := range o.Quotas {
		p.limited = append(p.limited, p.pick(p.quotas, i, o.Quotas[i].Namespace, o.Quotas[i].Selects, members))
	}
	if len(p.quotas) > 0 {
		p.divide()
	}
	return p
}

// newExplorer returns a policing that knows of no policies.
func newExplorer(w *world) *policing {
	return &policing{
		w: w, workloads: make(map[copyID]*Workload), at: make(map[netip.AddrPort]copyID), others: make(map[copyID]*other),
		labelled: make(map[label][]copyID), inside: make(map[string][]copyID), outside: make(map[string][]copyID),
		access: make(map[copyID][]picked), sets: make(map[string]*configv1.AccessSet),
		quotas: make(map[copyID][]picked), receivers: make(map[string]map[int]struct{}), limits: make(map[int][]*configv1.Quota),
	}
}

// explore finds out which copies there are, and returns those behind each Service, ordered.
func (p *policing) explore() map[topology.ServiceName][]copyID {
	for i := range p.w.in.objects.Workloads {
		workload := &p.w.in.objects.Workloads[i]
		id := copyID(workload.ID())
		p.workloads[id] = workload
		p.inside[workload.Namespace] = append(p.inside[workload.Namespace], id)
		for k, v := range workload.Labels {
			l := label{workload.Namespace, k, v}
			p.labelled[l] = append(p.labelled[l], id)
		}
	}
	names := slices.SortedFunc(maps.Keys(p.w.services), topology.ServiceName.Compare)
	for _, name := range names {
		s := p.w.services[name].service
		for _, workload := range p.w.services[name].workloads {
			for _, t := range workloadTargets(s, workload) {
				p.at[t] = copyID(workload.ID())
			}
		}
	}
	members := make(map[topology.ServiceName][]copyID, len(names))
	for _, name := range names {
		r := p.w.services[name]
		for _, workload := range r.workloads {
			members[name] = append(members[name], copyID(workload.ID()))
		}
		for i := range r.plains {
			members[name] = append(members[name], p.know(r.service, &r.plains[i]))
		}
		slices.Sort(members[name])
		members[name] = slices.Compact(members[name])
	}
	return members
}

// know returns which copy a plain one is, and remembers what is told of it.
func (p *policing) know(s *Service, c *plain) copyID {
	id := p.of(s.Namespace, c)
	if p.workloads[id] != nil {
		return id
	}
	o := p.others[id]
	if o == nil {
		o = &other{namespace: s.Namespace}
		p.others[id] = o
		p.outside[s.Namespace] = append(p.outside[s.Namespace], id)
	}
	if len(s.Selector) > 0 {
		o.selectors = append(o.selectors, s.Selector)
	}
	return id
}

// of returns which copy a plain one is.
func (p *policing) of(namespace string, c *plain) copyID {
	if c.workload != nil {
		return copyID(c.workload.ID())
	}
	targets := slices.SortedFunc(maps.Values(c.targets), netip.AddrPort.Compare)
	for _, t := range targets {
		if id, ok := p.at[t]; ok {
			return id // a slice that leads round a workload's sidecar leads round no policy
		}
	}
	// The namespace is part of it: whoever writes a slice in another one, to the same address, must take nothing of what guards it in this.
	switch {
	case c.pod != "":
		return copyID("Pod " + namespace + "/" + c.pod)
	case targets[0].Addr().IsLoopback(): // a machine's own: what is one there is told by the port
		return copyID("Address " + namespace + "/" + targets[0].String())
	default:
		return copyID("Address " + namespace + "/" + targets[0].Addr().String())
	}
}

// pick adds a policy to the copies that it is for, and returns these.
func (p *policing) pick(into map[copyID][]picked, policy int, namespace string, s Selection, members map[topology.ServiceName][]copyID) []copyID {
	chosen := make(map[copyID]bool) // whether only perhaps
	for _, name := range s.Services {
		for _, id := range members[name] {
			chosen[id] = false
		}
	}
	if len(s.Services) == 0 {
		candidates := p.inside[namespace]
		for k, v := range s.Labels {
			if with := p.labelled[label{namespace, k, v}]; len(with) < len(candidates) {
				candidates = with
			}
		}
		for _, id := range candidates {
			if selects(s.Labels, p.workloads[id].Labels) {
				chosen[id] = false
			}
		}
		for _, id := range p.outside[namespace] {
			switch sure, never := p.others[id].has(s.Labels); {
			case sure:
				chosen[id] = false
			case !never:
				chosen[id] = true
			}
		}
	}
	for id, perhaps := range chosen {
		into[id] = append(into[id], picked{policy, perhaps})
	}
	return slices.Sorted(maps.Keys(chosen))
}

// has says whether a copy surely has labels, or surely not.
func (o *other) has(labels map[string]string) (sure, never bool) {
	if len(labels) == 0 {
		return true, false
	}
	if len(o.selectors) == 0 {
		return false, true // it is of a slice that somebody wrote: it has no labels
	}
	known := make(map[string]string)
	for _, s := range o.selectors {
		maps.Copy(known, s)
	}
	for k, v := range labels {
		if have, ok := known[k]; ok && have != v {
			return false, true
		}
	}
	return selects(labels, known), false
}

// setOf returns the policies that are for a copy; nil where there are none. Copies for which the same are share it.
func (p *policing) setOf(id copyID) (key string, set *configv1.AccessSet) {
	policies := p.access[id]
	if len(policies) == 0 {
		return "", nil
	}
	var text strings.Builder
	for _, c := range policies {
		fmt.Fprintf(&text, "%d%t ", c.policy, c.perhaps)
	}
	key = text.String()
	if known, ok := p.sets[key]; ok {
		return key, known
	}
	var out []access.Policy
	for _, c := range policies {
		policy := p.w.policyOf(&p.w.in.objects.Access[c.policy])
		if c.perhaps {
			policy = Perhaps(policy)
		}
		out = append(out, policy)
	}
	set = configstream.EncodeAccess(out)
	if err := p.fits(out, set); err != nil {
		// No sidecar could take it. What can't be judged is refused.
		p.w.problems = append(p.w.problems, Problem{
			Object: p.w.in.objects.Access[policies[0].policy].Object(), Source: p.w.in.objects.Access[policies[0].policy].Source,
			Reason: fmt.Sprintf("the %d policies that are for %s are more than a sidecar takes, so everything is refused there: %v", len(out), id, err),
		})
		set = configstream.EncodeAccess([]access.Policy{{Name: out[0].Name}})
	}
	p.sets[key] = set
	return key, set
}

// smallSet is what any sidecar takes: fewer policies, each within its own limits, need not be counted.
const (
	smallSet   = 2
	smallBytes = 64 << 10
)

// fits says why no sidecar would take a set.
func (p *policing) fits(policies []access.Policy, set *configv1.AccessSet) error {
	if len(policies) <= smallSet && proto.Size(set) <= smallBytes {
		return nil
	}
	if size := proto.Size(set); size > configstream.MaxResource/2 {
		return fmt.Errorf("%d bytes, more than %d", size, configstream.MaxResource/2)
	}
	_, err := access.Compile([][]access.Policy{policies})
	return err
}

// policyOf is a policy as sidecars have it.
func (w *world) policyOf(p *AccessPolicy) access.Policy { return p.Resolve(w.domainOf) }

// RuleNotUnderstood is the rule that stands in for those of a policy that is not understood. It denies, as nothing else wins over what other
// policies allow: the rules that nobody can read may have denied just that.
const RuleNotUnderstood = "not-understood"

// Resolve puts trust domains in the place of clusters. domainOf returns that of a cluster, or of the own one (topology.Same); zero where there
// is none of the name: then nobody is meant.
func (p *AccessPolicy) Resolve(domainOf func(cluster string) spiffeid.TrustDomain) access.Policy {
	out := access.Policy{Name: p.Namespace + "/" + p.Name, Audit: p.Audit, Issuers: p.Issuers}
	if p.Closed {
		out.Rules = []access.Rule{{Name: RuleNotUnderstood, Deny: true}}
	}
	for _, r := range p.Rules {
		out.Rules = append(out.Rules, access.Rule{Name: r.Name, Deny: r.Deny, From: resolveCallers(r.From, domainOf), To: r.To, Users: r.Users})
	}
	return out
}

func resolveCallers(in []Caller, domainOf func(cluster string) spiffeid.TrustDomain) []access.Source {
	var out []access.Source
	for _, c := range in {
		s := c.Source
		s.Domains = slices.Clone(s.Domains)
		for _, name := range c.Clusters {
			if d := domainOf(name); !d.IsZero() {
				s.Domains = append(s.Domains, d)
			}
		}
		s.Nobody = len(c.Clusters) > 0 && len(s.Domains) == 0
		out = append(out, s)
	}
	return out
}

// Perhaps leaves of a policy what counts where it can't be told whether it is for a workload: what it denies.
func Perhaps(p access.Policy) access.Policy {
	p.Rules = slices.DeleteFunc(slices.Clone(p.Rules), func(r access.Rule) bool { return !r.Deny })
	return p
}

// Picks reports whether a workload of the policy's namespace is meant, by its labels and the Services that it is behind.
func (s Selection) Picks(labels map[string]string, services []topology.ServiceName) bool {
	if len(s.Services) > 0 {
		return slices.ContainsFunc(s.Services, func(n topology.ServiceName) bool { return slices.Contains(services, n) })
	}
	return selects(s.Labels, labels)
}

// domainOf returns the trust domain of a cluster; zero where there is none of the name.
func (w *world) domainOf(cluster string) spiffeid.TrustDomain {
	if cluster == topology.Same || cluster == w.in.self.Cluster.String() {
		return w.in.self.Domain
	}
	for i := range w.peers {
		if w.peers[i].Cluster.String() == cluster {
			return w.peers[i].Domain
		}
	}
	return spiffeid.TrustDomain{}
}

// guard puts the policies into what a receiver is told of a service that it serves.
func (p *policing) guard(r *configv1.Resource, receiver string, service *resolved) {
	inbound := r.GetInbound()
	inbound.Quotas = p.quotasOf(receiver, service)
	if len(p.access) == 0 {
		return
	}
	if name, ok := strings.CutPrefix(receiver, configstream.ProgramSidecar+"/"); ok {
		if _, set := p.setOf(copyID(name)); set != nil {
			inbound.Access = []*configv1.AccessSet{set}
		}
		return
	}
	// A node proxy does not know which copy it will take when it decides: what all of them allow is allowed.
	sets := make(map[string]*configv1.AccessSet)
	for i := range service.plains {
		if key, set := p.setOf(p.of(service.service.Namespace, &service.plains[i])); set != nil {
			sets[key] = set
		}
	}
	size := 0
	for _, key := range slices.Sorted(maps.Keys(sets)) {
		size += proto.Size(sets[key])
		inbound.Access = append(inbound.Access, sets[key])
	}
	if len(inbound.Access) > configstream.MaxAccessSets || size > configstream.MaxResource/2 {
		p.w.problems = append(p.w.problems, Problem{
			Object: service.service.Object(), Source: service.service.Source,
			Reason: fmt.Sprintf("its copies without a sidecar are guarded in %d different ways, more than a node proxy takes, so everything is refused to them: give them the same policies", len(inbound.Access)),
		})
		inbound.Access = []*configv1.AccessSet{configstream.EncodeAccess([]access.Policy{{Name: service.service.ID.Namespace() + "/" + service.service.Name}})}
	}
}

// policyStatus says of each AccessPolicy what became of it.
func (p *policing) policyStatus() []PolicyStatus {
	o := p.w.in.objects
	var out []PolicyStatus
	for i := range o.Access {
		policy := &o.Access[i]
		out = append(out, PolicyStatus{
			Kind: policy.Kind, Namespace: policy.Namespace, Name: policy.Name, Generation: policy.Generation, Copies: len(p.copies[i]),
			Conditions: []Condition{p.w.accepted(&policy.Meta, policy.Closed, policy.Selects, callersOf(policy), p.copies[i])},
		})
	}
	for i := range o.Quotas {
		policy := &o.Quotas[i]
		var callers []Caller
		for _, l := range policy.Limits {
			callers = append(callers, l.From...)
		}
		out = append(out, PolicyStatus{
			Kind: policy.Kind, Namespace: policy.Namespace, Name: policy.Name, Generation: policy.Generation, Copies: len(p.limited[i]),
			Conditions: []Condition{p.w.accepted(&policy.Meta, false, policy.Selects, callers, p.limited[i])},
		})
	}
	return out
}

func callersOf(p *AccessPolicy) []Caller {
	var out []Caller
	for _, r := range p.Rules {
		out = append(out, r.From...)
	}
	return out
}

// accepted says whether a policy is in force as it stands. What is not, or does not mean what its author wants, is a problem too.
func (w *world) accepted(m *Meta, closed bool, s Selection, callers []Caller, copies []copyID) Condition {
	no := func(reason, format string, args ...any) Condition {
		return Condition{Type: conditionAccepted, Status: False, Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	why := ""
	for _, p := range w.in.objects.Problems {
		if p.Object == m.Object() {
			why = cmp.Or(why, p.Reason)
		}
	}
	switch {
	case closed:
		w.doubtful(m, "is not understood, and no earlier version of it is known: all calls to what it would be for (%s) are refused, whatever other policies allow, until that is put right", copiesText(copies))
		return no(reasonInvalid, "everything is refused to %s, as no version of it is known that is understood: %s", copiesText(copies), why)
	case why != "":
		return no(reasonInvalid, "an earlier version is in force: %s", why)
	}
	var unknown []string
	for _, name := range s.Services {
		if w.services[name] == nil {
			unknown = append(unknown, fmt.Sprintf("Service %s does not exist", name.Name()))
		}
	}
	for _, c := range callers {
		for _, name := range c.Clusters {
			if w.domainOf(name).IsZero() {
				unknown = append(unknown, fmt.Sprintf("cluster %s is neither this one nor a peer, so that nobody is meant by it", name))
			}
		}
		for _, d := range domainsIn(&c.Source) {
			if !w.verifies(d) {
				unknown = append(unknown, fmt.Sprintf("trust domain %s is neither this cluster's nor a peer's, and no FederatedTrustDomain is of it, so that nobody comes from it", d.Name()))
			}
		}
	}
	slices.Sort(unknown)
	if unknown = slices.Compact(unknown); len(unknown) > 0 {
		text := strings.Join(unknown, "; ")
		w.doubtful(m, "%s", text)
		return no(reasonUnknownNames, "it is in force for %s, but: %s", copiesText(copies), text)
	}
	if len(copies) == 0 {
		if len(s.Labels) > 0 {
			w.doubtful(m, "inert: no workload of the namespace has the labels %s", selectorText(s.Labels))
		}
		return Condition{Type: conditionAccepted, Status: True, Reason: reasonNoWorkloads, Message: "there is no workload that it is for"}
	}
	return Condition{Type: conditionAccepted, Status: True, Reason: reasonAccepted, Message: "for " + copiesText(copies)}
}

// domainsIn returns the trust domains that a source names, in its principals too.
func domainsIn(s *access.Source) []spiffeid.TrustDomain {
	out := slices.Clone(s.Domains)
	for _, p := range s.Principals {
		rest, _ := strings.CutPrefix(p.Text, "spiffe://")
		name, _, whole := strings.Cut(rest, "/")
		if d, err := spiffeid.TrustDomainFromString(name); err == nil && whole && p.Kind != access.Suffix {
			out = append(out, d)
		}
	}
	return out
}

// verifies reports whether anybody of a trust domain can come here.
func (w *world) verifies(d spiffeid.TrustDomain) bool {
	return d == w.in.self.Domain || slices.ContainsFunc(w.peers, func(p ClusterPeer) bool { return p.Domain == d }) ||
		slices.ContainsFunc(w.domains, func(f FederatedTrustDomain) bool { return f.Domain == d })
}

// maxNamedCopies is how many copies a condition names.
const maxNamedCopies = 10

func copiesText(copies []copyID) string {
	var names []string
	for _, id := range copies[:min(len(copies), maxNamedCopies)] {
		names = append(names, string(id))
	}
	if len(copies) > maxNamedCopies {
		names = append(names, "…")
	}
	switch len(copies) {
	case 0:
		return "no workload"
	case 1:
		return "1 workload: " + names[0]
	}
	return fmt.Sprintf("%d workloads: %s", len(copies), strings.Join(names, ", "))
}
