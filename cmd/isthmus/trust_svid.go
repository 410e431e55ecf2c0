package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/trust"
)

func newTrustSVID(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "svid",
		Short: "Who holds which identity, and until when; issue one by hand",
		Args:  noArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newSVIDShow(g), newSVIDIssue(g))
	return c
}

// heldSVID is one element of `isthmus trust svid show -o json`.
type heldSVID struct {
	Cluster  string    `json:"cluster"`
	Program  string    `json:"program"`
	Name     string    `json:"name"`
	SPIFFEID string    `json:"spiffe_id"`
	SVIDEnds time.Time `json:"svid_ends,omitzero"`
	// Connected to control, which renews it.
	Connected bool `json:"connected"`
	now       time.Time
}

func newSVIDShow(g *global) *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:   "show [WORKLOAD]",
		Short: "The identities of a cluster's programs, and when what was issued last ends",
		Long: `show lists the programs of each cluster with their identities: all of them, or those of a WORKLOAD, which is the name of a program ("shop/web-0",
"gateway-0"), or CLUSTER/NAME. ENDS is empty for one that was issued before control started.`,
		Example: example("isthmus trust svid show", "isthmus trust svid show eu/shop/web-0 -o json"),
		Args:    upToOneArg,
		RunE: func(c *cobra.Command, args []string) error {
			all, err := askAll(c.Context(), g, (*admin.Client).Proxies)
			if err != nil {
				return err
			}
			held := []heldSVID{}
			var names []string
			for _, a := range answered(all) {
				for _, p := range a.answer {
					names = append(names, p.Name)
					if len(args) == 0 || args[0] == p.Name || args[0] == a.status.Cluster+"/"+p.Name {
						held = append(held, heldSVID{a.status.Cluster, p.Program, p.Name, p.SPIFFEID, p.SVIDEnds, p.Connected, a.status.Now})
					}
				}
			}
			if len(args) > 0 && len(held) == 0 {
				if err = failures(all); err != nil {
					return err
				}
				return usage{fmt.Errorf("no program %q%s", args[0], didYouMean(args[0], names))}
			}
			err = output.Write(c.OutOrStdout(), format, held, func() output.Table {
				t := output.Table{Columns: []string{"CLUSTER", "PROGRAM", "NAME", "SPIFFE ID", "ENDS", "CONNECTED"}, Empty: "none"}
				for _, h := range held {
					t.Row(h.Cluster, h.Program, h.Name, h.SPIFFEID, ends(h.now, h.SVIDEnds), yesNo(h.Connected))
				}
				return t
			})
			return errors.Join(err, failures(all))
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

// issuedSVID is what `isthmus trust svid issue -o json` prints.
type issuedSVID struct {
	SPIFFEID string    `json:"spiffe_id"`
	Cluster  string    `json:"cluster"`
	NotAfter time.Time `json:"not_after,omitzero"`
	Files    []string  `json:"files"`
	DryRun   bool      `json:"dry_run,omitempty"`
}

func newSVIDIssue(g *global) *cobra.Command {
	format := output.TableFormat
	var dir string
	var dryRun, force bool
	c := &cobra.Command{
		Use:   "issue SPIFFE-ID --out DIR",
		Short: "An X.509-SVID by the operator's word, for a program that can't get one by itself",
		Long: `issue has the authority of the ID's own cluster sign an X.509-SVID for a key that is made here and does not leave this machine. DIR gets svid.pem (the
chain), key.pem, and bundle.pem (the roots of its trust domain). It is good for as long as any SVID, and nobody renews it. Control logs it.

It is not asked whether there is such a workload. Revoke it with isthmus trust revoke DIR/svid.pem.`,
		Example: example("isthmus trust svid issue spiffe://eu.example.org/ns/ops/sa/probe --out probe"),
		Args:    oneArg,
		RunE: func(c *cobra.Command, args []string) error {
			id, err := spiffeid.FromString(args[0])
			if err != nil {
				return usage{fmt.Errorf("%q is no SPIFFE ID: %w", args[0], err)}
			}
			if id.Path() == "" {
				return usage{fmt.Errorf("%s is a trust domain: name a member of it, for example %s/ns/ops/sa/probe", id, id)}
			}
			if id.Path() == "/isthmus" || strings.HasPrefix(id.Path(), "/isthmus/") {
				return usage{fmt.Errorf("%s is reserved for the mesh's own programs, which join by themselves (isthmus join-token)", id)}
			}
			if dir == "" {
				return usage{errors.New("where to? Say --out DIR")}
			}
			out, err := g.issueSVID(c.Context(), id, dir, dryRun, force)
			if err != nil {
				return err
			}
			return output.Write(c.OutOrStdout(), format, out, func() output.Table {
				t := output.Table{Columns: []string{"SPIFFE ID", "BY", "ENDS", "FILES"}}
				t.Row(out.SPIFFEID, out.Cluster, ends(time.Now(), out.NotAfter), list(out.Files))
				return t
			})
		},
	}
	flags := c.Flags()
	flags.StringVar(&dir, "out", "", "`folder` for the files; made if need be")
	flags.BoolVar(&force, "force", false, "write over files that are there")
	flags.BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	flags.VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

func (g *global) issueSVID(ctx context.Context, id spiffeid.ID, dir string, dryRun, force bool) (issuedSVID, error) {
	all, err := g.askTrust(ctx)
	if err != nil {
		return issuedSVID{}, err
	}
	there := answered(all)
	i, _, err := ownerOf(all, there, id.TrustDomain().Name())
	if err != nil {
		return issuedSVID{}, err
	}
	by := there[i]
	out := issuedSVID{SPIFFEID: id.String(), Cluster: by.answer.Cluster, DryRun: dryRun}
	for _, name := range []string{"svid.pem", "key.pem", "bundle.pem"} {
		out.Files = append(out.Files, filepath.Join(dir, name))
	}
	if !force {
		for _, file := range out.Files {
			if _, err = os.Lstat(file); err == nil {
				return issuedSVID{}, fmt.Errorf("%s is there already: say another --out, or --force to write over it", file)
			}
		}
	}
	if dryRun {
		return out, nil
	}
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	own, _ := seenIn(&by.answer, by.answer.TrustDomain)
	td, bundle, err := bundleOf(ctx, by.client.Client, own.TrustedDomain)
	if err != nil {
		return issuedSVID{}, err
	}
	key, csr, err := trust.NewRequest()
	if err != nil {
		return issuedSVID{}, err
	}
	answer, err := by.client.SVID(ctx, admin.SVIDRequest{SPIFFEID: id.String(), CSR: csr})
	if err != nil {
		return issuedSVID{}, err
	}
	svid := &x509svid.SVID{ID: id, PrivateKey: key}
	for _, der := range answer.Chain {
		cert, parseErr := x509.ParseCertificate(der)
		if parseErr != nil {
			return issuedSVID{}, fmt.Errorf("%s issued: %w", out.Cluster, parseErr)
		}
		svid.Certificates = append(svid.Certificates, cert)
	}
	bundles := trust.NewBundles()
	bundles.Set(td, bundle)
	peer, err := bundles.Verify(svid.Certificates, by.answer.Now)
	switch {
	case err != nil:
		return issuedSVID{}, fmt.Errorf("%s issued what peers refuse: %w", out.Cluster, err)
	case peer.ID != id:
		return issuedSVID{}, fmt.Errorf("%s issued an SVID of %s", out.Cluster, peer.ID)
	}
	out.NotAfter = peer.NotAfter
	return out, writeSVID(svid, bundle, out.Files)
}

// writeSVID writes chain, key and roots. The key is made for this user alone.
func writeSVID(svid *x509svid.SVID, bundle trust.Bundle, files []string) error {
	chain, key, err := svid.Marshal()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(files[0]), 0o700); err != nil {
		return err
	}
	for i, data := range [][]byte{chain, key, trust.MarshalPEM(bundle.Authorities)} {
		if err := atomicfile.Write(files[i], data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
