package control

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/trust"
)

// serveRevocations adds what the admin API does about revocations, and SVIDs.
func (c *Control) serveRevocations(mux *http.ServeMux) {
	mux.HandleFunc("POST "+admin.RevocationsPath, c.postRevocation)
	mux.HandleFunc("DELETE "+admin.RevocationsPath, c.deleteRevocation)
	mux.HandleFunc("POST /v1/trust/svids", c.postSVID)
}

func (c *Control) postRevocation(w http.ResponseWriter, r *http.Request) {
	var ask admin.Revocation
	if !decodeAsk(w, r, "revocation", maxAsk, &ask) {
		return
	}
	err := c.checkRevocable(ask.Subject)
	var done revocation
	if err == nil {
		done, err = c.revoked.add(c.placed(ask), ask.DryRun)
	}
	if err != nil {
		refuse(w, revocationCode(err), err)
		return
	}
	out := c.revocationOf(done)
	if out.DryRun = ask.DryRun; !ask.DryRun {
		c.cfg.Log.WarnContext(r.Context(), "revoked by an operator", "subject", done.Subject, "block", done.Block, "reason", done.Reason)
		c.enforce()
	}
	answer(w, out)
}

func (c *Control) deleteRevocation(w http.ResponseWriter, r *http.Request) {
	subject := r.URL.Query().Get("subject")
	if !awaited(w, r) {
		return
	}
	if err := c.revoked.remove(subject); err != nil {
		refuse(w, revocationCode(err), err)
		return
	}
	c.cfg.Log.WarnContext(r.Context(), "revocation undone by an operator", "subject", subject)
	c.enforce()
	w.WriteHeader(http.StatusNoContent)
}

