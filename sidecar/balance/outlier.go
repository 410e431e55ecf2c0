package balance

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// When a copy is held to be worse than its peers.
const (
	// outlierWindow is how far the look goes back, in slots of a second.
	outlierWindow = 10
	// outlierVolume is how many requests there have to be in it, of the copy and of its peers together.
	outlierVolume = 20
	// A copy fails too often when, chance allowed for, more than outlierFailures of its requests fail, and more than twice as many as its peers'.
	outlierFailures = 0.05
	outlierMargin   = 2.58 // of the Wilson interval: one in two hundred by chance
	// A copy is too slow when its median is outlierSlower times its peers', and outlierLater above it, for outlierSpell.
	outlierSlower = 4
	outlierLater  = 20 * time.Millisecond
	outlierSpell  = 3 * time.Second
	// outlierShare is how much of a tier's capacity may be out, for whatever reason, and a copy still be ejected for its figures.
	outlierShare = 0.5

	// Durations are counted in steps of √2 from shortestStep.
	latencySteps = 40
	shortestStep = 250 * time.Microsecond
)

// Score counts what a caller's requests to one copy come to. Counting takes no lock. The zero value is in use.
type Score struct {
	answered, failed atomic.Uint32
	took             [latencySteps]atomic.Uint32
}

// Answered counts a request that was answered after took.
func (s *Score) Answered(took time.Duration) {
	s.answered.Add(1)
	s.took[latencyStep(took)].Add(1)
}

// Failed counts one that was not, or that came back as a gateway's error.
func (s *Score) Failed() { s.failed.Add(1) }

func latencyStep(d time.Duration) int {
	if d <= shortestStep {
		return 0
	}
	return min(int(math.Ceil(2*math.Log2(float64(d)/float64(shortestStep)))), latencySteps-1)
}

// stepLength is the longest that is counted in a step.
func stepLength(step int) time.Duration {
	return time.Duration(float64(shortestStep) * math.Exp2(float64(step)/2))
}

// Outliers finds the copies that do worse than their peers: that fail more of their requests, or are several times slower. It looks once a second,
// and keeps counts of some seconds. It only says so; who asks ejects them (Health), for a while. The zero value is in use.
type Outliers[K comparable] struct {
	mu     sync.Mutex
	copies map[K]*history // guarded by mu
}

// history is what a Score came to, second by second.
type history struct {
	score Score

	answered, failed [outlierWindow]uint32 // ring by second
	took             [latencySteps]float64 // a fifth is forgotten each second
	second           int64                 // the newest in the ring
	slow             time.Time             // since when it is too slow; zero: it isn't
}

// Peer is a copy beside others, of which one request goes to one.
type Peer[K comparable] struct {
	Key K
	// Tier is what it is in: of a tier's capacity, no more than half is ejected.
	Tier     string
	Capacity float64
	// Place is where it is: those of one place should be equally fast.
	Place string
	// Out: it is not trusted now, for whatever reason.
	Out bool
}

// Outlier is a copy that does worse than its peers, and the evidence in words ("2 of 40 answered, peers 99 %").
type Outlier[K comparable] struct {
	Key      K
	Evidence string
}

// Score returns the score of k.
func (o *Outliers[K]) Score(k K) *Score {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.copies[k]
	if h == nil {
		if o.copies == nil {
			o.copies = make(map[K]*history)
		}
		h = new(history)
		o.copies[k] = h
	}
	return &h.score
}

// Keep forgets the copies that keep refuses: those that are gone.
func (o *Outliers[K]) Keep(keep func(K) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for k := range o.copies {
		if !keep(k) {
			delete(o.copies, k)
		}
	}
}

// judged is a peer with its figures.
type judged[K comparable] struct {
	Peer[K]
	*history
	ok, bad float64
	excess  float64 // how much worse it is; ranks the outliers
	words   string
}

