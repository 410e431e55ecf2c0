package gateway

import (
	"cmp"
	"context"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
)

// link is the way to one peer cluster: connections to its gateways.
type link struct {
	g       *Gateway
	cluster topology.ClusterName
	log     *slog.Logger
	wanted  *live.Value[*topology.Cluster] // as the snapshot has it
	hedges  budget
	choice  choice
	hauls   hauls

	stated    atomic.Value // topology.LinkState: as it was last reported
	busy      time.Time    // of watch: when it carried a stream last
	suspected atomic.Int64 // when all connections were suspect, Unix nanoseconds

	mu     sync.Mutex // serialises changes of conns; guards detail
	conns  atomic.Pointer[[]*connection]
	detail map[way]string // why it can't be had; guarded by mu
}

func newLink(g *Gateway, c *topology.Cluster) *link {
	l := &link{
		g:       g,
		cluster: c.Name,
		log:     g.log.With("cluster", c.Name.String()),
		wanted:  live.NewValue(c),
		hedges:  budget{tokens: hedgeBurst},
		detail:  make(map[way]string),
	}
	l.conns.Store(new([]*connection))
	return l
}

// idle reports whether the link carries no stream at all, on whichever connection.
func (l *link) idle() bool {
	return !slices.ContainsFunc(*l.conns.Load(), func(c *connection) bool { return c.active.Load() > 0 })
}

// slot is one place for a connection.
type slot struct {
	gateway   topology.Gateway // with the address of its transport alone
	transport string
	n         int // among the slots of the same gateway and transport
}

func (s slot) address() string { return cmp.Or(s.gateway.QUIC, s.gateway.TCP) }

// way is one way into a peer cluster.
type way struct{ gateway, transport string }

func (w way) String() string {
	if w.transport == transportTCP {
		return w.gateway + " over TCP"
	}
	return w.gateway
}

// spread returns the slots for want QUIC connections: the same number to each gateway, one more for some where it doesn't go evenly,
// and one to each at least; and one over TCP to each gateway that takes them. Which gateways get one more differs with seed, so that several gateways on this side even out.
// Draining ones are left out unless all are.
func spread(gateways []topology.Gateway, want int, seed string) []slot {
	usable := slices.DeleteFunc(slices.Clone(gateways), func(g topology.Gateway) bool { return g.Draining })
	if len(usable) == 0 {
		usable = slices.Clone(gateways)
	}
	if len(usable) == 0 {
		return nil
	}
	rank := func(g topology.Gateway) uint64 {
		h := fnv.New64a()
		_, _ = h.Write([]byte(seed + "\x00" + g.ID))
		return h.Sum64()
	}
	slices.SortFunc(usable, func(a, b topology.Gateway) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.ID, b.ID)) })
	usable = usable[:min(len(usable), maxPeerGateways)]
	slots := make([]slot, 0, max(want, len(usable))+len(usable))
	for i := range max(want, len(usable)) {
		gw := usable[i%len(usable)]
		gw.Draining, gw.TCP = false, "" // not a reason for another connection
		slots = append(slots, slot{gw, transportQUIC, i / len(usable)})
	}
	for _, gw := range usable {
		if gw.TCP != "" {
			gw.Draining, gw.QUIC = false, ""
			slots = append(slots, slot{gw, transportTCP, 0})
		}
	}
	return slots
}

// run keeps a connection in each slot until ctx ends.
func (l *link) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { l.watch(ctx) })
	retire := make(map[slot]chan struct{})
	for {
		changed := l.wanted.Changed()
		cluster := l.wanted.Load()
		want := make(map[slot]bool)
		for _, s := range spread(cluster.Gateways, l.g.cfg.ConnectionsPerPeer, l.g.cfg.ID) {
			want[s] = true
			if retire[s] != nil {
				continue
			}
			retired := make(chan struct{})
			retire[s] = retired
			wg.Go(func() { l.keep(ctx, s, cluster.Domain, retired) })
		}
		for s, retired := range retire {
			if !want[s] {
				close(retired)
				delete(retire, s)
			}
		}
		l.forgetDetails(cluster.Gateways)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// add makes c known as live.
func (l *link) add(c *connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.detail, way{c.gateway.ID, c.conn.transport()})
	l.conns.Store(new(append(slices.Clone(*l.conns.Load()), c)))
	l.g.linkChanged()
}

// remove takes c out.
func (l *link) remove(c *connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns.Store(new(slices.DeleteFunc(slices.Clone(*l.conns.Load()), func(o *connection) bool { return o == c })))
	l.g.linkChanged()
}

