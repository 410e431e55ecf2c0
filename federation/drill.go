package federation

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	federationv1 "github.com/isthmus-mesh/isthmus/api/federation/v1"
)

// MaxDrill is how long a failover drill may be on.
const MaxDrill = time.Hour

// Drill is what a control says of a failover drill in its cluster, to the other controls alone: that no second one begins that would leave a service
// to nobody. Callers are not told. Whole milliseconds are told of its times.
type Drill struct {
	Began time.Time
	Ends  time.Time // at the latest
}

func encodeDrill(d *Drill) *federationv1.Drill {
	if d == nil {
		return nil
	}
	return &federationv1.Drill{Began: timestamppb.New(d.Began.Truncate(time.Millisecond)), Ends: timestamppb.New(d.Ends.Truncate(time.Millisecond))}
}

func decodeDrill(p *federationv1.Drill) (*Drill, error) {
	if p == nil {
		return nil, nil //nolint:nilnil // that there is none is no error
	}
	began, err := decodeTime(RecordCatalogShard, "drill", p.GetBegan())
	if err != nil {
		return nil, err
	}
	ends, err := decodeTime(RecordCatalogShard, "drill", p.GetEnds())
	if err != nil {
		return nil, err
	}
	if lasts := ends.Sub(began); lasts < 0 || lasts > MaxDrill {
		return nil, fmt.Errorf("drill from %s to %s; the limit is %v", began.Format(time.RFC3339Nano), ends.Format(time.RFC3339Nano), MaxDrill)
	}
	return &Drill{Began: began, Ends: ends}, nil
}
