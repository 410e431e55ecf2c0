package admin

import "time"

// Decision is what was asked of the workload, and what policies said of it last. Requests that differ in nothing of it are one. Of headers,
// queries, bodies and tokens it holds nothing.
type Decision struct {
	Caller  string `json:"caller"`  // SPIFFE ID
	Service string `json:"service"` // name.namespace
	Port    uint16 `json:"port"`    // where the application listens
	Opaque  bool   `json:"opaque"`  // a connection whose bytes nobody reads
	Method  string `json:"method,omitempty"`
	Path    string `json:"path,omitempty"` // without the query
	// User tells that there was a good token of an end user.
	User bool `json:"user"`

	Allowed bool           `json:"allowed"`
	Policy  string         `json:"policy,omitempty"`
	Rule    string         `json:"rule,omitempty"`
	Reason  string         `json:"reason"`
	Audit   *AuditDecision `json:"audit,omitempty"` // policies in audit mode would have refused it

	Count uint64    `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// AuditDecision is who would have refused.
type AuditDecision struct {
	Policy string `json:"policy"`
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason"`
}

// Decisions are those that a sidecar remembers: GET /decisions of its admin listener.
type Decisions struct {
	Since     time.Time  `json:"since"`   // of the sidecar's start
	Dropped   uint64     `json:"dropped"` // kinds of request that found no place, or had to make some
	Decisions []Decision `json:"decisions"`
}
