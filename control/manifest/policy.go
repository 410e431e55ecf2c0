package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Limits of a FailoverPolicy.
const (
	maxPolicyTargets = 256
	maxPolicyTiers   = 32
	maxPolicyNever   = 32
	maxTierWeights   = 256
	maxWeight        = 1_000_000
	maxFailback      = time.Hour
)

func failoverPolicy(c *checker, in *meshv1alpha1.FailoverPolicy) Object {
	p := &control.FailoverPolicy{Generation: in.Generation, Meta: c.meta(&in.ObjectMeta, true, validation.IsDNS1123Subdomain)}
	p.Policy.Name = p.Namespace + "/" + p.Name
	for _, l := range []struct {
		field    string
		n, limit int
		required string
	}{
		{"spec.targetRefs", len(in.Spec.TargetRefs), maxPolicyTargets, "is empty: name the ServiceImports or Services that the policy is for, or its Namespace"},
		{"spec.tiers", len(in.Spec.Tiers), maxPolicyTiers, "is empty: a policy without tiers would use no copy at all"},
		{"spec.never", len(in.Spec.Never), maxPolicyNever, ""},
	} {
		if l.n == 0 && l.required != "" {
			c.addf(l.field, "%s", l.required)
		}
		if l.n > l.limit {
			c.addf(l.field, "%d entries, more than the limit of %d", l.n, l.limit)
			return Object{Policy: p}
		}
	}
	c.targets(p, in.Spec.TargetRefs)
	for i, s := range in.Spec.Never {
		p.Policy.Never = append(p.Policy.Never, c.selector(fmt.Sprintf("spec.never[%d]", i), s))
	}
	names := map[string]int{}
	for i, t := range in.Spec.Tiers {
		at := fmt.Sprintf("spec.tiers[%d]", i)
		if t.Name == "" {
			t.Name = "tier-" + strconv.Itoa(i)
		}
		c.all(at+".name", strconv.Quote(t.Name), validation.IsDNS1123Label(t.Name))
		unique(c, names, t.Name, "spec.tiers", i, "the name "+strconv.Quote(t.Name))
		tier := topology.Tier{Name: t.Name, Match: c.selector(at+".match", t.Match), Weights: t.Weights}
		c.weights(at+".weights", tier)
		p.Policy.Tiers = append(p.Policy.Tiers, tier)
	}
	c.moves(&p.Policy, &in.Spec)
	if len(c.errs) == 0 {
		c.reachable(&p.Policy)
	}
	return Object{Policy: p}
}

// moves reads when requests move, and how fast.
func (c *checker) moves(p *topology.Policy, in *meshv1alpha1.FailoverPolicySpec) {
	if s := in.Spill; s != nil {
		if s.BelowHealthyPercent < 1 || s.BelowHealthyPercent > 100 {
			c.addf("spec.spill.belowHealthyPercent", "%d: want 1 to 100", s.BelowHealthyPercent)
		}
		if len(in.Tiers) == 1 {
			c.addf("spec.spill", "there is one tier, and none to spill to")
		}
		p.Spill.BelowHealthyPercent = int(s.BelowHealthyPercent)
	}
	f := in.Failback
	if f == nil {
		return
	}
	if f.After == "" && f.Ramp == "" {
		c.addf("spec.failback", "want after, ramp or both")
	}
	p.Failback.After = c.upToAnHour("spec.failback.after", f.After)
	p.Failback.Ramp = c.upToAnHour("spec.failback.ramp", f.Ramp)
}

// upToAnHour reads a duration; empty: none.
func (c *checker) upToAnHour(at, in string) time.Duration {
	if in == "" {
		return 0
	}
	d, err := time.ParseDuration(in)
	if err != nil || d < 0 || d > maxFailback || strings.ContainsAny(in, "+-nuµμ") || d%time.Millisecond != 0 {
		c.addf(at, `%q: want a duration from "0s" to "1h", in whole milliseconds`, in)
		return 0
	}
	return d
}

