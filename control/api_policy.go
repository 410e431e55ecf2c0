package control

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
)

// policies says which policies there are, and for what.
func (p *present) policies() admin.Policies {
	w := p.world
	out := admin.Policies{
		Cluster: w.in.self.Cluster.String(), TrustDomain: w.in.self.Domain.Name(), Clusters: map[string]string{w.in.self.Cluster.String(): w.in.self.Domain.Name()},
		Policies: []admin.Policy{}, Workloads: []admin.PolicedWorkload{},
	}
	for _, peer := range w.peers {
		out.Clusters[peer.Cluster.String()] = peer.Domain.Name()
	}
	for i, s := range w.policyStatus {
		a := admin.Policy{Kind: s.Kind, Namespace: s.Namespace, Name: s.Name, Workloads: s.Copies, Conditions: conditionsOf(s.Conditions)}
		if i < len(w.in.objects.Access) {
			policy := &w.in.objects.Access[i]
			a.Audit, a.Closed, a.At = policy.Audit, policy.Closed, policy.String()
			a.Access, _ = json.Marshal(w.policyOf(policy)) // names and numbers
		} else {
			policy := &w.in.objects.Quotas[i-len(w.in.objects.Access)]
			a.Audit, a.At = policy.Audit, policy.String()
			for _, l := range policy.Limits {
				a.Limits = append(a.Limits, admin.QuotaLimit{Name: l.Name, Per: l.Per, Requests: l.Requests, Window: l.Window, Burst: l.Burst, Shared: l.Shared})
			}
		}
		out.Policies = append(out.Policies, a)
	}
	out.Workloads = append(out.Workloads, p.policed()...)
	out.Failover = p.failoverPolicies()
	return out
}

// policed returns every copy with what is for it, ordered by ID.
func (p *present) policed() []admin.PolicedWorkload {
	w := p.world
	known := w.policing
	all := newExplorer(w)
	members := all.explore()
	byID := make(map[copyID]*admin.PolicedWorkload)
	add := func(id copyID, namespace string, labels map[string]string) {
		byID[id] = &admin.PolicedWorkload{
			ID: string(id), Namespace: namespace, Labels: labels, Services: []string{}, Enforced: []string{},
			Access: applied(known.access[id], func(i int) *Meta { return &w.in.objects.Access[i].Meta }),
			Quotas: applied(known.quotas[id], func(i int) *Meta { return &w.in.objects.Quotas[i].Meta }),
		}
	}
	for id, workload := range all.workloads {
		add(id, workload.Namespace, workload.Labels)
	}
	for id, o := range all.others {
		add(id, o.namespace, nil)
	}
	for _, name := range slices.SortedFunc(maps.Keys(members), topology.ServiceName.Compare) {
		for _, id := range members[name] {
			byID[id].Services = append(byID[id].Services, name.Name())
		}
		r := w.services[name]
		for _, receiver := range slices.Sorted(maps.Keys(r.inbounds)) {
			for _, id := range all.behind(receiver, r) {
				if x := byID[id]; x != nil && !slices.Contains(x.Enforced, receiver) {
					x.Enforced = append(x.Enforced, receiver)
				}
			}
		}
	}
	var out []admin.PolicedWorkload
	for _, x := range byID {
		out = append(out, *x)
	}
	slices.SortFunc(out, func(a, b admin.PolicedWorkload) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func applied(in []picked, meta func(int) *Meta) []admin.AppliedPolicy {
	out := []admin.AppliedPolicy{}
	for _, p := range in {
		m := meta(p.policy)
		out = append(out, admin.AppliedPolicy{Policy: m.Namespace + "/" + m.Name, Perhaps: p.perhaps})
	}
	return out
}
