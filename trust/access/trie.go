package access

import "strings"

// matcher finds the rows whose patterns match a text, in one walk along it, and one back from its end if there are suffixes.
type matcher struct {
	fold     bool // without regard to the case of ASCII letters; patterns are in lower case then
	forward  *node
	backward *node // suffixes, from their ends; nil: there are none
}

// node is a place in a radix tree.
type node struct {
	label    string // from the parent to here
	first    string // first bytes of the labels of children
	children []*node
	beyond   *bitset // of texts that come by here: each pattern that ends here or before; nil: none ends here, so it is as before
	here     *bitset // of texts that end here; nil: as those that come by

	prefix, exact *draft
}

// add puts a pattern in, for a row.
func (m *matcher) add(p Pattern, row int) {
	text := p.Text
	if m.fold {
		text = lower(text)
	}
	root := &m.forward
	if p.Kind == Suffix {
		root, text = &m.backward, reverse(text)
	}
	if *root == nil {
		*root = &node{}
	}
	n := (*root).at(text)
	into := &n.prefix
	if p.Kind == Exact {
		into = &n.exact
	}
	if *into == nil {
		*into = &draft{}
	}
	(*into).add(row)
}

// at finds the node of text, or makes it.
func (n *node) at(text string) *node {
	if text == "" {
		return n
	}
	k := strings.IndexByte(n.first, text[0])
	if k < 0 {
		child := &node{label: text}
		n.first += text[:1]
		n.children = append(n.children, child)
		return child
	}
	child := n.children[k]
	same := 0
	for same < len(text) && same < len(child.label) && text[same] == child.label[same] {
		same++
	}
	if same < len(child.label) {
		middle := &node{label: child.label[:same], first: child.label[same : same+1], children: []*node{child}}
		child.label = child.label[same:]
		n.children[k] = middle
		child = middle
	}
	return child.at(text[same:])
}

// done makes the bitsets, when all patterns are in.
func (m *matcher) done(pool map[draft]*bitset) {
	for _, root := range []*node{m.forward, m.backward} {
		if root != nil {
			root.done(&draft{}, pool)
		}
	}
}

func (n *node) done(before *draft, pool map[draft]*bitset) {
	beyond := *before
	if n.prefix != nil {
		beyond.or(n.prefix)
		n.beyond = beyond.done(pool)
	}
	if n.exact != nil {
		n.exact.or(&beyond)
		n.here = n.exact.done(pool)
	}
	n.prefix, n.exact = nil, nil
	for _, child := range n.children {
		child.done(&beyond, pool)
	}
}

// find returns the rows of exact patterns and prefixes, and those of suffixes.
func (m *matcher) find(text string) (forward, backward *bitset) {
	forward, backward = none, none
	if m.forward != nil {
		forward = m.forward.walk(text, m.fold)
	}
	if m.backward != nil {
		backward = m.backward.walkBack(text, m.fold)
	}
	return forward, backward
}

func (n *node) walk(text string, fold bool) *bitset {
	found := none
	for {
		if n.beyond != nil {
			found = n.beyond
		}
		if text == "" {
			if n.here != nil {
				return n.here
			}
			return found
		}
		c := text[0]
		if fold {
			c = lowered[c]
		}
		k := strings.IndexByte(n.first, c)
		if k < 0 {
			return found
		}
		n = n.children[k]
		if len(text) < len(n.label) {
			return found
		}
		if fold {
			for k := 1; k < len(n.label); k++ {
				if lowered[text[k]] != n.label[k] {
					return found
				}
			}
		} else if text[:len(n.label)] != n.label {
			return found
		}
		text = text[len(n.label):]
	}
}

// walkBack is walk from the end, for suffixes alone: nothing is exact.
func (n *node) walkBack(text string, fold bool) *bitset {
	found := none
	for {
		if n.beyond != nil {
			found = n.beyond
		}
		if text == "" {
			return found
		}
		c := text[len(text)-1]
		if fold {
			c = lowered[c]
		}
		k := strings.IndexByte(n.first, c)
		if k < 0 {
			return found
		}
		n = n.children[k]
		if len(text) < len(n.label) {
			return found
		}
		for k := 1; k < len(n.label); k++ {
			c := text[len(text)-1-k]
			if fold {
				c = lowered[c]
			}
			if c != n.label[k] {
				return found
			}
		}
		text = text[:len(text)-len(n.label)]
	}
}

// lowered is each byte in lower case, if it is an ASCII letter.
var lowered = func() (t [256]byte) {
	for c := range t {
		t[c] = byte(c)
		if 'A' <= c && c <= 'Z' {
			t[c] += 'a' - 'A'
		}
	}
	return t
}()

func lower(s string) string {
	b := []byte(s)
	for k, c := range b {
		b[k] = lowered[c]
	}
	return string(b)
}

func reverse(s string) string {
	b := make([]byte, len(s))
	for k := range len(s) {
		b[len(s)-1-k] = s[k]
	}
	return string(b)
}
