package gateway

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// why says in words why the link is down.
func (l *link) why() string {
	return cmp.Or(l.reasons(func(w way) (string, bool) { return w.String(), true }), "no connection yet")
}

// reasons says why ways can't be had, each reason once and with the ways that it is of; named says what a way is called, and whether it is asked
// for.
func (l *link) reasons(named func(way) (string, bool)) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	ways := make(map[string][]string)
	for w, why := range l.detail {
		if name, ok := named(w); ok {
			ways[why] = append(ways[why], name)
		}
	}
	parts := make([]string, 0, len(ways))
	for why, names := range ways {
		slices.Sort(names)
		part := names[0] + ": " + why
		if len(names) > 1 {
			part = fmt.Sprintf("%s (%d times: %s)", why, len(names), strings.Join(names, ", "))
		}
		parts = append(parts, part)
	}
	return strings.Join(slices.Sorted(slices.Values(parts)), "; ")
}
