package control

import (
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// frozen holds on to what each peer said last before its word froze.
type frozen map[topology.ClusterName]*federation.View

// apply returns views, where a word that came into force while it was Frozen already (its last part was late by an hour) is replaced by the
// one before: from a Frozen word no new trust anchors, exports and gateways are taken. A peer whose word is Frozen when it is first
// seen, after a start, is taken as it is: that is what was in force before. next is to be applied the next time.
func (f frozen) apply(views []*federation.View) (out []*federation.View, next frozen) {
	next = make(frozen, len(views))
	for _, v := range views {
		before := f[v.Cluster]
		if v.Freshness == federation.Frozen && before != nil && before.Domain == v.Domain && (before.Epoch != v.Epoch || before.Seq != v.Seq) {
			held := *v
			held.Epoch, held.Seq = before.Epoch, before.Seq
			held.Bundle, held.Gateways, held.Exports = before.Bundle, before.Gateways, before.Exports
			held.BundleSequence = before.BundleSequence
			held.Bundle.Revoked, held.Bundle.RevokedIDs = v.Bundle.Revoked, v.Bundle.RevokedIDs // who is put out stays out
			v = &held
		}
		if v.Usable() {
			next[v.Cluster] = v
		}
		out = append(out, v)
	}
	return out, next
}
