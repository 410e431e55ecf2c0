package rehearsal

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Where the drill made load itself, each of its requests is known to the millisecond: the figures are of those.

// spread is durations that were measured one by one.
type spread []time.Duration

func (s spread) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	slices.Sort(s)
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// take makes the figures of a phase of the load's own requests. How many were tried again, their sidecar tells alone.
func (p *Phase) take(own []Answer, began time.Time) {
	told := p.Failed // of whatever called: none of that is to be lost
	p.Requests, p.Failed, p.Shares = 0, 0, make(map[string]float64)
	var took spread
	for _, a := range own {
		if at := a.Ended.Sub(began).Seconds(); at < p.From || at >= p.To {
			continue
		}
		p.Requests++
		if a.Cluster == "" {
			p.Failed++
			continue
		}
		took = append(took, a.Took)
		p.Shares[a.Cluster]++
	}
	p.Failed = max(p.Failed, told)
	for c := range p.Shares {
		p.Shares[c] /= float64(len(took))
	}
	p.Rate = 0
	if p.To > p.From {
		p.Rate = float64(p.Requests) / (p.To - p.From)
	}
	p.P50, p.P99 = took.quantile(0.5), took.quantile(0.99)
}

// ownSeconds are the seconds of the load's own requests.
func ownSeconds(told []Second, own []Answer, began time.Time) []Second {
	took, failed := make(map[float64]spread), make(map[float64]uint64)
	by := make(map[float64]*Second)
	for i := range told {
		s := told[i]
		s.Requests, s.By = 0, make(map[string]uint64)
		by[s.At] = &s
	}
	for _, a := range own {
		at := math.Floor(a.Ended.Sub(began).Seconds())
		s := by[at]
		if s == nil {
			s = &Second{At: at, By: make(map[string]uint64)}
			by[at] = s
		}
		s.Requests++
		s.By[a.Cluster]++
		if a.Cluster == "" {
			failed[at]++
			continue
		}
		took[at] = append(took[at], a.Took)
	}
	out := make([]Second, 0, len(by))
	for at, s := range by {
		s.Failed = max(s.Failed, failed[at])
		s.P50, s.P99 = took[at].quantile(0.5), took[at].quantile(0.99)
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b Second) int { return cmp.Compare(a.At, b.At) })
	return out
}

// ownTakers tells who answered the load from the moment on at which requests had moved.
func ownTakers(own []Answer, r *Result) []Taker {
	by := make(map[string]int)
	total := 0
	for _, a := range own {
		if a.Cluster != "" && a.Cluster != r.Cluster && !a.Ended.Before(r.Began.Add(r.MovedIn.Took)) && a.Ended.Before(r.Ended) {
			by[a.Cluster]++
			total++
		}
	}
	var out []Taker
	for c, n := range by {
		out = append(out, Taker{c, float64(n) / float64(total)})
	}
	slices.SortFunc(out, func(a, b Taker) int { return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(a.Cluster, b.Cluster)) })
	return out
}
