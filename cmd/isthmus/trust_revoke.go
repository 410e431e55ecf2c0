package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/trust"
)

// revocation is one isthmus trust revoke.
type revocation struct {
	*global
	format              output.Format
	block, undo, dryRun bool
	reason              string
	ask                 keyFacts
	stdout, chatter     io.Writer
}

// keyFacts is what the certificate of a key tells.
type keyFacts struct {
	domain string    // whose it is; empty: it does not say
	ends   time.Time // of an SVID; zero for an authority, whose key may be in other certificates, too
}

func (k *keyFacts) fill(file string) error {
	certs, err := readCertificates(file)
	if err != nil {
		return err
	}
	if id := claimed(certs); !id.IsZero() {
		k.domain = id.TrustDomain().Name()
	}
	if !certs[0].IsCA {
		k.ends = certs[0].NotAfter
	}
	return nil
}

// revokedIn is one element of `isthmus trust revoke -o json`.
type revokedIn struct {
	Cluster string `json:"cluster,omitempty"`
	Error   string `json:"error,omitempty"`
	// Skipped is why nothing is done there.
	Skipped string `json:"skipped,omitempty"`
	Undone  bool   `json:"undone,omitempty"`
	*admin.Revocation

	now time.Time
}

func newTrustRevoke(g *global) *cobra.Command {
	r := revocation{global: g, format: output.TableFormat}
	c := &cobra.Command{
		Use:   "revoke {DOMAIN | SPIFFE-ID | sha256:… | FILE}",
		Short: "End the trust in a domain, an identity or a key; and undo it",
		Long: `revoke ends trust, in every cluster that is meant:

  DOMAIN      nobody of that trust domain passes here any more, until it is undone. Its own cluster is left out: it goes on by itself
  SPIFFE-ID   what was issued to it up to now. Its programs join anew, by what they are attested with; with --block they can't, until it is undone
  sha256:…    the key of one SVID, or of an authority and so of all below it (isthmus trust verify says the key of each)
  FILE        the key of the first certificate in that PEM file

Connections that are open are closed, with the reason. Of its own domain a cluster tells its peers, too. ENDED is how many programs that are
connected to that cluster's control it ends, or which peer; of others' programs a cluster can't count. Below is how long it takes until everybody
has heard. A revocation ends by itself when all that it speaks of has: of a FILE, with its SVID; of a SPIFFE-ID, after an hour in its own cluster and
a day in others. Domains, blocks, keys of authorities, and keys of which nobody knows when they end stay until they are undone.`,
		Example: example("isthmus trust revoke us.example.org --reason 'its CA key was copied'", "isthmus trust revoke us.example.org --undo",
			"isthmus trust revoke spiffe://eu.example.org/ns/shop/sa/web --block", "isthmus trust revoke svid.pem --dry-run"),
		Args:              oneArg,
		ValidArgsFunction: g.completeDomains,
		RunE: func(c *cobra.Command, args []string) error {
			r.stdout, r.chatter = c.OutOrStdout(), c.ErrOrStderr()
			if r.undo && (r.block || r.reason != "") {
				return usage{errors.New("--block and --reason don't go with --undo")}
			}
			return r.run(c.Context(), args[0])
		},
	}
	flags := c.Flags()
	flags.BoolVar(&r.block, "block", false, "of a SPIFFE-ID: nothing is issued to it either, until it is undone")
	flags.BoolVar(&r.undo, "undo", false, "trust it again")
	flags.BoolVar(&r.dryRun, "dry-run", false, "say what it would end, and do nothing")
	flags.StringVar(&r.reason, "reason", "", "why, for whoever looks later")
	flags.VarP(&r.format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

func (r *revocation) run(ctx context.Context, what string) error {
	all, err := r.askTrust(ctx)
	if err != nil {
		return err
	}
	subject, kind, err := subjectOf(answered(all), what, r.undo)
	if err != nil {
		return err
	}
	if kind == "key" && !strings.HasPrefix(what, "sha256:") {
		if err = r.ask.fill(what); err != nil {
			return err
		}
	}
	if r.block && kind != "id" {
		return usage{fmt.Errorf("--block is for SPIFFE IDs; %s is a %s", subject, kind)}
	}
	out := r.each(ctx, all, subject, kind)
	err = output.Write(r.stdout, r.format, out, func() output.Table { return r.table(out) })
	if err == nil && r.format.IsTable() && !r.undo {
		err = writeBounds(r.stdout, out)
	}
	var errs []error
	did := 0
	for i := range out {
		if out[i].Error != "" {
			errs = append(errs, errors.New(out[i].Error))
		}
		if out[i].Revocation != nil || out[i].Undone {
			did++
		}
	}
	if err = errors.Join(err, failures(all), errors.Join(errs...)); err != nil {
		return err
	}
	if did == 0 {
		return finding{"nothing was done: " + out[0].Skipped}
	}
	r.next(subject, kind, did)
	if n := endedHere(out); n > 0 && !r.dryRun && !r.undo && !r.block && r.format.IsTable() {
		_, _ = fmt.Fprintf(r.chatter, "%d program(s) must join anew. Where no platform vouches for them, write a new token (isthmus join-token) to the joinTokenFile of each; no restart is needed.\n", n)
	}
	return nil
}

// each does it everywhere at once: what a cluster does not do is no reason for another not to.
func (r *revocation) each(ctx context.Context, all []asked[admin.Trust], subject, kind string) []revokedIn {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	out := make([]revokedIn, len(all))
	var wait sync.WaitGroup
	for i, a := range all {
		out[i] = revokedIn{Cluster: a.client.cluster, now: a.answer.Now}
		if a.err != nil {
			continue // its error is told with the others'
		}
		out[i].Cluster = a.answer.Cluster
		wait.Go(func() { r.one(ctx, &a, subject, kind, &out[i]) })
	}
	wait.Wait()
	return out
}

func (r *revocation) one(ctx context.Context, a *asked[admin.Trust], subject, kind string, out *revokedIn) {
	was := slices.IndexFunc(a.answer.Revocations, func(o admin.Revocation) bool { return o.Subject == subject })
	switch {
	case kind == "domain" && subject == a.answer.TrustDomain:
		out.Skipped = "it is this cluster's own domain"
		return
	case r.undo && was < 0:
		out.Skipped = "it is not revoked here"
		return
	case r.undo:
		out.Revocation = &a.answer.Revocations[was]
		if r.dryRun {
			return
		}
		if err := a.client.Unrevoke(ctx, subject); err != nil {
			out.Error, out.Revocation = a.answer.Cluster+": "+err.Error(), nil
			return
		}
		out.Undone = true
		return
	}
	made, err := a.client.Revoke(ctx, admin.Revocation{
		Subject: subject, Block: r.block, Reason: r.reason, DryRun: r.dryRun, TrustDomain: r.ask.domain, Ends: r.ask.ends,
	})
	if err != nil {
		out.Error = a.answer.Cluster + ": " + err.Error()
		return
	}
	out.Revocation = &made
}

// maxPEM bounds what is read of a file.
const maxPEM = 256 << 10

// subjectOf says what is meant. A revocation that is undone need not be of a domain that is trusted.
func subjectOf(all []asked[admin.Trust], what string, undo bool) (subject, kind string, err error) {
	if digits, ok := strings.CutPrefix(what, "sha256:"); ok {
		if len(digits) != 64 || strings.Trim(digits, "0123456789abcdef") != "" {
			return "", "", usage{fmt.Errorf("%q: want sha256: and 64 lower-case hex digits", what)}
		}
		return what, "key", nil
	}
	if id, notID := spiffeid.FromString(what); notID == nil && id.Path() != "" {
		if _, err = findDomain(all, id.TrustDomain().Name()); err != nil && !undo {
			return "", "", err
		}
		return id.String(), "id", nil
	}
	if info, notThere := os.Stat(what); notThere == nil && info.Mode().IsRegular() {
		var certs []*x509.Certificate
		if certs, err = readCertificates(what); err != nil {
			return "", "", err
		}
		return trust.KeyID(certs[0]), "key", nil
	}
	for _, a := range all {
		if undo && slices.ContainsFunc(a.answer.Revocations, func(r admin.Revocation) bool { return r.Subject == what }) {
			return what, "domain", nil
		}
	}
	td, err := findDomain(all, what)
	return td, "domain", err
}

// readCertificates reads the certificates of a PEM file, leaf first as a rule. Keys in it are passed over.
func readCertificates(file string) ([]*x509.Certificate, error) {
	f, err := os.Open(file) //nolint:gosec // G304: the file that the user names
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxPEM {
		return nil, fmt.Errorf("%s: more than %d bytes", file, maxPEM)
	}
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", file, len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s: no certificate in it (PEM)", file)
	}
	return certs, nil
}

