package rehearsal

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// WriteText writes a result for a terminal; page is where the page with all of it is.
func WriteText(w io.Writer, r Result, page string) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	line := func(cells ...string) {
		for i := range cells {
			cells[i] = strings.Map(printable, cells[i])
		}
		_, _ = fmt.Fprintln(t, strings.Join(cells, "\t")) // Flush tells
	}
	line(fmt.Sprintf("%s   %s without %s: %s", r.Verdict, r.Service, r.Cluster, strings.Join(r.Reasons, "; ")))
	for _, a := range r.Advice {
		line("       " + a)
	}
	line()
	for _, row := range r.Table() {
		line(row...)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, row := range r.Findings() {
		line(row[0], row[1])
	}
	for _, remark := range r.Remarks {
		line("note", remark)
	}
	line("report", page)
	return t.Flush()
}

// printable leaves out what a terminal would obey: some of the words come from applications.
func printable(r rune) rune {
	if unicode.IsControl(r) {
		return '?'
	}
	return r
}

// Table returns the figures before, while and after, with a heading.
func (r *Result) Table() [][]string {
	phases := []Phase{r.Before, r.During, r.After}
	row := func(name string, of func(Phase) string) []string {
		out := []string{name}
		for _, p := range phases {
			if p.To <= p.From {
				out = append(out, "-")
				continue
			}
			out = append(out, of(p))
		}
		return out
	}
	took := func(d time.Duration, p Phase) string {
		if p.Requests == 0 {
			return "-"
		}
		return short(d)
	}
	out := [][]string{
		{"", "BEFORE", "DURING", "AFTER"},
		row("seconds", func(p Phase) string { return fmt.Sprintf("%.0f", p.To-p.From) }),
		row("requests", func(p Phase) string { return fmt.Sprint(p.Requests) }),
		row("a second", func(p Phase) string { return fmt.Sprintf("%.1f", p.Rate) }),
		row("failed", func(p Phase) string { return fmt.Sprint(p.Failed) }),
		row("tried again", func(p Phase) string { return fmt.Sprint(p.Retried) }),
		row("p50", func(p Phase) string { return took(p.P50, p) }),
		row("p99", func(p Phase) string { return took(p.P99, p) }),
	}
	for _, c := range r.Clusters {
		out = append(out, row("answered by "+c, func(p Phase) string { return fmt.Sprintf("%.1f %%", 100*p.Shares[c]) }))
	}
	return out
}

// Findings returns what else was found, as pairs.
func (r *Result) Findings() [][2]string {
	if r.Drill == nil {
		return r.loadFindings()
	}
	moved := "nobody answered in its place"
	if len(r.Takers) > 0 {
		var to []string
		for _, t := range r.Takers {
			to = append(to, fmt.Sprintf("%s (%.0f %%)", t.Cluster, 100*t.Share))
		}
		moved = r.MovedIn.String() + ", to " + strings.Join(to, ", ")
	}
	out := [][2]string{
		{"drill", fmt.Sprintf("%s, %s (%s)", r.Drill.ID, short(r.Lasted()), r.How)},
		{"moved", moved},
		{"back", r.BackIn.String() + " after the end"},
		{"order", r.Order.Words},
	}
	if !r.BackIn.Known {
		out[2][1] = "not seen"
	}
	return append(out, r.loadFindings()...)
}

func (r *Result) loadFindings() (out [][2]string) {
	if r.Load != nil {
		out = append(out, [2]string{"load", fmt.Sprintf("%s: %d requests, %d failed, the slowest took %s", r.Load.From, r.Load.Requests, r.Load.Failed, short(r.Load.Slowest))})
		for _, f := range r.Load.Failures {
			out = append(out, [2]string{"failure", f})
		}
	}
	return out
}
