// Package ledger is the oracle of fault tests: what the client, both sidecars and the application noted of each request, joined by the
// request's id, must tell one story. It is pure: entries go in, what is wrong comes out.
//
// What must hold, whatever was broken meanwhile:
//   - each request has one outcome;
//   - one that may be repeated does not fail;
//   - one that may not is executed once at most;
//   - what was answered was executed, by the right service, in a cluster that may answer;
//   - nothing reaches an application but through its sidecar, from a caller who may call it.
package ledger

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Role is who noted an entry.
type Role string

// The roles.
const (
	Client Role = "client" // who asked, and saw how it ended
	Caller Role = "caller" // the sidecar on the way out
	Callee Role = "callee" // the sidecar on the way in
	Origin Role = "origin" // the application
)

// Entry is what one of them noted of a request.
type Entry struct {
	ID      string    `json:"id"` // the trace's
	Role    Role      `json:"role"`
	At      time.Time `json:"at"`
	Cluster string    `json:"cluster"`          // where it was noted; of a client: who answered, as far as it knows
	Copy    string    `json:"copy,omitempty"`   // the workload that noted it
	Method  string    `json:"method,omitempty"` // of HTTP
	Service string    `json:"service,omitempty"`
	Caller  string    `json:"caller,omitempty"` // SPIFFE ID, as a callee proved it
	Status  int       `json:"status"`           // 0: none came, or it broke off
	Err     string    `json:"error,omitempty"`  // of a client
}

// Rules are what is right.
type Rules struct {
	// Floor is how many requests there must be for the run to mean anything.
	Floor int
	// Clusters are those that may answer.
	Clusters []string
	// Callers are the SPIFFE IDs that may call.
	Callers []string
	// Service is the one that is called.
	Service string
	// Killed reports whether a copy was killed at about that moment: what it had not written yet is lost.
	Killed func(cluster, copy string, at time.Time) bool
	// MayFail reports whether a request that failed then had an excuse: nobody was left to answer.
	MayFail func(at time.Time) bool
}

// Violation is one request of which the story does not hold.
type Violation struct {
	ID   string `json:"id"`
	What string `json:"what"`
}

// Report is what came of a run.
type Report struct {
	Requests   int         `json:"requests"`
	Repeatable int         `json:"repeatable"` // of them, those that may be repeated
	Failed     int         `json:"failed"`     // of those that may not be; the others are violations
	Excused    int         `json:"excused"`
	Repeated   int         `json:"repeated"` // executed more than once, which they may be
	ByCluster  Counts      `json:"by_cluster"`
	Violations []Violation `json:"violations"`
}

// Counts are answers by cluster.
type Counts map[string]int

// maxViolations is how many are told in full.
const maxViolations = 100

// Valid returns why the run proves nothing, or nil.
func (r Rules) Valid(rep Report) error {
	if rep.Requests < r.Floor {
		return fmt.Errorf("ledger: %d requests, want %d at least: the run proves nothing", rep.Requests, r.Floor)
	}
	return nil
}

// Repeatable reports whether a request of that method may be repeated (RFC 9110 section 9.2.2).
func Repeatable(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	default:
		return false
	}
}

// Check joins the entries and judges them.
func (r Rules) Check(entries []Entry) Report {
	rep := Report{ByCluster: make(Counts), Violations: []Violation{}}
	stories := make(map[string]map[Role][]Entry)
	for _, e := range entries {
		if stories[e.ID] == nil {
			stories[e.ID] = make(map[Role][]Entry)
		}
		stories[e.ID][e.Role] = append(stories[e.ID][e.Role], e)
	}
	for _, id := range slices.Sorted(maps.Keys(stories)) {
		j := judge{rules: r, story: stories[id], report: &rep, id: id}
		j.judge()
	}
	return rep
}

// judge looks at one request.
type judge struct {
	rules  Rules
	story  map[Role][]Entry
	report *Report
	id     string
}

func (j *judge) wrong(format string, args ...any) {
	if len(j.report.Violations) < maxViolations {
		j.report.Violations = append(j.report.Violations, Violation{j.id, fmt.Sprintf(format, args...)})
	}
}

func (j *judge) judge() {
	clients, origins := j.story[Client], j.story[Origin]
	switch len(clients) {
	case 0:
		if len(origins) > 0 {
			j.wrong("executed by %s/%s, and nobody asked for it", origins[0].Cluster, origins[0].Copy)
		}
		return
	case 1:
	default:
		j.wrong("%d outcomes", len(clients))
		return
	}
	asked := clients[0]
	j.report.Requests++
	j.outcome(asked)
	if repeatable := Repeatable(asked.Method); repeatable {
		j.report.Repeatable++
		if len(origins) > 1 {
			j.report.Repeated++
		}
	} else if len(origins) > 1 {
		j.wrong("%s, which may not be repeated, was executed %d times: %s", asked.Method, len(origins), places(origins))
	}
	for _, e := range origins {
		j.execution(e)
	}
	for _, e := range j.story[Callee] {
		if !slices.Contains(j.rules.Callers, e.Caller) && e.Status != 0 && e.Status/100 == 2 {
			j.wrong("%s/%s answered %s, who may not call it", e.Cluster, e.Copy, e.Caller)
		}
	}
}

// outcome judges what the client saw.
func (j *judge) outcome(asked Entry) {
	if asked.Err == "" && asked.Status == 200 {
		j.report.ByCluster[asked.Cluster]++
		executed := slices.ContainsFunc(j.story[Origin], func(e Entry) bool { return e.Cluster == asked.Cluster })
		if !executed {
			j.wrong("answered by %s, and not executed there (but by: %s)", asked.Cluster, places(j.story[Origin]))
		}
		return
	}
	switch {
	case j.rules.MayFail != nil && j.rules.MayFail(asked.At):
		j.report.Excused++
	case Repeatable(asked.Method):
		j.wrong("%s failed: status %d %s", asked.Method, asked.Status, asked.Err)
	default:
		j.report.Failed++
	}
}

// execution judges that an application was reached.
func (j *judge) execution(e Entry) {
	if !slices.Contains(j.rules.Clusters, e.Cluster) {
		j.wrong("executed in %s, which may not answer", e.Cluster)
	}
	through := slices.ContainsFunc(j.story[Callee], func(c Entry) bool {
		return c.Cluster == e.Cluster && c.Copy == e.Copy && c.Service == j.rules.Service
	})
	if !through && (j.rules.Killed == nil || !j.rules.Killed(e.Cluster, e.Copy, e.At)) {
		j.wrong("executed by %s/%s, and its sidecar knows of no call to %s", e.Cluster, e.Copy, j.rules.Service)
	}
}

func places(entries []Entry) string {
	if len(entries) == 0 {
		return "nobody"
	}
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		out = append(out, e.Cluster+"/"+e.Copy)
	}
	return strings.Join(out, ", ")
}