func (c *checker) targets(p *control.FailoverPolicy, refs []meshv1alpha1.TargetRef) {
	seen := map[topology.ServiceName]int{}
	for i, r := range refs {
		at := fmt.Sprintf("spec.targetRefs[%d]", i)
		switch {
		case r.Kind == "ServiceImport" && r.Group == mcsv1beta1.GroupName:
		case (r.Kind == "Service" || r.Kind == "Namespace") && r.Group == "":
		case r.Kind == "ServiceImport":
			c.addf(at+".group", "%q: a ServiceImport is of group %s", r.Group, mcsv1beta1.GroupName)
		case r.Kind == "Service" || r.Kind == "Namespace":
			c.addf(at+".group", `%q: a %s is of group ""`, r.Group, r.Kind)
		default:
			c.addf(at+".kind", "%q is not known: want ServiceImport, Service or Namespace", r.Kind)
			continue
		}
		if r.Kind == "Namespace" && r.Name != p.Namespace {
			c.addf(at+".name", "%q: a policy is for its own namespace, %q, alone", r.Name, p.Namespace)
			continue
		}
		s, err := topology.NewServiceName(p.Namespace, r.Name)
		if err != nil {
			c.addf(at+".name", "%v", err)
			continue
		}
		unique(c, seen, s, "spec.targetRefs", i, "the target")
		if r.Kind == "Namespace" {
			s = topology.ServiceName{}
		}
		p.Targets = append(p.Targets, control.PolicyTarget{Kind: r.Kind, Service: s})
	}
}

func (c *checker) selector(at string, in meshv1alpha1.FailoverSelector) topology.Selector {
	if in.Cluster != "" && in.Cluster != topology.Same {
		if _, err := topology.ParseClusterName(in.Cluster); err != nil {
			c.addf(at+".cluster", "%v (or %q for the caller's own)", err, topology.Same)
		}
	}
	for field, value := range map[string]string{".region": in.Region, ".zone": in.Zone} {
		c.all(at+field, strconv.Quote(value), validation.IsValidLabelValue(value))
	}
	c.labels(at+".labels", in.Labels)
	return topology.Selector{Cluster: in.Cluster, Region: in.Region, Zone: in.Zone, Labels: in.Labels}
}

func (c *checker) weights(at string, t topology.Tier) {
	if len(t.Weights) == 0 {
		return
	}
	if len(t.Weights) > maxTierWeights {
		c.addf(at, "%d clusters, more than the limit of %d", len(t.Weights), maxTierWeights)
		return
	}
	var sum uint64
	for _, name := range slices.Sorted(maps.Keys(t.Weights)) {
		sum += uint64(t.Weights[name])
		if _, err := topology.ParseClusterName(name); err != nil {
			c.addf(at+"."+name, "%v", err)
		}
		if t.Weights[name] > maxWeight {
			c.addf(at+"."+name, "%d: want at most %d", t.Weights[name], maxWeight)
		}
		if m := t.Match.Cluster; m != "" && m != topology.Same && m != name {
			c.addf(at+"."+name, "can never count: the tier matches cluster %s alone", m)
		}
	}
	if sum == 0 {
		c.addf(at, "are all zero: the tier would get nothing")
	}
}

// reachable finds tiers that no copy can ever belong to, because an earlier tier or "never" takes all that they match.
func (c *checker) reachable(p *topology.Policy) {
	for i, t := range p.Tiers {
		field := fmt.Sprintf("spec.tiers[%d].match", i)
		for j, n := range p.Never {
			if covers(n, t.Match) {
				c.addf(field, "can't match: never[%d] excludes all that it would", j)
			}
		}
		for _, earlier := range p.Tiers[:i] {
			if covers(earlier.Match, t.Match) {
				c.addf(field, "can't match: tier %q before it takes all that it would", earlier.Name)
				break
			}
		}
	}
}

// covers reports whether everything that b matches, a matches too.
func covers(a, b topology.Selector) bool {
	field := func(a, b string) bool { return a == "" || a == b }
	if !field(a.Cluster, b.Cluster) || !field(a.Region, b.Region) || !field(a.Zone, b.Zone) {
		return false
	}
	for k, v := range a.Labels {
		if w, ok := b.Labels[k]; !ok || v != w {
			return false
		}
	}
	return true
}
