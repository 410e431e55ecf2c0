package main

import (
	"fmt"
	"strings"

	"github.com/isthmus-mesh/isthmus/topology"
)

// parseService reads a service as users write one: NAMESPACE/NAME, NAME.NAMESPACE, or one of its full names.
func parseService(s string) (topology.ServiceName, error) {
	var n topology.ServiceName
	var err error
	if namespace, name, is := strings.Cut(s, "/"); is {
		n, err = topology.NewServiceName(namespace, name)
	} else {
		short := strings.TrimSuffix(s, ".")
		for _, suffix := range []string{".svc.clusterset.local", ".svc.cluster.local"} {
			short = strings.TrimSuffix(short, suffix)
		}
		n, err = topology.ParseServiceName(short)
	}
	if err != nil {
		return n, usage{fmt.Errorf("service %q: want NAMESPACE/NAME or NAME.NAMESPACE, for example shop/checkout", s)}
	}
	return n, nil
}

// isService reports whether a word names a service, and not a cluster.
func isService(s string) bool { return strings.ContainsAny(s, "./") }
