package configstream

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// view is what one client holds and wants: state of the server's end of a stream. Owned by the stream.
type view struct {
	receiver string
	gateway  bool
	most     int // subscriptions
	visible  func(key string) bool
	has      map[string]string                 // version by key, once everything sent has been applied
	services map[topology.ServiceName]answer   // subscriptions
	touched  map[topology.ServiceName]struct{} // subscribed or unsubscribed since the last difference
	last     *World                            // that the last difference was made to
}

// answer is what a client was last told of a service that it subscribed to.
type answer uint8

const (
	answerNone answer = iota
	answerAbsent
	answerPresent
)

// newView checks a Hello's lists.
func newView(h *configv1.Hello, receiver string, visible func(string) bool) (*view, error) {
	mostHave, most := limitsOf(h.GetProgram())
	if err := cmp.Or(atMost("have", len(h.GetHave()), mostHave), atMost("services", len(h.GetServices()), most)); err != nil {
		return nil, err
	}
	v := &view{
		receiver: receiver,
		most:     most,
		gateway:  h.GetProgram() == ProgramGateway,
		visible:  visible,
		has:      make(map[string]string, len(h.GetHave())),
		services: make(map[topology.ServiceName]answer, len(h.GetServices())),
		touched:  make(map[topology.ServiceName]struct{}),
	}
	for _, have := range h.GetHave() {
		if len(have.GetKey()) > MaxKey || len(have.GetVersion()) > versionSize {
			return nil, fmt.Errorf("have %q: a key of at most %d bytes and a version of %d", clip(have.GetKey()), MaxKey, versionSize)
		}
		v.has[have.GetKey()] = string(have.GetVersion())
	}
	return v, v.subscribe(h.GetServices(), nil)
}

// subscribe changes which services the client hears of. One that it asks for again is answered again.
func (v *view) subscribe(add, remove []string) error {
	if err := atMost("services", max(len(add), len(remove)), v.most); err != nil {
		return err
	}
	for _, s := range remove {
		name, err := topology.ParseServiceName(s)
		if err != nil {
			return err
		}
		delete(v.services, name)
		v.touched[name] = struct{}{}
	}
	for _, s := range add {
		name, err := topology.ParseServiceName(s)
		if err != nil {
			return err
		}
		v.services[name] = answerNone
		v.touched[name] = struct{}{}
	}
	return atMost("services", len(v.services), v.most)
}

// cut is the difference between what a client holds and what it should hold.
type cut struct {
	revision uint64
	upsert   []*entry
	remove   []string
	absent   []string
	changed  bool // something is to be said
}

// difference computes what takes the client from what it holds to its part of w, and notes it as held. The first cut is
// always to be sent, so that the client knows where it stands. For a World that is not new, it looks at the
// subscriptions that are.
func (v *view) difference(w *World) cut {
	c := cut{revision: w.revision, changed: v.last == nil}
	if v.last == w {
		for name := range v.touched {
			v.compareService(&c, w, name)
		}
	} else {
		v.compareAll(&c, w)
	}
	v.last = w
	clear(v.touched)
	for _, e := range c.upsert {
		v.has[e.resource.GetKey()] = e.version
	}
	for _, key := range c.remove {
		delete(v.has, key)
	}
	slices.SortFunc(c.upsert, func(a, b *entry) int { return strings.Compare(a.resource.GetKey(), b.resource.GetKey()) })
	slices.Sort(c.remove)
	slices.Sort(c.absent)
	c.changed = c.changed || len(c.upsert)+len(c.remove)+len(c.absent) > 0
	return c
}

func (v *view) compareAll(c *cut, w *World) {
	for _, entries := range []map[string]*entry{w.shared, w.owned[v.receiver]} {
		for key, e := range entries {
			if v.visible(key) {
				v.want(c, v.formOf(e))
			}
		}
	}
	for name := range v.services {
		v.compareService(c, w, name)
	}
	for key := range v.has {
		name, isService := serviceOf(key)
		if _, subscribed := v.services[name]; isService && subscribed {
			continue // compared above
		}
		if isService || !v.stays(w, key) {
			c.remove = append(c.remove, key)
		}
	}
}

// compareService adds to c what is to be said of one service.
func (v *view) compareService(c *cut, w *World, name topology.ServiceName) {
	key := ServiceKey(name)
	last, subscribed := v.services[name]
	_, held := v.has[key]
	_, withheld := w.withheld[key]
	e, exists := w.services[name]
	visible := v.visible(key)
	switch {
	case subscribed && exists && visible:
		v.want(c, e)
		v.services[name] = answerPresent
	case subscribed && withheld && held && visible:
		v.services[name] = answerPresent
	default:
		if held {
			c.remove = append(c.remove, key)
		}
		if subscribed && last != answerAbsent {
			c.absent = append(c.absent, name.String())
			v.services[name] = answerAbsent
		}
	}
}

// want adds e to c, if the client does not hold it.
func (v *view) want(c *cut, e *entry) {
	if v.has[e.resource.GetKey()] != e.version {
		c.upsert = append(c.upsert, e)
	}
}

// formOf returns the form of e that the client gets.
func (v *view) formOf(e *entry) *entry {
	if e.reduced != nil && !v.gateway {
		return e.reduced
	}
	return e
}

// stays reports whether what the client holds under key, which is not a service's, is still its, or is withheld now.
func (v *view) stays(w *World, key string) bool {
	_, shared := w.shared[key]
	_, owned := w.owned[v.receiver][key]
	_, withheld := w.withheld[key]
	return (shared || owned || withheld) && v.visible(key)
}

// messages splits a cut into messages of about MaxMessage bytes; the last one is complete. At least one.
func (c cut) messages() iter.Seq[*configv1.Response] {
	return func(yield func(*configv1.Response) bool) {
		m := &configv1.Response{Revision: c.revision}
		size := 0
		// room starts a new message when n more bytes do not fit.
		room := func(n int) bool {
			n += 8 // tag and length
			if size > 0 && size+n > MaxMessage {
				if !yield(m) {
					return false
				}
				m, size = &configv1.Response{Revision: c.revision}, 0
			}
			size += n
			return true
		}
		// Removals first, so that a client's memory never holds more than it must.
		for _, key := range c.remove {
			if !room(len(key)) {
				return
			}
			m.Remove = append(m.Remove, key)
		}
		for _, e := range c.upsert {
			if !room(e.size) {
				return
			}
			m.Upsert = append(m.Upsert, e.resource)
		}
		for _, name := range c.absent {
			if !room(len(name)) {
				return
			}
			m.Absent = append(m.Absent, name)
		}
		m.Complete = true
		yield(m)
	}
}
