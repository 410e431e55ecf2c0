package promise

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
	"github.com/isthmus-mesh/isthmus/internal/ledger"
)

// steps are how often a ramp is looked at, and tries how many places are tried for where each step of it begins.
const (
	steps = 5
	tries = 10
)

// ramp finds out how well the share of the cluster that comes back follows a ramp.
func (r Run) ramp(length, target string) (Figure, error) {
	lasts, err := time.ParseDuration(length)
	if err != nil {
		return Figure{}, fmt.Errorf("ramp %q: want a duration: %w", length, err)
	}
	most, err := strconv.ParseFloat(strings.TrimSuffix(target, "%"), 64)
	if err != nil {
		return Figure{}, fmt.Errorf("ramp %q: want a share such as 5%%: %w", target, err)
	}
	f := Figure{Promise: fmt.Sprintf("share within %s of a ramp of %s", target, length), Measured: "no ramp was seen", Timing: true}
	if off, began, ok := r.follows(lasts); ok {
		f.Measured = fmt.Sprintf("share within %.1f%% of a ramp that began after %s", 100*off, began.Round(100*time.Millisecond))
		f.Kept = 100*off <= most
	}
	return f, nil
}

// follows returns how far off the share is in the worst step, and when the ramp began, for the beginning that fits best.
func (r Run) follows(lasts time.Duration) (off float64, began time.Duration, ok bool) {
	was := most(r.before())
	after := r.chosen(func(a traffic.Answer) bool {
		return a.Sent.After(r.Event) && ledger.Repeatable(a.Method) && !a.Failed()
	})
	if len(after) == 0 {
		return 0, 0, false
	}
	step, end := lasts/steps, after[len(after)-1].Sent.Sub(r.Event)
	off = math.Inf(1)
	for from := time.Duration(0); from+lasts <= end; from += step / tries {
		// A step before it begins, and one when it is over, are part of it: nothing, and all.
		var counts, back [steps + 2]int
		for _, a := range after {
			i := int(math.Floor(float64(a.Sent.Sub(r.Event)-from)/float64(step))) + 1
			if i < 0 || i >= len(counts) {
				continue
			}
			if counts[i]++; a.Cluster != was {
				back[i]++
			}
		}
		worst := 0.0
		for i, n := range counts {
			want := min(1, max(0, (float64(i)-0.5)/steps))
			if n > 0 {
				worst = max(worst, math.Abs(float64(back[i])/float64(n)-want))
			}
		}
		if worst < off {
			off, began = worst, from
		}
	}
	return off, began, !math.IsInf(off, 1)
}
