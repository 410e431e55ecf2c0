package datagram

// windowWords is the size of the replay window, in words of 64 numbers; one word of them is being cleared. Datagrams that take different ways
// (beside a stream, and on it) overtake each other by as many as are sent in a round trip or two.
const windowWords = 128

// window remembers which of the latest numbers were taken (RFC 6479: a ring of words, cleared as it moves on). The zero value has taken none.
type window struct {
	top  uint64 // the highest that was taken, plus one
	bits [windowWords]uint64
}

// newest returns the highest number that was taken; 0 when none was.
func (w *window) newest() uint64 { return max(w.top, 1) - 1 }

// fresh reports whether number was not taken, and is not too old to tell.
func (w *window) fresh(number uint64) bool {
	if number >= w.top {
		return number+1 != 0 // the last number has no next
	}
	if w.top-number > (windowWords-1)*64 {
		return false
	}
	return w.bits[number/64%windowWords]&(1<<(number%64)) == 0
}

// take notes that a fresh number was taken.
func (w *window) take(number uint64) {
	if number >= w.top {
		if w.top > 0 {
			last, next := (w.top-1)/64, number/64
			for i := range min(next-last, windowWords) {
				w.bits[(next-i)%windowWords] = 0
			}
		}
		w.top = number + 1
	}
	w.bits[number/64%windowWords] |= 1 << (number % 64)
}
