package control

import "github.com/isthmus-mesh/isthmus/api/admin"

// failoverPolicies says which FailoverPolicies there are, and what became of them.
func (p *present) failoverPolicies() []admin.FailoverPolicy {
	out := []admin.FailoverPolicy{}
	for i := range p.world.failover {
		s := &p.world.failover[i]
		a := admin.FailoverPolicy{
			Namespace: s.Namespace, Name: s.Name, At: s.Source.String(), Conditions: conditionsOf(s.Conditions), Clusters: []admin.FailoverRow{},
		}
		for _, r := range s.Rows {
			a.Clusters = append(a.Clusters, admin.FailoverRow{
				Service: r.Service.Name(), Cluster: r.Cluster, Tier: r.Tier, Ready: r.Ready, Total: r.Total, State: string(r.State), Why: r.Why,
			})
		}
		out = append(out, a)
	}
	return out
}
