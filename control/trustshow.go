package control

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/bundleendpoint"
)

// serveTrust adds what the admin API answers about trust.
func (c *Control) serveTrust(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/trust", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.Trust()) })
	mux.HandleFunc("GET /v1/trust/bundles/{domain}", c.getBundle)
	mux.HandleFunc("POST /v1/trust/rotation", c.postRotation)
	c.serveRevocations(mux)
}

// keyID is a public key as people are shown it.
func keyID(sum [sha256.Size]byte) string { return "sha256:" + hex.EncodeToString(sum[:]) }

func certificateOf(cert *x509.Certificate, state string) admin.Certificate {
	return admin.Certificate{
		Subject: cmp.Or(cert.Subject.CommonName, cert.Subject.String()), State: state, KeyID: keyID(trust.Fingerprint(cert)),
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
	}
}

// Trust returns whom the cluster trusts, and by what.
func (c *Control) Trust() admin.Trust {
	now := c.cfg.Now()
	out := admin.Trust{
		Cluster: c.cfg.Cluster.String(), TrustDomain: c.cfg.Domain.Name(), Now: now,
		Authority: c.authorityState(), Rotation: c.rotation(), Domains: []admin.TrustedDomain{c.ownDomain(now)}, Revocations: c.revocationList(),
		MemberRoot: c.memberRoot(),
	}
	if p := c.present.Load(); p != nil {
		for _, peer := range p.world.peers {
			out.Domains = append(out.Domains, c.peerDomain(p, peer))
		}
		for i := range p.world.in.domains {
			out.Domains = append(out.Domains, c.followedDomain(&p.world.in.domains[i]))
		}
	}
	return out
}

// followedDomain is a domain of which an endpoint tells.
func (c *Control) followedDomain(s *bundleendpoint.State) admin.TrustedDomain {
	d := admin.TrustedDomain{
		TrustDomain: s.Domain.Name(), Source: "endpoint", State: string(s.Freshness), Reason: s.Reason, Sequence: s.Sequence, Issued: s.Fetched,
	}
	fillBundle(&d, c.revoked.load().onto(s.Domain, s.Bundle))
	c.markRevoked(&d, s.Domain)
	return d
}

// markRevoked says that a whole domain is revoked here, whatever it says.
func (c *Control) markRevoked(d *admin.TrustedDomain, td spiffeid.TrustDomain) {
	if r, ok := c.revoked.load().find(td.Name()); ok {
		d.State = "Revoked"
		d.Reason = cmp.Or(r.Reason, "revoked at "+r.At.UTC().Format(time.RFC3339))
	}
}

func (c *Control) authorityState() admin.Authority {
	s := c.authority.State()
	out := admin.Authority{Kind: s.Kind, Source: s.Source, SVIDLifetime: s.SVIDLifetime, JWTKey: c.jwtKey()}
	if s.Issuing != nil {
		issuing := certificateOf(s.Issuing, "")
		out.Issuing = &issuing
	}
	if s.Problem != nil {
		out.Problem = s.Problem.Error()
	}
	return out
}

// ownDomain is the own trust domain, as peers and programs are told of it.
func (c *Control) ownDomain(now time.Time) admin.TrustedDomain {
	own := c.ownBundle()
	_, sequence := c.member.OwnBundle()
	d := admin.TrustedDomain{
		TrustDomain: c.cfg.Domain.Name(), Cluster: c.cfg.Cluster.String(), Source: "own", State: string(federation.Fresh),
		Sequence: sequence, Issued: now, Acknowledged: sequence,
	}
	fillBundle(&d, own)
	r := c.authority.Rotation()
	for i, root := range own.Authorities {
		d.Roots[i].State = "active"
		switch {
		case r.Next != nil && root.Equal(r.Next):
			d.Roots[i].State = "next"
		case r.Previous != nil && root.Equal(r.Previous):
			d.Roots[i].State = "previous"
		}
	}
	return d
}

// peerDomain is a peer's trust domain, as it is in force here.
func (c *Control) peerDomain(p *present, peer ClusterPeer) admin.TrustedDomain {
	d := admin.TrustedDomain{
		TrustDomain: peer.Domain.Name(), Cluster: peer.Cluster.String(), Source: "peer", State: string(federation.Waiting),
		Roots: []admin.Certificate{}, JWTKeys: []string{},
	}
	v := p.views.Cluster(peer.Cluster)
	if v == nil || v.Domain != peer.Domain {
		return d
	}
	d.State, d.Reason, d.Sequence, d.Issued = v.State(), v.Reason, v.BundleSequence, v.Issued
	d.Acknowledged = v.Acknowledged[c.cfg.Domain]
	fillBundle(&d, c.revoked.load().onto(v.Domain, v.Bundle))
	c.markRevoked(&d, peer.Domain)
	return d
}

