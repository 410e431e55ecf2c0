package wan

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Link is one direction between two sites. The zero Link is perfect.
type Link struct {
	Delay  time.Duration // of every packet
	Jitter time.Duration // more, evenly spread from 0; packets keep their order
	// Loss, Duplicate and Reorder are chances from 0 to 1, packet by packet. A packet that is reordered is not held back by Delay.
	Loss, Duplicate, Reorder float64
	Rate                     int64 // bits a second; 0: as fast as it goes
	Queue                    int   // bytes that wait for their turn at Rate; what comes on top is lost. 0: 100 ms at Rate, 64 KiB at least
	Down                     bool  // nothing passes, and nobody is told
	NoUDP                    bool  // the same for UDP alone, as behind some firewalls
}

// ParseLink reads what a person writes: the parts in any order, separated by commas.
//
//	80ms            Delay            1%             Loss
//	80ms~5ms        and Jitter       dup=1%         Duplicate
//	20mbit          Rate             reorder=2%     Reorder
//	queue=64k       Queue, in bytes  down           Down
//	noudp           NoUDP
//
// "perfect" is the zero Link.
func ParseLink(s string) (Link, error) {
	var l Link
	if strings.TrimSpace(s) == perfect {
		return l, nil
	}
	seen := make(map[string]bool)
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		what, err := l.set(part)
		if err != nil {
			return Link{}, fmt.Errorf("wan: link %q: %q: %w", s, part, err)
		}
		if seen[what] {
			return Link{}, fmt.Errorf("wan: link %q: %q: the %s stands twice", s, part, what)
		}
		seen[what] = true
	}
	return l, nil
}

// set takes one part, and says which one it is.
func (l *Link) set(part string) (what string, err error) {
	name, value, named := strings.Cut(part, "=")
	switch {
	case part == "down":
		l.Down = true
		return "down", nil
	case part == "noudp":
		l.NoUDP = true
		return "noudp", nil
	case named:
		switch name {
		case "dup":
			l.Duplicate, err = chance(value)
		case "reorder":
			l.Reorder, err = chance(value)
		case "queue":
			var n int64
			n, err = count(value, map[string]int64{"k": 1 << 10, "m": 1 << 20, "": 1})
			l.Queue = int(min(n, maxQueue))
		default:
			err = fmt.Errorf("%q is not known: want dup, reorder or queue", name)
		}
		return name, err
	case strings.HasSuffix(part, "%"):
		l.Loss, err = chance(part)
		return "loss", err
	case strings.HasSuffix(part, "bit"):
		l.Rate, err = count(strings.TrimSuffix(part, "bit"), map[string]int64{"k": 1e3, "m": 1e6, "g": 1e9})
		return "rate", err
	}
	delay, jitter, ok := strings.Cut(part, "~")
	if l.Delay, err = pause(delay); err == nil && ok {
		l.Jitter, err = pause(jitter)
	}
	return "delay", err
}

// Bounds of what a link may be told: far above what a WAN is.
const (
	maxDelay = time.Minute
	maxQueue = 64 << 20
	maxRate  = 1e12
)

func pause(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxDelay {
		return 0, fmt.Errorf("want a delay of up to %s such as 80ms, a loss such as 1%%, a rate such as 20mbit, dup=, reorder=, queue=, noudp, or down", maxDelay)
	}
	return d, nil
}

func chance(s string) (float64, error) {
	v, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !strings.HasSuffix(s, "%") || v < 0 || v > 100 || math.IsNaN(v) {
		return 0, fmt.Errorf("want 0%% to 100%%")
	}
	return v / 100, nil
}

// count reads digits and a unit.
func count(s string, units map[string]int64) (int64, error) {
	digits := strings.TrimRight(s, "kmg")
	n, err := strconv.ParseInt(digits, 10, 64)
	unit, ok := units[s[len(digits):]]
	if err != nil || !ok || n <= 0 || n > maxRate/unit {
		return 0, fmt.Errorf("want a number above 0 with its unit")
	}
	return n * unit, nil
}

// queue returns how many bytes may wait at the link's rate.
func (l Link) queue() int {
	if l.Queue > 0 {
		return l.Queue
	}
	const least = 64 << 10
	return int(max(l.Rate/8/10, least))
}

// String is what ParseLink reads; "perfect" for the zero Link, which it reads too.
func (l Link) String() string {
	var parts []string
	if l.Delay > 0 || l.Jitter > 0 {
		part := l.Delay.String()
		if l.Jitter > 0 {
			part += "~" + l.Jitter.String()
		}
		parts = append(parts, part)
	}
	for _, c := range []struct {
		name   string
		chance float64
	}{{"", l.Loss}, {"dup=", l.Duplicate}, {"reorder=", l.Reorder}} {
		if c.chance > 0 {
			parts = append(parts, c.name+strconv.FormatFloat(c.chance*100, 'g', 6, 64)+"%")
		}
	}
	if l.Rate > 0 {
		parts = append(parts, scaled(l.Rate, []unit{{1e9, "gbit"}, {1e6, "mbit"}, {1e3, "kbit"}, {1, "bit"}}))
	}
	if l.Queue > 0 {
		parts = append(parts, "queue="+scaled(int64(l.Queue), []unit{{1 << 20, "m"}, {1 << 10, "k"}, {1, ""}}))
	}
	if l.NoUDP {
		parts = append(parts, "noudp")
	}
	if l.Down {
		parts = append(parts, "down")
	}
	if len(parts) == 0 {
		return perfect
	}
	return strings.Join(parts, ",")
}

const perfect = "perfect"

type unit struct {
	size int64
	name string
}

// scaled writes n in the largest unit that leaves no rest.
func scaled(n int64, units []unit) string {
	for _, u := range units {
		if n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) // the last unit is 1
}
