package demo

import (
	"encoding/json"
	"io"
	"time"
)

// Report is the outcome of a Run, as JSON. Fields are added, never changed.
type Report struct {
	Clusters int      `json:"clusters"`
	Requests Requests `json:"requests"`
	Events   []Event  `json:"events"`
	Failover Failover `json:"failover"`
	Verdict  string   `json:"verdict"`          // pass, fail
	Reason   string   `json:"reason,omitempty"` // why it is fail
}

// Requests counts what was asked and how it ended.
type Requests struct {
	Total     int            `json:"total"`
	Failed    int            `json:"failed"`
	ByCluster map[string]int `json:"by_cluster"` // answered, by who answered
	Failures  []Failed       `json:"failures,omitempty"`
	P50       float64        `json:"p50_ms"`
	P99       float64        `json:"p99_ms"`
	Slowest   float64        `json:"slowest_ms"`
}

// Failed is one request that failed.
type Failed struct {
	At     int64  `json:"t_ms"` // when it was sent
	Reason string `json:"reason"`
}

// Event is something that happened.
type Event struct {
	At      int64  `json:"t_ms"` // since the start of the run
	What    string `json:"what"` // started, ready, traffic, answering, killed, moved, healed, back, stopped
	Cluster string `json:"cluster,omitempty"`
}

// Failover is how long the kill was felt.
type Failover struct {
	From string `json:"from"`
	To   string `json:"to"`
	// Moved is from the kill until every caller had been answered by another cluster.
	Moved int64 `json:"moved_ms"`
	// Slowest is the longest that one request took from the kill on until then.
	Slowest float64 `json:"slowest_ms"`
}

// The verdicts.
const (
	Pass = "pass"
	Fail = "fail"
)

// Write writes the report as indented JSON.
func (r Report) Write(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Microseconds()) / 1000
}
