package configstream

import (
	"context"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxHellosOfID is how many Hellos are received at a time from one SPIFFE ID, which many copies of a workload share. Each may have
// MaxReceive bytes; the others wait, with no more than a flow control window of 64 KiB taken from them.
const maxHellosOfID = 16

// hellos are the turns of those who say hello. The zero value is in use. Safe for concurrent use.
type hellos struct {
	mu    sync.Mutex
	turns map[spiffeid.ID]*turns // guarded by mu
}

type turns struct {
	taken chan struct{} // holds one for each turn that is taken
	users int           // guarded by hellos.mu: who have or wait for one
}

// wait waits for a turn of id. Call done when the Hello has been received, or won't be.
func (h *hellos) wait(ctx context.Context, id spiffeid.ID, timeout <-chan time.Time, stop <-chan struct{}) (done func(), err error) {
	h.mu.Lock()
	t := h.turns[id]
	if t == nil {
		if h.turns == nil {
			h.turns = make(map[spiffeid.ID]*turns)
		}
		t = &turns{taken: make(chan struct{}, maxHellosOfID)}
		h.turns[id] = t
	}
	t.users++
	h.mu.Unlock()
	leave := func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(h.turns, id)
		}
	}
	select {
	case t.taken <- struct{}{}:
		return func() { <-t.taken; leave() }, nil
	case <-timeout:
		err = status.Error(codes.DeadlineExceeded, "too many programs of the same identity say hello")
	case <-stop:
		err = errClosing
	case <-ctx.Done():
		err = ctx.Err()
	}
	leave()
	return nil, err
}
