package gateway

import (
	"fmt"
	"sync"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
)

const (
	// streamShare is the part of Config.MaxStreams that one peer cluster, and one SPIFFE ID of the own cluster, may hold: one in so many.
	// Whoever takes all that it may leaves room for the others. A cluster with one peer, or one busy workload, still gets half.
	streamShare = 2
	// silentShare is the part of Config.MaxStreams that streams of one peer cluster may be before their preamble has come and they have been
	// let in. A preamble comes with a stream's first packet, so honest ones are few; the bound has room for as many as an outage of
	// another gateway brings at once.
	silentShare = 4
	// maxSilent is how many streams of one connection may be reset for saying nothing before it is closed: a peer that doesn't end its
	// half keeps what QUIC holds of them.
	maxSilent = 1024
)

// part returns one in so many of whole, and at least 1.
func part(whole, in int) int { return max(1, whole/in) }

// shares counts what each of several holds. The zero value is in use. Safe for concurrent use.
type shares[K comparable] struct {
	mu   sync.Mutex
	held map[K]int // guarded by mu
}

// take takes one for k, unless it holds most already. Call release once.
func (s *shares[K]) take(k K, most int) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[k] >= most {
		return nil, false
	}
	if s.held == nil {
		s.held = make(map[K]int)
	}
	s.held[k]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held[k]--; s.held[k] == 0 {
			delete(s.held, k)
		}
	}, true
}

// admit counts a stream in, as one of who's share, or says why it can't be carried.
func admit[K comparable](g *Gateway, of *shares[K], who K) (done func(), refusal *preamble.Refusal) {
	overloaded := func(n int, whose string) *preamble.Refusal {
		return &preamble.Refusal{Code: streamv1.Code_CODE_OVERLOADED, Detail: fmt.Sprintf("%d streams%s", n, whose)}
	}
	share := part(g.cfg.MaxStreams, streamShare)
	release, ok := of.take(who, share)
	if !ok {
		return nil, overloaded(share, fmt.Sprintf(" of %v", who))
	}
	if g.streams.Add(1) > int64(g.cfg.MaxStreams) {
		g.streams.Add(-1)
		release()
		return nil, overloaded(g.cfg.MaxStreams, "")
	}
	left, ok := g.drain.Add()
	if !ok {
		g.streams.Add(-1)
		release()
		return nil, &preamble.Refusal{Code: streamv1.Code_CODE_DRAINING}
	}
	return func() { left(); g.streams.Add(-1); release() }, nil
}
