package session

import (
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// drainedIdle is how long a session to copies that are drained may carry nothing: their owner wants to take them away.
const drainedIdle = 5 * time.Second

// drained reports whether the copies that to leads to are, by the owner's latest word.
func drained(s *topology.Snapshot, to Destination) bool {
	return s != nil && Drained(s, to.Service, to.Cluster) != nil
}

// Drained returns the owner's latest word on a service's copies in a cluster: nil, or that they are drained.
func Drained(s *topology.Snapshot, name topology.ServiceName, cluster topology.ClusterName) *topology.Drain {
	service := s.Service(name)
	if service == nil {
		return nil
	}
	for i := range service.Remotes {
		if service.Remotes[i].Cluster == cluster {
			return service.Remotes[i].Drain
		}
	}
	if cluster != s.Self().Cluster {
		return nil
	}
	return service.Drain
}
