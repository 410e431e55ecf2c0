package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

func newPolicy(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Access policies: try them, see what applies, see what a change would do",
		Long: `An AccessPolicy says who may call a workload. test tries policies on a table of cases, without a mesh; effective shows what is in
force for a workload; simulate says what policies that are not in force yet would change for what workloads were asked lately.

docs/policy.md tells how to get from nothing to deny-by-default.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newPolicyTest(), newPolicyEffective(g), newPolicySimulate(g))
	return c
}

func formatFlag(c *cobra.Command, format *output.Format) {
	c.Flags().VarP(format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
}
