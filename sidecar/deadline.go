package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/sidecar/host"
	"github.com/isthmus-mesh/isthmus/topology"
)

// A request may say how long its caller waits for the answer. From sidecar to sidecar the rest of that goes along as a duration, as it does with
// gRPC: clocks need not agree.
const (
	// headerTimeout is the rest, in milliseconds, among sidecars.
	headerTimeout = "Isthmus-Timeout"
	// headerGRPCTimeout is gRPC's own: digits and a unit. The called application is told what is left.
	headerGRPCTimeout = "Grpc-Timeout"
	// headerWithin is how an application says it with HTTP, in milliseconds; the name is what the field has for it since Envoy.
	headerWithin = "X-Envoy-Upstream-Rq-Timeout-Ms"
	// headerExpected is how the called application is told what is left, in milliseconds.
	headerExpected = "X-Envoy-Expected-Rq-Timeout-Ms"

	// maxTimeout bounds a deadline: whoever says more has none.
	maxTimeout = 24 * time.Hour
	// maxTimeoutDigits is what gRPC has as its bound, for all of them.
	maxTimeoutDigits = 8
)

var errDeadline = errors.New("the caller's deadline is over")

// timeoutOf returns how long the caller of an application's request waits; 0: it doesn't say. A request that is to become another protocol has no
// end.
func timeoutOf(h http.Header) time.Duration {
	if h.Get("Upgrade") != "" {
		return 0
	}
	d := grpcTimeout(h.Get(headerGRPCTimeout))
	if within := millisecondsOf(h.Get(headerWithin)); within > 0 && (d == 0 || within < d) {
		d = within
	}
	return d
}

// millisecondsOf reads a duration in milliseconds; 0: it is none, or too long.
func millisecondsOf(v string) time.Duration {
	n := digits(v)
	if d := n * time.Millisecond; n > 0 && d <= maxTimeout {
		return d
	}
	return 0
}

// digits reads a number; 0: it is none.
func digits(v string) time.Duration {
	if v == "" || len(v) > maxTimeoutDigits {
		return 0
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(n)
}

// grpcTimeout reads gRPC's TimeoutValue and TimeoutUnit; 0: it is none, or too long.
func grpcTimeout(v string) time.Duration {
	if v == "" {
		return 0
	}
	unit, ok := map[byte]time.Duration{
		'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
	}[v[len(v)-1]]
	n := digits(v[:len(v)-1])
	if !ok || n == 0 || n > maxTimeout/unit {
		return 0
	}
	return n * unit
}

// within ends ctx after d; 0: it doesn't. Both ends of a call use it, each for what it knows.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, d, errDeadline)
}

// expired reports whether a request's deadline is what ended it.
func expired(ctx context.Context) bool {
	return ctx.Err() != nil && errors.Is(context.Cause(ctx), errDeadline)
}

// left returns how long a request has; ok is false when it has no deadline.
func left(ctx context.Context) (d time.Duration, ok bool) {
	end, ok := ctx.Deadline()
	if !ok {
		return 0, false
	}
	return time.Until(end), true
}

// tellLeft returns the headers that tell the called sidecar what is left; those of the request when it has no deadline.
func tellLeft(ctx context.Context, h http.Header) http.Header {
	d, ok := left(ctx)
	if !ok {
		return h
	}
	h = h.Clone() // tries may run side by side
	h.Set(headerTimeout, inMilliseconds(d))
	return h
}

// inMilliseconds rounds up: what has begun counts, and nothing is not a duration.
func inMilliseconds(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Millisecond-1)/time.Millisecond)), 10)
}

// tellApp tells the called application what is left.
func tellApp(ctx context.Context, h http.Header) {
	d, ok := left(ctx)
	if !ok {
		return
	}
	ms := inMilliseconds(d)
	h.Set(headerExpected, ms)
	if h.Get(headerGRPCTimeout) != "" && len(ms) <= maxTimeoutDigits {
		h.Set(headerGRPCTimeout, ms+"m")
	}
}

// tooLate is the answer when a request's deadline is over, or too near for what would have to be done.
func tooLate(q topology.Query, tried string) *Failure {
	f := fail(http.StatusGatewayTimeout, CodeDeadline, "the caller's deadline was over before %s answered", host.String(q))
	if tried != "" {
		f.Text = "the caller's deadline is too near for another try at " + host.String(q) + ": " + tried
	}
	f.Err = errDeadline
	return f
}

// hopeless reports whether what is left is less than an answer of that copy takes.
func (f *forwarding) hopeless(t topology.Target) bool {
	d, ok := left(f.request.Context())
	return ok && d < f.outbound.pace.Mean(t)
}

// ranOut takes in that a request's deadline was over before the copy answered. Whether that is the copy's fault is for its peers to say; that nothing
// at all came from it in a time in which it answers otherwise counts as a failure. Of a copy that has not answered yet nobody knows that time, and
// deadlines may come from the application's own clients: it has as long as any first answer.
func (f *forwarding) ranOut(c choice, began time.Time) {
	if !expired(f.request.Context()) {
		return
	}
	c.score.Failed()
	o, t := f.outbound, c.candidate.Target
	enough := o.pace.Mean(t)
	if enough == 0 {
		enough = o.pace.Patience(t)
	}
	if waited := f.now().Sub(began); waited > enough && o.pace.Unheard(t, began) {
		o.failed(t, balance.Broken, fmt.Errorf("silent until the request's deadline, for %s", waited.Round(time.Millisecond)))
	}
}

// isGRPC reports whether r is a gRPC call.
func isGRPC(r *http.Request) bool {
	rest, is := strings.CutPrefix(r.Header.Get("Content-Type"), "application/grpc")
	return is && (rest == "" || rest[0] == '+' || rest[0] == ';')
}
