// Package balance decides, for one caller, how requests spread over copies, when a failed one may be tried again, and which
// copies are left alone for a while.
//
// Everything in it is a small state machine over values: time comes in as an argument, nothing does I/O, no goroutine is
// started. The sidecar's outbound side uses it; every type is safe for concurrent use.
package balance

// Pick returns the index of one of n copies. One is drawn by the shares, then another; the second is taken if it would have
// less in flight for its share, the new request included, than the first has now ("power of two choices"). So shares hold in
// the mean as long as all copies answer alike, and one that is slow gets less. random returns numbers from [0,1). n must be
// at least 1; shares that add to 0 count as equal.
func Pick(n int, share func(i int) float64, inFlight func(i int) int64, random func() float64) int {
	if n == 1 {
		return 0
	}
	var sum float64
	for i := range n {
		sum += share(i)
	}
	weight := share
	if sum <= 0 {
		weight, sum = func(int) float64 { return 1 }, float64(n)
	}
	first := draw(n, weight, sum, -1, random())
	second := draw(n, weight, sum-weight(first), first, random())
	// Both sides of inFlight(first)/weight(first) > (inFlight(second)+1)/weight(second), times both weights.
	if float64(inFlight(first))*weight(second) > float64(inFlight(second)+1)*weight(first) {
		return second
	}
	return first
}

// draw returns one of n by weight, but not the one to leave out; sum is that of the weights that are left.
func draw(n int, weight func(i int) float64, sum float64, leaveOut int, u float64) int {
	u *= sum
	last := 0
	for i := range n {
		if i == leaveOut {
			continue
		}
		if u < weight(i) {
			return i
		}
		u -= weight(i)
		last = i
	}
	return last
}
