package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/check"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

// clusterStatus is one element of `isthmus status -o json`.
type clusterStatus struct {
	Cluster       string   `json:"cluster,omitempty"`
	Socket        string   `json:"socket,omitempty"`   // of the control, where it was named by its socket
	Context       string   `json:"context,omitempty"`  // of the cluster, where it was named by its context
	Error         string   `json:"error,omitempty"`    // the control did not answer
	Findings      []string `json:"findings,omitempty"` // what is not as it should be, in words
	Notes         []string `json:"notes,omitempty"`    // what somebody should know, and is no finding
	*admin.Status          // none when there is an Error
	// Drained is what is drained there, and how far that has come; none when nothing is.
	Drained *admin.Drains `json:"drained,omitempty"`
	where   string        // the socket or the context, as the table says it
}

func newStatus(g *global) *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:   "status",
		Short: "Clusters, peers, links, proxies, and what is wrong with the manifests",
		Long: `status asks each control plane how its cluster is: peers and how fresh their word is, the gateways' links, the proxies
that are connected, every export that is not valid or that conflicts with another cluster's, and every manifest that is not in force,
with file and line.

It exits with 1 when something is not as it should be, and with 3 when a control plane does not answer.`,
		Example: example("isthmus status", "isthmus status -o json | jq '.[].peers'"),
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			asked, err := askAll(c.Context(), g, moreOfStatus)
			if err != nil {
				return err
			}
			var all []clusterStatus
			findings := 0
			for _, a := range asked {
				cs := clusterStatus{Cluster: a.client.cluster, where: a.client.Where()}
				if a.client.kube != nil {
					cs.Context = a.client.kube.Context
				} else {
					cs.Socket = a.client.Where()
				}
				if a.err != nil {
					cs.Error = a.err.Error()
				} else {
					cs.Cluster, cs.Status = a.status.Cluster, &a.status
					cs.Findings = findingsOf(a.status, a.answer.exports, a.answer.trust)
					found, notes := trustFindings(a.answer.trust, a.status.Proxies)
					cs.Findings, cs.Notes, cs.Drained = append(cs.Findings, found...), append(notesOf(a.status), notes...), a.answer.drains
					findings += len(cs.Findings)
				}
				all = append(all, cs)
			}
			if format.IsTable() {
				err = printStatus(c.OutOrStdout(), format, all)
			} else {
				err = output.Write(c.OutOrStdout(), format, all, nil)
			}
			if err != nil {
				return err
			}
			if err := failures(asked); err != nil {
				if format.IsTable() { // the findings have said which, and why
					err = briefly{err, fmt.Sprintf("%d of %d control planes did not answer", len(asked)-len(answered(asked)), len(asked))}
				}
				return err
			}
			if findings > 0 {
				return finding{fmt.Sprintf("%d finding(s)", findings)}
			}
			return nil
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

// statusMore is what status says beside the status.
type statusMore struct {
	exports []admin.Export
	trust   *admin.Trust  // nil: control is older than that
	drains  *admin.Drains // nil: nothing is drained, or control is older than that
}

func moreOfStatus(c *admin.Client, ctx context.Context) (statusMore, error) { //nolint:revive // as a method of admin.Client is called
	exports, err := exportsIfKnown(c, ctx)
	if err != nil {
		return statusMore{}, err
	}
	more := statusMore{exports: exports}
	if d, unknown := c.Drains(ctx); unknown == nil && len(d.Drains) > 0 {
		more.drains = &d
	}
	t, err := c.Trust(ctx)
	if errors.Is(err, admin.ErrUnreachable) {
		return statusMore{}, err
	}
	if err == nil {
		more.trust = &t
	}
	return more, nil
}

// trustFindings lists what of a cluster's trust was not renewed, who holds a rotation, and what is revoked.
func trustFindings(t *admin.Trust, proxies []admin.Proxy) (found, notes []string) {
	if t == nil {
		return nil, nil
	}
	for _, e := range check.LateRenewals(t, proxies) {
		if e.Finding {
			found = append(found, e.String())
		} else {
			notes = append(notes, e.String())
		}
	}
	if p := t.Authority.Problem; p != "" {
		found = append(found, "authority: "+p)
	}
	if text, bad := check.HeldRotation(t); bad {
		found = append(found, text)
	} else if text != "" {
		notes = append(notes, text)
	}
	for _, r := range t.Revocations {
		if check.Stays(&r) {
			notes = append(notes, "revoked until it is undone: "+r.Subject+because(r.Reason))
		}
	}
	return found, notes
}

