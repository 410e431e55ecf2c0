//go:build unix

package openfiles

import (
	"math"

	"golang.org/x/sys/unix"
)

// Limit returns how many files this process may have open; 0: not known, or without a bound.
func Limit() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur > math.MaxInt32 {
		return 0
	}
	return int(l.Cur)
}
