package gateway

import (
	"math"
	"time"
)

// accrual turns silence into suspicion, by what silences there were before (N. Hayashibara et al., The φ accrual failure detector,
// 2004). Of the last silences that ended it takes mean and deviation, and those for a normal distribution; φ is then how improbable it is
// that a silence as long as the present one ends yet: 1 is one in ten, 2 one in a hundred, and so on. Not safe for concurrent use.
type accrual struct {
	samples [maxSilences]float64 // seconds
	n       int                  // samples ever
	sum     float64              // of those that are kept
	squares float64
}

const (
	// maxSilences is how many are kept: a dozen seconds of a busy link.
	maxSilences = 128
	// fewSilences is below how many the expectation counts instead.
	fewSilences = 5
	// minDeviation keeps a link that was always on time from being judged by the microsecond: timers and schedulers aren't.
	minDeviation = 25 * time.Millisecond
	// maxPhi is where it ends: no more can be told from the tail of a distribution.
	maxPhi = 100
)

// add takes in a silence that has ended.
func (a *accrual) add(silence time.Duration) {
	s := max(silence, 0).Seconds()
	i := a.n % maxSilences
	if a.n >= maxSilences {
		old := a.samples[i]
		a.sum -= old
		a.squares -= old * old
	}
	a.samples[i] = s
	a.n++
	a.sum += s
	a.squares += s * s
}

// phi returns the suspicion after a silence; expected is how long one is as long as there is no experience.
func (a *accrual) phi(silence, expected time.Duration) float64 {
	mean, deviation := expected.Seconds(), expected.Seconds()/4
	if n := float64(min(a.n, maxSilences)); n >= fewSilences {
		mean = a.sum / n
		deviation = math.Sqrt(max(a.squares/n-mean*mean, 0))
	}
	deviation = max(deviation, minDeviation.Seconds(), mean/8)
	// The logistic approximation of the normal distribution's tail, as Akka has it.
	y := (silence.Seconds() - mean) / deviation
	e := math.Exp(-y * (1.5976 + 0.070566*y*y))
	if y <= 0 {
		return max(-math.Log10(1-1/(1+e)), 0)
	}
	return min(-math.Log10(e/(1+e)), maxPhi)
}
