package gateway

import (
	"context"
	"errors"
	"sync"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
)

// errWithdrawn ends a stream whose export was taken back.
var errWithdrawn = errors.New("the export was taken back")

// carried are the streams of peers that are carried to copies now. A stream lives as long as the export that it was opened for: it
// is judged by the same rule as on its way in, whenever the configuration changes. The zero value is in use. Safe for
// concurrent use.
type carried struct {
	mu      sync.Mutex
	streams map[*carriedStream]struct{} // guarded by mu
}

type carriedStream struct {
	source topology.ClusterName
	opened preamble.Preamble
	end    context.CancelCauseFunc
}

// add counts a stream in. The context that it returns ends when the stream may not go on; call forget when it has ended.
func (c *carried) add(ctx context.Context, source topology.ClusterName, p preamble.Preamble) (carrying context.Context, forget func()) {
	carrying, end := context.WithCancelCause(ctx)
	s := &carriedStream{source, p, end}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams == nil {
		c.streams = make(map[*carriedStream]struct{})
	}
	c.streams[s] = struct{}{}
	return carrying, func() {
		c.mu.Lock()
		delete(c.streams, s)
		c.mu.Unlock()
		end(nil)
	}
}

// judge ends the streams that would not be let in now.
func (c *carried) judge(now func() *view) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.streams {
		if _, refusal := permit(now(), s.source, s.opened); refusal != nil {
			s.end(errWithdrawn)
		}
	}
}
