package topology

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestRTTBucket(t *testing.T) {
	for _, test := range []struct {
		rtt  time.Duration
		want int
	}{
		{0, math.MaxInt},
		{-time.Second, math.MaxInt},
		{time.Nanosecond, 0},
		{999 * time.Microsecond, 0},
		{time.Millisecond, 1},
		{1414 * time.Microsecond, 1},
		{1415 * time.Microsecond, 2},
		{2 * time.Millisecond, 3},
		{80 * time.Millisecond, 13},
		{time.Hour, 44},
		{math.MaxInt64, 44},
	} {
		if got := rttBucket(test.rtt); got != test.want {
			t.Errorf("bucket of %s is %d, want %d", test.rtt, got, test.want)
		}
	}
	t.Run("a longer way is never nearer", rapid.MakeCheck(func(t *rapid.T) {
		a := rapid.Int64Range(1, int64(2*time.Hour)).Draw(t, "a")
		b := rapid.Int64Range(a, int64(3*time.Hour)).Draw(t, "b")
		if rttBucket(time.Duration(a)) > rttBucket(time.Duration(b)) {
			t.Fatalf("%d comes after %d", a, b)
		}
	}))
}