// explain notes why a gateway can't be had, and reports whether that is news.
func (l *link) explain(s slot, reason error) bool {
	why := words(reason)
	l.mu.Lock()
	defer l.mu.Unlock()
	w := way{s.gateway.ID, s.transport}
	if l.detail[w] == why {
		return false
	}
	l.detail[w] = why
	l.g.linkChanged()
	return true
}

func (l *link) forgetDetails(keep []topology.Gateway) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.detail {
		if !slices.ContainsFunc(keep, func(g topology.Gateway) bool {
			return g.ID == w.gateway && (w.transport == transportQUIC || g.TCP != "")
		}) {
			delete(l.detail, w)
		}
	}
}

// live returns the connections that the peer has answered on. Not to be changed.
func (l *link) live() []*connection { return *l.conns.Load() }

// hasHeir reports whether a younger connection to c's gateway can take its streams.
func (l *link) hasHeir(c *connection) bool {
	return slices.ContainsFunc(l.live(), func(o *connection) bool {
		return o.gateway.ID == c.gateway.ID && !o.aged.Load() && o.usable()
	})
}

// hasOther reports whether new streams have another way than c, or are to have none.
func (l *link) hasOther(c *connection) bool {
	return len(l.wanted.Load().Gateways) == 0 || slices.ContainsFunc(l.live(), func(o *connection) bool { return o != c && !o.aged.Load() && o.usable() })
}

// pick chooses a connection for a stream: of a gateway that wasn't tried rather than of one that was, unsuspected rather than
// suspect, of another transport than those that were tried, of the transport that is the link's choice, young rather than aged, and of
// those the one with the fewest streams, where bulk counts as many. Without one it says why there is none.
func (l *link) pick(service topology.ServiceName, tried []*connection) (*connection, *preamble.Refusal) {
	var (
		best     *connection
		bestRank [6]int64
		alive    bool
		empty    bool
		now      = time.Now()

		transport = l.choice.of(l.hauls.lately(service, now))
	)
	for _, c := range l.live() {
		if !c.usable() {
			continue
		}
		alive = true
		if slices.Contains(tried, c) {
			continue
		}
		if c.empty.has(service) {
			empty = true
			continue
		}
		rank := [6]int64{5: c.active.Load() + c.bulk.weight(now)}
		if slices.ContainsFunc(tried, func(t *connection) bool { return t.gateway.ID == c.gateway.ID }) {
			rank[0] = 1
		}
		if c.pulse.suspect(now) {
			rank[1] = 1
		}
		rank[2] = novelty(c, tried)
		if c.conn.transport() != transport {
			rank[3] = 1
		}
		if c.aged.Load() {
			rank[4] = 1
		}
		order := slices.Compare(rank[:], bestRank[:])
		// Among equals, either: the first would otherwise take all the streams of a quiet link.
		if best == nil || order < 0 || order == 0 && rand.IntN(2) == 0 { //nolint:gosec // G404: spreading load needs no secret
			best, bestRank = c, rank
		}
	}
	switch {
	case best != nil:
		return best, nil
	case empty:
		return nil, &preamble.Refusal{Code: streamv1.Code_CODE_NO_ENDPOINT, Detail: "so says cluster " + l.cluster.String()}
	case alive:
		return nil, &preamble.Refusal{Code: streamv1.Code_CODE_OVERLOADED, Detail: "every connection was tried"}
	default:
		return nil, &preamble.Refusal{Code: streamv1.Code_CODE_LINK_DOWN, Detail: l.why()}
	}
}

// refused ends the QUIC connections to an address where nobody listens: each would hear so itself, but a machine says that seldom (Linux six times at
// once, and then once a second).
func (l *link) refused(address string) {
	for _, c := range l.live() {
		if q, ok := c.conn.(*quicCarrier); ok && c.gateway.QUIC == address {
			q.refuse()
		}
	}
}

// novelty is how often c's transport was tried. One that has no way ready counts as tried: it would be late.
func novelty(c *connection, tried []*connection) int64 {
	if len(tried) == 0 {
		return 0
	}
	n := int64(0)
	for _, t := range tried {
		if t.conn.transport() == c.conn.transport() {
			n++
		}
	}
	if t, ok := c.conn.(*tcpCarrier); ok && !t.isReady() {
		n = max(n, 1)
	}
	return n
}

// Hedges (a second way tried beside a slow one) are at most a tenth of streams and a few more, so that slowness doesn't breed
// load. Those away from a connection that has fallen silent aren't counted.
const (
	hedgeShare = 0.1
	hedgeBurst = 10
)

// budget is a bucket of tokens that work fills. Safe for concurrent use.
type budget struct {
	mu     sync.Mutex
	tokens float64 // guarded by mu
}

func (b *budget) earn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.tokens+hedgeShare, hedgeBurst)
}

func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
