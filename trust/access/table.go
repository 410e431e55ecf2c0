package access

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A rule is rows: each pair of a source and an operation of it is one, as all that is in a row must match together. What a request is like
// leaves, of each thing that is asked for, a set of rows; a row in all of these sets matches, but for headers and claims, which are looked at
// row by row. Deny rows come first, then Allow rows, both in the order of the policies: the first that matches decides.

// row is one.
type row struct {
	policy, rule string
	deny         bool
	hasPaths     bool // its rule has
	headers      []header
	users        []user // nil: no end user is asked for
}

type header struct {
	name   string
	values []Pattern
	absent bool
}

// user is one that a rule is for, of some issuers (places in Set.issuers).
type user struct {
	issuers []int
	claims  []Claim
}

// table is up to tableRows rows, and the sets of those that want something, by what they want.
type table struct {
	rows  []row
	denyN int // rows before are of Deny rules, and begin a word; the rest are of Allow rules
	words int
	deny  int // words of Deny rows

	principals         column
	principal          matcher
	domains            named[spiffeid.TrustDomain]
	namespaces, sas    named[string]
	ports              named[uint16]
	methods            named[string] // of Allow rows, as they are
	denyMethods        named[string] // of Deny rows, in upper case
	paths              column
	path, denyPath     matcher
	every              *bitset
	withoutHTTP        *bitset // Allow rows that need neither HTTP nor an end user
	always, alwaysPort *bitset // Deny rows that refuse whatever is asked: at any port, at theirs
}

// column is what a table knows of one thing that is asked for.
type column struct {
	used bool    // some row asks for it
	any  *bitset // rows that don't
	care draft
}

// named is a column of names.
type named[K comparable] struct {
	column
	sets   map[K]*bitset
	drafts map[K]*draft
}

func (c *named[K]) add(name K, row int) {
	if c.drafts == nil {
		c.drafts = map[K]*draft{}
	}
	if c.drafts[name] == nil {
		c.drafts[name] = &draft{}
	}
	c.drafts[name].add(row)
}

func (c *named[K]) done(all *draft, pool map[draft]*bitset) {
	c.column.done(all, pool)
	c.sets = make(map[K]*bitset, len(c.drafts))
	for name, d := range c.drafts {
		c.sets[name] = d.done(pool)
	}
	c.drafts = nil
}

// want notes that a row asks for it.
func (c *column) want(row int) {
	c.used = true
	c.care.add(row)
}

func (c *column) done(all *draft, pool map[draft]*bitset) {
	var free draft
	for k := range free {
		free[k] = all[k] &^ c.care[k]
	}
	c.any = free.done(pool)
}

// of is the term for a name.
func (c *named[K]) of(name K) term {
	if s := c.sets[name]; s != nil {
		return term{c.any, s, none}
	}
	return term{c.any, none, none}
}

// part is a rule's source and operation, ready to become a row.
type part struct {
	row
	source Source
	op     Operation
}

// parts makes the rows of a rule, of which there may be so many.
func parts(policy string, r *Rule, users []user, most int) ([]part, error) {
	sources, ops := mergeSources(r.From), mergeOperations(r.To)
	if len(r.From) == 0 {
		sources = []Source{{}}
	}
	if len(r.To) == 0 {
		ops = []Operation{{}}
	}
	if len(sources)*len(ops) > most {
		return nil, fmt.Errorf("rule %q: more than %d pairs of a source and an operation in all", r.Name, MaxRows)
	}
	var out []part
	for _, s := range sources {
		for _, o := range ops {
			p := part{row{policy: policy, rule: r.Name, deny: r.Deny, hasPaths: r.hasPaths(), users: users}, s, o}
			for _, h := range o.Headers {
				p.headers = append(p.headers, header{http.CanonicalHeaderKey(h.Name), slices.Clone(h.Values), h.Absent})
			}
			out = append(out, p)
		}
	}
	return out, nil
}

// mergeSources makes fewer sources that match the same: those that differ in one list alone are one with both lists.
func mergeSources(sources []Source) []Source {
	sources = slices.DeleteFunc(slices.Clone(sources), func(s Source) bool { return s.Nobody })
	sources = merge(sources, func(s *Source) (*[]Pattern, string) {
		return &s.Principals, fmt.Sprintf("%#v %#v %#v", s.Domains, s.Namespaces, s.ServiceAccounts)
	})
	sources = merge(sources, func(s *Source) (*[]spiffeid.TrustDomain, string) {
		return &s.Domains, fmt.Sprintf("%#v %#v %#v", s.Principals, s.Namespaces, s.ServiceAccounts)
	})
	sources = merge(sources, func(s *Source) (*[]string, string) {
		return &s.Namespaces, fmt.Sprintf("%#v %#v %#v", s.Principals, s.Domains, s.ServiceAccounts)
	})
	return merge(sources, func(s *Source) (*[]string, string) {
		return &s.ServiceAccounts, fmt.Sprintf("%#v %#v %#v", s.Principals, s.Domains, s.Namespaces)
	})
}

func mergeOperations(ops []Operation) []Operation {
	ops = merge(slices.Clone(ops), func(o *Operation) (*[]Pattern, string) {
		return &o.Paths, fmt.Sprintf("%#v %#v %#v", o.Methods, o.Ports, o.Headers)
	})
	ops = merge(ops, func(o *Operation) (*[]string, string) {
		return &o.Methods, fmt.Sprintf("%#v %#v %#v", o.Paths, o.Ports, o.Headers)
	})
	return merge(ops, func(o *Operation) (*[]uint16, string) {
		return &o.Ports, fmt.Sprintf("%#v %#v %#v", o.Methods, o.Paths, o.Headers)
	})
}

