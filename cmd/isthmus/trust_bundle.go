package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/trust"
)

// bundleFormat is a form of a bundle. It is a pflag.Value.
type bundleFormat string

var bundleFormats = []string{"pem", "jwks", "spiffe"}

func (f *bundleFormat) String() string { return string(*f) }
func (f *bundleFormat) Type() string   { return "format" }
func (f *bundleFormat) Set(s string) error {
	if !slices.Contains(bundleFormats, s) {
		return fmt.Errorf("want one of %s", strings.Join(bundleFormats, ", "))
	}
	*f = bundleFormat(s)
	return nil
}

func newTrustBundle(g *global) *cobra.Command {
	format := bundleFormat("pem")
	var cluster string
	c := &cobra.Command{
		Use:   "bundle DOMAIN",
		Short: "What a trust domain is verified with, for programs that are not of the mesh",
		Long: `bundle prints the bundle of a trust domain: as PEM certificates, as a JWKS, or as the SPIFFE bundle document that the domain's cluster signed.
It is asked of the domain's own cluster where that is one of those meant, else of the first that knows it.

What is revoked is not in it: the standards have no word for that.`,
		Example:           example("isthmus trust bundle us.example.org > us.pem", "isthmus trust bundle us -o spiffe | jq .spiffe_sequence"),
		Args:              oneArg,
		ValidArgsFunction: g.completeDomains,
		RunE: func(c *cobra.Command, args []string) error {
			all, err := g.askTrust(c.Context())
			if err != nil {
				return err
			}
			from, td, err := bundleSource(all, args[0], cluster)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), g.timeout)
			defer cancel()
			doc, err := from.client.Bundle(ctx, td)
			if err != nil {
				return err
			}
			text, err := format.write(td, doc)
			if err != nil {
				return fmt.Errorf("bundle of %s from %s: %w", td, from.answer.Cluster, err)
			}
			_, err = c.OutOrStdout().Write(text)
			return err
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(bundleFormats, ", "))
	c.Flags().StringVar(&cluster, "cluster", "", "the `cluster` whose view of the domain is meant")
	return c
}

// bundleSource chooses whom to ask for a bundle.
func bundleSource(all []asked[admin.Trust], name, cluster string) (asked[admin.Trust], string, error) {
	there := answered(all)
	if cluster != "" {
		there = slices.DeleteFunc(there, func(a asked[admin.Trust]) bool { return a.answer.Cluster != cluster })
		if len(there) == 0 {
			return asked[admin.Trust]{}, "", noCluster(cluster, all)
		}
	}
	td, err := findDomain(there, name)
	if err != nil {
		return asked[admin.Trust]{}, "", err
	}
	for _, own := range []bool{true, false} {
		for _, a := range there {
			if _, knows := seenIn(&a.answer, td); knows && (!own || a.answer.TrustDomain == td) {
				return a, td, nil
			}
		}
	}
	return asked[admin.Trust]{}, "", fmt.Errorf("nobody has a bundle of %s", td)
}

func (f bundleFormat) write(td string, doc []byte) ([]byte, error) {
	domain, err := spiffeid.TrustDomainFromString(td)
	if err != nil {
		return nil, err
	}
	bundle, _, err := trust.ParseBundle(domain, doc)
	if err != nil {
		return nil, err
	}
	var parts map[string]json.RawMessage
	switch {
	case f == "pem":
		return trust.MarshalPEM(bundle.Authorities), nil
	case json.Unmarshal(doc, &parts) != nil:
		return nil, errors.New("not a JSON object")
	case f == "jwks":
		parts = map[string]json.RawMessage{"keys": parts["keys"]}
	}
	text, err := json.MarshalIndent(parts, "", "  ")
	return append(text, '\n'), err
}
