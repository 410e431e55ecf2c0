package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/internal/lab"
)

func newPlaygroundStatus(p *playground) *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:   "status",
		Short: "Clusters, processes, ports, manifest folders, links",
		Long:  `status exits with 1 when a process of the playground does not run or is not ready.`,
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			pg, err := p.openUp()
			if err != nil {
				return err
			}
			defer pg.Close()
			ctx, cancel := context.WithTimeout(c.Context(), max(p.timeout, time.Second))
			defer cancel()
			st, err := pg.Status(ctx)
			if err != nil {
				return err
			}
			if format.IsTable() {
				err = printPlayground(c.OutOrStdout(), format, st)
			} else {
				err = output.Write(c.OutOrStdout(), format, st, nil)
			}
			if err != nil {
				return err
			}
			if dead := notReady(st); len(dead) > 0 {
				return finding{"not running, or not ready: " + list(dead)}
			}
			return nil
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

func notReady(st lab.Status) []string {
	var out []string
	for _, c := range st.Clusters {
		for _, p := range c.Processes {
			if !p.Running || !p.Ready {
				out = append(out, c.Name+"/"+p.Name)
			}
		}
	}
	return out
}

func printPlayground(w io.Writer, format output.Format, st lab.Status) error {
	processes := output.Table{
		Columns: []string{"CLUSTER", "PROCESS", "STATE", "PID", "PORTS"},
		Wide:    []string{"PROGRAM", "LOG"},
	}
	links := output.Table{Columns: []string{"CLUSTER", "GATEWAY", "LINK TO", "STATE", "CONNECTIONS", "RTT", "DETAIL"}}
	folders := output.Table{Columns: []string{"CLUSTER", "MANIFESTS"}, Wide: []string{"REGION", "TRUST DOMAIN", "SOCKET"}}
	var problems []string
	for _, c := range st.Clusters {
		folders.Row(c.Name, c.Manifests, c.Region, c.TrustDomain, c.Socket)
		for _, p := range c.Processes {
			state := "ready"
			switch {
			case !p.Running:
				state = "dead"
			case !p.Ready:
				state = "not ready"
				problems = append(problems, c.Name+"/"+p.Name+": "+p.Missing)
			}
			var ports []string
			for _, purpose := range slices.Sorted(maps.Keys(p.Ports)) {
				ports = append(ports, purpose+" "+strconv.Itoa(p.Ports[purpose]))
			}
			pid := ""
			if p.Pid != 0 {
				pid = strconv.Itoa(p.Pid)
			}
			processes.Row(c.Name, p.Name, state, pid, list(ports), string(p.Program), p.Log)
		}
		for _, l := range c.Links {
			links.Row(c.Name, l.Gateway, l.Cluster, l.State, strconv.Itoa(l.Connections), rtt(&admin.Link{State: l.State, RTT: l.RTT}), l.Detail)
		}
		for _, m := range c.Problems {
			problems = append(problems, c.Name+": "+m)
		}
	}
	for _, t := range []output.Table{processes, links, folders} {
		if err := output.Write(w, format, nil, func() output.Table { return t }); err != nil {
			return err
		}
		_, _ = fmt.Fprintln(w) // the next write has the error
	}
	for _, m := range problems {
		_, _ = fmt.Fprintln(w, m)
	}
	_, err := fmt.Fprintf(w, "folder %s\n", st.Dir)
	return err
}
