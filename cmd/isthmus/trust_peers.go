package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/check"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

// trustMatrix is what `isthmus trust peers -o json` prints.
type trustMatrix struct {
	Clusters []string    `json:"clusters"`           // that answered
	Pairs    []trustPair `json:"pairs"`              // each of them with each other one, and with what else it trusts
	Findings []string    `json:"findings,omitempty"` // what is not as it should be, in words
}

// trustPair is what one cluster holds of a trust domain.
type trustPair struct {
	From        string `json:"from"`         // the cluster that trusts
	To          string `json:"to,omitempty"` // the cluster whose domain it is
	TrustDomain string `json:"trust_domain"`
	Trusts      bool   `json:"trusts"` // From verifies the domain's members
	Source      string `json:"source,omitempty"`
	State       string `json:"state,omitempty"`
	Reason      string `json:"reason,omitempty"`
	Sequence    uint64 `json:"sequence,omitempty"` // of the bundle that From holds
	// Current is the sequence that the domain's own cluster has; 0: it is none of those asked.
	Current  uint64    `json:"current,omitempty"`
	Issued   time.Time `json:"issued,omitzero"`    // the owner's last word, that From has
	NotAfter time.Time `json:"not_after,omitzero"` // when the last root ends
	OneWay   bool      `json:"one_way,omitempty"`  // the other does not trust back
	Revoked  bool      `json:"revoked,omitempty"`  // the domain, by an operator in From
	// RevokedKeys and IDs of the domain, in force in From.
	RevokedParts int `json:"revoked_parts,omitempty"`
	// RevokedRoots are those of the keys that are of a root of the domain: nobody below it passes.
	RevokedRoots []string `json:"revoked_roots,omitempty"`

	now time.Time // by From's clock
}

func newTrustPeers(g *global) *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:   "peers",
		Short: "Who trusts whom: a matrix of all clusters that are meant",
		Long: `peers asks every control plane whom it trusts, and shows it as a matrix: a row for each cluster, a column for each that it may trust. A cell says
whether the bundle held is the current one, how old its owner's last word is, and when its last root ends:

  =12s/89d   the current bundle; heard 12 s ago; its last root ends in 89 days
  <40m/12d   an older bundle than its owner has now
  ?12s/89d   its owner does not say which is the current one
  !12s/89d   one way: its owner does not trust this cluster
  x          revoked here: nobody of it passes
  -          not trusted

Under the matrix is what is not as it should be, and the trust domains of no cluster that was asked. Exit code
1 when something is not as it should be.`,
		Example: example("isthmus trust peers --context eu,us,ap", "isthmus trust peers -o json | jq '.pairs[] | select(.sequence != .current)'"),
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := g.askTrust(c.Context())
			if err != nil {
				return err
			}
			m := matrixOf(answered(all))
			if format.IsTable() {
				err = m.write(c.OutOrStdout(), format)
			} else {
				err = output.Write(c.OutOrStdout(), format, m, nil)
			}
			if err = errors.Join(err, failures(all)); err != nil {
				return err
			}
			if n := len(m.Findings); n > 0 {
				return finding{fmt.Sprintf("%d finding(s)", n)}
			}
			return nil
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

// matrixOf is a pure function of what the clusters said.
func matrixOf(all []asked[admin.Trust]) trustMatrix {
	m := trustMatrix{Clusters: []string{}, Pairs: []trustPair{}}
	for _, a := range all {
		m.Clusters = append(m.Clusters, a.answer.Cluster)
	}
	for _, from := range all {
		for _, to := range all {
			if from.answer.Cluster != to.answer.Cluster {
				m.Pairs = append(m.Pairs, pairOf(&from.answer, &to.answer))
			}
		}
		for _, d := range from.answer.Domains { // of clusters that were not asked, and of none
			known := slices.ContainsFunc(all, func(a asked[admin.Trust]) bool { return a.answer.TrustDomain == d.TrustDomain })
			if !known {
				p := trustPair{From: from.answer.Cluster, To: d.Cluster, TrustDomain: d.TrustDomain, now: from.answer.Now}
				p.hold(d)
				m.Pairs = append(m.Pairs, p)
			}
		}
	}
	for _, p := range m.Pairs {
		m.Findings = append(m.Findings, p.findings()...)
	}
	return m
}

