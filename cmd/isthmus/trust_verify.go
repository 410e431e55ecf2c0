package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/check"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/trust"
)

// verification is one isthmus trust verify.
type verification struct {
	*global
	format      output.Format
	bundle      string // file; empty: the bundles of the clusters that are meant
	trustDomain string // of that file
	sni, alpn   string
	stdout      io.Writer
}

// verified is one element of `isthmus trust verify -o json`.
type verified struct {
	Cluster  string    `json:"cluster,omitempty"` // whose bundles; or the file of --bundle
	SPIFFEID string    `json:"spiffe_id,omitempty"`
	Passes   bool      `json:"passes"`
	Reason   string    `json:"reason,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
	Steps    []step    `json:"steps"`
	// Holders are the programs that have an SVID of the ID, where an ID was asked for.
	Holders []holder `json:"holders,omitempty"`
}

type step struct {
	Step string `json:"step"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
	// Unknown: it could not be looked at, and says nothing for or against.
	Unknown bool `json:"unknown,omitempty"`
}

type holder struct {
	Program   string    `json:"program"`
	Name      string    `json:"name"`
	Connected bool      `json:"connected"`
	SVIDEnds  time.Time `json:"svid_ends,omitzero"`
}

func newTrustVerify(g *global) *cobra.Command {
	v := verification{global: g, format: output.TableFormat}
	c := &cobra.Command{
		Use:   "verify {FILE | HOST:PORT | SPIFFE-ID}",
		Short: "Whether a certificate, a server or an identity passes in each cluster; step by step, or exactly where it breaks",
		Long: `verify takes the bundles of each cluster that is meant, and the verifier that every program of the mesh has, and says what that looks at:

  FILE        a chain in PEM, leaf first; a key in the file is passed over
  HOST:PORT   what a server there shows in a TLS handshake over TCP, from this machine; it is not told who asks. A sidecar wants the service that is
              meant, --sni 80.checkout.shop.svc.clusterset.local
  SPIFFE-ID   which programs hold it, until when, and whether what is issued to it now would pass

--bundle FILE verifies with a bundle in a file (PEM, or a SPIFFE bundle document) and asks no cluster; its trust domain is that of the leaf, or --trust-domain.
Exit code 1 when it does not pass everywhere.`,
		Example: example("isthmus trust verify svid.pem", "isthmus trust verify 10.1.2.3:15008 --sni 80.checkout.shop.svc.clusterset.local",
			"isthmus trust verify spiffe://us.example.org/ns/shop/sa/checkout", "isthmus trust verify svid.pem --bundle us.pem"),
		Args: oneArg,
		RunE: func(c *cobra.Command, args []string) error {
			v.stdout = c.OutOrStdout()
			if v.trustDomain != "" && v.bundle == "" {
				return usage{errors.New("--trust-domain goes with --bundle")}
			}
			return v.run(c.Context(), args[0])
		},
	}
	flags := c.Flags()
	flags.StringVar(&v.bundle, "bundle", "", "verify with the bundle in this `file`, and ask no cluster")
	flags.StringVar(&v.trustDomain, "trust-domain", "", "trust `domain` whose bundle that is; the leaf's when it is not given")
	flags.StringVar(&v.sni, "sni", "", "server `name` to say in the handshake; the host when it is not given")
	flags.StringVar(&v.alpn, "alpn", "", "application `protocol` to say in the handshake; several: a,b")
	flags.VarP(&v.format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

func (v *verification) run(ctx context.Context, what string) error {
	var chain []*x509.Certificate
	id, err := spiffeid.FromString(what)
	asksID := err == nil || strings.HasPrefix(what, "spiffe://")
	if asksID && err != nil {
		return usage{fmt.Errorf("%q is no SPIFFE ID: %w", what, err)}
	}
	if !asksID {
		if chain, err = v.chainOf(ctx, what); err != nil {
			return err
		}
		id = claimed(chain)
	}
	views, err := v.views(ctx, id)
	if len(views) == 0 {
		return err
	}
	out := make([]verified, 0, len(views))
	for i := range views {
		w := &views[i]
		if asksID {
			e := w.bundles.ExplainID(id, w.now)
			out = append(out, w.tell(&e))
		} else {
			e := w.bundles.Explain(chain, w.now)
			out = append(out, w.tell(&e))
		}
	}
	if v.format.IsTable() {
		err = errors.Join(v.write(out), err)
	} else {
		err = errors.Join(output.Write(v.stdout, v.format, out, nil), err)
	}
	if err != nil {
		return err
	}
	var refused []string
	for i := range out {
		if !out[i].Passes {
			refused = append(refused, out[i].Cluster)
		}
	}
	if len(refused) > 0 {
		return finding{"it does not pass in " + list(refused)}
	}
	if asksID && v.bundle == "" && !slices.ContainsFunc(out, func(r verified) bool { return len(r.Holders) > 0 }) {
		return finding{"held by nobody here: no program of the clusters that were asked has joined as " + id.String() + "; what is issued to it would pass"}
	}
	return nil
}

// chainOf reads a file, or asks a server.
func (v *verification) chainOf(ctx context.Context, what string) ([]*x509.Certificate, error) {
	_, err := os.Stat(what)
	host, _, hostErr := net.SplitHostPort(what)
	switch {
	case err == nil:
		return readCertificates(what)
	case hostErr != nil:
		return nil, usage{fmt.Errorf("%q is no file (%w), no HOST:PORT, and no SPIFFE ID", what, err)}
	}
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", what)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, admin.ErrUnreachable, err)
	}
	defer func() { _ = conn.Close() }()
	protocols := strings.FieldsFunc(v.alpn, func(r rune) bool { return r == ',' })
	chain, err := trust.Probe(ctx, conn, cmp.Or(v.sni, host), protocols)
	if err != nil {
		return nil, advised{
			fmt.Errorf("%s: TLS handshake (server name %q, protocols %q): %w", what, cmp.Or(v.sni, host), protocols, err),
			"A sidecar wants the port and the service that is meant: --sni 80.checkout.shop.svc.clusterset.local. Gateways speak to each other over QUIC, which is not asked here.",
		}
	}
	return chain, nil
}

// claimed is whom a leaf says it is, to know whose bundle to get; zero when that can't be read.
func claimed(chain []*x509.Certificate) spiffeid.ID {
	if len(chain) == 0 || len(chain[0].URIs) == 0 {
		return spiffeid.ID{}
	}
	id, err := spiffeid.FromURI(chain[0].URIs[0])
	if err != nil {
		return spiffeid.ID{}
	}
	return id
}

// trustView is what one cluster's programs verify with.
type trustView struct {
	name    string
	now     time.Time // by its clock
	bundles *trust.Bundles
	states  map[string]string // of domains that are known and not trusted
	holders []holder
	offline bool // the bundle is a file
}

// known is what a control tells for that.
type known struct {
	trust   admin.Trust
	proxies []admin.Proxy
	bundles *trust.Bundles
}

// views returns those that could be made, and why others could not.
func (v *verification) views(ctx context.Context, id spiffeid.ID) ([]trustView, error) {
	if v.bundle != "" {
		w, err := v.offline(id)
		if err != nil {
			return nil, err
		}
		return []trustView{w}, nil
	}
	all, err := askAll(ctx, v.global, func(c *admin.Client, ctx context.Context) (known, error) { return learn(ctx, c, id) })
	if err != nil {
		return nil, err
	}
	var out []trustView
	for _, a := range answered(all) {
		w := trustView{name: a.answer.trust.Cluster, now: a.answer.trust.Now, bundles: a.answer.bundles, states: map[string]string{}}
		for _, d := range a.answer.trust.Domains {
			if !check.Trusts(&d) {
				w.states[d.TrustDomain] = d.State + because(d.Reason)
			}
		}
		for _, p := range a.answer.proxies {
			if p.SPIFFEID == id.String() {
				w.holders = append(w.holders, holder{p.Program, p.Name, p.Connected, p.SVIDEnds})
			}
		}
		out = append(out, w)
	}
	return out, failures(all)
}

// maxHints is how many bundles of other domains are got, for saying that a chain leads to one of them.
const maxHints = 32

// learn gets the bundles that a cluster verifies with.
func learn(ctx context.Context, c *admin.Client, id spiffeid.ID) (k known, err error) {
	if k.trust, err = c.Trust(ctx); err != nil {
		return k, err
	}
	if k.proxies, err = c.Proxies(ctx); err != nil {
		return k, err
	}
	k.bundles = trust.NewBundles()
	for i, d := range k.trust.Domains {
		mine := d.TrustDomain == id.TrustDomain().Name()
		if !check.Trusts(&d) || i >= maxHints && !mine {
			continue
		}
		td, bundle, err := bundleOf(ctx, c, d)
		switch {
		case err == nil:
			k.bundles.Set(td, bundle)
		case mine:
			return k, err
		}
	}
	return k, nil
}

// bundleOf gets one, with what is revoked of it.
func bundleOf(ctx context.Context, c *admin.Client, d admin.TrustedDomain) (td spiffeid.TrustDomain, b trust.Bundle, err error) {
	if td, err = spiffeid.TrustDomainFromString(d.TrustDomain); err != nil {
		return td, b, err
	}
	doc, err := c.Bundle(ctx, d.TrustDomain)
	if err != nil {
		return td, b, err
	}
	if b, _, err = trust.ParseBundle(td, doc); err != nil {
		return td, b, err
	}
	b.Revoked, b.RevokedIDs = map[[32]byte]struct{}{}, map[spiffeid.ID]time.Time{}
	for _, key := range d.RevokedKeys {
		var sum [32]byte
		if n, err := hex.Decode(sum[:], []byte(strings.TrimPrefix(key, "sha256:"))); err != nil || n != len(sum) {
			return td, b, fmt.Errorf("%s: revoked key %q: want sha256: and 64 hex digits", d.TrustDomain, key)
		}
		b.Revoked[sum] = struct{}{}
	}
	for s, until := range d.RevokedIDs {
		id, err := spiffeid.FromString(s)
		if err != nil {
			return td, b, fmt.Errorf("%s: revoked ID %q: %w", d.TrustDomain, s, err)
		}
		b.RevokedIDs[id] = until
	}
	if n := len(b.Revoked) + len(b.RevokedIDs); n < d.Revoked {
		return td, b, fmt.Errorf("%s: control says that %d keys and IDs are revoked, and names %d", d.TrustDomain, d.Revoked, n)
	}
	return td, b, nil
}

// offline reads the bundle of a file.
func (v *verification) offline(id spiffeid.ID) (trustView, error) {
	data, err := os.ReadFile(v.bundle)
	if err != nil {
		return trustView{}, err
	}
	td := id.TrustDomain()
	if v.trustDomain != "" {
		if td, err = spiffeid.TrustDomainFromString(v.trustDomain); err != nil {
			return trustView{}, usage{fmt.Errorf("--trust-domain: %w", err)}
		}
	}
	if td.IsZero() {
		return trustView{}, usage{errors.New("the certificate names no trust domain: say with --trust-domain whose bundle that is")}
	}
	w := trustView{name: v.bundle, offline: true, now: time.Now(), bundles: trust.NewBundles()}
	var b trust.Bundle
	if strings.HasPrefix(strings.TrimSpace(string(data)), "{") {
		b, _, err = trust.ParseBundle(td, data)
	} else {
		b.Authorities, err = trust.ParsePEM(data)
	}
	if err != nil {
		return trustView{}, fmt.Errorf("%s: %w", v.bundle, err)
	}
	w.bundles.Set(td, b)
	return w, nil
}

func (w *trustView) tell(e *trust.Explanation) verified {
	out := verified{Cluster: w.name, Passes: e.Reason == 0, NotAfter: e.Peer.NotAfter, Steps: []step{}, Holders: w.holders}
	if !e.ID.IsZero() {
		out.SPIFFEID = e.ID.String()
	}
	if e.Reason != 0 {
		out.Reason = e.Reason.String()
	}
	for _, s := range e.Steps {
		text := s.Text
		if state := w.states[e.ID.TrustDomain().Name()]; !s.OK && s.Name == trust.StepBundle && state != "" {
			text += "; it is " + state + " here"
		}
		said := step{Step: string(s.Name), OK: s.OK, Text: text}
		if w.offline && s.Name == trust.StepRevoked && s.OK {
			said = step{Step: said.Step, Text: "not known: a bundle in a file does not say what is revoked; ask a cluster", Unknown: true}
		}
		out.Steps = append(out.Steps, said)
	}
	return out
}

func (v *verification) write(all []verified) error {
	for i := range all {
		r := &all[i]
		if i > 0 {
			_, _ = fmt.Fprintln(v.stdout) // the next write has the error
		}
		_, _ = fmt.Fprintf(v.stdout, "by the bundles of %s:\n", r.Cluster)
		t := output.Table{}
		for _, s := range r.Steps {
			mark := "ok"
			switch {
			case s.Unknown:
				mark = "?"
			case !s.OK:
				mark = "NO"
			}
			t.Row("  "+mark, s.Step, s.Text)
		}
		for _, h := range r.Holders {
			until := "when it ends is not known: it was issued before control started"
			if !h.SVIDEnds.IsZero() {
				until = "its SVID ends " + ends(time.Now(), h.SVIDEnds)
			}
			t.Row("  held", h.Program, fmt.Sprintf("%s, connected: %s, %s", h.Name, yesNo(h.Connected), until))
		}
		if err := output.Write(v.stdout, v.format, nil, func() output.Table { return t }); err != nil {
			return err
		}
		verdict := "passes"
		if !r.NotAfter.IsZero() {
			verdict += ", until " + r.NotAfter.UTC().Format(time.RFC3339)
		}
		if !r.Passes {
			verdict = "refused: " + r.Reason
		}
		if _, err := fmt.Fprintln(v.stdout, verdict); err != nil {
			return err
		}
	}
	return nil
}
