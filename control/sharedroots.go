package control

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

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

// tellSharedRoots names the peers that share a root with this cluster or with another peer. The verifier takes from below such a root only what a
// CA has signed that says whose it is (trust.Bundles), so they are not shut out: any peer could shut out another, by telling its root as its own.
func (w *world) tellSharedRoots() {
	owners := make(rootOwners)
	owners.claim(w.in.self.Domain, w.in.trust)
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
