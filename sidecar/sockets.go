package sidecar

import (
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxSockets bounds the flows of datagrams that others have with the applications here, each of which has a socket, and maxSocketsFrom those
// of one caller. Past it, the flow that has been idle the longest makes room: most that are idle are over, and nobody said so.
const (
	maxSockets     = 4096
	maxSocketsFrom = 1024
)

// sockets counts them. The zero value is in use. Safe for concurrent use.
type sockets struct {
	mu    sync.Mutex
	held  map[spiffeid.ID]map[*appFlow]struct{} // guarded by mu
	total int                                   // guarded by mu
}

// enter counts a flow in, and returns the one that has to go for it; nil when there is room.
func (s *sockets) enter(caller spiffeid.ID, f *appFlow) (victim *appFlow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.held[caller]) >= maxSocketsFrom:
		victim = idlest(s.held[caller])
	case s.total >= maxSockets: // of the caller who has the most
		var most map[*appFlow]struct{}
		for _, flows := range s.held {
			if len(flows) > len(most) {
				most = flows
			}
		}
		victim = idlest(most)
	}
	if victim != nil {
		s.drop(victim)
	}
	if s.held == nil {
		s.held = make(map[spiffeid.ID]map[*appFlow]struct{})
	}
	if s.held[caller] == nil {
		s.held[caller] = make(map[*appFlow]struct{})
	}
	s.held[caller][f] = struct{}{}
	s.total++
	return victim
}

// leave counts a flow out.
func (s *sockets) leave(f *appFlow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(f)
}

// drop takes a flow out, if it is in. mu is held.
func (s *sockets) drop(f *appFlow) {
	caller := f.visit.peer.ID
	if _, in := s.held[caller][f]; !in {
		return
	}
	delete(s.held[caller], f)
	if len(s.held[caller]) == 0 {
		delete(s.held, caller)
	}
	s.total--
}

func idlest(flows map[*appFlow]struct{}) (oldest *appFlow) {
	for f := range flows {
		if oldest == nil || f.used.Load() < oldest.used.Load() {
			oldest = f
		}
	}
	return oldest
}
