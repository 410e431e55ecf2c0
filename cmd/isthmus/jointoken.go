package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

func newJoinToken(g *global) *cobra.Command {
	format := output.TableFormat
	var ask admin.TokenRequest
	var cluster string
	c := &cobra.Command{
		Use:   "join-token {--workload NAMESPACE/NAME | --gateway ID | --node NAME}",
		Short: "A single-use token with which one program joins its cluster",
		Long: `join-token asks a control plane for a token that one gateway, node proxy or sidecar can trade, once, for its first
identity. Write it to the file that the program's joinTokenFile names. The token goes to standard output, its end to standard error.`,
		Example: example(
			"isthmus join-token --cluster us --workload shop/checkout-1 > join-token",
			"isthmus join-token --control /run/isthmus/us.sock --gateway gateway-2 > join-token"),
		Args: func(c *cobra.Command, args []string) error {
			if err := noArgs(c, args); err != nil {
				return err
			}
			if len(slices.DeleteFunc([]string{ask.Workload, ask.Gateway, ask.Node}, func(s string) bool { return s == "" })) != 1 {
				return errors.New("say what the token is for: exactly one of --workload, --gateway, --node")
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := g.one(c.Context(), cluster)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), g.timeout)
			defer cancel()
			t, err := client.Token(ctx, ask)
			if err != nil {
				return err
			}
			if !format.IsTable() {
				return output.Write(c.OutOrStdout(), format, t, nil)
			}
			_, _ = fmt.Fprintf(c.ErrOrStderr(), "good once, until %s\n", t.Expires.Local().Format("15:04:05"))
			_, err = fmt.Fprintln(c.OutOrStdout(), t.Token)
			return err
		},
	}
	flags := c.Flags()
	flags.StringVar(&ask.Workload, "workload", "", "for the sidecar of this workload, `namespace/name`")
	flags.StringVar(&ask.Gateway, "gateway", "", "for the gateway with this `id`")
	flags.StringVar(&ask.Node, "node", "", "for the node proxy of this `name`")
	flags.StringVar(&cluster, "cluster", "", "which `cluster` to join, when several are meant")
	flags.VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}
