package federation

import (
	"net/netip"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// View is what one peer says of itself: one consistent cut, all of it under one signed Head. Nothing in it changes.
type View struct {
	Cluster topology.ClusterName
	Domain  spiffeid.TrustDomain
	Region  string // empty: not said

	// Epoch and Seq number the Head; both are 0 while Freshness is Waiting.
	Epoch, Seq uint64
	// Issued is when the peer signed the Head, by its clock; Received when we took it, by ours.
	Issued, Received time.Time
	// NotAfter is when the word of this peer ends at the latest: its MemberRoot, or its trust bundle.
	NotAfter time.Time

	Freshness Freshness
	// Quarantined: the peer has said two things under one number. What is here is the last that was good; nothing newer is
	// taken until its federation root key signs a new epoch, or the peer is removed and added again.
	Quarantined bool
	// Reason says in words what is wrong or awaited; empty when nothing is.
	Reason string

	Bundle trust.Bundle
	// BundleSequence is that of the peer's trust bundle, which grows with each change of its authorities.
	BundleSequence uint64
	// Acknowledged says which bundles are in force in the peer's cluster, in every program that is connected there: by trust domain, the
	// sequence.
	Acknowledged map[spiffeid.TrustDomain]uint64

	Gateways []Gateway      // ordered by ID
	PodCIDRs []netip.Prefix // of its pods, as far as it says
	Exports  []Export       // ordered by name

	spec PeerSpec // whom it is of
}

// same reports whether nothing but the time has passed between two views.
func (v *View) same(o *View) bool {
	return v == o || v.spec == o.spec && v.Epoch == o.Epoch && v.Seq == o.Seq && v.Received.Equal(o.Received) &&
		v.Freshness == o.Freshness && v.Quarantined == o.Quarantined && v.Reason == o.Reason
}

// Usable reports whether new connections to and from the peer may be made.
func (v *View) Usable() bool { return v.Freshness != Waiting && v.Freshness != Expired }

const quarantined = "Quarantined"

// State is Freshness, or "Quarantined": one word, as status shows it.
func (v *View) State() string {
	if v.Quarantined {
		return quarantined
	}
	return string(v.Freshness)
}

// Views is what all pinned peers say, at one moment. Immutable; nil is no peer.
type Views struct {
	ordered []*View
}

// All returns the views of all pinned peers, also of those that are Waiting, ordered by cluster. Not to be changed.
func (v *Views) All() []*View {
	if v == nil {
		return nil
	}
	return v.ordered
}

// Cluster returns the view of the named cluster, or nil when it is no peer.
func (v *Views) Cluster(name topology.ClusterName) *View {
	if v == nil {
		return nil
	}
	i, ok := slices.BinarySearchFunc(v.ordered, name, func(v *View, n topology.ClusterName) int { return v.Cluster.Compare(n) })
	if !ok {
		return nil
	}
	return v.ordered[i]
}
