package configstream

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// What a client holds at most; more is refused.
const (
	maxHeld      = MaxHave
	maxHeldBytes = 256 << 20
)

// store is what a client holds: every resource, as it came and as the topology has it. Owned by the client's loop.
type store struct {
	held    map[string]held // by key; replaced as a whole
	bytes   int
	current published
}

type held struct {
	resource *configv1.Resource
	value    decoded
	size     int
	stale    bool // it came from another version of this program; control is asked for it again
}

// published is what comes of a store.
type published struct {
	snapshot       *topology.Snapshot
	bundles        Bundles
	bundlesChanged bool
}

func newStore() *store { return &store{held: make(map[string]held)} }

// stage collects the messages of a cut until it is complete.
type stage struct {
	replace  bool // what is not in this cut is not held
	revision uint64
	upsert   []*configv1.Resource
	remove   []string
	absent   []topology.ServiceName
	bytes    int
}

func (g *stage) add(m *configv1.Response) error {
	if g.revision != 0 && m.GetRevision() != g.revision {
		return fmt.Errorf("a cut of revision %d goes on with revision %d", g.revision, m.GetRevision())
	}
	g.revision = m.GetRevision()
	g.bytes += proto.Size(m)
	g.upsert = append(g.upsert, m.GetUpsert()...)
	g.remove = append(g.remove, m.GetRemove()...)
	for _, s := range m.GetAbsent() {
		name, err := topology.ParseServiceName(s)
		if err != nil {
			return fmt.Errorf("absent: %w", err)
		}
		g.absent = append(g.absent, name)
	}
	return cmp.Or(
		atMost("bytes in a cut", g.bytes, maxHeldBytes),
		atMost("resources in a cut", len(g.upsert), maxHeld),
		atMost("removals in a cut", len(g.remove), maxHeld),
		atMost("absent services in a cut", len(g.absent), MaxSubscriptions),
	)
}

// apply puts a cut in force as a whole, or returns an error and changes nothing.
func (s *store) apply(cut stage) (published, error) {
	if s.current.snapshot != nil && !cut.replace && len(cut.upsert) == 0 && len(cut.remove) == 0 {
		s.current.bundlesChanged = false
		return s.current, nil
	}
	next := make(map[string]held)
	bytes := 0
	if !cut.replace {
		next, bytes = maps.Clone(s.held), s.bytes
	}
	changed := cut.replace // a bundle
	drop := func(key string) {
		old, ok := next[key]
		if !ok {
			return
		}
		delete(next, key)
		bytes -= old.size
		changed = changed || old.value.bundle != nil
	}
	for _, key := range cut.remove {
		drop(key)
	}
	for _, r := range cut.upsert {
		value, err := decode(r)
		if err != nil {
			return published{}, err
		}
		drop(r.GetKey())
		h := held{resource: r, value: value, size: proto.Size(r)}
		next[r.GetKey()] = h
		bytes += h.size
		changed = changed || value.bundle != nil
	}
	if err := cmp.Or(atMost("resources held", len(next), maxHeld), atMost("bytes held", bytes, maxHeldBytes)); err != nil {
		return published{}, err
	}
	snapshot, bundles, err := assemble(func(yield func(decoded) bool) {
		for _, h := range next {
			if !yield(h.value) {
				return
			}
		}
	})
	if err != nil {
		return published{}, err
	}
	s.held, s.bytes = next, bytes
	s.current = published{snapshot: snapshot, bundles: bundles, bundlesChanged: changed}
	return s.current, nil
}

func (s *store) has(key string) bool {
	_, ok := s.held[key]
	return ok
}

// have says what is held, as Hello does. What is stale is named without a version: it will be sent again, or removed.
func (s *store) have() []*configv1.Have {
	out := make([]*configv1.Have, 0, len(s.held))
	for key, h := range s.held {
		have := &configv1.Have{Key: key}
		if !h.stale {
			have.Version = h.resource.GetVersion()
		}
		out = append(out, have)
	}
	slices.SortFunc(out, func(a, b *configv1.Have) int { return cmp.Compare(a.GetKey(), b.GetKey()) })
	return out
}

// forgetVersions makes all that is held stale.
func (s *store) forgetVersions() {
	next := make(map[string]held, len(s.held))
	for key, h := range s.held {
		h.stale = true
		next[key] = h
	}
	s.held = next
}

// resourcesOf returns all resources, ordered by key. Not to be changed.
func resourcesOf(all map[string]held) []*configv1.Resource {
	out := make([]*configv1.Resource, 0, len(all))
	for _, h := range all {
		out = append(out, h.resource)
	}
	slices.SortFunc(out, func(a, b *configv1.Resource) int { return cmp.Compare(a.GetKey(), b.GetKey()) })
	return out
}
