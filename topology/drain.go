package topology

import "time"

// Drain is the owner's word that the copies in its cluster get nothing new: their share goes to zero, and what they are at ends by itself.
// They are well all the same: who has nothing else left goes on calling them.
type Drain struct {
	Began time.Time     // by the owner's clock; tells one drain from the next
	Over  time.Duration // how long their share takes to go to zero, from when a caller first hears of it
}

func (d *Drain) equal(o *Drain) bool {
	if d == nil || o == nil {
		return d == o
	}
	return d.Began.Equal(o.Began) && d.Over == o.Over
}
