package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

// clusterLinks is one element of `isthmus links -o json`: the links of one cluster's gateways.
type clusterLinks struct {
	Cluster string             `json:"cluster"`
	Links   []admin.LinkDetail `json:"links"`
}

func newLinks(g *global) *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:   "links [CLUSTER]",
		Short: "How each gateway reaches the gateways of other clusters, and how well",
		Long: `links shows what the gateways report of their links: to each gateway of a peer, over each transport, the connections, round trip and its jitter, the
part of the packets that was lost lately, and the streams that are open now. NEW says which transport new streams take; -o wide also why, and each
connection for itself.

  up        heard in time
  suspect   something is overdue: streams are placed elsewhere, or on two ways at once
  draining  no new streams: the far gateway drains, or a successor has taken over
  down      no connection; DETAIL says why
  unknown   the gateway is not connected to its control

With a cluster, only links from and to that one are shown. It exits with 1 when a link is down.`,
		Example: example("isthmus links", "isthmus links us -o wide", "isthmus links -o json | jq '.[].links[] | select(.transport == \"tcp\")'"),
		Args:    cobra.MaximumNArgs(1), ValidArgsFunction: g.completeClusters,
		RunE: func(c *cobra.Command, args []string) error {
			return showLinks(c, g, format, strings.Join(args, ""))
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

func showLinks(c *cobra.Command, g *global, format output.Format, only string) error {
	all, err := askAll(c.Context(), g, func(c *admin.Client, ctx context.Context) ([]admin.LinkDetail, error) {
		return c.Links(ctx)
	})
	if err != nil {
		return err
	}
	out := []clusterLinks{}
	down := 0
	for _, a := range all {
		if a.err != nil {
			continue
		}
		links := slices.DeleteFunc(a.answer, func(l admin.LinkDetail) bool {
			return only != "" && only != l.Cluster && only != a.status.Cluster
		})
		for _, l := range links {
			if l.State == "down" {
				down++
			}
		}
		out = append(out, clusterLinks{a.status.Cluster, append([]admin.LinkDetail{}, links...)})
	}
	if failed := failures(all); len(out) == 0 && failed != nil {
		return failed
	}
	if only != "" && !slices.ContainsFunc(out, func(c clusterLinks) bool { return c.Cluster == only || len(c.Links) > 0 }) {
		return noCluster(only, all)
	}
	err = output.Write(c.OutOrStdout(), format, out, func() output.Table { return linkTable(out, format == output.WideFormat) })
	if err = errors.Join(err, failures(all)); err != nil {
		return err
	}
	if down > 0 {
		return finding{fmt.Sprintf("%d link(s) down", down)}
	}
	return nil
}

// linkTable has a row for the connections between two gateways over one transport; each for each connection.
func linkTable(all []clusterLinks, each bool) output.Table {
	t := output.Table{
		Columns: []string{"FROM", "TO", "TRANSPORT", "NEW", "STATE", "CONNECTIONS", "RTT", "JITTER", "LOSS", "STREAMS", "AGE", "DETAIL"},
		Wide:    []string{"SENT", "RECEIVED", "REMOTE"},
		Empty:   "no links",
	}
	for _, c := range all {
		for _, l := range c.Links {
			from := c.Cluster + "/" + l.Gateway
			if len(l.Carriers) == 0 {
				t.Row(from, l.Cluster, "-", "", l.State, "0", "", "", "", "", "", l.Detail, "", "", "")
				continue
			}
			for _, group := range carriersOf(l.Carriers, each) {
				one := sumUp(group)
				taken, why := "", l.Detail
				if one.Transport == l.Transport {
					taken = "yes"
					if each || l.Transport != "quic" {
						why = cmp.Or(l.Detail, l.Why)
					}
				}
				t.Row(from, l.Cluster+"/"+one.Gateway, one.Transport, taken, one.State, strconv.Itoa(len(group)), trip(one.RTT), trip(one.Jitter),
					lossText(one.Loss), strconv.Itoa(one.Streams), one.Age.Round(time.Second).String(), why,
					strconv.FormatUint(one.Sent, 10), strconv.FormatUint(one.Received, 10), one.Remote)
			}
		}
	}
	return t
}

// carriersOf groups connections by gateway and transport, or not.
func carriersOf(all []admin.Carrier, each bool) [][]admin.Carrier {
	var out [][]admin.Carrier
	for _, c := range all {
		if last := len(out) - 1; !each && last >= 0 && out[last][0].Gateway == c.Gateway && out[last][0].Transport == c.Transport {
			out[last] = append(out[last], c)
			continue
		}
		out = append(out, []admin.Carrier{c})
	}
	return out
}

// sumUp makes one of several connections: of their states the best, the shortest round trip, the mean loss, the oldest age.
func sumUp(group []admin.Carrier) admin.Carrier {
	one := group[0]
	for _, c := range group[1:] {
		if one.State != "up" && (c.State == "up" || c.State == "suspect") {
			one.State = c.State
		}
		if c.RTT != 0 && (one.RTT == 0 || c.RTT < one.RTT) {
			one.RTT, one.Jitter = c.RTT, c.Jitter
		}
		one.Loss += c.Loss
		one.Streams += c.Streams
		one.Age = max(one.Age, c.Age)
	}
	one.Loss /= float64(len(group))
	return one
}

func trip(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.Round(10 * time.Microsecond).String()
}

func lossText(share float64) string { return strconv.FormatFloat(100*share, 'f', 1, 64) + "%" }
