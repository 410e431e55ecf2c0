package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/policy"
)

func newPolicyTest() *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:   "test FILE...",
		Short: "Try access policies on tables of cases, offline",
		Long: `test reads tables of cases: who asks for what, and what shall become of it. What decides is what decides in a sidecar. The policies are
named by the table, or stand in the same file.

  clusters: {eu: eu.example, us: us.example}   # trust domains; cluster is the own one, that policies call Same
  cluster: us
  policies: [checkout.yaml]                    # relative to this file
  workload: {namespace: shop, labels: {app: checkout}}   # which is called; without it every policy is for it
  cases:
  - {name: the cart, caller: eu/shop/web, method: GET, path: /cart, want: allow, rule: web}
  - {name: strangers, caller: spiffe://ap.example/ns/shop/sa/web, path: /cart, want: deny}

With enforce: true beside cases, policies in audit mode are taken as if they were enforced.

A case may also have port, headers, user ({issuer, subject, claims}, or invalid: true), tcp (opaque bytes), reason, and audit (what policies
in audit mode say).

It exits with 1 when a case does not come out as it shall, and says in which line it stands.`,
		Example: example("isthmus policy test checkout_test.yaml", "isthmus policy test policies/*_test.yaml -o json"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("test what? Name a file with cases")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			var all []policy.Result
			for _, file := range args {
				results, err := policy.Test(file)
				if err != nil {
					return usage{err}
				}
				all = append(all, results...)
			}
			return printTest(c.OutOrStdout(), format, all)
		},
	}
	formatFlag(c, &format)
	return c
}

// tested is what policy test prints for programs.
type tested struct {
	Cases  []policy.Result `json:"cases"`
	Passed int             `json:"passed"`
	Failed int             `json:"failed"`
}

func printTest(w io.Writer, format output.Format, all []policy.Result) error {
	out := tested{Cases: all}
	for _, r := range all {
		if r.Wrong == "" {
			out.Passed++
		} else {
			out.Failed++
		}
	}
	if !format.IsTable() {
		if err := output.Write(w, format, out, nil); err != nil {
			return err
		}
	} else {
		for _, r := range all {
			var err error
			switch {
			case r.Wrong != "":
				_, err = fmt.Fprintf(w, "FAIL %s:%d: %s: %s\n", r.File, r.Line, r.Name, r.Wrong)
			case format == output.WideFormat:
				_, err = fmt.Fprintf(w, "ok   %s:%d: %s: %s (%s)\n", r.File, r.Line, r.Name, r.Got, strings.Trim(r.Policy+"/"+r.Rule+" "+r.Reason, "/ "))
			}
			if err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(w, "%d passed, %d failed\n", out.Passed, out.Failed); err != nil {
			return err
		}
	}
	if out.Failed > 0 {
		return finding{fmt.Sprintf("%d of %d cases did not come out as they shall", out.Failed, len(all))}
	}
	return nil
}
