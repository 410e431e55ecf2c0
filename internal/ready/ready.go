// Package ready answers "is it alive" and "can it serve", and names what is missing.
//
// A program lists what it waits for before it starts (Waiting), and ticks each off as it comes true (Done). What is lost again
// goes back to Waiting. Readiness means "can serve, be it by the last known good state", never "every dependency is up": a
// proxy whose control plane is gone stays ready.
package ready

import (
	"encoding/json"
	"net/http"
	"slices"
	"sync"
)

// Checks is the list of conditions of one program. Safe for concurrent use.
type Checks struct {
	mu      sync.Mutex
	missing map[string]string // guarded by mu: condition → what it waits for
}

// New returns an empty list: ready at once.
func New() *Checks { return &Checks{missing: make(map[string]string)} }

// Waiting says that the named condition does not hold, and why.
func (c *Checks) Waiting(name, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.missing[name] = reason
}

// Done says that the named condition holds.
func (c *Checks) Done(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.missing, name)
}

// Missing returns the conditions that do not hold, as "name: reason", ordered. Empty means ready.
func (c *Checks) Missing() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]string, 0, len(c.missing))
	for name, reason := range c.missing {
		out = append(out, name+": "+reason)
	}
	slices.Sort(out)
	return out
}

// Answer is the JSON body of both probes.
type Answer struct {
	Ready   bool     `json:"ready"`
	Missing []string `json:"missing,omitempty"`
}

// Live answers 200 as long as the process can answer at all.
func (c *Checks) Live() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { c.answer(w, http.StatusOK) })
}

// Ready answers 200 when nothing is missing, else 503. Both name what is missing.
func (c *Checks) Ready() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		status := http.StatusOK
		if len(c.Missing()) > 0 {
			status = http.StatusServiceUnavailable
		}
		c.answer(w, status)
	})
}

func (c *Checks) answer(w http.ResponseWriter, status int) {
	missing := c.Missing()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(Answer{Ready: len(missing) == 0, Missing: missing}) // the client went away
}
