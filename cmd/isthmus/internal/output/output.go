// Package output prints what the isthmus command found: as a table for people, as JSON or YAML for programs.
//
// Results go to standard output in one of these forms and nothing else does; chatter goes to standard error. A Table is built only
// when one is printed. Nothing here is safe for concurrent use.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"sigs.k8s.io/yaml"
)

// Format is a form of output. It is a pflag.Value.
type Format string

// The formats.
const (
	TableFormat Format = "table"
	WideFormat  Format = "wide" // the table with its further columns
	JSONFormat  Format = "json"
	YAMLFormat  Format = "yaml"
)

// Formats lists what Set takes.
var Formats = []string{string(TableFormat), string(WideFormat), string(JSONFormat), string(YAMLFormat)}

// String returns the format's name.
func (f *Format) String() string { return string(*f) }

// Set parses a format's name.
func (f *Format) Set(s string) error {
	if !slices.Contains(Formats, s) {
		return fmt.Errorf("want one of %s", strings.Join(Formats, ", "))
	}
	*f = Format(s)
	return nil
}

// Type names the kind of flag.
func (f *Format) Type() string { return "format" }

// IsTable reports whether a person reads.
func (f Format) IsTable() bool { return f == TableFormat || f == WideFormat || f == "" }

// Table is rows under a heading.
type Table struct {
	Columns []string // none: the rows stand alone
	Wide    []string // further columns, only in WideFormat
	Rows    [][]string
	Empty   string // printed instead of a heading without rows
}

// Row appends a row; cells beyond Columns are those of Wide.
func (t *Table) Row(cells ...string) { t.Rows = append(t.Rows, cells) }

// Write prints value as JSON or YAML, or the table that table returns.
func Write(w io.Writer, f Format, value any, table func() Table) error {
	switch f {
	case JSONFormat:
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(value)
	case YAMLFormat:
		b, err := yaml.Marshal(value)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	default:
		return table().write(w, f == WideFormat)
	}
}

func (t Table) write(w io.Writer, wide bool) error {
	if len(t.Rows) == 0 && t.Empty != "" {
		_, err := fmt.Fprintln(w, t.Empty)
		return err
	}
	columns := t.Columns
	if wide {
		columns = slices.Concat(t.Columns, t.Wide)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	line := func(cells []string) {
		cells = slices.Clone(cells)
		if len(columns) > 0 {
			cells = cells[:min(len(cells), len(columns))]
		}
		for i, c := range cells {
			if cells[i] = clean(c); cells[i] == "" {
				cells[i] = "-"
			}
		}
		_, _ = fmt.Fprintln(tw, strings.Join(cells, "\t")) // Flush has the error
	}
	if len(columns) > 0 {
		line(columns)
	}
	for _, r := range t.Rows {
		line(r)
	}
	return tw.Flush()
}

// clean keeps a cell in its cell: what a cluster says of itself must not move the terminal's cursor.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}
