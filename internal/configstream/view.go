package configstream

import (
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
	visible  func(key string) bool
	has      map[string]string               // version by key, once everything sent has been applied
	services map[topology.ServiceName]answer // subscriptions
	begun    bool                            // the first cut was made
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
	v := &view{
		receiver: receiver,
		gateway:  h.GetProgram() == ProgramGateway,
		visible:  visible,
		has:      make(map[string]string, len(h.GetHave())),
		services: make(map[topology.ServiceName]answer, len(h.GetServices())),
	}
	if err := atMost("have", len(h.GetHave()), MaxHave); err != nil {
		return nil, err
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
	if err := atMost("services", max(len(add), len(remove)), MaxSubscriptions); err != nil {
		return err
	}
	for _, s := range remove {
		name, err := topology.ParseServiceName(s)
		if err != nil {
			return err
		}
		delete(v.services, name)
	}
	for _, s := range add {
		name, err := topology.ParseServiceName(s)
		if err != nil {
			return err
		}
		v.services[name] = answerNone
	}
	return atMost("services", len(v.services), MaxSubscriptions)
}

// names returns the subscriptions, ordered.
func (v *view) names() []topology.ServiceName {
	out := make([]topology.ServiceName, 0, len(v.services))
	for n := range v.services {
		out = append(out, n)
	}
	slices.SortFunc(out, topology.ServiceName.Compare)
	return out
}

// wanted yields all that the client should hold of w, but for the services.
func (v *view) wanted(w *World) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for _, m := range []map[string]*entry{w.shared, w.owned[v.receiver]} {
			for key, e := range m {
				if e.reduced != nil && !v.gateway {
					e = e.reduced
				}
				if v.visible(key) && !yield(e) {
					return
				}
			}
		}
	}
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
// always to be sent, so that the client knows where it stands.
func (v *view) difference(w *World) cut {
	c := cut{revision: w.revision}
	keep := make(map[string]struct{}, len(v.has))
	want := func(e *entry) {
		key := e.resource.GetKey()
		keep[key] = struct{}{}
		if v.has[key] != e.version {
			c.upsert = append(c.upsert, e)
		}
	}
	for e := range v.wanted(w) {
		want(e)
	}
	for name, last := range v.services {
		key := ServiceKey(name)
		e, exists := w.services[name]
		_, withheld := w.withheld[key]
		_, held := v.has[key]
		switch {
		case exists && v.visible(key):
			want(e)
			v.services[name] = answerPresent
		case withheld && held && v.visible(key):
			v.services[name] = answerPresent
		case last != answerAbsent:
			c.absent = append(c.absent, name.String())
			v.services[name] = answerAbsent
		}
	}
	for key := range v.has {
		if _, ok := keep[key]; ok || v.retained(w, key) {
			continue
		}
		c.remove = append(c.remove, key)
	}
	for _, e := range c.upsert {
		v.has[e.resource.GetKey()] = e.version
	}
	for _, key := range c.remove {
		delete(v.has, key)
	}
	slices.SortFunc(c.upsert, func(a, b *entry) int { return strings.Compare(a.resource.GetKey(), b.resource.GetKey()) })
	slices.Sort(c.remove)
	slices.Sort(c.absent)
	c.changed = !v.begun || len(c.upsert)+len(c.remove)+len(c.absent) > 0
	v.begun = true
	return c
}

// retained reports whether the client keeps what it holds under key, because w withholds its successor.
func (v *view) retained(w *World, key string) bool {
	if _, ok := w.withheld[key]; !ok || !v.visible(key) {
		return false
	}
	name, ok := serviceOf(key)
	if !ok {
		return true
	}
	_, subscribed := v.services[name]
	return subscribed
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
