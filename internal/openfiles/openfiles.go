// Package openfiles tells how many files this process may have open, for those who take connections from anybody: control for its
// programs, and the bus. What they take must leave the rest of the program enough.
package openfiles

// Share returns one in so many of the files that this process may open, but no more than most, which it also is when that is not known,
// and at least one.
func Share(in, most int) int {
	files := Limit()
	if files == 0 {
		return most
	}
	return max(1, min(most, files/in))
}
