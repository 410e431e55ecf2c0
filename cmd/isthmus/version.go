package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/internal/version"
)

func newVersion() *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:   "version",
		Short: "Which build this is",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if format.IsTable() {
				_, err := fmt.Fprintln(c.OutOrStdout(), "isthmus "+version.Long())
				return err
			}
			return output.Write(c.OutOrStdout(), format, map[string]string{"version": version.String(), "build": version.Long()}, nil)
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}
