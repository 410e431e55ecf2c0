package control

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/trust"
)

// rootOwners finds roots that two trust domains share: whoever may issue under one for its own members may do so for the other's.
type rootOwners map[[sha256.Size]byte]spiffeid.TrustDomain

// claim notes a domain's roots, and returns whose another one is too.
func (o rootOwners) claim(td spiffeid.TrustDomain, b trust.Bundle) (other spiffeid.TrustDomain, shared bool) {
	for _, root := range b.Authorities {
		key := trust.Fingerprint(root)
		if owner, taken := o[key]; taken && owner != td {
			other, shared = owner, true
			continue
		}
		o[key] = td
	}
	return other, shared
}

// takesOurs tells whether a bundle of somebody else has a root of this cluster's, though no CA of its SVIDs says whose it is: the verifier would
// refuse them then, all that the cluster's own programs show each other. Roots are public, so anybody could bring that about.
func (w *world) takesOurs(b trust.Bundle) bool {
	return !w.in.named && slices.ContainsFunc(b.Authorities, func(root *x509.Certificate) bool {
		key := trust.Fingerprint(root)
		return slices.ContainsFunc(w.in.trust.Authorities, func(own *x509.Certificate) bool { return trust.Fingerprint(own) == key })
	})
}

// checkSharedRoots names the peers that share a root with this cluster or with another peer. The verifier takes from below such a root only what a
// CA has signed that says whose it is (trust.Bundles), so they are not shut out: any peer could shut out another, by telling its root as its own.
// Where that would shut out the own cluster, the peer is.
func (w *world) checkSharedRoots() {
	owners := make(rootOwners)
	owners.claim(w.in.self.Domain, w.in.trust)
	w.usable = slices.DeleteFunc(w.usable, func(v *federation.View) bool {
		i := slices.IndexFunc(w.peers, func(p ClusterPeer) bool { return p.Cluster == v.Cluster })
		if !w.takesOurs(v.Bundle) {
			return false
		}
		if i >= 0 {
			w.problems = append(w.problems, Problem{
				Source: w.peers[i].Source, Object: w.peers[i].Object(),
				Reason: fmt.Sprintf("%s has a root that is this cluster's own too, and no CA here has the trust domain as its URI: it is not trusted, or nothing that "+
					"this cluster issues would be; give the intermediate the URI %s", v.Domain.Name(), w.in.self.Domain.IDString()),
			})
		}
		return true
	})
	for _, v := range w.usable {
		other, shared := owners.claim(v.Domain, v.Bundle)
		i := slices.IndexFunc(w.peers, func(p ClusterPeer) bool { return p.Cluster == v.Cluster })
		if !shared || i < 0 {
			continue
		}
		w.problems = append(w.problems, Problem{
			Source: w.peers[i].Source, Object: w.peers[i].Object(),
			Reason: fmt.Sprintf("%s has a root that %s has too: whoever has its key can issue SVIDs of both. Those of either are taken only from a CA that has the "+
				"trust domain as its URI; better, give each cluster a root of its own", v.Domain.Name(), other.Name()),
		})
	}
}
