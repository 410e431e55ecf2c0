package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

func newIntroduction(g *global) *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:   "introduction",
		Short: "The ClusterPeer by which other clusters let this one in",
		Long: `introduction prints a ClusterPeer manifest. Whoever puts it among the manifests of another cluster lets this cluster in:
its exported services may be called from there, and those of that cluster from here once it has been introduced likewise.
It holds no secret, but hand it over so that nobody can change it: it pins who this cluster is.`,
		Example: example("isthmus introduction --control /run/isthmus/us.sock > eu/manifests/peer-us.yaml", "isthmus introduction -o json"),
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := askAll(c.Context(), g, (*admin.Client).Introduction)
			if err != nil {
				return err
			}
			intros := []admin.Introduction{}
			for _, a := range all {
				if a.err == nil {
					intros = append(intros, a.answer)
				}
			}
			if format.IsTable() {
				err = printClusterPeers(c.OutOrStdout(), intros)
			} else {
				err = output.Write(c.OutOrStdout(), format, intros, nil)
			}
			return errors.Join(err, failures(all))
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", ")+"; a table is the manifest")
	return c
}

func printClusterPeers(w io.Writer, intros []admin.Introduction) error {
	for i, in := range intros {
		if i > 0 {
			_, _ = fmt.Fprintln(w, "---") // the next write has the error
		}
		if _, err := io.WriteString(w, clusterPeer(in, "")); err != nil {
			return err
		}
	}
	return nil
}
