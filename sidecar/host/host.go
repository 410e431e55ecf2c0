// Package host reads the names by which applications call services: <name>.<namespace>.svc.clusterset.local (KEP-1645) and
// <name>.<namespace>.svc.cluster.local. The sidecar's HTTP side and its DNS room use it; it holds no state.
package host

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/topology"
)

// The zones that the mesh answers for.
const (
	ClusterSetZone = "clusterset.local"
	ClusterZone    = "cluster.local"

	services = "svc"
	maxName  = 253 // RFC 1035 section 2.3.4, as text
)

var (
	// ErrNotMesh says that the name is outside the mesh's zones.
	ErrNotMesh = errors.New("not a name of the mesh")
	// ErrMalformed says that it can't be a host and a port, or is in a zone of the mesh and no service's name.
	ErrMalformed = errors.New("malformed name")
)

// Parse reads "host" or "host:port", as a Host header or CONNECT gives it. Without a port, it is defaultPort; 0 there
// means that a port must be given.
func Parse(authority string, defaultPort uint16) (topology.Query, error) {
	name, port := authority, defaultPort
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && !strings.HasSuffix(authority, "]") {
		n, err := strconv.ParseUint(authority[i+1:], 10, 16)
		if err != nil || n == 0 || authority[i+1] == '0' {
			return topology.Query{}, fmt.Errorf("%w: port %.16q: want 1 to 65535", ErrMalformed, authority[i+1:])
		}
		name, port = authority[:i], uint16(n)
	}
	service, scope, err := Name(name)
	if err != nil {
		return topology.Query{}, err
	}
	if port == 0 {
		return topology.Query{}, fmt.Errorf("%w: %q has no port", ErrMalformed, name)
	}
	return topology.Query{Service: service, Port: port, Scope: scope}, nil
}

// Name reads a service's DNS name, in any case, with or without the final dot.
func Name(name string) (topology.ServiceName, topology.Scope, error) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if len(name) > maxName {
		return topology.ServiceName{}, 0, fmt.Errorf("%w: %d characters: at most %d", ErrMalformed, len(name), maxName)
	}
	rest, scope, ok := Zone(name)
	if !ok {
		return topology.ServiceName{}, 0, fmt.Errorf("%q: %w", clip(name), ErrNotMesh)
	}
	rest, ok = strings.CutSuffix(rest, "."+services)
	if !ok {
		return topology.ServiceName{}, 0, fmt.Errorf("%w: %q: want <name>.<namespace>.%s.<zone>", ErrMalformed, name, services)
	}
	service, err := topology.ParseServiceName(rest)
	if err != nil {
		return topology.ServiceName{}, 0, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return service, scope, nil
}

// Zone splits a lower-case name without final dot into what stands before the zone, and the zone; ok is false outside of both.
func Zone(name string) (rest string, scope topology.Scope, ok bool) {
	for _, z := range [...]struct {
		zone  string
		scope topology.Scope
	}{{ClusterSetZone, topology.ClusterSet}, {ClusterZone, topology.ClusterLocal}} {
		if name == z.zone {
			return "", z.scope, true
		}
		if rest, ok := strings.CutSuffix(name, "."+z.zone); ok {
			return rest, z.scope, true
		}
	}
	return "", 0, false
}

// String returns the DNS name of a query's service.
func String(q topology.Query) string {
	zone := ClusterSetZone
	if q.Scope == topology.ClusterLocal {
		zone = ClusterZone
	}
	return q.Service.String() + "." + services + "." + zone
}

func clip(s string) string { return s[:min(len(s), maxName)] }
