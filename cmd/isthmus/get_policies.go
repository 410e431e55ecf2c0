package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

// shownPolicy is an element of `isthmus get policies -o json`: a policy of any kind. Exactly one of the two is there.
type shownPolicy struct {
	Kind     string                `json:"kind"`
	Policy   *admin.Policy         `json:"policy,omitempty"`
	Failover *admin.FailoverPolicy `json:"failover,omitempty"`
}

func allPolicies(c *admin.Client, ctx context.Context) ([]shownPolicy, error) { //nolint:revive // as a method expression has them
	all, err := c.Policies(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]shownPolicy, 0, len(all.Policies)+len(all.Failover))
	for i := range all.Failover {
		out = append(out, shownPolicy{Kind: "FailoverPolicy", Failover: &all.Failover[i]})
	}
	for i := range all.Policies {
		out = append(out, shownPolicy{Kind: all.Policies[i].Kind, Policy: &all.Policies[i]})
	}
	return out, nil
}

var policyTable = output.Table{
	Columns: []string{"CLUSTER", "KIND", "NAMESPACE", "NAME", "IN FORCE", "FOR", "WHY"},
	Wide:    []string{"WHERE"},
}

func policyRow(from string, p shownPolicy) []string {
	if f := p.Failover; f != nil {
		state, why := "Inert", ""
		for _, c := range f.Conditions {
			if why = c.Message; c.Status == "True" {
				state = "Active"
			}
		}
		var services, where []string
		for _, r := range f.Clusters {
			if !slices.Contains(services, r.Service) {
				services = append(services, r.Service)
			}
			where = append(where, strings.TrimSpace(fmt.Sprintf("%s: %s %d/%d %s %s", r.Service, r.Cluster, r.Ready, r.Total, r.State, r.Tier)))
		}
		if state == "Active" && strings.HasPrefix(why, "for ") && !strings.Contains(why, ";") {
			why = ""
		}
		return []string{from, p.Kind, f.Namespace, f.Name, state, list(services), why, strings.Join(where, "; ")}
	}
	state, why := "yes", ""
	for _, c := range p.Policy.Conditions {
		if c.Status != "True" {
			state, why = c.Reason, c.Message
		}
	}
	if p.Policy.Audit {
		state = "audit"
	}
	return []string{from, p.Kind, p.Policy.Namespace, p.Policy.Name, state, strconv.Itoa(p.Policy.Workloads) + " copies", why, ""}
}
