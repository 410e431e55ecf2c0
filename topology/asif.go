package topology

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// asIfDown is the evidence against what is supposed to be down.
const asIfDown = "as if it were down"

// ExplainAsIf is Explain of what Choose would return if some places were down, beside what it returns: AsIf of each row. A place is a cluster,
// "us", or a copy, "eu/checkout-0". The error names a place that no copy is at.
func ExplainAsIf(s *Snapshot, q Query, load Load, down []string) (Explanation, error) {
	plan, err := Choose(s, q, load)
	now := Explain(plan, err)
	if len(down) == 0 {
		return now, nil
	}
	worse := load
	if worse.Suspected = maps.Clone(load.Suspected); worse.Suspected == nil {
		worse.Suspected = make(map[Target]string)
	}
	for _, place := range down {
		hit := false
		for _, r := range now.Rows {
			if r.at(place) {
				hit = true
				worse.Suspected[q.Target(r.Cluster, r.Endpoint)] = asIfDown
			}
		}
		if !hit {
			return now, fmt.Errorf("%q: no copy of %s is there; want a cluster or CLUSTER/COPY of: %s", place, q.Service, strings.Join(now.places(), ", "))
		}
	}
	then := Explain(Choose(s, q, worse))
	then.leave(down)
	now.AsIf = slices.Clone(down)
	for i := range now.Rows {
		r := &now.Rows[i]
		for _, t := range then.Rows {
			if t.Cluster == r.Cluster && t.Endpoint == r.Endpoint {
				r.AsIf = &AsIf{Rank: t.Rank, Traffic: t.Traffic, State: t.State}
			}
		}
	}
	return now, nil
}

// AsIf is what a row would be.
type AsIf struct {
	Rank    int     `json:"rank"`
	Traffic float64 `json:"traffic"`
	State   State   `json:"state"`
}

// leave takes out what is down. To Choose it is a last resort; but what is down answers nothing, and its requests go on to the next.
func (x *Explanation) leave(down []string) {
	best, left := 0, 0.0
	for i := range x.Rows {
		r := &x.Rows[i]
		if slices.ContainsFunc(down, r.at) {
			r.Rank, r.Share, r.Traffic, r.State = 0, 0, 0, Excluded
		}
		left += r.Traffic
		if r.Rank > 0 && (best == 0 || r.Rank < best) {
			best = r.Rank
		}
	}
	for i := range x.Rows {
		if r := &x.Rows[i]; left == 0 && r.Rank == best && best > 0 { // all went to what is down
			r.Traffic = r.Share
		}
	}
	sum := 0.0
	for i := range x.Rows {
		sum += x.Rows[i].Traffic
	}
	for i := range x.Rows {
		if sum > 0 {
			x.Rows[i].Traffic /= sum
		}
	}
}

func (r *ExplanationRow) at(place string) bool {
	cluster, endpoint, one := strings.Cut(place, "/")
	return r.Cluster.String() == cluster && (!one || r.Endpoint == endpoint && endpoint != "")
}

// places are what could be down: each cluster and each copy.
func (x *Explanation) places() []string {
	var out []string
	for _, r := range x.Rows {
		out = append(out, r.Cluster.String())
		if r.Endpoint != "" {
			out = append(out, r.Cluster.String()+"/"+r.Endpoint)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
