// Package check says whether clusters can take Isthmus, whether it stands in them as it should, and whether they reach each other.
//
// Gather looks at one cluster and judges nothing; Judge is a pure function of what was gathered. Each check has an ID that never
// changes its meaning (isthmus explain ISTnnnn): IST70nn are about a cluster before Isthmus is installed, IST71nn about one where it
// is, IST72nn about two of them. What could not be looked at is Unknown, which is not passed.
package check

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Status is what became of a check.
type Status string

// The statuses.
const (
	OK      Status = "ok"
	Warning Status = "warning" // it works, and somebody should know
	Failed  Status = "failed"
	Unknown Status = "unknown" // it could not be looked at
	Skipped Status = "skipped" // it does not apply
)

// Check is one thing that is looked at.
type Check struct {
	ID       string `json:"id"`
	Title    string `json:"title"`
	Expected string `json:"expected"`
	Fix      string `json:"fix"`
}

// Result is what a check found, in one cluster or between all.
type Result struct {
	Check

	Cluster string   `json:"cluster,omitempty"` // the context, the socket or the name; empty: between all
	Status  Status   `json:"status"`
	Found   []string `json:"found,omitempty"`
	// Because is the check that must pass before this one can be made.
	Because string `json:"because,omitempty"`
}

// Bad reports whether it must not stay so.
func (r *Result) Bad() bool { return r.Status == Failed || r.Status == Unknown }

// All returns every check, ordered by ID.
func All() []Check {
	var out []Check
	for _, c := range inOne {
		out = append(out, c.Check)
	}
	for _, c := range between {
		out = append(out, c.Check)
	}
	slices.SortFunc(out, func(a, b Check) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Lookup returns a check by its ID, in whatever case it is written.
func Lookup(id string) (Check, bool) {
	all := All()
	i := slices.IndexFunc(all, func(c Check) bool { return strings.EqualFold(c.ID, id) })
	if i < 0 {
		return Check{}, false
	}
	return all[i], true
}

// phase is when a check makes sense.
type phase int

const (
	before phase = iota // where Isthmus is not yet
	always              // there, and where it is
	after               // where it is
)

// one is a check of one cluster.
type one struct {
	Check

	phase phase
	kube  bool // only of a Kubernetes cluster
	judge func(*Cluster) verdict
}

// verdict is what a judge says.
type verdict struct {
	status  Status
	found   []string
	because string
}

func ok(found ...string) verdict        { return verdict{status: OK, found: found} }
func skipped(why string) verdict        { return verdict{status: Skipped, found: []string{why}} }
func failed(found ...string) verdict    { return verdict{status: Failed, found: found} }
func warning(found ...string) verdict   { return verdict{status: Warning, found: found} }
func sprintf(f string, a ...any) string { return fmt.Sprintf(f, a...) }

// unknown is a check that could not be made, for an error.
func unknown(err error) verdict {
	if first, is := errors.AsType[*follows](err); is {
		return verdict{status: Unknown, found: []string{err.Error()}, because: first.id}
	}
	return verdict{status: Unknown, found: []string{"could not look: " + strings.ReplaceAll(err.Error(), "\n", "; ")}}
}

// follows is why something could not be looked at: another check did not pass, which says why.
type follows struct{ id, what string }

func (a *follows) Error() string { return a.what + ": see " + a.id }

// faults is failed with what was found, or ok with good where nothing was.
func faults(found []string, good ...string) verdict {
	if len(found) > 0 {
		return failed(found...)
	}
	return ok(good...)
}

// Judge judges clusters: each by itself, and all together. onlyBefore leaves out what needs Isthmus.
func Judge(clusters []*Cluster, onlyBefore bool) []Result {
	var out []Result
	for _, c := range clusters {
		installed := c.Installed() && !onlyBefore
		for i := range inOne {
			o := &inOne[i]
			switch {
			case o.kube && c.Kube == nil:
			case o.phase == before && installed, o.phase == after && !installed:
			default:
				v := o.judge(c)
				out = append(out, Result{o.Check, c.Name, v.status, v.found, v.because})
			}
		}
	}
	if onlyBefore {
		return out
	}
	var there []*Cluster
	for _, c := range clusters {
		if c.Control.Err == nil && c.Control.Value != nil {
			there = append(there, c)
		}
	}
	if len(there) < 2 {
		return out
	}
	for i := range between {
		v := between[i].judge(there)
		out = append(out, Result{between[i].Check, "", v.status, v.found, v.because})
	}
	return out
}
