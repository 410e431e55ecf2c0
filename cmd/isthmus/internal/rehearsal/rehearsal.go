// Package rehearsal makes of what was measured during a failover drill a verdict, figures, and a page to read.
//
// A Recorder gathers what the controls tell of the callers' traffic (admin.Traffic), second by second, and what load that the drill itself made has
// seen. Judge makes a Result of it: a pure function. WriteHTML writes a Result as one page. The drill verb of isthmus is the one user.
//
// Nothing here is safe for concurrent use, but for Recorder.
package rehearsal

import (
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// Verdict is what a drill says.
type Verdict string

// The verdicts.
const (
	Pass    Verdict = "PASS"    // no request failed
	Fail    Verdict = "FAIL"    // some did, or the drilled cluster went on answering
	Invalid Verdict = "INVALID" // it proves nothing
)

// Result is all that came of a drill.
type Result struct {
	Verdict Verdict  `json:"verdict"`
	Reasons []string `json:"reasons"` // why; of a Pass, what was found
	Advice  []string `json:"advice"`  // what to do about it
	Remarks []string `json:"remarks"` // what does not decide

	Service string        `json:"service"` // name.namespace
	Cluster string        `json:"cluster"` // that looked dead
	How     string        `json:"how"`
	Asked   time.Duration `json:"asked_ns"` // how long it was to be
	Drill   *admin.Drill  `json:"drill"`    // nil: none was begun
	Began   time.Time     `json:"began"`    // by this machine's clock
	Ended   time.Time     `json:"ended"`
	Command string        `json:"command"`
	Version string        `json:"version"`
	Load    *Load         `json:"load"` // that the drill made; nil: none. Then the figures are of its requests, to the millisecond

	Before Phase `json:"before"`
	During Phase `json:"during"`
	After  Phase `json:"after"`
	// MovedIn is how long after the beginning the drilled cluster had answered last and another one first; Exact: measured by each request, else
	// it is the drilled one's last answer, by the second.
	MovedIn Measured `json:"moved_in"`
	// BackIn is how long after the end it had four fifths of its share again.
	BackIn Measured `json:"back_in"`
	Takers []Taker  `json:"takers"` // who answered in its place

	Callers  []Caller  `json:"callers"`
	Order    Order     `json:"order"`
	Seconds  []Second  `json:"seconds"`
	Clusters []string  `json:"clusters"` // that answered, the drilled one first
	Timeline []Decided `json:"timeline"` // failover decisions of callers, as far as they could be asked for
}

// Measured is a duration that may not have been measured.
type Measured struct {
	Known bool          `json:"known"`
	Took  time.Duration `json:"took_ns"`
	Exact bool          `json:"exact"`
}

// Load is traffic that the drill made.
type Load struct {
	From     string        `json:"from"` // workload
	URL      string        `json:"url"`
	Rate     float64       `json:"rate"`
	Requests int           `json:"requests"`
	Failed   int           `json:"failed"`
	Failures []string      `json:"failures"` // the first ones, in words
	Slowest  time.Duration `json:"slowest_ns"`
}

// Phase is what happened in a part of the time.
type Phase struct {
	From     float64            `json:"from_seconds"` // since the drill began
	To       float64            `json:"to_seconds"`
	Requests uint64             `json:"requests"`
	Failed   uint64             `json:"failed"`
	Retried  uint64             `json:"retried"`
	Hedged   uint64             `json:"hedged"`
	Rate     float64            `json:"rate"` // requests a second
	P50      time.Duration      `json:"p50_ns"`
	P99      time.Duration      `json:"p99_ns"`
	Shares   map[string]float64 `json:"shares"` // of what was answered, by cluster
}

// Taker is a cluster that answered in the drilled one's place.
type Taker struct {
	Cluster string  `json:"cluster"`
	Share   float64 `json:"share"` // of what was answered once requests had moved
}

// Caller is a cluster whose workloads call.
type Caller struct {
	Cluster  string `json:"cluster"`
	Problem  string `json:"problem,omitempty"` // why it could not be asked
	Requests uint64 `json:"requests"`          // during the drill
	Failed   uint64 `json:"failed"`
	// Expected is where its requests were to go, by the sidecars' own word before the drill; Seen is where they went once they had moved.
	Expected map[string]float64 `json:"expected"`
	Seen     map[string]float64 `json:"seen"`
}

// Order tells whether requests went where the policy, or the default order, sends them.
type Order struct {
	Known bool   `json:"known"`
	Kept  bool   `json:"kept"`
	Words string `json:"words"`
}

// Second is one second.
type Second struct {
	At       float64           `json:"at_seconds"` // its beginning, since the drill began
	By       map[string]uint64 `json:"by"`         // requests by the cluster that answered; "": nobody
	Requests uint64            `json:"requests"`
	Failed   uint64            `json:"failed"`
	Retried  uint64            `json:"retried"`
	Hedged   uint64            `json:"hedged"`
	P50      time.Duration     `json:"p50_ns"`
	P99      time.Duration     `json:"p99_ns"`
}

// Decided is one failover decision of a caller.
type Decided struct {
	At     float64 `json:"at_seconds"`
	Who    string  `json:"who"`
	Before string  `json:"before"`
	After  string  `json:"after"`
	Why    string  `json:"why"`
}
