package configstream

import (
	"fmt"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// MaxDrillLeft is the longest that a drill goes on without a word from control.
const MaxDrillLeft = 15 * time.Second

// How a drill makes copies look dead.
const (
	drillRefuse = "refuse"
	drillSilent = "silent"
)

func encodeDrill(d *topology.Drill) *configv1.Drill {
	if d == nil {
		return nil
	}
	out := &configv1.Drill{Id: d.ID, EndsMillis: d.Ends.UnixMilli(), LeftMillis: uint64(max(0, d.Left).Milliseconds()), How: drillRefuse} //nolint:gosec // not negative
	if d.Silent {
		out.How = drillSilent
	}
	return out
}

func decodeDrill(b *configv1.Drill) (*topology.Drill, error) {
	if b == nil {
		return nil, nil //nolint:nilnil // there is none
	}
	switch {
	case !isName(b.GetId()) || len(b.GetId()) > 63:
		return nil, fmt.Errorf("drill %q: want a name", clip(b.GetId()))
	case b.GetHow() != drillRefuse && b.GetHow() != drillSilent:
		return nil, fmt.Errorf("drill %s: how %q", b.GetId(), clip(b.GetHow()))
	case b.GetEndsMillis() < 1 || b.GetEndsMillis() > maxMoment:
		return nil, fmt.Errorf("drill %s: ends_millis %d: want 1 to %d", b.GetId(), b.GetEndsMillis(), int64(maxMoment))
	case b.GetLeftMillis() > uint64(MaxDrillLeft/time.Millisecond):
		return nil, fmt.Errorf("drill %s: left_millis %d: want at most %v", b.GetId(), b.GetLeftMillis(), MaxDrillLeft)
	}
	return &topology.Drill{
		ID: b.GetId(), Ends: time.UnixMilli(b.GetEndsMillis()), Left: time.Duration(b.GetLeftMillis()) * time.Millisecond, //nolint:gosec // bounded above
		Silent: b.GetHow() == drillSilent,
	}, nil
}
