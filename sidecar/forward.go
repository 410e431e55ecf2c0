package sidecar

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/sidecar/host"
	"github.com/isthmus-mesh/isthmus/sidecar/replay"
	"github.com/isthmus-mesh/isthmus/sidecar/session"
)

const (
	// A response to a request that could be repeated is held until it is whole, up to this length in bytes, so that a copy that
	// dies between its headers and its end costs the caller nothing.
	maxHeld = 16 << 10
	// maxWords bounds what is read of the words with which another sidecar says why it could not answer.
	maxWords = 1 << 10
)

// callKey is where a call is in its request's context.
type callKey struct{}

func callOf(ctx context.Context) *call {
	return ctx.Value(callKey{}).(*call) // only called for requests that serve made
}

// RoundTrip sends a request to one copy after another until one answers, as far as repeating it can do no harm. Errors are
// a *Failure, or that of the request's own context. httputil.ReverseProxy calls it.
func (o *Outbound) RoundTrip(req *http.Request) (*http.Response, error) {
	c := callOf(req.Context())
	f := &forwarding{
		outbound:   o,
		call:       c,
		request:    req,
		upgrade:    req.Header.Get("Upgrade") != "",
		idempotent: replay.Idempotent(req.Method, req.Header),
	}
	if req.Body != nil && req.Body != http.NoBody {
		if isGRPC(req) {
			f.body = replay.NewStream(req.Body)
		} else {
			f.body = replay.New(req.Body)
		}
	}
	f.selection = newSelection(c.plan, o.health, o.now, f.idempotent)
	c.plan.usage.mark(o.now())
	o.budget(c.query.Service).Request(o.now())
	o.hedgesOf(c.query.Service).Request()
	return f.run()
}

// forwarding is one request on its way through attempts. It belongs to one goroutine.
type forwarding struct {
	*selection
	outbound   *Outbound
	call       *call
	request    *http.Request
	body       *replay.Body
	upgrade    bool
	idempotent bool
	again      bool // the copy that was tried last is tried once more, on another session
	race       race
}

// outcome is how an attempt ended that brought no answer.
type outcome struct {
	err    error
	unsent bool // the application saw nothing of the request
}

func (f *forwarding) run() (*http.Response, error) {
	var c choice
	ctx := f.request.Context()
	for {
		if !f.again {
			c = f.next()
			if err := f.pause(ctx, c); err != nil {
				return nil, err
			}
		}
		first := !f.again && len(f.tried) == 0
		f.again = false
		var resp *http.Response
		var out outcome
		if first && f.hedgeable() {
			resp, c, out = f.hedged(c)
		} else {
			resp, out = f.attempt(c)
		}
		if resp != nil {
			return resp, nil
		}
		if ctx.Err() != nil {
			if c.probe {
				f.health.Cancel(c.candidate.Target)
			}
			return nil, ctx.Err()
		}
		f.failed(c, out.err.Error())
		f.call.event(c, out)
		if failure := f.giveUp(out); failure != nil {
			return nil, failure
		}
		f.call.retries++
		f.outbound.metrics.retries.WithLabelValues(f.call.query.Service.String(), strconv.FormatBool(out.unsent)).Inc()
	}
}

// attempt makes one try. Without a response, outcome says why.
func (f *forwarding) attempt(c choice) (*http.Response, outcome) {
	ctx := f.request.Context()
	inner, err := f.session(ctx, c)
	if err != nil {
		if !f.race.calledOff() && ctx.Err() == nil {
			if !errors.Is(err, session.ErrLeft) { // that it is given up, others have found out
				c.score.Failed()
			}
			f.outbound.notOpened(ctx, c, err, f.upgrade)
		}
		return nil, outcome{err: err, unsent: true}
	}
	body, ok := f.body.Attempt()
	if !ok { // giveUp looked before
		return nil, outcome{err: errors.New("the request's body is gone")}
	}
	req := new(*f.request)
	req.Body, req.Header = body, tellLeft(ctx, req.Header)
	req.Cancel = f.race.off //nolint:staticcheck // SA1019: a context would cost five times as much, for each request; this is HTTP/2, which minds it at no cost
	began := f.now()
	resp, err := inner.RoundTrip(req, func(lost *session.LostError) { f.blame(c, inner, lost) })
	if err != nil {
		_ = body.Close()
		f.release(inner)
		if ctx.Err() != nil {
			f.ranOut(c, began)
			return nil, outcome{err: ctx.Err()}
		}
		if f.race.calledOff() {
			return nil, outcome{err: errOverdue}
		}
		lost, ok := errors.AsType[*session.LostError](err)
		if !ok {
			lost = &session.LostError{Err: err}
		}
		f.blame(c, inner, lost)
		// A session may die alone, and the copies behind it live.
		f.again = !f.upgrade && len(f.tried) == 0 && (lost.Polite || c.pool.Ready())
		return nil, outcome{err: err, unsent: lost.Unsent || lost.Write && !f.body.Touched()}
	}
	now := f.now()
	f.outbound.pace.Heard(now, c.candidate.Target, now.Sub(began))
	f.call.inner, f.call.target, f.call.tally, f.call.took = inner, c.candidate.Target, c.tally, now.Sub(f.call.started)
	if f.upgrade {
		resp.Body = closing(resp.Body, inner)
	}
	return f.judge(c, inner, resp, now.Sub(began))
}