func (r *revocation) table(all []revokedIn) output.Table {
	t := output.Table{Columns: []string{"CLUSTER", "SUBJECT", "KIND", "DONE", "ENDED", "PEERS TOLD", "UNTIL"}}
	not := func(cluster, why string) { t.Row(cluster, "", "", "no: "+why, "", "", "") }
	for i := range all {
		in := &all[i]
		v := in.Revocation
		switch {
		case v == nil && in.Error == "" && in.Skipped == "":
			not(in.Cluster, "it did not answer")
		case v == nil:
			not(in.Cluster, cmp.Or(in.Error, in.Skipped))
		default:
			done := "revoked"
			switch {
			case r.dryRun && r.undo:
				done = "would be undone"
			case r.dryRun:
				done = "would be"
			case in.Undone:
				done = "undone"
			}
			until := "undone"
			if !v.Ends.IsZero() {
				until = ends(in.now, v.Ends)
			}
			if in.Undone {
				until = ""
			}
			t.Row(in.Cluster, v.Subject, v.Kind, done, endedText(v), toldText(v), until)
		}
	}
	return t
}

// endedText says whom a revocation ends.
func endedText(v *admin.Revocation) string {
	switch {
	case v.Affects != "":
		return v.Affects
	case v.Uncounted:
		return "not counted"
	default:
		return strconv.Itoa(v.Matches)
	}
}

