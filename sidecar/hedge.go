package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/topology"
)

// errOverdue is what a copy is blamed for that was silent while another answered.
var errOverdue = errors.New("silent for longer than its answers take, while another copy answered")

// hedgeable reports whether a second try may be made beside the first: it changes nothing, and there is nothing to send twice. That a request
// may be repeated is not enough: the copy that was slow may carry out a DELETE after the caller has heard that it is done, and made anew what
// it deletes.
func (f *forwarding) hedgeable() bool {
	switch f.request.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return f.body == nil && !f.upgrade
	default:
		return false
	}
}

// try is how one of two attempts that run at the same time ended, and what it noted of itself.
type try struct {
	choice
	resp   *http.Response
	out    outcome
	call   *call
	again  bool
	cancel context.CancelFunc
}

// hedged makes the first try of a request, and, when that is overdue and nothing at all has come from its copy since, a second one at another
// copy beside it. The first answer counts; the other try is called off. It returns the try to go on from, as attempt does.
//
// A copy that fell silent fails nothing by itself: packets that are dropped make no noise. Who waits for the verdict on the link waits for
// several round trips.
func (f *forwarding) hedged(c choice) (*http.Response, choice, outcome) {
	began := f.now()
	tries := make(chan try, 2)
	cancelFirst := f.start(c, tries)
	overdue := time.NewTimer(f.outbound.pace.Patience(c.candidate.Target))
	defer overdue.Stop()
	var t try
	select {
	case t = <-tries:
		return f.settle(t)
	case <-overdue.C:
	}
	second, ok := f.beside(c, began)
	if !ok {
		return f.settle(<-tries)
	}
	f.outbound.metrics.hedges.WithLabelValues(f.call.query.Service.String()).Inc()
	f.call.hedged = true
	cancelSecond := f.start(second, tries)
	for range 2 {
		if t = <-tries; t.resp != nil {
			break
		}
		t.cancel()
	}
	loser, cancel, isSecond := second, cancelSecond, t.candidate == second.candidate
	if isSecond {
		loser, cancel = c, cancelFirst
	}
	if t.resp == nil { // both failed: the one that was tried first is tried no more, and the other is what failed last
		f.failed(loser, "failed beside it")
		return f.settle(t)
	}
	cancel()
	go drop(tries) // whatever it still brings
	if isSecond {
		f.overdue(c, began)
	}
	return f.settle(t)
}

// start makes a try in a goroutine of its own.
func (f *forwarding) start(c choice, tries chan<- try) context.CancelFunc {
	ctx, cancel := context.WithCancel(f.request.Context())
	// What the try notes is its own, until it has won.
	g, s, noted := *f, *f.selection, *f.call
	g.selection, g.call, g.request, g.again = &s, &noted, f.request.WithContext(ctx), false
	go func() {
		t := try{choice: c, call: &noted, cancel: cancel}
		t.resp, t.out = g.attempt(c) //nolint:bodyclose // whoever receives the try closes it
		t.again = g.again
		if t.resp != nil {
			if _, held := t.resp.Body.(*heldBody); !held {
				t.resp.Body = &cancelledBody{t.resp.Body, cancel}
			}
		}
		tries <- t
	}()
	return cancel
}

// settle takes over what the try that counts has noted.
func (f *forwarding) settle(t try) (*http.Response, choice, outcome) {
	f.again, f.call.inner, f.call.target, f.call.tally, f.call.took = t.again, t.call.inner, t.call.target, t.call.tally, t.call.took
	if t.resp == nil {
		t.cancel()
	}
	return t.resp, t.choice, t.out
}

// beside returns the copy for a second try; ok is false when there is no reason for one, no copy, or no budget.
func (f *forwarding) beside(c choice, began time.Time) (second choice, ok bool) {
	o := f.outbound
	if f.request.Context().Err() != nil || !o.pace.Silent(c.candidate.Target, began) {
		return choice{}, false
	}
	s := *f.selection
	s.tried = append(slices.Clip(s.tried), attempt{target: c.candidate.Target})
	second = s.next()
	if second.candidate.Target == c.candidate.Target || s.times(second.candidate.Target) > 0 {
		return choice{}, false
	}
	if ejected, _ := o.health.Evidence(); ejected[second.candidate.Target] != "" {
		return choice{}, false
	}
	return second, o.hedgesOf(f.call.query.Service).Withdraw()
}

// overdue counts against a copy that it is still silent, now that another has answered in its place.
func (f *forwarding) overdue(c choice, began time.Time) {
	o := f.outbound
	if !o.pace.Silent(c.candidate.Target, began) {
		if c.probe {
			f.health.Cancel(c.candidate.Target)
		}
		return
	}
	o.failed(c.candidate.Target, balance.Broken, fmt.Errorf("%w: %s", errOverdue, f.now().Sub(began).Round(time.Millisecond)))
}

// drop closes what a try brings that nobody waits for any more.
func drop(tries <-chan try) {
	t := <-tries
	if t.resp != nil {
		_ = t.resp.Body.Close()
	}
	t.cancel()
}

// cancelledBody ends a try's context with the response that it brought.
type cancelledBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

// Close closes the body.
func (b *cancelledBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

func (o *Outbound) hedgesOf(s topology.ServiceName) *balance.Hedges {
	o.mu.RLock()
	h := o.hedges[s]
	o.mu.RUnlock()
	if h != nil {
		return h
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if h = o.hedges[s]; h == nil {
		h = new(balance.Hedges)
		o.hedges[s] = h
	}
	return h
}