// Judge returns those of the peers that are to be ejected now, the worst first. They begin anew: it takes another volume of requests to eject them
// again. Never are all ejected, nor more than half of a tier's capacity be out afterwards.
func (o *Outliers[K]) Judge(now time.Time, peers []Peer[K]) []Outlier[K] {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make([]judged[K], 0, len(peers))
	total, out := make(map[string]float64), make(map[string]float64)
	trusted := 0
	for _, p := range peers {
		total[p.Tier] += p.Capacity
		if p.Out {
			out[p.Tier] += p.Capacity
			continue
		}
		trusted++
		if h := o.copies[p.Key]; h != nil {
			h.advance(now)
			j := judged[K]{Peer: p, history: h}
			for i := range outlierWindow {
				j.ok, j.bad = j.ok+float64(h.answered[i]), j.bad+float64(h.failed[i])
			}
			all = append(all, j)
		}
	}
	var found []*judged[K]
	for i := range all {
		if all[i].fails(all) || all[i].lags(all, now) {
			found = append(found, &all[i])
		}
	}
	slices.SortStableFunc(found, func(a, b *judged[K]) int { return cmp.Compare(b.excess, a.excess) })
	var outliers []Outlier[K]
	for _, j := range found {
		if trusted <= 1 || out[j.Tier]+j.Capacity > outlierShare*total[j.Tier] {
			continue
		}
		trusted--
		out[j.Tier] += j.Capacity
		j.forget()
		outliers = append(outliers, Outlier[K]{j.Key, j.words})
	}
	return outliers
}

// fails reports whether j fails too many of its requests.
func (j *judged[K]) fails(all []judged[K]) bool {
	var ok, bad float64
	for i := range all {
		if all[i].history != j.history {
			ok, bad = ok+all[i].ok, bad+all[i].bad
		}
	}
	if j.ok+j.bad < outlierVolume || ok+bad < outlierVolume {
		return false
	}
	peers := bad / (ok + bad)
	least := atLeast(j.bad, j.ok+j.bad)
	if least <= max(outlierFailures, 2*peers) {
		return false
	}
	j.excess = 1 + least // before what is only slow
	j.words = fmt.Sprintf("%.0f of %.0f answered, peers %.0f %%", j.ok, j.ok+j.bad, math.Floor(100*(1-peers)))
	return true
}

// atLeast is the lower end of Wilson's interval for a share of which n were seen, k of them.
func atLeast(k, n float64) float64 {
	p, z2 := k/n, outlierMargin*outlierMargin
	return (p + z2/(2*n) - outlierMargin*math.Sqrt(p*(1-p)/n+z2/(4*n*n))) / (1 + z2/n)
}

// lags reports whether j has been too slow for a while.
func (j *judged[K]) lags(all []judged[K], now time.Time) bool {
	var peers [latencySteps]float64
	for i := range all {
		if all[i].history != j.history && all[i].Place == j.Place {
			for step, n := range all[i].took {
				peers[step] += n
			}
		}
	}
	own, mine := median(&j.took)
	theirs, others := median(&peers)
	if mine < outlierVolume || others < outlierVolume || own < outlierSlower*theirs || own-theirs < outlierLater {
		j.slow = time.Time{}
		return false
	}
	if j.slow.IsZero() {
		j.slow = now
	}
	if now.Sub(j.slow) < outlierSpell {
		return false
	}
	j.excess = 1 - float64(theirs)/float64(own)
	j.words = fmt.Sprintf("p50 %s, peers %s", roughly(own), roughly(theirs))
	return true
}

// median returns the median of durations that were counted, to within a step, and how many there are.
func median(took *[latencySteps]float64) (d time.Duration, n float64) {
	for _, k := range took {
		n += k
	}
	sum := 0.0
	for step, k := range took {
		if sum += k; sum >= n/2 && k > 0 {
			longest, shortest := stepLength(step), stepLength(step-1)
			return longest - time.Duration(float64(longest-shortest)*(sum-n/2)/k), n
		}
	}
	return 0, n
}

func roughly(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

// advance takes in what was counted since the last time. A clock that steps back stays in the newest second.
func (h *history) advance(now time.Time) {
	second := now.Unix()
	if second <= h.second {
		return
	}
	elapsed := min(second-h.second, outlierWindow)
	for s := second - elapsed + 1; s <= second; s++ {
		h.answered[s%outlierWindow], h.failed[s%outlierWindow] = 0, 0
	}
	h.second = second
	h.answered[second%outlierWindow], h.failed[second%outlierWindow] = h.score.answered.Swap(0), h.score.failed.Swap(0)
	kept := math.Pow(0.8, float64(elapsed))
	for i := range h.took {
		h.took[i] = h.took[i]*kept + float64(h.score.took[i].Swap(0))
	}
}

// forget begins anew.
func (h *history) forget() {
	h.answered, h.failed = [outlierWindow]uint32{}, [outlierWindow]uint32{}
	h.took = [latencySteps]float64{}
	h.slow = time.Time{}
}
