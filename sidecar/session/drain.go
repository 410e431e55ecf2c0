package session

import (
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// drainedIdle is how long a session to copies that are drained may carry nothing: their owner wants to take them away.
const drainedIdle = 5 * time.Second

// drained reports whether the copies that to leads to are, by the owner's latest word.
func drained(s *topology.Snapshot, to Destination) bool {
	if s == nil {
		return false
	}
	service := s.Service(to.Service)
	if service == nil || to.Endpoint != nil {
		return service != nil && service.Drain != nil
	}
	for i := range service.Remotes {
		if service.Remotes[i].Cluster == to.Cluster {
			return service.Remotes[i].Drain != nil
		}
	}
	return false
}
