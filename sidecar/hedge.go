package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
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

// race is a request's first try, and the second that is made beside it when the first is overdue. The first runs in the request's own goroutine,
// and costs no more than if there were no second, but for the channel that calls it off.
type race struct {
	balance.Wait
	first choice
	// off is closed when the second try has answered: the first need not go on. Nil when no second is made.
	off chan struct{}

	mu     sync.Mutex
	over   bool    // guarded by mu; one has answered, or none can any more: no second try begins, and one that runs counts for nothing
	second *second // guarded by mu
}

// second is the second try of a race.
type second struct {
	choice
	cancel context.CancelFunc
	ended  chan struct{}
	since  time.Time // since when nothing had come from the first one's copy

	// Once it has ended.
	resp *http.Response
	out  outcome
	call *call
}

// calledOff reports whether the second try has answered.
func (r *race) calledOff() bool {
	select {
	case <-r.off:
		return true
	default: // as when it is nil
		return false
	}
}

// hedged makes the first try of a request, and, when that is overdue and nothing at all has come from its copy for a while, a second one at another
// copy beside it. The first answer counts; the other try is called off. It returns the try to go on from, as attempt does.
//
// A copy that fell silent fails nothing by itself: packets that are dropped make no noise. Who waits for the verdict on the link waits for
// several round trips.
func (f *forwarding) hedged(c choice) (*http.Response, choice, outcome) {
	r := &f.race
	r.first, r.off, r.Owner = c, make(chan struct{}), f
	f.outbound.await(c, &r.Wait)
	resp, out := f.attempt(c)
	f.answered()
	r.mu.Lock()
	s := r.second
	r.over = r.over || resp != nil
	r.mu.Unlock()
	switch {
	case s == nil:
		return resp, c, out
	case resp != nil && !r.calledOff():
		s.cancel() // whatever it still brings is dropped
		return resp, c, out
	case resp != nil: // too late by a hair: its answer is cut off already
		_ = resp.Body.Close()
	}
	<-s.ended
	if s.resp == nil { // both failed: the one that was tried first is tried no more, and the other is what failed last
		s.cancel()
		f.failed(c, out.err.Error())
		f.again = false
		return nil, s.choice, s.out
	}
	f.again, f.call.inner, f.call.target, f.call.tally, f.call.took = false, s.call.inner, s.call.target, s.call.tally, s.call.took
	f.overdue(c, s.since)
	return s.resp, s.choice, s.out
}

// answered ends the wait for the first try: it has an answer, or failed. If no second try was begun until now, none is.
func (f *forwarding) answered() {
	r := &f.race
	if r.off == nil {
		return
	}
	f.outbound.pace.End(&r.Wait)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = r.over || r.second == nil
}

// await begins the wait for a copy's answer.
func (o *Outbound) await(c choice, w *balance.Wait) {
	t := c.candidate.Target
	if c.anew {
		o.lookAfter(o.pace.BeginAnew(o.now(), t, w), t)
		return
	}
	look, late, isLate := o.pace.Begin(o.now(), t, w)
	if isLate {
		late.Owner.Late(late.Since, late.Certain)
	}
	o.lookAfter(look, t)
}

// lookAfter looks after some time whether answers of a copy are overdue; 0: no need.
func (o *Outbound) lookAfter(d time.Duration, t topology.Target) {
	if d == 0 {
		return
	}
	time.AfterFunc(d, func() {
		late, again := o.pace.Look(o.now(), t)
		for _, l := range late {
			l.Owner.Late(l.Since, l.Certain)
		}
		o.lookAfter(again, t)
	})
}

// Late begins the second try, if there is a copy and budget for it.
func (f *forwarding) Late(since time.Time, certain bool) {
	r, o := &f.race, f.outbound
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || r.second != nil || f.request.Context().Err() != nil {
		return
	}
	c, ok := f.beside(r.first)
	if !ok || f.hopeless(c.candidate.Target) || !f.affordable(certain) {
		return
	}
	done, ok := o.work.Add()
	if !ok {
		return
	}
	o.metrics.hedges.WithLabelValues(f.call.query.Service.String()).Inc()
	ctx, cancel := context.WithCancel(f.request.Context())
	s := &second{choice: c, cancel: cancel, ended: make(chan struct{}), since: since}
	// What the try notes is its own, until it has won.
	s.call = &call{query: f.call.query, plan: f.call.plan, started: f.call.started, span: f.call.span}
	rest := f.besides(r.first.candidate.Target)
	g := &forwarding{
		selection: &rest, outbound: o, call: s.call, request: f.request.WithContext(ctx), idempotent: f.idempotent,
	}
	r.second, f.call.hedged = s, true
	go func() {
		defer done()
		s.resp, s.out = g.attempt(c) //nolint:bodyclose // hedged closes it, or keep
		r.keep(s)
		close(s.ended)
	}()
}

// keep takes in how the second try has ended: what it brings is kept, or dropped when nobody waits for it.
func (r *race) keep(s *second) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case s.resp == nil:
	case r.over:
		_ = s.resp.Body.Close()
		s.cancel()
	default:
		if _, held := s.resp.Body.(*heldBody); held {
			s.cancel()
		} else {
			s.resp.Body = &cancelledBody{s.resp.Body, s.cancel}
		}
		r.over = true
		close(r.off)
	}
}

// besides returns the selection of a second try.
func (f *forwarding) besides(first topology.Target) selection {
	s := *f.selection
	s.tried = append(slices.Clip(s.tried), attempt{target: first})
	return s
}

// beside returns the copy for a second try: one that was not tried, is not ejected nor drained, and is not known to be silent itself.
func (f *forwarding) beside(first choice) (c choice, ok bool) {
	s := f.besides(first.candidate.Target)
	ejected, _ := f.health.Evidence()
	for range maxAttempts {
		c = s.next()
		t := c.candidate.Target
		if s.times(t) > 0 || ejected[t] != "" || c.candidate.Reason.Cause == topology.Drained { // its owner wants no more than must be
			return choice{}, false
		}
		if !f.outbound.pace.Suspect(t) {
			return c, true
		}
		s.tried = append(s.tried, attempt{target: t})
	}
	return choice{}, false
}

// affordable takes a second try from the budget of hedges; where it is certain that the first is in vain, it is as good as a retry.
func (f *forwarding) affordable(certain bool) bool {
	o, service := f.outbound, f.call.query.Service
	if certain {
		return o.budget(service).Withdraw(f.now(), balance.CostSent)
	}
	return o.hedgesOf(service).Withdraw()
}

// overdue counts against a copy that it is still silent, now that another has answered in its place.
func (f *forwarding) overdue(c choice, since time.Time) {
	o, t := f.outbound, c.candidate.Target
	if !o.pace.Silent(f.now(), t, since) {
		if c.probe {
			f.health.Cancel(t)
		}
		return
	}
	c.score.Failed()
	o.failed(t, balance.Broken, fmt.Errorf("%w: %s", errOverdue, f.now().Sub(since).Round(time.Millisecond)))
}

// leave tells those that wait for a copy, or for a session to it, that it is given up.
func (o *Outbound) leave(t topology.Target) {
	o.sessions.Leave(t)
	for _, l := range o.pace.Leave(o.now(), t) {
		l.Owner.Late(l.Since, l.Certain)
	}
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
