package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	defaultTimeline = time.Hour
	followEvery     = time.Second
	// followPast is how far back each look goes while following: turns are told a second after they were made, by clocks that differ.
	followPast = time.Minute
)

func newTimeline(g *global) *cobra.Command {
	format := output.TableFormat
	var since time.Duration
	var follow bool
	c := &cobra.Command{
		Use:   "timeline SERVICE",
		Short: "Where calls to a service went, each change of that, and why",
		Long: `timeline shows each time callers began to send their requests to a service elsewhere: when, who, from which cluster to which, and the evidence; beside
it what led there: drains, drills, links, capacity that ran out, policies. Callers that did the same within seconds are told together.

It asks each control that is meant for what the callers of its cluster told, and merges the answers by time. What a caller tells is its own word, by its own
clock. Kept are the last 512 events of a service, over restarts too, but for the last seconds.

SERVICE is NAMESPACE/NAME, or NAME.NAMESPACE. With --follow it goes on until it is interrupted; -o json is then one event a line.`,
		Example: example("isthmus timeline shop/checkout", "isthmus timeline shop/checkout --since 10m -o json", "isthmus timeline shop/checkout --follow"),
		Args:    oneArg, ValidArgsFunction: g.completeService,
		RunE: func(c *cobra.Command, args []string) error {
			name, err := parseService(args[0])
			if err != nil {
				return err
			}
			if since <= 0 {
				return usage{fmt.Errorf("--since %s: want more than 0", since)}
			}
			if follow && format == output.YAMLFormat {
				return usage{errors.New("--follow goes with tables and JSON")}
			}
			if follow {
				if err = g.catalogue(c.Context(), "").unknown(name, args[0]); isUsage(err) { // one that nobody knows would be waited for in vain
					return err
				}
				return g.followTimeline(c.Context(), c.OutOrStdout(), format, name, since)
			}
			events, err := g.timeline(c.Context(), name, since)
			if events == nil && err != nil {
				return err
			}
			if !slices.ContainsFunc(events, func(e admin.TimelineEvent) bool { return e.Service != "" }) { // one that is gone may have a past
				if unknown := g.catalogue(c.Context(), "").unknown(name, args[0]); unknown != nil {
					return unknown
				}
			}
			return errors.Join(output.Write(c.OutOrStdout(), format, events, func() output.Table { return timelineTable(events, true) }), err)
		},
	}
	flags := c.Flags()
	flags.DurationVar(&since, "since", defaultTimeline, "how far back")
	flags.BoolVarP(&follow, "follow", "f", false, "go on, and show what happens")
	flags.VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

// completeService offers services.
func (g *global) completeService(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if len(args) == 0 {
		for _, a := range askToComplete(g, c, (*admin.Client).Services) {
			for _, s := range a.answer {
				names = append(names, s.Namespace+"/"+s.Name)
			}
		}
		for _, a := range askToComplete(g, c, (*admin.Client).Imports) {
			for _, i := range a.answer {
				names = append(names, i.Namespace+"/"+i.Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}

// timeline asks all controls, and merges what they tell by time. With an error, the events are of those that answered; nil: none did.
func (g *global) timeline(ctx context.Context, name topology.ServiceName, since time.Duration) ([]admin.TimelineEvent, error) {
	all, err := askAll(ctx, g, func(c *admin.Client, ctx context.Context) (admin.Timeline, error) {
		return c.Timeline(ctx, name.String(), since)
	})
	if err != nil {
		return nil, err
	}
	var events []admin.TimelineEvent
	for _, a := range all {
		if a.err == nil {
			events = append(notNone(events), a.answer.Events...)
		}
	}
	slices.SortStableFunc(events, func(a, b admin.TimelineEvent) int { return a.At.Compare(b.At) })
	return events, failures(all)
}

// notNone makes an empty list of none.
func notNone[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// eventKey tells events apart.
type eventKey struct {
	cluster string
	id      uint64
	at      int64 // a control that lost its timeline numbers anew
}

// followTimeline shows events as they come.
func (g *global) followTimeline(ctx context.Context, w io.Writer, format output.Format, name topology.ServiceName, since time.Duration) error {
	seen := make(map[eventKey]bool)
	for first := true; ; first = false {
		past := followPast
		if first {
			past = since
		}
		events, err := g.timeline(ctx, name, past)
		if ctx.Err() != nil {
			return nil
		}
		if first && err != nil {
			return err // later, a control may be away for a while
		}
		var fresh []admin.TimelineEvent
		for _, e := range events {
			if k := (eventKey{e.Cluster, e.ID, e.At.UnixMilli()}); !seen[k] {
				seen[k] = true
				fresh = append(fresh, e)
			}
		}
		if err := writeFresh(w, format, fresh, first); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

func writeFresh(w io.Writer, format output.Format, fresh []admin.TimelineEvent, first bool) error {
	if format.IsTable() {
		if len(fresh) == 0 && !first {
			return nil
		}
		return output.Write(w, format, nil, func() output.Table { return timelineTable(fresh, first) })
	}
	for _, e := range fresh {
		if err := json.NewEncoder(w).Encode(e); err != nil {
			return err
		}
	}
	return nil
}

func timelineTable(events []admin.TimelineEvent, heading bool) output.Table {
	t := output.Table{Empty: "nothing happened"}
	if heading {
		t.Columns, t.Wide = []string{"TIME", "TOLD IN", "WHO", "WHAT", "WHY"}, []string{"CALLERS", "PORT"}
	}
	for i := range events {
		e := &events[i]
		who, what, why := "control", e.Kind, e.Detail
		if e.Kind == admin.EventTurn {
			who, what, why = callersOf(e), sharesText(e.Before)+" → "+sharesText(e.After), evidenceText(e.Evidence)
		}
		port := ""
		if e.Port > 0 {
			port = fmt.Sprint(e.Port)
		}
		t.Row(e.At.Local().Format("15:04:05.000"), e.Cluster, who, what, why, list(e.Callers), port)
	}
	return t
}

// callersOf says who told a turn, without the kind of its program.
func callersOf(e *admin.TimelineEvent) string {
	if len(e.Callers) == 0 {
		return "?"
	}
	first := strings.TrimPrefix(e.Callers[0], "sidecar/")
	if e.Count > 1 {
		return fmt.Sprintf("%s and %d more", first, e.Count-1)
	}
	return first
}

// sharesText says shares by cluster, the largest first.
func sharesText(shares map[string]float64) string {
	names := slices.SortedFunc(maps.Keys(shares), func(a, b string) int { return cmp.Or(cmp.Compare(shares[b], shares[a]), cmp.Compare(a, b)) })
	for i, n := range names {
		names[i] = fmt.Sprintf("%s %.0f%%", n, math.Round(100*shares[n]))
	}
	return cmp.Or(list(names), "nowhere")
}

func evidenceText(all []admin.TimelineEvidence) string {
	var parts []string
	for _, e := range all {
		place := e.Cluster
		if e.Endpoint != "" {
			place += "/" + e.Endpoint
		}
		part := strings.TrimSpace(place + " " + topology.Reason{Cause: topology.Cause(e.Cause), Detail: e.Detail}.String())
		if !slices.Contains(parts, part) { // a limit is told of each copy that it holds for
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "; ")
}
