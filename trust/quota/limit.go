// Package quota limits how many requests may come: token buckets in the sidecar of the called workload, one for each caller, and shares of
// them, leased to the copies of a service by control, so that no request waits for anybody.
//
// It is pure: moments are passed in, and the words on the wire are others'.
package quota

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
)

// Limits of a Limit.
const (
	MaxRate     = 1e6
	MaxBurst    = 1e6
	MaxWindow   = 24 * time.Hour
	MaxReplicas = 100_000
)

// Limit says how many requests of one key may come.
type Limit struct {
	Name   string        // by which RateLimit headers call it
	Rate   float64       // requests a second
	Burst  int           // that may come at once; 0: as many as in a second, but 1 at least
	Window time.Duration // over which the rate was given, for the headers; 0: a second. They know no shorter one
	// Shared: the rate and the burst are those of all copies together, of which there are Replicas (0: one). Else each has its own.
	Shared   bool
	Replicas int
	// MaxKeys bounds how many keys are told apart; 0: DefaultMaxKeys. See Limiter.
	MaxKeys int
}

// DefaultMaxKeys is how many keys a Limiter tells apart.
const DefaultMaxKeys = 10_000

// valid returns l with defaults.
func (l Limit) valid() (Limit, error) {
	if l.Burst == 0 {
		l.Burst = max(1, int(math.Ceil(min(l.Rate, MaxBurst))))
	}
	if l.Window == 0 {
		l.Window = time.Second
	}
	if l.Replicas == 0 || !l.Shared {
		l.Replicas = 1
	}
	if l.MaxKeys == 0 {
		l.MaxKeys = DefaultMaxKeys
	}
	var errs []error
	if !(l.Rate > 0 && l.Rate <= MaxRate) { // NaN too
		errs = append(errs, fmt.Errorf("a rate of %v: more than 0 and at most %v a second", l.Rate, MaxRate))
	}
	if l.Burst < 1 || l.Burst > MaxBurst {
		errs = append(errs, fmt.Errorf("a burst of %d: 1 to %v", l.Burst, MaxBurst))
	}
	if l.Window < 0 || l.Window > MaxWindow {
		errs = append(errs, fmt.Errorf("a window of %v: at most %v", l.Window, MaxWindow))
	}
	if l.Replicas < 1 || l.Replicas > MaxReplicas {
		errs = append(errs, fmt.Errorf("%d copies: 1 to %d", l.Replicas, MaxReplicas))
	}
	if l.MaxKeys < 1 {
		errs = append(errs, fmt.Errorf("%d keys: 1 at least", l.MaxKeys))
	}
	if err := errors.Join(errs...); err != nil {
		return l, fmt.Errorf("quota %s: %w", l.Name, err)
	}
	return l, nil
}

// even is the share of one copy if nothing is known of the others.
func (l Limit) even() float64 { return l.Rate / float64(l.Replicas) }

// floor is what a copy may let through of what it has no lease for: little, so that much is left for those that are asked more.
func (l Limit) floor() float64 {
	if l.Replicas == 1 {
		return l.Rate
	}
	return l.even() / floorPart
}

const floorPart = 10

// capacity is how much one copy lets through at once: its part of the burst, but one request at least.
func (l Limit) capacity() float64 { return max(1, float64(l.Burst)/float64(l.Replicas)) }

// Decision is what became of a request.
type Decision struct {
	Allowed   bool
	Remaining int           // that could come at once, in this copy
	Reset     time.Duration // until one may come, if none may; else until as many may as ever
}

// The headers that tell a caller, of draft-ietf-httpapi-ratelimit-headers-10, and Retry-After of RFC 9110, section 10.2.3.
const (
	PolicyHeader     = "RateLimit-Policy"
	StateHeader      = "RateLimit"
	RetryAfterHeader = "Retry-After"
)

// AppendPolicy appends an item of the header RateLimit-Policy: "name";q=100;w=60.
func (l Limit) AppendPolicy(b []byte) []byte {
	window := max(1, int64(math.Ceil(l.Window.Seconds())))
	b = appendItem(b, l.Name)
	b = append(b, ";q="...)
	b = strconv.AppendInt(b, int64(math.Round(l.Rate*float64(window))), 10)
	b = append(b, ";w="...)
	return strconv.AppendInt(b, window, 10)
}

// AppendState appends an item of the header RateLimit: "name";r=50;t=30.
func (l Limit) AppendState(b []byte, d Decision) []byte {
	b = appendItem(b, l.Name)
	b = append(b, ";r="...)
	b = strconv.AppendInt(b, int64(d.Remaining), 10)
	b = append(b, ";t="...)
	return strconv.AppendInt(b, seconds(d.Reset), 10)
}

// RetryAfter is the value of the header Retry-After, for a request that was refused.
func (d Decision) RetryAfter() string { return strconv.FormatInt(max(1, seconds(d.Reset)), 10) }

// seconds rounds up: who waits that long does not wait in vain.
func seconds(d time.Duration) int64 { return int64((max(0, d) + time.Second - 1) / time.Second) }

// appendItem appends a string of RFC 9651 (structured fields), after a comma where something stands before it.
func appendItem(b []byte, name string) []byte {
	if len(b) > 0 {
		b = append(b, ", "...)
	}
	b = append(b, '"')
	for k := range len(name) {
		switch c := name[k]; {
		case c == '"', c == '\\':
			b = append(b, '\\', c)
		case c < ' ', c > '~':
			b = append(b, '_')
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
