package kindtests

import (
	"fmt"
	"strings"
	"testing"
)

// TestFailoverPolicy declares FailoverPolicies that can't mean what they say. What its own rules see, the API server refuses, and names the field;
// what they can't see, control refuses, and the object's status says why.
func TestFailoverPolicy(t *testing.T) {
	m := theMesh(t)
	s := newScenario(m)
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	eu, err := m.member("eu")
	if err != nil {
		t.Fatal(err)
	}
	s.in = []*member{eu}
	if err = eu.makeNamespace(s.ctx, s.namespace); err != nil {
		t.Fatal(err)
	}
	const (
		to   = `targetRefs: [{kind: Service, name: web}], `
		both = `tiers: [{name: home, match: {cluster: Same}}, {name: any}]`
	)
	for i, c := range []struct {
		spec    string
		refused string // by the API server; empty: it is taken
		said    string // then in its status, by control
	}{
		{to + both, "", "NoTarget none of its targets is a Service here"},
		{to + both + `, spill: {belowHealthyPercent: 100}, failback: {after: 1h, ramp: 1m30s}`, "", "NoTarget"},
		{`tiers: [{name: any}]`, "spec.targetRefs: Required value", ""},
		{`targetRefs: [], tiers: [{name: any}]`, "spec.targetRefs in body should have at least 1 items", ""},
		{to + `tiers: []`, "spec.tiers in body should have at least 1 items", ""},
		{`targetRefs: [{kind: Deployment, name: web}], ` + both, `spec.targetRefs[0].kind: Unsupported value: "Deployment"`, ""},
		{`targetRefs: [{kind: ServiceImport, name: web}], ` + both, "a ServiceImport is of group multicluster.x-k8s.io", ""},
		{`targetRefs: [{group: multicluster.x-k8s.io, kind: Service, name: web}], ` + both, `a Service and a Namespace of group ""`, ""},
		{`targetRefs: [{kind: Service, name: web}, {group: multicluster.x-k8s.io, kind: ServiceImport, name: web}], ` + both, `spec.targetRefs[1]: Duplicate value`, ""},
		{`targetRefs: [{kind: Service, name: Web}], ` + both, "spec.targetRefs[0].name in body should match", ""},
		{to + `tiers: [{name: a, match: {cluster: Same}}, {name: a}]`, "the name of a tier stands twice", ""},
		{to + `tiers: [{match: {cluster: Same}}, {}]`, "", "NoTarget"}, // without names they have two
		{to + `tiers: [{name: any}], spill: {belowHealthyPercent: 70}`, "there is one tier, and none to spill to", ""},
		{to + both + `, spill: {belowHealthyPercent: 0}`, "spec.spill.belowHealthyPercent in body should be greater than or equal to 1", ""},
		{to + both + `, spill: {belowHealthyPercent: 101}`, "spec.spill.belowHealthyPercent in body should be less than or equal to 100", ""},
		{to + both + `, failback: {}`, "want after, ramp or both", ""},
		{to + both + `, failback: {after: 2h}`, "spec.failback.after: Invalid value", ""},
		{to + both + `, failback: {ramp: 61m}`, "spec.failback.ramp: Invalid value", ""},
		{to + both + `, failback: {ramp: soon}`, "spec.failback.ramp in body should match", ""},
		{to + both + `, failback: {after: -1s}`, "spec.failback.after in body should match", ""},
		{to + `tiers: [{name: any, weights: {eu: 0, us: 0}}]`, "all weights are zero: the tier would get nothing", ""},
		{to + `tiers: [{name: any, weights: {eu: 1000001}}]`, "want weights from 0 to 1,000,000", ""},
		{to + `tiers: [{name: any, weights: {eu: -1}}]`, "want weights from 0 to 1,000,000", ""},
		{to + `tiers: [{name: any, regions: [eu]}]`, `unknown field "spec.tiers[0].regions"`, ""},
		// What only control sees.
		{to + `tiers: [{name: any}, {name: us, match: {cluster: us}}]`, "", `Invalid no version of it is known that is understood: spec.tiers[1].match: can't match: tier "any"`},
		{to + both + `, never: [{cluster: Same}]`, "", `Invalid no version of it is known that is understood: spec.tiers[0].match: can't match: never[0]`},
		{to + `tiers: [{name: tier-1, match: {cluster: Same}}, {}]`, "", `the name "tier-1" is that of spec.tiers[0] too`},
		{to + `tiers: [{name: us, match: {cluster: us}, weights: {eu: 1}}]`, "", `spec.tiers[0].weights.eu: can never count`},
		{to + `tiers: [{name: any, match: {cluster: Not_A_Cluster}}]`, "", `spec.tiers[0].match.cluster: cluster name "Not_A_Cluster"`},
		{to + both + `, failback: {after: 0.1ms}`, "", `spec.failback.after: "0.1ms": want a duration`},
		{`targetRefs: [{kind: Namespace, name: elsewhere}], ` + both, "", `a policy is for its own namespace`},
	} {
		name := fmt.Sprintf("policy-%d", i)
		text := fmt.Sprintf("apiVersion: isthmus.dev/v1alpha1\nkind: FailoverPolicy\nmetadata: {name: %s}\nspec: {%s}\n", name, c.spec)
		_, _, err := eu.api.Kubectl(s.ctx, text, "-n", s.namespace, "create", "-f", "-")
		switch {
		case c.refused == "" && err != nil, c.refused != "" && err == nil:
			t.Errorf("{%s}: the API server said %v, want %q", c.spec, err, c.refused)
			continue
		case c.refused != "":
			if !strings.Contains(err.Error(), c.refused) {
				t.Errorf("{%s}: refused, but not as %q: %v", c.spec, c.refused, err)
			}
			continue
		}
		err = poll(s.ctx, m.deadline, func() error {
			got, _, failed := eu.api.Kubectl(s.ctx, "", "-n", s.namespace, "get", "failoverpolicy", name, "-o",
				`jsonpath={range .status.conditions[?(@.type=="Active")]}{.observedGeneration} {.status} {.reason} {.message}{end}`)
			if failed == nil && (!strings.HasPrefix(got, "1 False ") || !strings.Contains(got, c.said)) {
				failed = fmt.Errorf("its status is %q", got)
			}
			return failed
		})
		if err != nil {
			t.Errorf("{%s}: want %q: %v", c.spec, c.said, err)
		}
	}
}
