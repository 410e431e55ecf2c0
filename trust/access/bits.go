package access

import "math/bits"

// tableRows is how many rows one table has: as many as a bitset of 64 words tells apart.
const tableRows = 64 * 64

// bitset is a set of rows of one table: only words that are not zero are there. It is immutable, and shared.
type bitset struct {
	there uint64 // which words are
	words []uint64
}

// none is the empty set.
var none = &bitset{}

// word is the k-th word.
func (b *bitset) word(k int) uint64 {
	bit := uint64(1) << k
	if b.there&bit == 0 {
		return 0
	}
	return b.words[bits.OnesCount64(b.there&(bit-1))]
}

// draft is a bitset that is being made.
type draft [64]uint64

func (d *draft) add(row int) { d[row/64] |= 1 << (row % 64) }

func (d *draft) or(o *draft) {
	for k := range d {
		d[k] |= o[k]
	}
}

// done makes the bitset, or takes one from pool that is the same: many names stand for the same rows.
func (d *draft) done(pool map[draft]*bitset) *bitset {
	if b := pool[*d]; b != nil {
		return b
	}
	b := &bitset{}
	for k, w := range d {
		if w != 0 {
			b.there |= 1 << k
			b.words = append(b.words, w)
		}
	}
	pool[*d] = b
	return b
}

// term is the rows that one thing asked for (a caller's namespace, a path …) leaves: those that don't care, and those that want what is there.
type term struct{ any, a, b *bitset }

// terms are all of them: a row must be in each.
type terms struct {
	all [10]term
	n   int
}

func (t *terms) add(x term) {
	t.all[t.n] = x
	t.n++
}

// scan is a walk over the rows that are in each of some terms.
type scan struct {
	words uint64 // that are to be looked at
	word  uint64 // what is left of the one that is looked at
	k     int    // which that is
}

// over begins a walk over words, of which hi is the first that is left out.
func (t *terms) over(lo, hi int) scan {
	if lo >= hi {
		return scan{}
	}
	words := (^uint64(0) >> (64 - (hi - lo))) << lo
	for k := range t.all[:t.n] {
		x := &t.all[k]
		words &= x.any.there | x.a.there | x.b.there
	}
	return scan{words: words}
}

// next returns the next row, less than 0 if there is none.
func (s *scan) next(t *terms) int {
	for s.word == 0 {
		if s.words == 0 {
			return -1
		}
		s.k = bits.TrailingZeros64(s.words)
		s.words &= s.words - 1
		s.word = ^uint64(0)
		for k := range t.all[:t.n] {
			x := &t.all[k]
			if s.word &= x.any.word(s.k) | x.a.word(s.k) | x.b.word(s.k); s.word == 0 {
				break
			}
		}
	}
	row := s.k*64 + bits.TrailingZeros64(s.word)
	s.word &= s.word - 1
	return row
}