// fillBundle adds what SVIDs of a domain are verified with.
func fillBundle(d *admin.TrustedDomain, b trust.Bundle) {
	d.Roots, d.JWTKeys = []admin.Certificate{}, notNil(slices.Sorted(maps.Keys(b.JWTAuthorities)))
	for _, root := range b.Authorities {
		d.Roots = append(d.Roots, certificateOf(root, ""))
		if root.NotAfter.After(d.NotAfter) {
			d.NotAfter = root.NotAfter
		}
	}
	d.Revoked = len(b.Revoked) + len(b.RevokedIDs)
	for key := range b.Revoked {
		d.RevokedKeys = append(d.RevokedKeys, keyID(key))
	}
	slices.Sort(d.RevokedKeys)
	if len(b.RevokedIDs) > 0 {
		d.RevokedIDs = make(map[string]time.Time, len(b.RevokedIDs))
		for id, until := range b.RevokedIDs {
			d.RevokedIDs[id.String()] = until
		}
	}
}

// getBundle answers with the bundle document of a domain that is trusted here.
func (c *Control) getBundle(w http.ResponseWriter, r *http.Request) {
	td, err := spiffeid.TrustDomainFromString(r.PathValue("domain"))
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	bundle, sequence, ok := c.bundleInForce(td)
	if !ok {
		refuse(w, http.StatusNotFound, fmt.Errorf("no bundle of %s is in force here", td.Name()))
		return
	}
	document, err := trust.MarshalBundle(td, bundle, sequence, 0)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	answer(w, admin.BundleDocument(document))
}

// bundleInForce returns what a domain is verified with here, and the sequence of that.
func (c *Control) bundleInForce(td spiffeid.TrustDomain) (trust.Bundle, uint64, bool) {
	if td == c.cfg.Domain {
		_, sequence := c.member.OwnBundle()
		return c.ownBundle(), sequence, true
	}
	if p := c.present.Load(); p != nil {
		for _, v := range p.world.usable {
			if v.Domain == td {
				return p.world.in.revoked.onto(td, v.Bundle), v.BundleSequence, true
			}
		}
		for i := range p.world.in.domains {
			if s := &p.world.in.domains[i]; s.Domain == td && len(s.Bundle.Authorities) > 0 && !p.world.in.revoked.domain(td) {
				return p.world.in.revoked.onto(td, s.Bundle), s.Sequence, true
			}
		}
	}
	return trust.Bundle{}, 0, false
}

// errNobodyWaits answers a request whose client has given up. Nobody reads it, as a rule.
var errNobodyWaits = errors.New("whoever asked for this has gone: nothing was done")

// awaited reports whether the client of a request that changes something is still there, or answers: who gave up expects nothing to happen.
func awaited(w http.ResponseWriter, r *http.Request) bool {
	if telemetry.Awaited(r) {
		return true
	}
	refuse(w, http.StatusRequestTimeout, errNobodyWaits)
	return false
}

// decodeAsk reads the body of a request that is waited for, or answers.
func decodeAsk(w http.ResponseWriter, r *http.Request, what string, limit int64, into any) bool {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("%s: %w", what, err))
		return false
	}
	return awaited(w, r)
}

func (c *Control) postRotation(w http.ResponseWriter, r *http.Request) {
	var ask admin.RotationRequest
	if !decodeAsk(w, r, "rotation request", maxAsk, &ask) {
		return
	}
	err := c.rotate(ask)
	_, bad := errors.AsType[errBadStep](err)
	_, held := errors.AsType[*trust.HeldError](err)
	switch {
	case bad:
		refuse(w, http.StatusBadRequest, err)
	case held || errors.Is(err, trust.ErrWrongStep):
		refuse(w, http.StatusConflict, err)
	case err != nil:
		refuse(w, http.StatusInternalServerError, err)
	default:
		if !ask.DryRun {
			c.cfg.Log.InfoContext(r.Context(), "rotation of the root moved by an operator", "step", ask.Step, "force", ask.Force)
		}
		answer(w, c.rotation())
	}
}
