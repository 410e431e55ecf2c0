package gateway

import (
	"testing"
	"time"
)

func TestAgain(t *testing.T) {
	for name, tc := range map[string]struct{ waited, lived, want time.Duration }{
		"the first time":         {0, 0, minBackoff},
		"no answer":              {minBackoff, 0, 2 * minBackoff},
		"never an answer":        {maxBackoff, 0, maxBackoff},
		"closed at once":         {time.Second, time.Millisecond, maxBackoff - time.Millisecond},
		"served for a while":     {maxBackoff, time.Minute, minBackoff},
		"served for half of it":  {time.Second, time.Second, time.Second},
		"longer than was waited": {time.Second, 1500 * time.Millisecond, 500 * time.Millisecond},
	} {
		if got := again(tc.waited, tc.lived); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// A peer that lets us in and closes at once isn't dialed all the time; one that has served is, at once.
func TestAPeerThatClosesAtOnceIsDialedSeldom(t *testing.T) {
	inBubble(t, func(w *world) {
		eu, _ := twoClusters(w, 1)
		link := (*eu.links.Load())[clusterName("us")]
		dials := func() int {
			eu.mu.Lock()
			defer eu.mu.Unlock()
			return eu.dials
		}
		before := dials()
		const lasts = time.Minute
		for range lasts / time.Millisecond {
			for _, c := range link.live() {
				c.conn.close(closeProtocol, "go away")
			}
			time.Sleep(time.Millisecond)
		}
		slots := eu.cfg.ConnectionsPerPeer
		// Half a wait is chance, and there are six before the longest.
		if n, most := dials()-before, slots*(int(2*lasts/maxBackoff)+6); n > most {
			w.t.Errorf("%d dials in %s, want at most %d", n, lasts, most)
		}
		eu.up("us", slots)
		time.Sleep(2 * maxBackoff)
		for _, c := range link.live() {
			c.conn.close(closeProtocol, "start anew")
		}
		time.Sleep(minBackoff + 4*oneWay + 10*time.Millisecond)
		if n := len(link.live()); n != slots {
			w.t.Errorf("%d connections are back, want %d", n, slots)
		}
	})
}

// What several ways have in common is said once.
func TestReasonsAreSaidOnce(t *testing.T) {
	l := &link{detail: map[way]string{
		{"gateway-0", transportQUIC}: "dial: no answer in 2s", {"gateway-0", transportTCP}: "dial: no answer in 2s",
		{"gateway-1", transportQUIC}: "dial: no answer in 2s", {"gateway-1", transportTCP}: "dial: connection refused",
	}}
	want := "dial: no answer in 2s (3 times: gateway-0, gateway-0 over TCP, gateway-1); gateway-1 over TCP: dial: connection refused"
	if got := l.why(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := (&link{}).why(), "no connection yet"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