// exportsIfKnown asks for the exports. A control that has not read everything yet can't tell, and its status says so.
func exportsIfKnown(c *admin.Client, ctx context.Context) ([]admin.Export, error) { //nolint:revive // as a method of admin.Client is called
	exports, err := c.Exports(ctx)
	if errors.Is(err, admin.ErrUnreachable) {
		return nil, err
	}
	return exports, nil
}

// findingsOf lists, in words, what is not as it should be in a cluster.
func findingsOf(s admin.Status, exports []admin.Export, t *admin.Trust) []string {
	var out []string
	for _, m := range s.Missing {
		out = append(out, "not ready: "+m)
	}
	if !s.Ready && len(s.Missing) == 0 {
		out = append(out, "not ready")
	}
	for _, p := range s.Manifests.Problems {
		if !p.Note {
			out = append(out, problemText(p))
		}
	}
	for _, e := range exports {
		for _, c := range e.Conditions {
			if check.Wrong(c) {
				out = append(out, fmt.Sprintf("export %s.%s: %s=%s, %s: %s", e.Name, e.Namespace, c.Type, c.Status, c.Reason, c.Message))
			}
		}
	}
	for _, p := range s.Peers {
		if p.State != "Fresh" {
			out = append(out, strings.TrimSpace(fmt.Sprintf("peer %s: %s %s", p.Cluster, p.State, p.Reason)))
		}
	}
	for _, l := range s.Links {
		if l.State == "down" { // unknown is no more than that the gateway is not connected, which is said below
			out = append(out, strings.TrimSpace(fmt.Sprintf("link %s to %s: %s %s", l.Gateway, l.Cluster, l.State, l.Detail)))
		}
	}
	for _, p := range s.Proxies {
		if !p.Connected {
			out = append(out, fmt.Sprintf("%s %s: not connected%s", p.Program, p.Name, whyAway(s, p, t)))
		}
	}
	return out
}

func problemText(p admin.Problem) string {
	where := p.File
	if p.Line > 0 {
		where += ":" + strconv.Itoa(p.Line)
	}
	said := []string{where, p.Object, p.Reason}
	return strings.Join(slices.DeleteFunc(said, func(s string) bool { return s == "" }), ": ")
}

// notesOf lists, in words, what somebody should know of a cluster, and is nothing wrong.
func notesOf(s admin.Status) []string {
	var out []string
	for _, p := range s.Manifests.Problems {
		if p.Note {
			out = append(out, problemText(p))
		}
	}
	for _, o := range s.Overloads {
		text := fmt.Sprintf("%s: %s has more to do than it can: it refused %d request(s), the last %s ago (IST2110)", o.Service, o.Program, o.Shed, age(s.Now, o.Last))
		if o.Limit > 0 {
			text += fmt.Sprintf(", and takes %d at a time now", o.Limit)
		}
		out = append(out, text)
	}
	return out
}

// whyAway says what is known of why a program is not connected, in words that follow.
func whyAway(s admin.Status, p admin.Proxy, t *admin.Trust) string {
	const anew = "it needs a new join token in its joinTokenFile (isthmus join-token), unless its platform vouches for it"
	if t != nil {
		for _, r := range t.Revocations {
			switch {
			case r.Subject != p.SPIFFEID:
			case !r.Block && t.Authority.SVIDLifetime > 0 && !p.SVIDEnds.Before(r.At.Add(t.Authority.SVIDLifetime)): // it has joined since
			case r.Block:
				return ", its identity is revoked and blocked" + because(r.Reason)
			default:
				return ", its identity was revoked " + age(t.Now, r.At) + " ago" + because(r.Reason) + ": " + anew
			}
		}
	}
	if !p.SVIDEnds.IsZero() && !s.Now.Before(p.SVIDEnds) {
		return ", its SVID has ended: " + anew
	}
	return ""
}