// toldText says whether peers are told.
func toldText(v *admin.Revocation) string {
	if v.Told && v.Kind == "key" && v.TrustDomain == "" {
		return "in case it is of here"
	}
	return yesNo(v.Told)
}

// writeBounds says how long until everybody has heard, once for the clusters of which it is the same.
func writeBounds(w io.Writer, all []revokedIn) error {
	var bounds []string
	by := map[string][]string{}
	for i := range all {
		v := all[i].Revocation
		if v == nil || v.Bound == "" {
			continue
		}
		if by[v.Bound] == nil {
			bounds = append(bounds, v.Bound)
		}
		by[v.Bound] = append(by[v.Bound], all[i].Cluster)
	}
	if len(bounds) == 0 {
		return nil
	}
	_, err := fmt.Fprintln(w, "\nHOW LONG UNTIL EVERYBODY HAS HEARD")
	for _, b := range bounds {
		_, err = fmt.Fprintf(w, "%s: %s\n", list(by[b]), b)
	}
	return err
}

// endedHere is how many programs lost their SVID.
func endedHere(all []revokedIn) (n int) {
	for i := range all {
		if v := all[i].Revocation; v != nil && !v.Uncounted {
			n += v.Matches
		}
	}
	return n
}

// next says what to do after that.
func (r *revocation) next(subject, kind string, clusters int) {
	if r.dryRun || r.undo || !r.format.IsTable() {
		return
	}
	elsewhere := ""
	if kind == "domain" {
		elsewhere = "Clusters that were not meant go on trusting it: do it in each of them.\n"
	}
	_, _ = fmt.Fprintf(r.chatter, "%sIt is in force in %d cluster(s); isthmus trust peers shows it. Undo it with: isthmus trust revoke %s --undo\n", elsewhere, clusters, subject)
}