func (p *trustPair) hold(d admin.TrustedDomain) {
	p.Trusts, p.Source, p.State, p.Reason = check.Trusts(&d), d.Source, d.State, d.Reason
	p.Sequence, p.Issued, p.NotAfter = d.Sequence, d.Issued, d.NotAfter
	p.Revoked, p.RevokedParts = d.State == "Revoked", d.Revoked
	p.RevokedRoots = check.RevokedRoots(&d)
	if n := len(p.RevokedRoots); n > 0 && n == len(d.Roots) && !p.Revoked {
		p.Trusts, p.Revoked, p.Reason = false, true, "the key of every root it has: "+list(p.RevokedRoots)
	}
}

func pairOf(from, to *admin.Trust) trustPair {
	p := trustPair{From: from.Cluster, To: to.Cluster, TrustDomain: to.TrustDomain, now: from.Now}
	if s, ok := seenIn(from, to.TrustDomain); ok {
		p.hold(s.TrustedDomain)
	}
	if own, ok := seenIn(to, to.TrustDomain); ok {
		p.Current = own.Sequence
	}
	back, ok := seenIn(to, from.TrustDomain)
	p.OneWay = p.Trusts && (!ok || !check.Lets(&back.TrustedDomain))
	return p
}

// behind tells that an older bundle is held than the owner has.
func (p *trustPair) behind() bool { return p.Current > 0 && p.Sequence < p.Current }

func (p *trustPair) findings() (out []string) {
	say := func(format string, args ...any) {
		out = append(out, fmt.Sprintf("%s: %s: ", p.From, cmp.Or(p.To, p.TrustDomain))+fmt.Sprintf(format, args...))
	}
	if p.State == "" {
		return nil // not trusted, which is no fault; a one-way trust is told of the other pair
	}
	switch {
	case p.Revoked:
		say("revoked here%s", because(p.Reason))
	case !p.Trusts:
		say("nobody of it passes: %s%s", p.State, because(p.Reason))
	case p.State != "Fresh" && p.State != "":
		say("%s%s", p.State, because(p.Reason))
	}
	if len(p.RevokedRoots) > 0 && !p.Revoked {
		say("a root of it is revoked here, and nobody below that passes: %s", list(p.RevokedRoots))
	}
	if p.Trusts && p.behind() {
		say("an older bundle: sequence %d, its owner has %d", p.Sequence, p.Current)
	}
	if p.OneWay {
		say("does not trust back")
	}
	if left := p.NotAfter.Sub(p.now); p.Trusts && !p.NotAfter.IsZero() && left < rootsEndSoon {
		say("its last root ends %s", ends(p.now, p.NotAfter))
	}
	return out
}

// rootsEndSoon is too late for what renews itself in time: an issuing CA must be made of it yet.
const rootsEndSoon = 48 * time.Hour

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ", " + reason
}

// cell is a pair in at most eight letters.
func (p *trustPair) cell() string {
	mark := "="
	switch {
	case p.Revoked:
		return "x"
	case !p.Trusts:
		return "-"
	case p.behind():
		mark = "<"
	case p.OneWay:
		mark = "!"
	case p.Current == 0:
		mark = "?"
	}
	return mark + tiny(p.now.Sub(p.Issued)) + "/" + tiny(p.NotAfter.Sub(p.now))
}

// tiny says a time span in at most three letters.
func tiny(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 100*day:
		return brief(d)
	case d < 100*7*day:
		return fmt.Sprintf("%dw", d/(7*day))
	default:
		return fmt.Sprintf("%dy", min(d/(365*day), 99))
	}
}

// Widths of the matrix: ten clusters fit into a hundred letters.
const (
	matrixName = 8
	matrixCell = 8
)

