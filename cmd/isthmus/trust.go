package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

func newTrust(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "trust",
		Short: "Trust domains: who trusts whom, rotation, revocation, and why a certificate is refused",
		Long: `Each cluster is a trust domain of its own: it has its own root, issues its own short-lived identities, and verifies those of others by the
bundle that their clusters sign. These verbs show it, change it, and explain it.

A DOMAIN may be given by the name of its cluster, too.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		newTrustList(g), newTrustShow(g), newTrustBundle(g), newTrustPeers(g),
		newPeerInvite(g), newPeerAccept(g),
		newTrustRotate(g), newTrustRevoke(g), newTrustVerify(g), newTrustSVID(g),
	)
	return c
}

// clusterTrust is one element of `isthmus trust list -o json`.
type clusterTrust struct {
	Cluster string `json:"cluster,omitempty"`
	Socket  string `json:"socket,omitempty"`  // of the control, where it was named by its socket
	Context string `json:"context,omitempty"` // of the cluster, where it was named by its context
	Error   string `json:"error,omitempty"`   // the control did not answer
	*admin.Trust
}

// askTrust asks every control that is meant whom it trusts. When none answers, that is the error.
func (g *global) askTrust(ctx context.Context) ([]asked[admin.Trust], error) {
	all, err := askAll(ctx, g, (*admin.Client).Trust)
	if err != nil {
		return nil, err
	}
	if failed := failures(all); failed != nil && len(answered(all)) == 0 {
		return nil, failed
	}
	return all, nil
}

// answered are the answers of those that answered.
func answered[T any](all []asked[T]) []asked[T] {
	return slices.DeleteFunc(slices.Clone(all), func(a asked[T]) bool { return a.err != nil })
}

func newTrustList(g *global) *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "The trust domains that each cluster verifies, its own first",
		Long: `list asks each control plane which trust domains its programs verify, by which roots, how old its owner's word is, and when it ends.

SOURCE is "own", "peer" (a ClusterPeer) or "endpoint" (a FederatedTrustDomain). ENDS is when the last of its roots ends.`,
		Example: example("isthmus trust list", "isthmus trust list -o json | jq '.[].domains[] | select(.state != \"Fresh\")'"),
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := askAll(c.Context(), g, (*admin.Client).Trust)
			if err != nil {
				return err
			}
			var out []clusterTrust
			for _, a := range all {
				ct := clusterTrust{Cluster: a.client.cluster}
				if a.client.kube != nil {
					ct.Context = a.client.kube.Context
				} else {
					ct.Socket = a.client.Where()
				}
				if a.err != nil {
					ct.Error = a.err.Error()
				} else {
					ct.Cluster, ct.Trust = a.answer.Cluster, &a.answer
				}
				out = append(out, ct)
			}
			return errors.Join(output.Write(c.OutOrStdout(), format, out, func() output.Table { return domainTable(answered(all)) }), failures(all))
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

func domainTable(all []asked[admin.Trust]) output.Table {
	t := output.Table{
		Columns: []string{"CLUSTER", "TRUST DOMAIN", "OF", "SOURCE", "STATE", "SEQUENCE", "AGE", "ROOTS", "ENDS"},
		Wide:    []string{"JWT KEYS", "REVOKED", "HAS OURS", "REASON"},
		Empty:   "no trust domains",
	}
	for _, a := range all {
		for _, d := range a.answer.Domains {
			t.Row(a.answer.Cluster, d.TrustDomain, d.Cluster, d.Source, d.State, number(d.Sequence), age(a.answer.Now, d.Issued),
				strconv.Itoa(len(d.Roots)), ends(a.answer.Now, d.NotAfter), strconv.Itoa(len(d.JWTKeys)), strconv.Itoa(d.Revoked), number(d.Acknowledged), d.Reason)
		}
	}
	return t
}

func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

// age is how old something is by control's clock.
func age(now, since time.Time) string {
	if since.IsZero() {
		return ""
	}
	return brief(now.Sub(since))
}

// ends is how long something lasts yet, by control's clock.
func ends(now, at time.Time) string {
	switch {
	case at.IsZero():
		return ""
	case !now.Before(at):
		return brief(now.Sub(at)) + " ago"
	default:
		return "in " + brief(at.Sub(now))
	}
}

// brief says a time span in at most four letters: "45s", "12m", "47h", "89d".
func brief(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 100*time.Second:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 100*time.Minute:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 72*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// findDomain returns the trust domain that is meant by its own name or by its cluster's.
func findDomain(all []asked[admin.Trust], name string) (string, error) {
	name = strings.TrimSuffix(strings.TrimPrefix(name, "spiffe://"), "/")
	var names []string
	clusters := map[string]string{}
	for _, a := range all {
		for _, d := range a.answer.Domains {
			if d.TrustDomain == name {
				return name, nil
			}
			names = append(names, d.TrustDomain)
			if d.Cluster != "" {
				clusters[d.Cluster] = d.TrustDomain
			}
		}
	}
	if td, ok := clusters[name]; ok {
		return td, nil
	}
	return "", usage{fmt.Errorf("no trust domain %q here%s", name, didYouMean(name, names))}
}

// completeDomains offers the trust domains.
func (g *global) completeDomains(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if len(args) == 0 {
		for _, a := range askToComplete(g, c, (*admin.Client).Trust) {
			for _, d := range a.answer.Domains {
				if !slices.Contains(names, d.TrustDomain) {
					names = append(names, d.TrustDomain)
				}
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// seenDomain is one element of `isthmus trust show -o json`.
type seenDomain struct {
	SeenFrom string `json:"seen_from"`
	admin.TrustedDomain

	Authority   *admin.Authority   `json:"authority,omitempty"` // of the own domain
	Rotation    *admin.Rotation    `json:"rotation,omitempty"`  // likewise
	Revocations []admin.Revocation `json:"revocations"`         // made here, of this domain
	now         time.Time
}

func newTrustShow(g *global) *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:               "show DOMAIN",
		Short:             "A trust domain as each cluster sees it: roots, keys, revocations; of the own one, who issues",
		Example:           example("isthmus trust show us.example.org", "isthmus trust show us -o json | jq '.[].roots[].key_id'"),
		Args:              oneArg,
		ValidArgsFunction: g.completeDomains,
		RunE: func(c *cobra.Command, args []string) error {
			all, err := g.askTrust(c.Context())
			if err != nil {
				return err
			}
			td, err := findDomain(answered(all), args[0])
			if err != nil {
				return err
			}
			seen := []seenDomain{}
			for _, a := range answered(all) {
				if s, ok := seenIn(&a.answer, td); ok {
					seen = append(seen, s)
				}
			}
			if !format.IsTable() {
				return errors.Join(output.Write(c.OutOrStdout(), format, seen, nil), failures(all))
			}
			for i := range seen {
				if i > 0 {
					_, _ = fmt.Fprintln(c.OutOrStdout()) // the next write has the error
				}
				if err := seen[i].write(c.OutOrStdout(), format); err != nil {
					return err
				}
			}
			return failures(all)
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

// seenIn is a domain as one cluster sees it.
func seenIn(t *admin.Trust, td string) (seenDomain, bool) {
	i := slices.IndexFunc(t.Domains, func(d admin.TrustedDomain) bool { return d.TrustDomain == td })
	if i < 0 {
		return seenDomain{}, false
	}
	s := seenDomain{SeenFrom: t.Cluster, TrustedDomain: t.Domains[i], Revocations: []admin.Revocation{}, now: t.Now}
	if td == t.TrustDomain {
		s.Authority, s.Rotation = &t.Authority, &t.Rotation
	}
	for _, r := range t.Revocations {
		if revokedOf(r) == td || r.Kind == "key" && slices.Contains(s.RevokedKeys, r.Subject) {
			s.Revocations = append(s.Revocations, r)
		}
	}
	return s, true
}

// revokedOf is the trust domain that a revocation speaks of; empty: a key's is not said.
func revokedOf(r admin.Revocation) string {
	if id, err := spiffeid.FromString(r.Subject); err == nil {
		return id.TrustDomain().Name()
	}
	if r.Kind == "domain" {
		return r.Subject
	}
	return ""
}

func (s *seenDomain) write(w io.Writer, format output.Format) error {
	facts := output.Table{}
	fact := func(name, value string) {
		if value != "" {
			facts.Row("  "+name, value)
		}
	}
	fact("of cluster", s.Cluster)
	fact("source", s.Source)
	fact("state", strings.TrimSpace(s.State+" "+s.Reason))
	fact("sequence", number(s.Sequence))
	if !s.Issued.IsZero() {
		fact("last word", age(s.now, s.Issued)+" ago")
	}
	if s.Source == "peer" {
		fact("has our bundle", cmp.Or(number(s.Acknowledged), "it has not said"))
	}
	if a := s.Authority; a != nil {
		fact("authority", strings.TrimSpace(a.Kind+" "+a.Source))
		if a.SVIDLifetime > 0 {
			fact("SVIDs last", brief(a.SVIDLifetime))
		}
		if a.Issuing != nil {
			fact("issuing CA", fmt.Sprintf("%s, ends %s", a.Issuing.Subject, ends(s.now, a.Issuing.NotAfter)))
		}
		fact("problem", a.Problem)
	}
	if r := s.Rotation; r != nil {
		fact("rotation", phaseText(*r, s.now))
	}
	fact("JWT keys", list(s.JWTKeys))
	fact("revoked", strconv.Itoa(s.Revoked)+" keys and IDs")
	roots := output.Table{Columns: []string{"  ROOT", "STATE", "ENDS", "KEY"}, Empty: "  no roots: nobody of it passes"}
	for _, r := range s.Roots {
		roots.Row("  "+r.Subject, r.State, ends(s.now, r.NotAfter), r.KeyID)
	}
	if _, err := fmt.Fprintf(w, "%s, as %s sees it\n", s.TrustDomain, s.SeenFrom); err != nil {
		return err
	}
	for _, t := range []output.Table{facts, roots, revocationTable("  ", s.Revocations, s.now)} {
		if len(t.Rows) == 0 && t.Empty == "" {
			continue
		}
		if err := output.Write(w, format, nil, func() output.Table { return t }); err != nil {
			return err
		}
	}
	return nil
}

func revocationTable(indent string, all []admin.Revocation, now time.Time) output.Table {
	t := output.Table{Columns: []string{indent + "REVOKED", "KIND", "BLOCKED", "SINCE", "ENDS", "REASON"}}
	for _, r := range all {
		t.Row(indent+r.Subject, r.Kind, yesNo(r.Block), age(now, r.At), cmp.Or(ends(now, r.Ends), "when undone"), r.Reason)
	}
	return t
}
