package topology

import "time"

// Drill makes the copies of a service look dead until it ends, for whoever calls them through the mesh.
type Drill struct {
	ID   string
	Ends time.Time     // by control's clock
	Left time.Duration // until then, when control said so: for clocks that differ
	// Silent: nothing is answered, as if packets were dropped; else it is refused, as if nothing listened.
	Silent bool
}

func (d *Drill) equal(o *Drill) bool {
	if d == nil || o == nil {
		return d == o
	}
	return d.ID == o.ID && d.Ends.Equal(o.Ends) && d.Left == o.Left && d.Silent == o.Silent
}
