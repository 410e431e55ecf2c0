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

// checkRoots leaves out the peers that share a root with this cluster: their members could speak as ours, and the other way round. Of two peers
// that share one it is said only: to leave one out would let any peer shut out another, by telling the other's root as its own.
func (w *world) checkRoots() {
	own, all := make(rootOwners), make(rootOwners)
	own.claim(w.in.self.Domain, w.in.trust)
	w.usable = slices.DeleteFunc(w.usable, func(v *federation.View) bool {
		other, shared := all.claim(v.Domain, v.Bundle)
		ours := slices.ContainsFunc(v.Bundle.Authorities, func(root *x509.Certificate) bool { _, is := own[trust.Fingerprint(root)]; return is })
		i := slices.IndexFunc(w.peers, func(p ClusterPeer) bool { return p.Cluster == v.Cluster })
		if i < 0 {
			return ours
		}
		problem := Problem{Source: w.peers[i].Source, Object: w.peers[i].Object()}
		switch {
		case ours:
			problem.Reason = fmt.Sprintf("%s has a root that is this cluster's own too, and could issue SVIDs of its members: it is not trusted; "+
				"give each cluster a root of its own", v.Domain.Name())
		case shared:
			problem.Reason = fmt.Sprintf("%s has a root that %s has too: each could issue SVIDs of the other's members; give each cluster a root of its own",
				v.Domain.Name(), other.Name())
		default:
			return false
		}
		w.problems = append(w.problems, problem)
		return ours
	})
}