// merge joins what has the same rest, by the list that field points at. No list is everything, and stays apart.
func merge[T, E any](all []T, field func(*T) (list *[]E, rest string)) []T {
	if len(all) < 2 {
		return all
	}
	seen := map[string]int{}
	out := all[:0]
	for k := range all {
		t := all[k]
		list, rest := field(&t)
		at, ok := seen[rest]
		if ok && len(*list) > 0 {
			into, _ := field(&out[at])
			*into = append(slices.Clip(*into), *list...)
			continue
		}
		if len(*list) > 0 {
			seen[rest] = len(out)
		}
		out = append(out, t)
	}
	return out
}

// tables makes the tables of parts: of Deny rules first.
func tables(all []part) []*table {
	slices.SortStableFunc(all, func(a, b part) int {
		switch {
		case a.deny == b.deny:
			return 0
		case a.deny:
			return -1
		default:
			return 1
		}
	})
	denies, _ := slices.BinarySearchFunc(all, true, func(p part, _ bool) int {
		if p.deny {
			return -1
		}
		return 1
	})
	var out []*table
	t := &table{}
	for k := range all {
		if k == denies && t.denyN > 0 {
			// Allow rows begin a word of their own.
			t.rows = append(t.rows, make([]row, (64-len(t.rows)%64)%64)...)
		}
		if len(t.rows) == tableRows {
			out = append(out, t)
			t = &table{}
		}
		t.add(&all[k])
	}
	out = append(out, t)
	for _, t := range out {
		t.done()
	}
	return out
}

// add puts a row in.
func (t *table) add(p *part) {
	k := len(t.rows)
	t.rows = append(t.rows, p.row)
	if p.deny {
		t.denyN = len(t.rows)
	}
	if len(p.source.Principals) > 0 {
		t.principals.want(k)
	}
	for _, x := range p.source.Principals {
		t.principal.add(x, k)
	}
	if len(p.source.Domains) > 0 {
		t.domains.want(k)
	}
	for _, x := range p.source.Domains {
		t.domains.add(x, k)
	}
	if len(p.source.Namespaces) > 0 {
		t.namespaces.want(k)
	}
	for _, x := range p.source.Namespaces {
		if x != "" { // what has none is not in it
			t.namespaces.add(x, k)
		}
	}
	if len(p.source.ServiceAccounts) > 0 {
		t.sas.want(k)
	}
	for _, x := range p.source.ServiceAccounts {
		if x != "" {
			t.sas.add(x, k)
		}
	}
	if len(p.op.Ports) > 0 {
		t.ports.want(k)
	}
	for _, x := range p.op.Ports {
		t.ports.add(x, k)
	}
	t.addHTTP(p, k)
}

// addHTTP puts in what only HTTP has. A Deny rule goes without the case of methods and paths, and a slash at the end of paths: there are
// servers that do.
func (t *table) addHTTP(p *part, k int) {
	methods := &t.methods
	if p.deny {
		methods = &t.denyMethods
	}
	if len(p.op.Methods) > 0 {
		methods.want(k)
	}
	for _, x := range p.op.Methods {
		if p.deny {
			x = strings.ToUpper(x)
		}
		methods.add(x, k)
	}
	if len(p.op.Paths) == 0 {
		return
	}
	t.paths.want(k)
	for _, x := range p.op.Paths {
		if !p.deny {
			t.path.add(x, k)
			continue
		}
		t.denyPath.fold = true
		t.denyPath.add(x, k)
		bare, slashed := strings.CutSuffix(x.Text, "/")
		switch {
		case x.Kind == Prefix && slashed && bare != "":
			t.denyPath.add(Pattern{bare, Exact}, k)
		case x.Kind == Prefix:
		case slashed && (bare != "" || x.Kind == Suffix):
			t.denyPath.add(Pattern{bare, x.Kind}, k)
		case !slashed && x.Text != "":
			t.denyPath.add(Pattern{x.Text + "/", x.Kind}, k)
		}
	}
}

// done makes the sets.
func (t *table) done() {
	pool := map[draft]*bitset{}
	var all, plain, always, alwaysPort draft
	for k := range t.rows {
		r := &t.rows[k]
		if k >= t.denyN && k < (t.denyN+63)/64*64 {
			continue // filler
		}
		all.add(k)
		needs := t.methods.care[k/64] | t.denyMethods.care[k/64] | t.paths.care[k/64]
		if needs>>(k%64)&1 == 1 || len(r.headers)+len(r.users) > 0 {
			continue
		}
		switch {
		case !r.deny:
			plain.add(k)
		case t.ports.care[k/64]>>(k%64)&1 == 1:
			alwaysPort.add(k)
		default:
			always.add(k)
			alwaysPort.add(k)
		}
	}
	t.every = all.done(pool)
	t.withoutHTTP, t.always, t.alwaysPort = plain.done(pool), always.done(pool), alwaysPort.done(pool)
	t.principals.done(&all, pool)
	t.principal.done(pool)
	t.domains.done(&all, pool)
	t.namespaces.done(&all, pool)
	t.sas.done(&all, pool)
	t.ports.done(&all, pool)
	t.methods.done(&all, pool)
	t.denyMethods.done(&all, pool)
	t.paths.done(&all, pool)
	t.path.done(pool)
	t.denyPath.done(pool)
	t.words, t.deny = (len(t.rows)+63)/64, (t.denyN+63)/64
}
