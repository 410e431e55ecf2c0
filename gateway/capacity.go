package gateway

import (
	"slices"
	"sync"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// capacityOf returns the ready copies of each service that s exports to the named cluster.
func capacityOf(s *topology.Snapshot, to topology.ClusterName) map[topology.ServiceName]uint32 {
	capacity := make(map[topology.ServiceName]uint32)
	for _, e := range s.Exports() {
		if !inAudience(e, to) {
			continue
		}
		var ready uint32
		for i := range e.Endpoints {
			if e.Endpoints[i].Ready {
				ready += weight(&e.Endpoints[i])
			}
		}
		capacity[e.Name] = ready
	}
	return capacity
}

func inAudience(e *topology.Export, c topology.ClusterName) bool {
	return len(e.Audience) == 0 || slices.Contains(e.Audience, c)
}

// capacityMessages returns what to say to somebody who was told told (nil: nothing yet) so that he knows now.
func capacityMessages(told, now map[topology.ServiceName]uint32) []*streamv1.LinkMessage {
	var changed []topology.ServiceName
	for name, ready := range now {
		if was, ok := told[name]; !ok || was != ready {
			changed = append(changed, name)
		}
	}
	for name, was := range told {
		if _, ok := now[name]; !ok && was != 0 {
			changed = append(changed, name)
		}
	}
	slices.SortFunc(changed, topology.ServiceName.Compare)
	var messages []*streamv1.LinkMessage
	complete := told == nil
	for chunk := range slices.Chunk(changed, capacityChunk) {
		c := &streamv1.Capacity{Complete: complete}
		complete = false // the others add to the first
		for _, name := range chunk {
			c.Services = append(c.Services, &streamv1.ServiceCapacity{
				Namespace: name.Namespace(), Service: name.Name(), Ready: now[name],
			})
		}
		messages = append(messages, capacityMessage(c))
	}
	if complete {
		messages = append(messages, capacityMessage(&streamv1.Capacity{Complete: true}))
	}
	return messages
}

// maxEmpty bounds what a far gateway can make us remember.
const maxEmpty = 65536

// emptiness is what a far gateway has said of its services: those without a copy. Of what it hasn't said anything, it must be
// asked: it knows the reason. The zero value knows nothing. Safe for concurrent use.
type emptiness struct {
	mu    sync.RWMutex
	empty map[topology.ServiceName]struct{} // guarded by mu
}

// apply takes in what the far gateway says.
func (e *emptiness) apply(c *streamv1.Capacity) error {
	names := make([]topology.ServiceName, len(c.GetServices()))
	for i, s := range c.GetServices() {
		var err error
		if names[i], err = topology.NewServiceName(s.GetNamespace(), s.GetService()); err != nil {
			return &controlError{err}
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.GetComplete() || e.empty == nil {
		e.empty = make(map[topology.ServiceName]struct{})
	}
	for i, s := range c.GetServices() {
		if s.GetReady() > 0 {
			delete(e.empty, names[i])
		} else if len(e.empty) < maxEmpty {
			e.empty[names[i]] = struct{}{}
		}
	}
	return nil
}

// has reports whether the service is known to have no copy.
func (e *emptiness) has(s topology.ServiceName) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	_, ok := e.empty[s]
	return ok
}
