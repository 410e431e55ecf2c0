package demo

import (
	"context"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
)

// watch follows who answers which caller. Safe for concurrent use.
type watch struct {
	callers int

	mu      sync.Mutex // guards all below
	lost    string     // the cluster that was killed; empty: none yet
	since   time.Time  // when
	moved   map[int]time.Time
	to      map[string]int // who answers instead
	slowest time.Duration  // of what ended before all had moved
	latest  map[int]string // worker → who answered it last
	changed chan struct{}  // closed by the next answer
}

func newWatch(callers int) *watch {
	return &watch{callers: callers, latest: map[int]string{}, changed: make(chan struct{})}
}

// add is a sink of traffic.
func (w *watch) add(a traffic.Answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() { close(w.changed); w.changed = make(chan struct{}) }()
	if a.Failed() {
		return
	}
	w.latest[a.Worker] = a.Cluster
	if w.lost == "" || a.Cluster == w.lost || len(w.moved) == w.callers {
		return
	}
	ended := a.Sent.Add(a.Took)
	if ended.Before(w.since) {
		return
	}
	w.slowest = max(w.slowest, a.Took)
	if _, known := w.moved[a.Worker]; !known {
		w.moved[a.Worker] = ended
		w.to[a.Cluster]++
	}
}

// killed says that the cluster is about to be killed.
func (w *watch) killed(cluster string, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost, w.since, w.moved, w.to = cluster, at, map[int]time.Time{}, map[string]int{}
}

// until waits for the condition, which is called with the lock held after each answer.
func (w *watch) until(ctx context.Context, holds func() bool) error {
	for {
		w.mu.Lock()
		ok, changed := holds(), w.changed
		w.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// answering waits until every caller has been answered, and returns who answered most of them last.
func (w *watch) answering(ctx context.Context) (string, error) {
	err := w.until(ctx, func() bool { return len(w.latest) == w.callers })
	w.mu.Lock()
	defer w.mu.Unlock()
	count := map[string]int{}
	for _, c := range w.latest {
		count[c]++
	}
	return most(count), err
}

// allMoved waits until every caller has been answered by another cluster than the one killed.
func (w *watch) allMoved(ctx context.Context) (Failover, error) {
	err := w.until(ctx, func() bool { return len(w.moved) == w.callers })
	w.mu.Lock()
	defer w.mu.Unlock()
	f := Failover{From: w.lost, To: most(w.to), Slowest: milliseconds(w.slowest)}
	for _, at := range w.moved {
		f.Moved = max(f.Moved, at.Sub(w.since).Milliseconds())
	}
	return f, err
}

// back waits until a caller has been answered by that cluster.
func (w *watch) back(ctx context.Context, cluster string) error {
	return w.until(ctx, func() bool {
		for _, c := range w.latest {
			if c == cluster {
				return true
			}
		}
		return false
	})
}

// most returns the key with the highest count; of several, the first by name.
func most(count map[string]int) string {
	best := ""
	for c, n := range count {
		if best == "" || n > count[best] || n == count[best] && c < best {
			best = c
		}
	}
	return best
}