func revocationCode(err error) int {
	switch {
	case errors.Is(err, errRevocation):
		return http.StatusBadRequest
	case errors.Is(err, errNotRevoked):
		return http.StatusNotFound
	case errors.Is(err, errManyRevoked), errors.Is(err, errRevokeNot):
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}

// tellFirst is how long a program whose SVID was revoked keeps its connection, so that it hears why it loses it: else it would go on handing its
// identity out. On that connection it gets nothing any more (peerOf).
const tellFirst = 300 * time.Millisecond

// enforce puts what is revoked in force: it has everybody told, and then closes the connections of those who are refused now.
func (c *Control) enforce() {
	c.poke()
	time.AfterFunc(tellFirst, func() {
		if err := c.takeRoots(); err != nil {
			c.cfg.Log.Error("trust bundle not written", "error", err)
		}
	})
}

// checkRevocable refuses what would put the whole cluster out: the keys that the own domain lives by.
func (c *Control) checkRevocable(subject string) error {
	s, own := c.authority.State(), c.ownBundle()
	if s.Issuing != nil && subject == keyID(trust.Fingerprint(s.Issuing)) {
		return fmt.Errorf("%w: it is the key of the CA that issues this cluster's SVIDs: rotate the root", errRevokeNot)
	}
	var previous *[sha256.Size]byte
	if r := c.authority.Rotation(); r.Previous != nil {
		sum := trust.Fingerprint(r.Previous)
		previous = &sum
	}
	for _, root := range own.Authorities {
		sum := trust.Fingerprint(root)
		if subject == keyID(sum) && (previous == nil || *previous != sum) {
			return fmt.Errorf("%w: it is the key of this cluster's own root, which everything of it hangs on: rotate it, and revoke it then", errRevokeNot)
		}
	}
	return nil
}

// placed adds what is known here of what is to be revoked: whose a key is, and by when all that was issued to an ID of a peer has ended.
func (c *Control) placed(ask admin.Revocation) admin.Revocation {
	if td, _ := c.rootOf(ask.Subject); !td.IsZero() {
		ask.TrustDomain, ask.Ends = td.Name(), time.Time{} // an authority's key may be certified anew at any time
	}
	if id, err := spiffeid.FromString(ask.Subject); err == nil {
		ask.Ends = time.Time{} // of a domain that is no cluster of the mesh, how long its SVIDs live isn't known
		if _, ok := c.clusterOf(id.TrustDomain()); ok {
			ask.Ends = c.cfg.Now().Add(foreignLife)
		}
	}
	return ask
}

// clusterOf returns the peer of a trust domain.
func (c *Control) clusterOf(td spiffeid.TrustDomain) (ClusterPeer, bool) {
	if p := c.present.Load(); p != nil {
		for _, peer := range p.world.peers {
			if peer.Domain == td {
				return peer, true
			}
		}
	}
	return ClusterPeer{}, false
}

// rootOf returns of which other domain a key is that of a root, and whether every root of that has a revoked key, or this one.
func (c *Control) rootOf(subject string) (td spiffeid.TrustDomain, all bool) {
	p := c.present.Load()
	if p == nil {
		return td, false
	}
	is := func(domain spiffeid.TrustDomain, roots []*x509.Certificate) bool {
		if !slices.ContainsFunc(roots, func(root *x509.Certificate) bool { return trust.KeyID(root) == subject }) {
			return false
		}
		td = domain
		all = !slices.ContainsFunc(roots, func(root *x509.Certificate) bool {
			_, revoked := c.revoked.load().find(trust.KeyID(root))
			return !revoked && trust.KeyID(root) != subject
		})
		return true
	}
	for _, peer := range p.world.peers {
		if v := p.views.Cluster(peer.Cluster); v != nil && v.Domain == peer.Domain && is(v.Domain, v.Bundle.Authorities) {
			return td, all
		}
	}
	for i := range p.world.in.domains {
		if s := &p.world.in.domains[i]; is(s.Domain, s.Bundle.Authorities) {
			return td, all
		}
	}
	return td, false
}

// affects says what a revocation ends of another domain, where that can be said.
func (c *Control) affects(r *revocation) string {
	td, all := r.domain, true
	if r.Kind == revokedKey {
		td, all = c.rootOf(r.Subject)
	}
	if td.IsZero() {
		return ""
	}
	whose := td.Name()
	if peer, ok := c.clusterOf(td); ok {
		whose = "cluster " + peer.Cluster.String()
	}
	if !all {
		return "what one of its roots vouches for, of " + whose
	}
	return "all of " + whose
}

// revocationOf is a revocation as people are shown it.
func (c *Control) revocationOf(r revocation) admin.Revocation {
	out := admin.Revocation{
		Subject: r.Subject, Kind: r.Kind, Block: r.Block, Reason: r.Reason, At: r.At, Ends: r.Ends,
		TrustDomain: r.TrustDomain, Told: r.told(c.cfg.Domain), Affects: c.affects(&r),
	}
	out.Bound = "here within 1 s of its making, in every program that is connected to control; other clusters decide for themselves, and are not told"
	if out.Told {
		out.Bound = "here within 1 s of its making, in every program that is connected to control; " +
			"in a peer within 10 s, if a way over the bus leads to it, and else when it hears of us again"
	}
	if !r.Ends.IsZero() {
		out.Bound += "; whoever hears nothing is safe from " + r.Ends.UTC().Format(time.RFC3339) + " on, when all that it speaks of has ended"
	}
	if r.Kind == revokedKey && r.TrustDomain == "" {
		out.Bound += "; it isn't known here whose key that is: peers take it as one of ours, and for nobody else's"
	}
	if r.Ends.IsZero() && !r.Block && r.Kind != revokedDomain {
		out.Bound += "; it stays until it is undone, because it isn't known here when what it speaks of ends (a FILE with the SVID says it; " +
			"an authority's key may always sign anew)"
	}
	holder, known := c.revoked.holder(r.key)
	out.Uncounted = r.Kind == revokedDomain || r.Kind == revokedKey && !known || r.Kind == revokedID && !r.id.MemberOf(c.cfg.Domain)
	counted := make(map[string]bool)
	for _, s := range c.stream.Sessions() {
		if r.Kind == revokedID && s.ID == r.id || r.Kind == revokedKey && known && s.ID == holder.id {
			counted[s.Receiver] = true
		}
	}
	out.Matches = len(counted)
	return out
}

// revocationList is all that is revoked, as people are shown it.
func (c *Control) revocationList() []admin.Revocation {
	out := []admin.Revocation{}
	for _, r := range c.revoked.load().list() {
		out = append(out, c.revocationOf(r))
	}
	return out
}

// postSVID issues an SVID to whomever the operator names.
func (c *Control) postSVID(w http.ResponseWriter, r *http.Request) {
	var ask admin.SVIDRequest
	if !decodeAsk(w, r, "SVID request", 2*maxCSR, &ask) {
		return
	}
	id, err := spiffeid.FromString(ask.SPIFFEID)
	if err == nil {
		err = c.checkIssuable(id)
	}
	if err == nil {
		err = checkRequest(ask.CSR)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("SVID request: %w", err))
		return
	}
	chain, err := c.issuer().issue(r.Context(), ask.CSR, id)
	switch {
	case errors.Is(err, errBlocked):
		refuse(w, http.StatusConflict, err)
		return
	case err != nil:
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	c.cfg.Log.WarnContext(r.Context(), "SVID issued to an operator", "spiffe_id", id.String(), "not_after", chain[0].NotAfter)
	out := admin.SVID{SPIFFEID: id.String()}
	for _, cert := range chain {
		out.Chain = append(out.Chain, cert.Raw)
	}
	answer(w, out)
}

// checkIssuable refuses what nobody gets by an operator's word: identities of other domains, of none, and of our own programs, which join.
func (c *Control) checkIssuable(id spiffeid.ID) error {
	switch {
	case !id.MemberOf(c.cfg.Domain):
		return fmt.Errorf("%s is not of %s", id, c.cfg.Domain.Name())
	case id.Path() == "":
		return fmt.Errorf("%s is a trust domain: name a member of it, %s/ns/NAMESPACE/sa/ACCOUNT", id, id)
	case id.Path() == "/isthmus" || strings.HasPrefix(id.Path(), "/isthmus/"):
		return fmt.Errorf("%s is reserved for the mesh's own programs: control issues its own, gateways and node proxies join (isthmus join-token)", id)
	}
	return nil
}
