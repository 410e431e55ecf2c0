package control

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Limits of what is drained.
const (
	maxDrains     = 1024
	maxDrainsFile = 1 << 20
)

var (
	errDrain      = errors.New("drain")
	errManyDrains = errors.New("too much is drained by name: drain the cluster")
)

// drained is one word of an operator: a service's copies in this cluster, or all that the cluster exports, get nothing new. Immutable.
type drained struct {
	Service string    `json:"service,omitempty"` // name.namespace; empty: the cluster
	Began   time.Time `json:"began"`
	Over    int64     `json:"over_seconds"`

	name topology.ServiceName // zero: the cluster
}

func (d *drained) word() *topology.Drain {
	return &topology.Drain{Began: d.Began, Over: time.Duration(d.Over) * time.Second}
}

// parse fills in what it is of.
func (d *drained) parse() error {
	if d.Over < 0 || d.Over > int64(federation.MaxDrainOver/time.Second) {
		return fmt.Errorf("%w: over %d s: want 0 to %v", errDrain, d.Over, federation.MaxDrainOver)
	}
	if d.Service == "" {
		return nil
	}
	var err error
	if d.name, err = topology.ParseServiceName(d.Service); err != nil {
		return fmt.Errorf("%w: %w", errDrain, err)
	}
	return nil
}

// drainSet is all that is drained at one moment. Immutable; nil is nothing.
type drainSet struct {
	all []drained // ordered by service; the cluster's own word first
}

func (s *drainSet) list() []drained {
	if s == nil {
		return nil
	}
	return s.all
}

func (s *drainSet) find(service string) (drained, bool) {
	i, ok := slices.BinarySearchFunc(s.list(), service, func(d drained, service string) int { return cmp.Compare(d.Service, service) })
	if !ok {
		return drained{}, false
	}
	return s.all[i], true
}

// cluster tells whether the whole cluster is drained.
func (s *drainSet) cluster() bool {
	_, ok := s.find("")
	return ok
}

// of returns the word on a service's own copies; nil: they are in use. The cluster's word is for what is exported: nothing else could serve the rest.
// Of two words the older one counts, so that nothing comes back into use between them.
func (s *drainSet) of(name topology.ServiceName, exported bool) *topology.Drain {
	own, is := s.find(name.String())
	whole, all := s.find("")
	switch {
	case all && exported && (!is || whole.Began.Before(own.Began)):
		return whole.word()
	case is:
		return own.word()
	}
	return nil
}

// drains is what is drained, on disk before it counts. Safe for concurrent use.
type drains struct {
	path string
	now  func() time.Time

	current atomic.Pointer[drainSet]

	mu sync.Mutex // one change at a time
}

func openDrains(path string, now func() time.Time) (*drains, error) {
	d := &drains{path: path, now: now}
	data, err := atomicfile.Read(path, maxDrainsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return nil, fmt.Errorf("control: drains: %w", err)
	}
	var all []drained
	if err = json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("control: drains: %s: %w", path, err) // to go on without would send traffic to what may be gone
	}
	set, err := kept(all)
	if err != nil {
		return nil, fmt.Errorf("control: drains: %s: %w", path, err)
	}
	d.current.Store(set)
	return d, nil
}

// kept reads what was on disk by the rules by which it was written.
func kept(all []drained) (*drainSet, error) {
	if len(all) > maxDrains {
		return nil, fmt.Errorf("%w: %d, at most %d", errManyDrains, len(all), maxDrains)
	}
	for i := range all {
		if err := all[i].parse(); err != nil {
			return nil, err
		}
		if all[i].Began.UnixMilli() <= 0 { // peers would refuse it, and with it all that this cluster tells
			return nil, fmt.Errorf("%w: of %q: began: want a time, have %q", errDrain, all[i].Service, all[i].Began.Format(time.RFC3339))
		}
	}
	set := newDrainSet(all)
	for i := 1; i < len(all); i++ {
		if all[i].Service == all[i-1].Service {
			return nil, fmt.Errorf("%w: of %q: twice", errDrain, all[i].Service)
		}
	}
	return set, nil
}

func newDrainSet(all []drained) *drainSet {
	slices.SortFunc(all, func(a, b drained) int { return cmp.Compare(a.Service, b.Service) })
	return &drainSet{all}
}

func (d *drains) load() *drainSet { return d.current.Load() }

// with returns what would be if a service, or the cluster, were drained as well. already: it is.
func (d *drains) with(service string, over time.Duration) (next *drainSet, already bool, err error) {
	word := drained{Service: service, Began: d.now().UTC().Truncate(time.Millisecond), Over: int64(over / time.Second)}
	if over%time.Second != 0 {
		return nil, false, fmt.Errorf("%w: over %s: want whole seconds", errDrain, over)
	}
	if err = word.parse(); err != nil {
		return nil, false, err
	}
	now := d.load()
	if _, already = now.find(word.Service); already {
		return now, true, nil
	}
	if len(now.list()) >= maxDrains {
		return nil, false, fmt.Errorf("%w: %d, at most %d", errManyDrains, len(now.list())+1, maxDrains)
	}
	return newDrainSet(append(slices.Clone(now.list()), word)), false, nil
}

// without returns what would be if a service, or the cluster, were in use again. already: it is.
func (d *drains) without(service string) (next *drainSet, already bool, err error) {
	word := drained{Service: service}
	if err = word.parse(); err != nil {
		return nil, false, err
	}
	left := slices.DeleteFunc(slices.Clone(d.load().list()), func(o drained) bool { return o.Service == word.Service })
	return newDrainSet(left), len(left) == len(d.load().list()), nil
}

// change puts what edit makes of it on disk, and then in force, if edit says so.
func (d *drains) change(edit func() (next *drainSet, do bool, err error)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next, do, err := edit()
	if err != nil || !do {
		return err
	}
	data, err := json.MarshalIndent(notNil(next.all), "", "  ")
	if err != nil {
		return fmt.Errorf("control: drains: %w", err)
	}
	if err = atomicfile.Write(d.path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("control: drains: %w", err)
	}
	d.current.Store(next)
	return nil
}
