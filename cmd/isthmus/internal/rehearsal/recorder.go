package rehearsal

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// Recorder gathers what was measured. The zero value is empty. Safe for concurrent use.
type Recorder struct {
	mu      sync.Mutex
	ends    []time.Duration              // guarded by mu: of the latency buckets
	seconds map[cell]admin.TrafficSecond // guarded by mu
	offsets map[string]time.Duration     // guarded by mu: from a control's clock to this machine's, by cluster
	answers []Answer                     // guarded by mu
	others  []string                     // guarded by mu: the first failures of own load, in words
}

// cell is one second of one calling and one answering cluster.
type cell struct {
	caller, answers string
	at              int64 // Unix, by the caller's control
}

// Answer is how a request of the drill's own load ended.
type Answer struct {
	Ended   time.Time
	Took    time.Duration
	Cluster string // that answered; empty: it failed
	Problem string
}

// most bounds how many answers are kept, in the order in which they came: an hour at a thousand a second.
const most = 4_000_000

// maxProblems is how many failures are kept in words.
const maxProblems = 5

// Add takes in what a control told; asked and told are when, by this machine's clock.
func (r *Recorder) Add(t admin.Traffic, asked, told time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seconds == nil {
		r.seconds, r.offsets = make(map[cell]admin.TrafficSecond), make(map[string]time.Duration)
	}
	if len(t.LatencyEnds) > 0 {
		r.ends = t.LatencyEnds
	}
	r.offsets[t.Cluster] = asked.Add(told.Sub(asked) / 2).Sub(t.Now)
	for _, s := range t.Series {
		for _, at := range s.Seconds {
			r.seconds[cell{t.Cluster, s.Cluster, at.At.Unix()}] = at
		}
	}
}

// Answered takes in an answer to the drill's own load.
func (r *Recorder) Answered(a Answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.answers) < most {
		r.answers = append(r.answers, a)
	}
	if a.Cluster == "" && len(r.others) < maxProblems {
		r.others = append(r.others, a.Problem)
	}
}

// point is what one calling cluster saw of one answering cluster in one second of this machine's clock.
type point struct {
	caller, answers string
	second          int // since the drill began, or would have
	admin.TrafficSecond
}

// half is by how much requests are told late, on average: sidecars tell once a second.
const half = time.Second / 2

// points returns all of it, in order.
func (r *Recorder) points(began time.Time) []point {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]point, 0, len(r.seconds))
	for c, s := range r.seconds {
		at := time.Unix(c.at, 0).Add(r.offsets[c.caller] - half)
		out = append(out, point{c.caller, c.answers, int(math.Round(at.Sub(began).Seconds())), s})
	}
	slices.SortFunc(out, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.second, b.second), cmp.Compare(a.caller, b.caller), cmp.Compare(a.answers, b.answers))
	})
	return out
}

// Rate returns how many requests a second a cluster (empty: any) has answered in the last n whole seconds.
func (r *Recorder) Rate(cluster string, n int, now time.Time) float64 {
	sum := uint64(0)
	for _, p := range r.points(now) {
		if p.second >= -n-1 && p.second < -1 && (cluster == "" || p.answers == cluster) {
			sum += p.Requests
		}
	}
	return float64(sum) / float64(n)
}

// own returns the answers to the drill's own load, in order of their ends.
func (r *Recorder) own() ([]Answer, []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Clone(r.answers)
	slices.SortFunc(out, func(a, b Answer) int { return a.Ended.Compare(b.Ended) })
	return out, slices.Clone(r.others)
}

// latencies are counts by bucket.
type latencies struct {
	ends   []time.Duration
	counts []uint64
	total  uint64
}

func (l *latencies) add(counts []uint64) {
	for i, n := range counts {
		for len(l.counts) <= i {
			l.counts = append(l.counts, 0)
		}
		l.counts[i] += n
		l.total += n
	}
}

// quantile returns how long the share q took at most, between the ends of its bucket in proportion; 0: nothing was counted.
func (l *latencies) quantile(q float64) time.Duration {
	if l.total == 0 {
		return 0
	}
	left := q * float64(l.total)
	for i, n := range l.counts {
		if left -= float64(n); left > 0 && i < len(l.counts)-1 || n == 0 {
			continue
		}
		from, to := time.Duration(0), time.Duration(0)
		if i < len(l.ends) {
			to = l.ends[i]
		}
		if i > 0 && i-1 < len(l.ends) {
			from = l.ends[i-1]
		}
		if i == len(l.ends)-1 {
			return from // the last has no end
		}
		inside := min(max((left+float64(n))/float64(n), 0), 1)
		return from + time.Duration(inside*float64(to-from))
	}
	return 0
}

// seconds adds the points up by the second.
func seconds(points []point, ends []time.Duration) []Second {
	by := make(map[int]*Second)
	took := make(map[int]*latencies)
	for _, p := range points {
		s := by[p.second]
		if s == nil {
			s = &Second{At: float64(p.second), By: make(map[string]uint64)}
			by[p.second], took[p.second] = s, &latencies{ends: ends}
		}
		s.By[p.answers] += p.Requests
		s.Requests += p.Requests
		s.Failed += p.Failed
		s.Retried += p.Retried
		s.Hedged += p.Hedged
		took[p.second].add(p.Latency)
	}
	out := make([]Second, 0, len(by))
	for _, at := range slices.Sorted(maps.Keys(by)) {
		s := by[at]
		s.P50, s.P99 = took[at].quantile(0.5), took[at].quantile(0.99)
		out = append(out, *s)
	}
	return out
}
