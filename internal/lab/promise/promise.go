// Package promise measures what is promised on failover: from what callers saw around the moment of an event it works out one figure a promise,
// and sets it beside what was promised. It is pure.
//
// Behaviour is judged, timing is not: a machine that is busy is late, and nothing is wrong with the mesh. A figure of timing that is above its
// target is printed as late.
package promise

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
	"github.com/isthmus-mesh/isthmus/internal/ledger"
)

// Run is what callers saw.
type Run struct {
	Answers []traffic.Answer // in any order
	Event   time.Time        // when something happened
}

// Figure is one promise beside what was measured.
type Figure struct {
	Promise  string // in words: "0 failed of those that may be repeated"
	Measured string
	Kept     bool
	Timing   bool // it is for people to judge: no test fails for it
}

// ErrUnknown is what the error is of a measure that there is none of.
var ErrUnknown = errors.New("no such measure")

// Measure reads one measure and takes it:
//
//	failed==0        requests that failed though they may be repeated
//	broken==0        requests of any kind that failed
//	p99.9<=400ms     of requests in flight at the event, or sent in the 5 s after it, but for those that failed and may not be repeated
//	told<=500ms      from the event until the last of those was told
//	moved<=500ms     from the event to the first answer by another cluster than before
//	steady<=300ms    from the event until of the next 100 requests 99 take no longer than before, or than in the end, and a quarter
//	extra<=90ms      the slowest of those requests, failed ones included, above the median before the event
//	ramp:10s<=5%     how far the share of the cluster that comes back is from a ramp of that length, looked at each fifth of it, wherever the ramp
//	                 begins; of requests that may be repeated
//	switches<=1      how often the cluster changed that answers most, looked at each half second
func Measure(words string, r Run) (Figure, error) {
	name, target, op, err := cut(words)
	if err != nil {
		return Figure{}, err
	}
	switch name {
	case "failed", "broken", "switches":
		n, e := strconv.Atoi(target)
		if e != nil {
			return Figure{}, fmt.Errorf("%q: want a number: %w", words, e)
		}
		return r.count(name, op, n), nil
	}
	if length, ok := strings.CutPrefix(name, "ramp:"); ok {
		return r.ramp(length, target)
	}
	most, err := time.ParseDuration(target)
	if err != nil {
		return Figure{}, fmt.Errorf("%q: want a duration: %w", words, err)
	}
	measure, ok := map[string]func() (time.Duration, bool){"p99.9": r.slow, "moved": r.moved, "steady": r.steady, "extra": r.extra, "told": r.told}[name]
	if !ok {
		return Figure{}, fmt.Errorf("%q: %w", words, ErrUnknown)
	}
	f := Figure{Promise: phrases[name] + " ≤ " + target, Measured: phrases[name] + " not seen", Timing: true}
	if got, seen := measure(); seen {
		f.Measured, f.Kept = fmt.Sprintf("%s %s", phrases[name], got.Round(time.Millisecond)), got <= most
	}
	return f, nil
}

var phrases = map[string]string{
	"p99.9": "p99.9", "moved": "traffic moved in", "steady": "p99 steady in", "extra": "delay", "told": "failures told in",
}

func cut(words string) (name, target, op string, err error) {
	for _, op := range []string{"==", "<="} {
		if name, target, ok := strings.Cut(words, op); ok {
			return name, target, op, nil
		}
	}
	return "", "", "", fmt.Errorf("%q: want MEASURE==N or MEASURE<=N", words)
}

func (r Run) count(name, op string, most int) Figure {
	bound := map[string]string{"==": "", "<=": "≤ "}[op] + strconv.Itoa(most)
	switch name {
	case "switches":
		got := r.switches()
		return Figure{Promise: bound + " switches", Measured: fmt.Sprintf("%d switches", got), Kept: got <= most}
	case "broken":
		got := 0
		for _, a := range r.Answers {
			if a.Failed() {
				got++
			}
		}
		return Figure{Promise: bound + " failed of any kind", Measured: fmt.Sprintf("%d of %d failed", got, len(r.Answers)), Kept: got <= most}
	default:
		got, all := 0, 0
		for _, a := range r.Answers {
			if !ledger.Repeatable(a.Method) {
				continue
			}
			all++
			if a.Failed() {
				got++
			}
		}
		return Figure{Promise: bound + " failed that may be repeated", Measured: fmt.Sprintf("%d of %d failed", got, all), Kept: got <= most && all > 0}
	}
}

// window is how long after an event a request is looked at for what the event did to it.
const window = 5 * time.Second

func end(a traffic.Answer) time.Time { return a.Sent.Add(a.Took) }

// near returns the requests that the event may have met, by when they were sent.
func (r Run) near() []traffic.Answer {
	return r.chosen(func(a traffic.Answer) bool { return end(a).After(r.Event) && a.Sent.Before(r.Event.Add(window)) })
}

