package gateway

import (
	"context"
	"net"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
)

// followDrills takes in which drills the configuration tells of.
func (g *Gateway) followDrills(s *topology.Snapshot) {
	var told map[topology.ServiceName]*topology.Drill
	for _, e := range s.Exports() {
		if e.Drill != nil {
			if told == nil {
				told = make(map[topology.ServiceName]*topology.Drill)
			}
			told[e.Name] = e.Drill
		}
	}
	g.drills.Follow(told)
}

// reachUnlessDrilled is reach, unless a drill makes the service look dead: then its copies can't be reached, or, where the drill is silent, nothing is
// answered until the caller leaves or the drill ends. What came meanwhile goes nowhere, and is refused in the end so that the caller's gateway does
// not bring it again: nobody may carry out later what its caller has given up.
func (g *Gateway) reachUnlessDrilled(ctx context.Context, export *topology.Export, p preamble.Preamble) (conn net.Conn, left func(), refusal *preamble.Refusal, err error) {
	d := g.drills.Of(export.Name)
	if d == nil {
		return g.reach(ctx, export, p)
	}
	if d.Silent {
		select {
		case <-d.Over():
		case <-ctx.Done():
			return nil, nil, nil, context.Cause(ctx)
		}
	}
	return nil, nil, &preamble.Refusal{
		Code: streamv1.Code_CODE_ENDPOINT_UNREACHABLE, Detail: "the failover drill " + d.ID + " makes " + export.Name.String() + " look dead",
	}, nil
}
