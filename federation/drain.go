package federation

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	federationv1 "github.com/isthmus-mesh/isthmus/api/federation/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// MaxDrainOver is how long a drain may take to bring a share to zero. Of a drain's times whole milliseconds and whole seconds are told.
const MaxDrainOver = 24 * time.Hour

// maxDrainBegan is as late as the config stream can tell of (2248), in Unix milliseconds: what it can't tell would be withheld from all callers.
const maxDrainBegan = 1 << 43

func encodeDrain(d *topology.Drain) *federationv1.Drain {
	if d == nil {
		return nil
	}
	p := &federationv1.Drain{Began: timestamppb.New(d.Began.Truncate(time.Millisecond))}
	if seconds := d.Over / time.Second; seconds >= 0 && d.Over <= MaxDrainOver {
		p.OverSeconds = uint32(seconds)
	} else {
		p.OverSeconds = 1 << 31 // refused by decodeDrain
	}
	return p
}

func decodeDrain(p *federationv1.Drain) (*topology.Drain, error) {
	if p == nil {
		return nil, nil //nolint:nilnil // what is not drained is no error
	}
	began, err := decodeTime(RecordCatalogShard, "drain", p.GetBegan())
	if err != nil {
		return nil, err
	}
	if ms := began.UnixMilli(); ms <= 0 || ms > maxDrainBegan || began.Nanosecond()%int(time.Millisecond) != 0 {
		return nil, fmt.Errorf("drain since %s", began.Format(time.RFC3339Nano))
	}
	if limit := uint32(MaxDrainOver / time.Second); p.GetOverSeconds() > limit {
		return nil, fmt.Errorf("drain over %d s; the limit is %d", p.GetOverSeconds(), limit)
	}
	return &topology.Drain{Began: began, Over: time.Duration(p.GetOverSeconds()) * time.Second}, nil
}
