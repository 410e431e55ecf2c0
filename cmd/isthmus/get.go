package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

// view is one element of `isthmus get … -o json`: what one cluster knows.
type view[T any] struct {
	SeenFrom string `json:"seen_from"`
	Items    []T    `json:"items"`
}

// kind is something that can be got.
type kind struct {
	name    string
	aliases []string
	get     func(ctx context.Context, g *global, c *cobra.Command, f output.Format) error
}

var kinds = []kind{
	{"services", []string{"service", "svc"}, getter((*admin.Client).Services, output.Table{
		Columns: []string{"CLUSTER", "NAMESPACE", "NAME", "PORTS", "READY", "EXPORTED", "IMPORTED"},
	}, func(from string, s admin.Service) []string {
		return []string{
			from, s.Namespace, s.Name, list(s.Ports), fmt.Sprintf("%d/%d", s.Ready, s.Endpoints), yesNo(s.Exported), yesNo(s.Imported),
		}
	})},
	{"endpoints", []string{"endpoint", "ep"}, getter((*admin.Client).Endpoints, output.Table{
		Columns: []string{"SEEN FROM", "SERVICE", "CLUSTER", "COPY", "ADDRESS", "READY", "ZONE", "NOTE"},
		Wide:    []string{"SPIFFE ID"},
	}, func(from string, e admin.Endpoint) []string {
		var note []string
		if e.StandIn {
			note = append(note, "node proxy stands in")
		}
		if e.Stale {
			note = append(note, "stale")
		}
		return []string{
			from, e.Service, e.Cluster, e.ID, e.Address, fmt.Sprintf("%d/%d", e.Ready, e.Capacity), e.Zone, list(note), list(e.SPIFFEID),
		}
	})},
	{"peers", []string{"peer"}, getter((*admin.Client).Peers, output.Table{
		Columns: []string{"CLUSTER", "PEER", "STATE", "SERVICES", "GATEWAYS", "BUS", "LAST WORD", "REASON"},
		Wide:    []string{"TRUST DOMAIN", "REGION", "EPOCH", "SEQ", "FINGERPRINT", "BUS URLS"},
	}, func(from string, p admin.Peer) []string {
		return []string{
			from, p.Cluster, p.State, strconv.Itoa(p.Services), strconv.Itoa(p.Gateways), p.Bus, ago(p.Issued), p.Reason,
			p.TrustDomain, p.Region, strconv.FormatUint(p.Epoch, 10), strconv.FormatUint(p.Seq, 10), p.RootFingerprint, list(p.BusURLs),
		}
	})},
	{"exports", []string{"export", "serviceexports", "serviceexport"}, getter((*admin.Client).Exports, output.Table{
		Columns: []string{"CLUSTER", "NAMESPACE", "NAME", "PORTS", "AUDIENCE", "CONDITIONS"},
		Wide:    []string{"MESSAGES"},
	}, func(from string, e admin.Export) []string {
		audience := "every peer"
		if len(e.Audience) > 0 {
			audience = list(e.Audience)
		}
		var conditions, messages []string
		for _, c := range e.Conditions {
			conditions = append(conditions, c.Type+"="+c.Status)
			if c.Message != "" {
				messages = append(messages, c.Type+": "+c.Message)
			}
		}
		return []string{from, e.Namespace, e.Name, list(e.Ports), audience, list(conditions), strings.Join(messages, "; ")}
	})},
	{"imports", []string{"import", "serviceimports", "serviceimport"}, getter((*admin.Client).Imports, output.Table{
		Columns: []string{"CLUSTER", "NAMESPACE", "NAME", "TYPE", "IPS", "PORTS", "FROM"},
	}, func(from string, i admin.Import) []string {
		return []string{from, i.Namespace, i.Name, i.Type, list(i.IPs), list(i.Ports), list(i.Clusters)}
	})},
	{"policies", []string{"policy", "failoverpolicies", "failoverpolicy", "fop"}, getter(allPolicies, policyTable, policyRow)},
	{"proxies", []string{"proxy"}, getter((*admin.Client).Proxies, output.Table{
		Columns: []string{"CLUSTER", "PROGRAM", "NAME", "CONNECTED", "SINCE", "ADMIN", "USES"},
		Wide:    []string{"SPIFFE ID", "VERSION"},
	}, func(from string, p admin.Proxy) []string {
		return []string{from, p.Program, p.Name, yesNo(p.Connected), ago(p.Since), p.Admin, list(p.Services), p.SPIFFEID, p.Version}
	})},
}

func newGet(g *global) *cobra.Command {
	format := output.TableFormat
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	c := &cobra.Command{
		Use:       "get {" + strings.Join(names, "|") + "}",
		Short:     "What each cluster has, exports, and knows of the others",
		Example:   example("isthmus get services", "isthmus get endpoints -o wide", "isthmus get imports -o json | jq '.[].items[].name'"),
		ValidArgs: names,
		Args: func(c *cobra.Command, args []string) error {
			switch len(args) {
			case 0:
				return fmt.Errorf("get what? One of %s", strings.Join(names, ", "))
			case 1:
			default:
				return fmt.Errorf("unexpected argument %q: get lists all there are", args[1])
			}
			if _, err := kindOf(args[0]); err != nil {
				return err
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			k, err := kindOf(args[0])
			if err != nil {
				return usage{err}
			}
			return k.get(c.Context(), g, c, format)
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

func kindOf(name string) (kind, error) {
	var names []string
	for _, k := range kinds {
		if k.name == name || slices.Contains(k.aliases, name) {
			return k, nil
		}
		names = append(names, k.name)
	}
	return kind{}, fmt.Errorf("%q is none of %s", name, strings.Join(names, ", "))
}

func getter[T any](
	ask func(*admin.Client, context.Context) ([]T, error), table output.Table, row func(from string, item T) []string,
) func(context.Context, *global, *cobra.Command, output.Format) error {
	return func(ctx context.Context, g *global, c *cobra.Command, f output.Format) error {
		all, err := askAll(ctx, g, ask)
		if err != nil {
			return err
		}
		views := []view[T]{}
		for _, a := range all {
			if a.err == nil {
				views = append(views, view[T]{a.status.Cluster, append([]T{}, a.answer...)}) // [] rather than null
			}
		}
		if failed := failures(all); len(views) == 0 && failed != nil {
			return failed
		}
		err = output.Write(c.OutOrStdout(), f, views, func() output.Table {
			t := table
			t.Empty = "none"
			for _, v := range views {
				for _, item := range v.Items {
					t.Row(row(v.SeenFrom, item)...)
				}
			}
			return t
		})
		return errors.Join(err, failures(all))
	}
}

func list(s []string) string { return strings.Join(s, ", ") }