func printStatus(w io.Writer, format output.Format, all []clusterStatus) error {
	clusters := output.Table{
		Columns: []string{"CLUSTER", "READY", "PEERS", "LINKS", "PROXIES", "SERVICES", "EXPORTS", "IMPORTS", "MANIFESTS"},
		Wide:    []string{"REGION", "TRUST DOMAIN", "UP", "ROOT EXPIRES", "VERSION", "CONTROL"},
	}
	links := output.Table{
		Columns: []string{"CLUSTER", "GATEWAY", "LINK TO", "STATE", "TRANSPORT", "CONNECTIONS", "RTT", "DETAIL"},
		Empty:   "no links",
	}
	peers := output.Table{
		Columns: []string{"CLUSTER", "PEER", "STATE", "SERVICES", "GATEWAYS", "BUS", "LAST WORD", "REASON"},
		Wide:    []string{"TRUST DOMAIN", "REGION", "EPOCH", "SEQ"},
		Empty:   "no peers",
	}
	var found, notes []string
	var drained []admin.Drains
	for _, cs := range all {
		if cs.Drained != nil {
			drained = append(drained, *cs.Drained)
		}
		if cs.Status == nil {
			clusters.Row(cmp.Or(cs.Cluster, "?"), "?", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", cs.where)
			found = append(found, cs.Error)
			continue
		}
		s := cs.Status
		clusters.Row(s.Cluster, yesNo(s.Ready), share(s.Peers, func(p admin.Peer) bool { return p.State == "Fresh" }),
			share(s.Links, func(l admin.Link) bool { return l.Carries() }),
			share(s.Proxies, func(p admin.Proxy) bool { return p.Connected }),
			strconv.Itoa(s.Services), strconv.Itoa(s.Exports), strconv.Itoa(s.Imports), manifests(s.Manifests),
			s.Region, s.TrustDomain, ago(s.Started), s.RootExpires.Format(time.DateOnly), s.Version, cs.where)
		for _, p := range s.Peers {
			peers.Row(s.Cluster, p.Cluster, p.State, strconv.Itoa(p.Services), strconv.Itoa(p.Gateways), p.Bus, ago(p.Issued), p.Reason,
				p.TrustDomain, p.Region, strconv.FormatUint(p.Epoch, 10), strconv.FormatUint(p.Seq, 10))
		}
		for _, l := range s.Links {
			links.Row(s.Cluster, l.Gateway, l.Cluster, l.State, l.Transport, strconv.Itoa(l.Connections), rtt(&l), l.Detail)
		}
		for _, f := range cs.Findings {
			found = append(found, s.Cluster+": "+f)
		}
		for _, n := range cs.Notes {
			notes = append(notes, s.Cluster+": "+n)
		}
	}
	tables := []output.Table{clusters}
	if slices.ContainsFunc(all, func(c clusterStatus) bool { return c.Status != nil }) { // else nobody knows of any
		tables = append(tables, peers, links)
	}
	if len(drained) > 0 {
		tables = append(tables, drainTable(drained))
	}
	for i, t := range tables {
		if i > 0 {
			_, _ = fmt.Fprintln(w) // the next write has the error
		}
		if err := output.Write(w, format, nil, func() output.Table { return t }); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		heading string
		lines   []string
	}{{"FINDINGS", found}, {"NOTES", notes}} {
		if len(part.lines) == 0 {
			continue
		}
		if _, err := fmt.Fprintln(w, "\n"+part.heading+"\n"+strings.Join(part.lines, "\n")); err != nil {
			return err
		}
	}
	return nil
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// share says how many of all are good, as "2/3".
func share[T any](all []T, good func(T) bool) string {
	n := 0
	for _, v := range all {
		if good(v) {
			n++
		}
	}
	return fmt.Sprintf("%d/%d", n, len(all))
}

// rtt is the round-trip time of a link that is up; of another there is none.
func rtt(l *admin.Link) string {
	if !l.Carries() || l.RTT == 0 {
		return ""
	}
	return l.RTT.Round(time.Microsecond).String()
}

func manifests(m admin.ManifestState) string {
	bad := slices.DeleteFunc(slices.Clone(m.Problems), func(p admin.Problem) bool { return p.Note })
	if n := len(bad); n > 0 {
		return fmt.Sprintf("%d objects, %d bad", m.Objects, n)
	}
	return fmt.Sprintf("%d objects", m.Objects)
}

// ago says how long ago that was.
func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := time.Since(t)
	if d < time.Minute {
		return d.Round(time.Second).String()
	}
	return d.Round(time.Minute).String()
}
