package gateway

import (
	"errors"
	"os"
	"time"
)

// vigil reads the control stream of a connection that was dialed to us. Who dials probes all the time, so silence is his death: where nothing
// of what he sends gets here he finds that out by himself, but can't tell. One goroutine reads.
type vigil struct {
	lane

	heard   time.Time
	silence time.Duration // smoothed
}

const (
	// deafAfter is the silence that no dialer is dead below, and deafTimes how often its usual silence: it is idleEvery times as long once the
	// dialer has nothing to carry, and how often he probes then he alone knows.
	deafAfter = 2 * time.Second
	deafTimes = 4 * idleEvery
	// sameWord is what may lie between two parts of a frame.
	sameWord = 5 * time.Millisecond
	// heldUp is by how much a deadline may be late for the silence to count: what we slept through isn't the peer's.
	heldUp = 50 * time.Millisecond
)

var errDeaf = errors.New("the peer's probes stay away")

// patience is the silence after which the peer is dead.
func (v *vigil) patience() time.Duration {
	if v.silence == 0 {
		return idleTimeout
	}
	return min(max(deafAfter, deafTimes*v.silence), idleTimeout)
}

func (v *vigil) Read(p []byte) (int, error) {
	for {
		late := time.Now().Add(v.patience())
		_ = v.SetReadDeadline(late)
		n, err := v.lane.Read(p)
		now := time.Now()
		if errors.Is(err, os.ErrDeadlineExceeded) && n == 0 {
			if now.Sub(late) > heldUp {
				continue
			}
			return 0, errDeaf
		}
		if n > 0 {
			if v.silence == 0 {
				v.silence = idleTimeout / deafTimes
			}
			if silence := now.Sub(v.heard); !v.heard.IsZero() && silence > sameWord {
				v.silence += (silence - v.silence) / 8
			}
			v.heard = now
		}
		return n, err
	}
}