// warmUp is how long traffic is not looked at after it began: who has no session yet waits for handshakes, and is no measure of what is usual.
const warmUp = time.Second

func (r Run) before() []traffic.Answer {
	var began time.Time
	for _, a := range r.Answers {
		if began.IsZero() || a.Sent.Before(began) {
			began = a.Sent
		}
	}
	return r.chosen(func(a traffic.Answer) bool { return !end(a).After(r.Event) && a.Sent.Sub(began) >= warmUp })
}

func (r Run) after() []traffic.Answer {
	return r.chosen(func(a traffic.Answer) bool { return end(a).After(r.Event) })
}

func (r Run) chosen(fits func(traffic.Answer) bool) []traffic.Answer {
	out := slices.DeleteFunc(slices.Clone(r.Answers), func(a traffic.Answer) bool { return !fits(a) })
	slices.SortFunc(out, func(a, b traffic.Answer) int { return a.Sent.Compare(b.Sent) })
	return out
}

// quantile of how long requests took; 0 for none.
func quantile(of []traffic.Answer, q float64) time.Duration {
	if len(of) == 0 {
		return 0
	}
	took := make([]time.Duration, len(of))
	for i, a := range of {
		took[i] = a.Took
	}
	slices.Sort(took)
	return took[min(int(q*float64(len(took))), len(took)-1)]
}

// lost reports whether a request failed that may not be repeated. When it is told so says how soon a death is proved, and not how long answers take.
func lost(a traffic.Answer) bool { return a.Failed() && !ledger.Repeatable(a.Method) }

func (r Run) told() (last time.Duration, ok bool) {
	for _, a := range r.near() {
		if lost(a) {
			last = max(last, end(a).Sub(r.Event))
		}
	}
	return last, len(r.near()) > 0
}

func (r Run) slow() (time.Duration, bool) {
	near := slices.DeleteFunc(r.near(), lost)
	return quantile(near, 0.999), len(near) > 0
}

func (r Run) extra() (time.Duration, bool) {
	near, before := r.near(), r.before()
	return max(0, quantile(near, 1)-quantile(before, 0.5)), len(near) > 0 && len(before) > 0
}

// Slowest returns up to n of the requests that the event may have met, those that took the longest.
func (r Run) Slowest(n int) []traffic.Answer {
	near := r.near()
	slices.SortStableFunc(near, func(a, b traffic.Answer) int { return cmp.Compare(b.Took, a.Took) })
	return near[:min(n, len(near))]
}

// most returns the cluster that answered most of them.
func most(of []traffic.Answer) string {
	counts := make(map[string]int)
	best := ""
	for _, a := range of {
		if a.Failed() {
			continue
		}
		counts[a.Cluster]++
		if n := counts[a.Cluster]; n > counts[best] || n == counts[best] && a.Cluster < best {
			best = a.Cluster
		}
	}
	return best
}

func (r Run) moved() (time.Duration, bool) {
	was, first := most(r.before()), time.Time{}
	for _, a := range r.after() {
		if !a.Failed() && a.Cluster != was && (first.IsZero() || end(a).Before(first)) {
			first = end(a)
		}
	}
	return first.Sub(r.Event), was != "" && !first.IsZero()
}

// steady is when a hundred requests began of which 99 took no longer than usual.
func (r Run) steady() (time.Duration, bool) {
	const look, slowest = 100, 1
	before, after := r.before(), r.after()
	if len(before) == 0 || len(after) < look {
		return 0, false
	}
	usual := max(quantile(before, 0.99), quantile(after[len(after)*2/3:], 0.99))
	usual += usual / 4 // by definition, one of a hundred is above it: without some play, a window in four is not steady though nothing has happened
	slow := 0
	for i, a := range after {
		if a.Took > usual {
			slow++
		}
		first := i - look + 1
		if first < 0 {
			continue
		}
		if slow <= slowest {
			return max(0, after[first].Sent.Sub(r.Event)), true
		}
		if after[first].Took > usual {
			slow--
		}
	}
	return 0, false
}

func (r Run) switches() int {
	const look = 500 * time.Millisecond
	var buckets [][]traffic.Answer
	for _, a := range r.after() {
		if a.Sent.Before(r.Event) {
			continue
		}
		for i := int(a.Sent.Sub(r.Event) / look); len(buckets) <= i; {
			buckets = append(buckets, nil)
		}
		i := a.Sent.Sub(r.Event) / look
		buckets[i] = append(buckets[i], a)
	}
	was, n := most(r.before()), 0
	for _, b := range buckets {
		now := most(b)
		if now != "" && was != "" && now != was {
			n++
		}
		if now != "" {
			was = now
		}
	}
	return n
}