func (m *trustMatrix) write(w io.Writer, format output.Format) error {
	if format == output.WideFormat {
		if err := output.Write(w, format, nil, m.table); err != nil {
			return err
		}
	} else if err := m.writeMatrix(w); err != nil {
		return err
	}
	asked := func(p trustPair) bool { return slices.Contains(m.Clusters, p.To) }
	others := output.Table{Columns: []string{"ALSO TRUSTED", "BY", "SOURCE", "STATE", "AGE", "ENDS"}}
	for _, p := range m.Pairs {
		if !asked(p) {
			others.Row(p.TrustDomain, p.From, p.Source, p.State, age(p.now, p.Issued), ends(p.now, p.NotAfter))
		}
	}
	if len(others.Rows) > 0 {
		_, _ = fmt.Fprintln(w) // the next write has the error
		if err := output.Write(w, format, nil, func() output.Table { return others }); err != nil {
			return err
		}
	}
	if len(m.Findings) == 0 {
		return nil
	}
	_, err := fmt.Fprintln(w, "\nFINDINGS\n"+strings.Join(m.Findings, "\n"))
	return err
}

// writeMatrix writes rows of fixed columns. Names that are too long are numbered.
func (m *trustMatrix) writeMatrix(w io.Writer) error {
	names := slices.Clone(m.Clusters)
	var legend strings.Builder
	if slices.ContainsFunc(names, func(n string) bool { return utf8.RuneCountInString(n) > matrixName }) {
		for i, n := range m.Clusters {
			names[i] = fmt.Sprintf("[%d]", i+1)
			fmt.Fprintf(&legend, "%s %s  ", names[i], n)
		}
	}
	line := func(head string, cells []string) {
		var b strings.Builder
		fmt.Fprintf(&b, "%-*s", matrixName+1, head)
		for _, c := range cells {
			fmt.Fprintf(&b, " %-*s", matrixCell, c)
		}
		_, _ = fmt.Fprintln(w, strings.TrimRight(b.String(), " ")) // the last write has the error
	}
	line(`FROM\TO`, names)
	for i, from := range m.Clusters {
		var cells []string
		for _, to := range m.Clusters {
			cell := ""
			if j := slices.IndexFunc(m.Pairs, func(p trustPair) bool { return p.From == from && p.To == to }); j >= 0 && from != to {
				cell = m.Pairs[j].cell()
			}
			cells = append(cells, cell)
		}
		line(names[i], cells)
	}
	_, err := fmt.Fprintln(w, wrapped(legend.String())+"\n= has the current bundle, < an older, ? who knows, ! one way, x revoked, - none; age/last root's end")
	return err
}

// wrapped breaks a legend into lines of a hundred letters.
func wrapped(legend string) string {
	var out, line strings.Builder
	for part := range strings.SplitSeq(strings.TrimSpace(legend), "  ") {
		if part != "" && line.Len()+len(part) > 98 {
			out.WriteString("\n" + strings.TrimSpace(line.String()))
			line.Reset()
		}
		line.WriteString(part + "  ")
	}
	if rest := strings.TrimSpace(line.String()); rest != "" {
		out.WriteString("\n" + rest)
	}
	return out.String()
}

func (m *trustMatrix) table() output.Table {
	t := output.Table{
		Columns: []string{"CLUSTER", "TRUSTS", "TRUST DOMAIN", "STATE", "SEQUENCE", "CURRENT", "AGE", "ENDS", "ONE WAY", "REVOKED"},
		Wide:    []string{"SOURCE", "REASON"}, Empty: "one cluster, which trusts nobody else",
	}
	for _, p := range m.Pairs {
		t.Row(p.From, p.To, p.TrustDomain, cmp.Or(p.State, "not trusted"), number(p.Sequence), number(p.Current), age(p.now, p.Issued), ends(p.now, p.NotAfter),
			yesNo(p.OneWay), cmp.Or(map[bool]string{true: "all"}[p.Revoked], fmt.Sprint(p.RevokedParts)), p.Source, p.Reason)
	}
	return t
}
