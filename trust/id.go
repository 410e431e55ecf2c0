package trust

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Paths of the programs' own identities.
const (
	controlPath   = "/isthmus/control"
	gatewayPrefix = "/isthmus/gateway/"
	nodePrefix    = "/isthmus/node/"
)

// WorkloadID is spiffe://<td>/ns/<namespace>/sa/<serviceAccount>.
func WorkloadID(td spiffeid.TrustDomain, namespace, serviceAccount string) (spiffeid.ID, error) {
	return newID(td, "ns", namespace, "sa", serviceAccount)
}

// ControlID is spiffe://<td>/isthmus/control: the control plane of a trust domain.
func ControlID(td spiffeid.TrustDomain) (spiffeid.ID, error) {
	return newID(td, "isthmus", "control")
}

// GatewayID is spiffe://<td>/isthmus/gateway/<id>.
func GatewayID(td spiffeid.TrustDomain, id string) (spiffeid.ID, error) {
	return newID(td, "isthmus", "gateway", id)
}

// NodeID is spiffe://<td>/isthmus/node/<name>: a proxy that stands in for workloads that have none.
func NodeID(td spiffeid.TrustDomain, name string) (spiffeid.ID, error) {
	return newID(td, "isthmus", "node", name)
}

func newID(td spiffeid.TrustDomain, segments ...string) (spiffeid.ID, error) {
	if td.IsZero() {
		return spiffeid.ID{}, fmt.Errorf("trust: identity %q: no trust domain", strings.Join(segments, "/"))
	}
	id, err := spiffeid.FromSegments(td, segments...)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("trust: identity %q in %s: %w", strings.Join(segments, "/"), td, err)
	}
	if len(id.String()) > maxID {
		return spiffeid.ID{}, fmt.Errorf("trust: identity in %s is longer than %d bytes", td, maxID)
	}
	return id, nil
}

// IsControl tells whether id is a control plane's.
func IsControl(id spiffeid.ID) bool { return id.Path() == controlPath }

// ParseGateway returns the gateway's own name when id is a gateway's.
func ParseGateway(id spiffeid.ID) (name string, ok bool) { return lastSegment(id, gatewayPrefix) }

// ParseNode returns the node's name when id is a node proxy's.
func ParseNode(id spiffeid.ID) (name string, ok bool) { return lastSegment(id, nodePrefix) }

// ParseWorkload returns namespace and service account when id is a workload's.
func ParseWorkload(id spiffeid.ID) (namespace, serviceAccount string, ok bool) {
	rest, ok := strings.CutPrefix(id.Path(), "/ns/")
	if !ok {
		return "", "", false
	}
	namespace, serviceAccount, ok = strings.Cut(rest, "/sa/")
	if !ok || namespace == "" || serviceAccount == "" || strings.Contains(namespace, "/") || strings.Contains(serviceAccount, "/") {
		return "", "", false
	}
	return namespace, serviceAccount, true
}

func lastSegment(id spiffeid.ID, prefix string) (string, bool) {
	name, ok := strings.CutPrefix(id.Path(), prefix)
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", false
	}
	return name, true
}
