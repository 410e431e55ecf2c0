package promise

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Row is one event with all that is promised of it.
type Row struct {
	Event   string   `json:"event"`
	Runtime string   `json:"runtime"`
	Promise []string `json:"promise"`
	Figures []string `json:"measured"`
	Verdict string   `json:"verdict"` // kept, late, broken
	// HeldUp is the longest that this machine kept a program from running meanwhile that asked for a few milliseconds of rest: what is late by as
	// much, on a way through ten programs by more, says nothing of the mesh.
	HeldUp time.Duration `json:"heldUp"`
}

// The verdicts.
const (
	Kept   = "kept"
	Late   = "late"   // what is promised of behaviour was kept, and of timing not
	Broken = "broken" // behaviour is not as promised
)

// NewRow sums figures up.
func NewRow(event, runtime string, figures []Figure) Row {
	r := Row{Event: event, Runtime: runtime, Verdict: Kept}
	for _, f := range figures {
		r.Promise, r.Figures = append(r.Promise, f.Promise), append(r.Figures, f.Measured)
		switch {
		case f.Kept:
		case !f.Timing:
			r.Verdict = Broken
		case r.Verdict == Kept:
			r.Verdict = Late
		}
	}
	return r
}

// String is the row as a line, for people and programs alike.
func (r Row) String() string {
	return fmt.Sprintf("promise event=%q runtime=%s promised=%q measured=%q verdict=%s held_up=%s",
		r.Event, r.Runtime, strings.Join(r.Promise, "; "), strings.Join(r.Figures, "; "), r.Verdict, r.HeldUp.Round(time.Millisecond))
}

// Table collects rows. The zero Table is empty and ready. Safe for concurrent use.
type Table struct {
	mu   sync.Mutex
	rows []Row // guarded by mu
}

// Add adds a row.
func (t *Table) Add(r Row) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows = append(t.rows, r)
}

// Rows returns what was added, by event and runtime.
func (t *Table) Rows() []Row {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := slices.Clone(t.rows)
	slices.SortStableFunc(out, func(a, b Row) int { return strings.Compare(a.Event+"\x00"+a.Runtime, b.Event+"\x00"+b.Runtime) })
	return out
}

// Markdown prints rows as a table.
func Markdown(rows []Row) string {
	var b strings.Builder
	b.WriteString("| event | on | promised | measured | | machine held up |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.Event, r.Runtime, strings.Join(r.Promise, "; "), strings.Join(r.Figures, "; "), r.Verdict, r.HeldUp.Round(time.Millisecond))
	}
	return b.String()
}