// blame counts a failure against a copy, once for each request, however often it tried: one request that no copy can answer is no
// proof against all of them.
func (f *forwarding) blame(c choice, inner *session.Requests, lost *session.LostError) {
	f.answered()
	if f.times(c.candidate.Target) > 0 && !lost.Polite || f.race.calledOff() {
		return
	}
	if !lost.Polite {
		c.score.Failed()
	}
	f.outbound.lost(c, inner, lost)
}

// session opens or takes the inner session for an attempt.
func (f *forwarding) session(ctx context.Context, c choice) (*session.Requests, error) {
	if f.upgrade {
		return f.outbound.sessions.DialRequests(ctx, destination(f.call.query, c.candidate), session.HTTP1)
	}
	return c.pool.Acquire(ctx, f.race.off)
}

// release closes a session that no pool owns.
func (f *forwarding) release(inner *session.Requests) {
	if f.upgrade {
		inner.Close()
	}
}

// judge tells an application's answer from one that the other sidecar made in its place, and holds a small one until it is whole.
func (f *forwarding) judge(c choice, inner *session.Requests, resp *http.Response, took time.Duration) (*http.Response, outcome) {
	made := resp.Header.Get(headerOutcome)
	if made == outcomeElsewhere && !f.elsewhere(c) {
		resp.Header.Del(headerOutcome)
		made = ""
	}
	if made != "" {
		words, _ := io.ReadAll(io.LimitReader(resp.Body, maxWords)) // fewer words are fine
		_ = resp.Body.Close()
		err := errors.New(strings.TrimSpace(string(words)))
		if resp.Header.Get(headerError) == string(CodeBusy) { // it is well, and honest
			f.answered()
			return nil, outcome{err: err, unsent: true}
		}
		c.pool.Condemn(inner) // a new session may get another copy
		f.blame(c, inner, &session.LostError{Err: err})
		return nil, outcome{err: err, unsent: made == outcomeUnsent || made == outcomeElsewhere}
	}
	if f.idempotent && f.body.Replayable() && f.body.Consumed() && resp.ContentLength > 0 && resp.ContentLength <= maxHeld &&
		resp.StatusCode >= http.StatusOK && f.request.Method != http.MethodHead {
		whole, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return nil, outcome{err: err}
		}
		held := new(heldBody)
		held.Reset(whole)
		resp.Body = held
	}
	f.outbound.answeredWith(c, resp.StatusCode, took)
	return resp, outcome{}
}

// giveUp returns the answer to make when no further attempt may be made, else nil.
func (f *forwarding) giveUp(out outcome) *Failure {
	name := host.String(f.call.query)
	gone := !f.body.Replayable() // more of it was read than is kept
	cost := float64(balance.CostUnsent)
	if !out.unsent {
		cost = balance.CostSent
	}
	failure := &Failure{Status: http.StatusServiceUnavailable, Code: CodeNoAnswer, Err: out.err}
	switch {
	case !out.unsent && !f.idempotent:
		failure.Status, failure.Code = http.StatusBadGateway, CodeAnswerLost
		failure.Text = "the answer of " + name + " got lost after the request was sent, and a " + f.request.Method + " is not sent twice (an Idempotency-Key header would allow it): "
	case !out.unsent && gone:
		failure.Status, failure.Code = http.StatusBadGateway, CodeAnswerLost
		failure.Text = "the answer of " + name + " got lost after the request was sent, and its body is too long to be kept for another try (64 KiB): "
	case gone:
		failure.Text = "no application of " + name + " took the request, and its body is too long to be kept for another try (64 KiB): "
	case len(f.tried) >= maxAttempts:
		failure.Text = "no copy of " + name + " answered: "
	case f.hopeless(f.next().candidate.Target):
		return tooLate(f.call.query, f.words())
	case !f.outbound.budget(f.call.query.Service).Withdraw(f.now(), cost):
		f.outbound.metrics.overBudget.WithLabelValues(f.call.query.Service.String()).Inc()
		failure.Code = CodeBudget
		failure.Text = "a copy of " + name + " failed, and too many requests are being retried to try another: "
	default:
		return nil
	}
	failure.Text += f.words()
	return failure
}

// closing closes inner together with body.
func closing(body io.ReadCloser, inner *session.Requests) io.ReadCloser {
	c := &closingBody{ReadCloser: body, session: inner}
	if w, ok := body.(upgraded); ok {
		return &closingUpgrade{closingBody: c, upgraded: w}
	}
	return c
}

type closingBody struct {
	io.ReadCloser
	session *session.Requests
}

// Close closes both.
func (b *closingBody) Close() error {
	err := b.ReadCloser.Close()
	b.session.Close()
	return err
}

// upgraded is the sending half of what a request became.
type upgraded interface {
	io.Writer
	CloseWrite() error
}

type closingUpgrade struct {
	*closingBody
	upgraded
}
