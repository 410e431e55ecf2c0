// Package balance decides, for one caller, how requests spread over copies, when a failed one may be tried again, and which
// copies are left alone for a while.
//
// Everything in it is a small state machine over values: time comes in as an argument, nothing does I/O, no goroutine is
// started. The sidecar's outbound side uses it; every type is safe for concurrent use.
package balance

// Pick returns the index of one of n copies: two are drawn by their shares, and the one with less in flight for its share is
// taken ("power of two choices"). With nothing in flight the shares hold exactly, in the mean; under load a slow copy gets
// less. random returns numbers from [0,1). n must be at least 1; shares that add to 0 count as equal.
func Pick(n int, share func(i int) float64, inFlight func(i int) int64, random func() float64) int {
	if n == 1 {
		return 0
	}
	var sum float64
	for i := range n {
		sum += share(i)
	}
	a := draw(n, share, sum, random())
	b := draw(n, share, sum, random())
	if a == b {
		return a
	}
	// Both sides of inFlight(a)/share(a) > inFlight(b)/share(b), times both shares.
	if float64(inFlight(a))*weight(share(b), sum) > float64(inFlight(b))*weight(share(a), sum) {
		return b
	}
	return a
}

func draw(n int, share func(i int) float64, sum, u float64) int {
	if sum <= 0 {
		return min(int(u*float64(n)), n-1)
	}
	u *= sum
	for i := range n {
		if u < share(i) {
			return i
		}
		u -= share(i)
	}
	return n - 1
}

func weight(share, sum float64) float64 {
	if sum <= 0 {
		return 1
	}
	return share
}
