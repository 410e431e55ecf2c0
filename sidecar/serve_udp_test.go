package sidecar

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/topology"
)

// What waits for callers of one foreign trust domain counts together: it may vouch for as many as it likes.
func TestCallersOfAForeignDomainWaitTogether(t *testing.T) {
	own, foreign := spiffeid.RequireTrustDomainFromString("eu.example.org"), spiffeid.RequireTrustDomainFromString("us.example.org")
	in := &Inbound{snapshots: live.NewValue(topology.NewSnapshot(topology.SnapshotSpec{Self: topology.Self{Domain: own}}))}
	waiter := func(domain spiffeid.TrustDomain, path string) string {
		return in.waiter(spiffeid.RequireFromPath(domain, path))
	}
	if waiter(foreign, "/ns/a/sa/1") != waiter(foreign, "/ns/a/sa/2") {
		t.Error("two callers of a foreign domain are two")
	}
	if waiter(own, "/ns/a/sa/1") == waiter(own, "/ns/a/sa/2") || waiter(own, "/ns/a/sa/1") == waiter(foreign, "/ns/a/sa/1") {
		t.Error("a caller of the own domain is another")
	}
}
