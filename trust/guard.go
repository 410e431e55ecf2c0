package trust

import (
	"container/heap"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxClosers bounds the goroutines that close connections: closing TLS over a stuck TCP takes seconds, and must not hold
// up the closing of the others.
const maxClosers = 32

// Guard watches open connections and closes those whose peer would be refused now: its domain's bundle changed, its key
// was revoked, the policy changed (Recheck), or its SVID ended.
//
// A connection proves who is there at its handshake only, so it lives no longer than that proof: it is closed at the NotAfter
// of the SVID shown in it, without grace. Whoever keeps connections dials anew before that (Peer.NotAfter says when; a peer
// renews its SVID at half-life, so a new handshake lasts at least half a lifetime).
//
// One goroutine, that of Run, serves all connections; a few more live only while there is something to close.
type Guard struct {
	bundles *Bundles
	now     func() time.Time
	log     *slog.Logger
	wake    chan struct{} // capacity 1: something for Run to look at

	policies atomic.Uint64 // grows with each Recheck

	mu       sync.Mutex
	watched  watchHeap // guarded by mu; by end of proof
	suspects []*watch  // guarded by mu; to be looked at though nothing changed since
	doomed   []doomed  // guarded by mu; taken out of watched, to be closed
	closers  int       // guarded by mu; running
	closing  sync.WaitGroup
}

// watch is one connection.
type watch struct {
	chain  []*x509.Certificate
	policy Policy
	close  func(error)

	index int  // in Guard.watched, -1 when not there; guarded by Guard.mu
	peer  Peer // of the last verification; written by Run under Guard.mu

	// Of the last verification too. Run's alone once the connection is in the list.
	by       *domainTrust
	policies uint64
	err      error // refused
}

var errSessionEnded = errors.New("the SVID shown in this connection's handshake has ended")

type doomed struct {
	close func(error)
	err   error
}

// NewGuard returns a Guard that watches nothing yet. Run must run for anything to be closed. A nil now is time.Now.
func NewGuard(bundles *Bundles, now func() time.Time, log *slog.Logger) *Guard {
	if bundles == nil {
		bundles = NewBundles() // nobody passes
	}
	return &Guard{bundles: bundles, now: clock(now), log: logger(log), wake: make(chan struct{}, 1)}
}

// Watch watches an open connection of which cs is the state after the handshake, until release is called or it was closed.
// A connection that does not pass any more (or shows no certificate) is closed at once.
//
// When it has to go, closeConn is called exactly once, with a *VerifyError, from a goroutine of the Guard's and with no lock
// held. It may come after release when that is called at the same moment. Release may be called any number of times, from
// anywhere, closeConn included.
func (g *Guard) Watch(cs tls.ConnectionState, p Policy, closeConn func(error)) (release func()) {
	w := &watch{chain: cs.PeerCertificates, policy: p, close: closeConn, index: -1}
	if !cs.HandshakeComplete {
		w.chain = nil // nothing is proven: refused as anonymous
	}
	// Here, and not in Run: many connections are verified at the same time, one Run does one after the other.
	w.policies = g.policies.Load()
	w.peer, w.by, w.err = g.bundles.verify(w.chain, g.now())
	if w.err == nil {
		w.err = p.check(w.peer)
	}
	if w.err != nil {
		w.peer.NotAfter = time.Time{} // first in the heap
	}
	before := *w
	g.mu.Lock()
	heap.Push(&g.watched, w)
	rearm := w.index == 0
	g.mu.Unlock()
	// Run may have looked at all connections after our verification and before we were in the list.
	stale := g.policies.Load() != before.policies || g.bundles.load()[before.peer.ID.TrustDomain()] != before.by
	if stale {
		g.mu.Lock()
		g.suspects = append(g.suspects, w)
		g.mu.Unlock()
		rearm = true
	}
	if rearm {
		g.poke()
	}
	return func() { g.release(w) }
}

func (g *Guard) release(w *watch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.index >= 0 {
		heap.Remove(&g.watched, w.index)
	}
}

// Recheck asks all policies again: call it when what they consult has changed.
func (g *Guard) Recheck() {
	g.policies.Add(1)
	g.poke()
}

// Watched returns how many connections are watched.
func (g *Guard) Watched() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.watched)
}

