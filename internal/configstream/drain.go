package configstream

import (
	"fmt"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	maxMoment    = 1 << 43 // Unix milliseconds; the year 2248
	maxDrainOver = 24 * time.Hour
)

func encodeDrain(d *topology.Drain) *configv1.Drain {
	if d == nil {
		return nil
	}
	return &configv1.Drain{BeganMillis: d.Began.UnixMilli(), OverMillis: uint64(max(0, d.Over).Milliseconds())} //nolint:gosec // not negative
}

func decodeDrain(b *configv1.Drain) (*topology.Drain, error) {
	if b == nil {
		return nil, nil //nolint:nilnil // what is not drained is no error
	}
	if ms := b.GetBeganMillis(); ms <= 0 || ms > maxMoment {
		return nil, fmt.Errorf("drain: began_millis %d: want 1 to %d", ms, int64(maxMoment))
	}
	if ms := b.GetOverMillis(); ms > uint64(maxDrainOver/time.Millisecond) {
		return nil, fmt.Errorf("drain: over_millis %d: want at most %v", ms, maxDrainOver)
	}
	return &topology.Drain{
		Began: time.UnixMilli(b.GetBeganMillis()),
		Over:  time.Duration(b.GetOverMillis()) * time.Millisecond, //nolint:gosec // checked above
	}, nil
}
