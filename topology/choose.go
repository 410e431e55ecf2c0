package topology

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// Target is one place a call can go: an endpoint of the own cluster, or another cluster as a whole (whose
// gateway picks the copy). Comparable, so that health and load can be kept by it.
type Target struct {
	Service  ServiceName
	Port     uint16 // that is called: a copy may answer on one and not on another
	Cluster  ClusterName
	Endpoint string // Endpoint.ID in the own cluster; empty for another cluster, but for a copy of a headless service that was named
	// Datagrams: the port is the one for datagrams.
	Datagrams bool
}

// Compare orders by service, cluster, endpoint.
func (t Target) Compare(o Target) int {
	return cmp.Or(t.Service.Compare(o.Service), cmp.Compare(t.Port, o.Port), t.Cluster.Compare(o.Cluster), strings.Compare(t.Endpoint, o.Endpoint),
		compareFlags(t.Datagrams, o.Datagrams))
}

func compareFlags(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// Scope says which copies a name speaks of.
type Scope uint8

const (
	// ClusterSet is <name>.<ns>.svc.clusterset.local: exported copies, everywhere.
	ClusterSet Scope = iota
	// ClusterLocal is <name>.<ns>.svc.cluster.local: copies in the own cluster only.
	ClusterLocal
)

// Query is what a caller asks for.
type Query struct {
	Service ServiceName
	Port    uint16
	Scope   Scope
	// Host names the one copy that is called; zero: any.
	Host HostRef
	// Datagrams asks for the port that is for datagrams, where one of the same number is reached over TCP.
	Datagrams bool
}

// Target returns the place of one copy, or of a cluster's as a whole, of what is asked for.
func (q Query) Target(cluster ClusterName, endpoint string) Target {
	return Target{Service: q.Service, Port: q.Port, Cluster: cluster, Endpoint: endpoint, Datagrams: q.Datagrams}
}

// Load is what the caller knows by itself. Choose has no clock: until when any of it holds is the caller's affair, who asks again when it
// doesn't. The zero Load is in use.
type Load struct {
	// Suspected are the targets that its own requests found wanting, and the evidence for that, in words ("3 resets in a row").
	Suspected map[Target]string
	// Levels bound what the places of the service that is asked for may get now; one that has none may get all that its health allows.
	Levels map[LevelKey]Level
}

// LevelKey says what a Level is of: a tier as a whole, a cluster's copies within a tier, or, without a tier, a cluster's copies
// wherever they are.
type LevelKey struct {
	Tier    TierID
	Cluster ClusterName // zero: the tier
}

// TierID names a tier of one service's order: a policy's by its number, from 1, as "1"; the default order's by its name, "zone". Empty
// names none.
type TierID string

// Level is how much a place may get now.
type Level struct {
	Part float64 // from 0 to 1
	Why  string  // in words: "at 35 %, all of it in 39s"
}

// Why Choose has nothing to offer (errors.Is).
var (
	// ErrUnknownService: the snapshot doesn't hold the service.
	ErrUnknownService = errors.New("unknown service")
	// ErrUnknownPort: the service has no port of that number.
	ErrUnknownPort = errors.New("unknown port")
	// ErrNotImported: a clusterset name was asked for, and no cluster exports the service.
	ErrNotImported = errors.New("not imported")
	// ErrNoCandidates: the service is there, but no copy of it may be used; the Plan says why of each.
	ErrNoCandidates = errors.New("no copy to send to")
)

// Choose orders the copies of a service for the holder of s. It is pure: the same arguments give the same plan
// everywhere, in whatever order the snapshot lists its copies.
//
// With a policy, its tiers are tried in order: a copy belongs to the first tier that matches it, and is not used when
// none does. Without one: own copies in the caller's zone, own copies in its region, other clusters of the region,
// own copies of other regions, then cluster by cluster in order of round-trip time.
//
// Each tier takes of what it is offered what its health and the caller's levels allow, and the rest goes on: with a policy's spill the part that its
// healthy copies are of those that it should have, without it all, as long as a copy is left. Levels (recovery, drains) only ever lower that. A
// copy whose level is 0 by its owner's drain stands behind all that are trusted.
//
// A copy that is only suspected (by load, or because its link is reported down) is never lost: it moves to a
// last-resort tier behind all others. Only the owner's word (not ready, not exported, port not served) or the policy excludes.
//
// The error is ErrUnknownService, ErrUnknownPort, ErrNotImported or ErrNoCandidates. The Plan that comes with the last
// has no tier, but says why of every copy.
//
// The plan costs some allocations: it is made once for each change of snapshot or load, not for each request.
func Choose(s *Snapshot, q Query, load Load) (Plan, error) {
	return choose(s, q, load)
}

// String returns "clusterset" or "cluster".
func (s Scope) String() string {
	if s == ClusterLocal {
		return "cluster"
	}
	return "clusterset"
}

// MarshalText returns String.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes what MarshalText returns.
func (s *Scope) UnmarshalText(b []byte) error {
	switch string(b) {
	case ClusterSet.String():
		*s = ClusterSet
	case ClusterLocal.String():
		*s = ClusterLocal
	default:
		return fmt.Errorf("scope %q: want clusterset or cluster: %w", b, ErrName)
	}
	return nil
}