func (g *Guard) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Run watches until ctx ends; connections that are watched then stay open. It returns when all closeConn calls have.
// Call it once.
func (g *Guard) Run(ctx context.Context) error {
	defer g.closing.Wait()
	var set *bundleSet
	var policies uint64
	for {
		changed := g.bundles.Changed() // before the look, so that a change during it is seen
		present, asked := g.bundles.current.Load(), g.policies.Load()
		g.look(present != set || asked != policies)
		set, policies = present, asked
		if !g.wait(ctx, changed) {
			return nil
		}
	}
}

// wait returns at a change, a poke, or when the first proof ends, and tells whether to go on.
func (g *Guard) wait(ctx context.Context, changed <-chan struct{}) bool {
	pause := longestNap
	g.mu.Lock()
	if len(g.watched) > 0 {
		pause = min(pause, g.watched[0].peer.NotAfter.Sub(g.now()))
	}
	g.mu.Unlock()
	timer := time.NewTimer(max(0, pause))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-g.wake:
	case <-timer.C:
	}
	return ctx.Err() == nil
}

// look dooms what does not pass: of all connections when something changed, else of those with a reason of their own.
func (g *Guard) look(all bool) {
	g.mu.Lock()
	list := g.suspects
	g.suspects = nil
	if all {
		list = slices.Clone(g.watched)
	}
	g.mu.Unlock()
	for _, w := range list {
		if err := g.judge(w); err != nil {
			g.doom(w, err)
		}
	}
	for {
		w := g.nextExpired()
		if w == nil {
			return
		}
		err := w.err
		if err == nil {
			err = &VerifyError{Reason: Expired, ID: w.peer.ID, Err: errSessionEnded}
		}
		g.doom(w, err)
	}
}

func (g *Guard) nextExpired() *watch {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.watched) > 0 && !g.now().Before(g.watched[0].peer.NotAfter) {
		return g.watched[0]
	}
	return nil
}

// judge returns an error when w has to go. Verification is a function of the chain, the domain's trust and the time; so where
// the trust is the same as last time, only its end counts, and the heap sees to that.
func (g *Guard) judge(w *watch) error {
	if w.err != nil {
		return w.err
	}
	policies := g.policies.Load()
	verified := g.bundles.load()[w.peer.ID.TrustDomain()] == w.by
	if verified && policies == w.policies {
		return nil
	}
	if !verified {
		peer, by, err := g.bundles.verify(w.chain, g.now())
		if err != nil {
			return err
		}
		g.mu.Lock()
		w.peer, w.by = peer, by
		if w.index >= 0 {
			heap.Fix(&g.watched, w.index)
		}
		g.mu.Unlock()
	}
	w.policies = policies
	return w.policy.check(w.peer)
}

// doom takes w out and has it closed, unless it was released.
func (g *Guard) doom(w *watch, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.index < 0 {
		return
	}
	heap.Remove(&g.watched, w.index)
	g.doomed = append(g.doomed, doomed{w.close, err})
	if g.closers < maxClosers {
		g.closers++
		g.closing.Go(g.closeDoomed)
	}
}

// closeDoomed closes until nothing is left to close.
func (g *Guard) closeDoomed() {
	for {
		g.mu.Lock()
		if len(g.doomed) == 0 {
			g.closers--
			g.mu.Unlock()
			return
		}
		d := g.doomed[0]
		g.doomed = g.doomed[1:]
		g.mu.Unlock()
		g.log.Info("connection closed: its peer would be refused now", "error", d.err)
		d.close(d.err)
	}
}

// watchHeap orders connections by the end of their proof.
type watchHeap []*watch

func (h watchHeap) Len() int           { return len(h) }
func (h watchHeap) Less(i, j int) bool { return h[i].peer.NotAfter.Before(h[j].peer.NotAfter) }
func (h watchHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push appends; container/heap calls it.
func (h *watchHeap) Push(x any) {
	w := x.(*watch) // nothing else is pushed
	w.index = len(*h)
	*h = append(*h, w)
}

// Pop removes the last; container/heap calls it.
func (h *watchHeap) Pop() any {
	old := *h
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	w.index = -1
	return w
}
