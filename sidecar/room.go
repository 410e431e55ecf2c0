package sidecar

import (
	"net/http"
	"time"
)

// maxTimedBody is up to which length of a request's body the time to the answer is the application's.
const maxTimedBody = 64 << 10

// room asks whether the application can take one request more (package limit).
func (in *Inbound) room(v *visit) *Failure {
	if v.limited = v.limiter.Begin(v.share) || v.limiter.Ease(in.now()) && v.limiter.Begin(v.share); v.limited {
		return nil
	}
	v.served.shed.Add(1)
	in.metrics.shed.WithLabelValues(v.service.String(), portLabel(v.port)).Inc()
	return fail(http.StatusServiceUnavailable, CodeBusy, "the application behind %s has more to do than it can: it takes %d requests at a time now, four fifths of them of one caller", v.service, v.limiter.Limit())
}

// leave makes room. took says how long the application took for its answer; 0: that is no evidence.
func (v *visit) leave(now time.Time, took time.Duration) {
	if v.limited {
		v.limited = false
		v.limiter.End(now, v.share, took)
	}
}

// abandoned makes room for a request whose caller did not wait for the answer any longer. That is evidence only of a request that was whole: who leaves
// before would have others shed for what the application never got.
func (in *Inbound) abandoned(v *visit, r *http.Request) {
	if v.limited && timed(r) && (r.Body == nil || v.whole.Load()) {
		v.limited = false
		now := in.now()
		v.limiter.Gone(now, v.share, v.asked(now))
		in.tellLimit(v)
	}
}

func (in *Inbound) tellLimit(v *visit) {
	if n, changed := v.limiter.Changed(); changed {
		in.metrics.limit.WithLabelValues(v.service.String(), portLabel(v.port)).Set(float64(n))
	}
}

// asked is for how long the application has had what there is of the request: a body comes as fast as its sender sends.
func (v *visit) asked(now time.Time) time.Duration {
	return now.Sub(v.started) - time.Duration(v.said.Load())
}

// timed is whether how long the answer to r takes says something of the application.
func timed(r *http.Request) bool {
	return r.ContentLength <= maxTimedBody && (r.ContentLength >= 0 || isGRPC(r))
}

// evidence takes in that an application answered. What it sends from then on may take as long as it likes: a stream is no load. How long it took for the
// answer says nothing of how much it has to do when it failed, when it has become another protocol, or when it waited for the request's body.
func (in *Inbound) evidence(v *visit, resp *http.Response) {
	now := in.now()
	took := max(v.asked(now), 1)
	if resp.StatusCode >= http.StatusInternalServerError || resp.StatusCode < http.StatusOK || !timed(resp.Request) {
		took = 0
	}
	v.leave(now, took)
	in.tellLimit(v)
}
