package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/isthmus-mesh/isthmus/internal/datagram"
	"github.com/isthmus-mesh/isthmus/internal/drain"
	"github.com/isthmus-mesh/isthmus/internal/drill"
	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Gateway is one gateway of a cluster.
type Gateway struct {
	cfg       Config
	log       *slog.Logger
	tracer    trace.Tracer
	metrics   *metrics
	socket    *socket
	windows   windows
	datagrams datagramLinks
	waiting   *datagram.Budget // of all datagrams that wait
	endpoints *endpoints
	carried   carried
	drain     drain.Drain
	drills    drill.Board
	checks    atomic.Pointer[ready.Checks]

	lastView  atomic.Pointer[view]
	links     atomic.Pointer[map[topology.ClusterName]*link]
	changed   chan struct{}                // capacity 1: a link has changed
	leaving   chan struct{}                // closed when drained: the links are left
	streams   atomic.Int64                 // carried now
	ofPeers   shares[topology.ClusterName] // of them, those that peer clusters opened
	ofCallers shares[spiffeid.ID]          // and those that callers here opened
	silent    shares[topology.ClusterName] // streams that peer clusters opened and that aren't carried yet
	shaking   shaking                      // handshakes over TCP
	movables  movables
	moves     shares[topology.ClusterName] // connections over TCP on which peer clusters are about to move a stream
	warm      shares[topology.ClusterName] // connections over TCP that peer clusters may use for a stream
	callers   atomic.Int64                 // connections of sidecars now
	wg        sync.WaitGroup

	mu       sync.Mutex
	accepted map[topology.ClusterName]int // guarded by mu: connections dialed to us
}

// New checks the configuration and returns a gateway that serves nothing yet. It registers its metrics.
func New(cfg Config) (*Gateway, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	g := &Gateway{
		cfg:       cfg,
		log:       cfg.Log,
		tracer:    cfg.Tracer.Tracer("github.com/isthmus-mesh/isthmus/gateway"),
		endpoints: newEndpoints(),
		waiting:   datagram.NewBudget(datagramBudget),
		changed:   make(chan struct{}, 1),
		leaving:   make(chan struct{}),
		accepted:  make(map[topology.ClusterName]int),
	}
	g.socket = &socket{log: g.log}
	g.links.Store(new(map[topology.ClusterName]*link))
	if g.metrics, err = newMetrics(cfg.Metrics, g); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	return g, nil
}

// Checks adds what the gateway waits for to c: a configuration. Call it before Run.
func (g *Gateway) Checks(c *ready.Checks) {
	g.checks.Store(c)
	c.Waiting("gateway", errNoSnapshot.Error())
}

// Run serves until ctx ends; then it drains: tells the peers, takes nothing new, waits for what is in flight, at most
// Config.DrainGrace, and closes what is left. It returns nil after that, or why it could not serve. Call it once.
func (g *Gateway) Run(ctx context.Context) error {
	// What is in flight outlives ctx.
	serving, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	transport := &quic.Transport{Conn: g.socket.prepare(g.cfg.Link), VerifySourceAddress: verifyAddresses()}
	failed := make(chan error, 3)
	g.wg.Go(func() { failed <- g.acceptPeers(serving, transport) })
	if g.cfg.LinkTCP != nil {
		g.wg.Go(func() { failed <- g.acceptTCP(serving) })
	}
	g.wg.Go(func() {
		g.acceptCallers(serving)
		failed <- net.ErrClosed
	})
	g.wg.Go(func() { g.keepLinks(serving) })
	g.wg.Go(func() { g.report(serving) })

	var err error
	select {
	case <-ctx.Done():
		g.end(serving)
	case err = <-failed:
	}
	stop(errShutdown)
	_ = g.cfg.Streams.Close() // closed already when drained
	g.wg.Wait()
	_ = transport.Close()
	_ = g.cfg.Link.Close()
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	return nil
}

// end takes nothing new and waits for what is in flight.
func (g *Gateway) end(ctx context.Context) {
	if c := g.checks.Load(); c != nil {
		c.Waiting("gateway", "draining")
	}
	g.log.InfoContext(ctx, "draining", "streams", g.drain.InFlight(), "grace", g.cfg.DrainGrace)
	g.drain.Start()
	g.linkChanged() // so that it is reported
	_ = g.cfg.Streams.Close()
	grace, cancel := context.WithTimeout(ctx, g.cfg.DrainGrace)
	defer cancel()
	if err := g.drain.Wait(grace); err != nil {
		g.log.WarnContext(ctx, "closing with streams in flight", "streams", g.drain.InFlight())
		return
	}
	// The end of a stream may still be on its way. Whoever dialed a connection closes it when it has settled: the peers theirs,
	// because they were told that we drain, and we ours.
	close(g.leaving)
	for !g.alone() {
		select {
		case <-time.After(lookAgain):
		case <-grace.Done():
			return
		}
	}
}

// lookAgain is how often a draining gateway looks whether its connections have been closed.
const lookAgain = 20 * time.Millisecond

// alone reports whether no connection is left, in either direction.
func (g *Gateway) alone() bool {
	for _, l := range *g.links.Load() {
		if len(l.live()) > 0 {
			return false
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.accepted) == 0
}

// keepLinks keeps a link to each peer cluster of the snapshot until ctx ends.
func (g *Gateway) keepLinks(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer g.drills.Close()
	type running struct {
		*link
		stop context.CancelCauseFunc
	}
	links := make(map[topology.ClusterName]running)
	for {
		changed := g.cfg.Snapshots.Changed()
		v := g.view()
		if v == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		for name, l := range links {
			c := v.snapshot.Cluster(name)
			if c == nil || len(c.Gateways) == 0 || c.Domain != l.wanted.Load().Domain {
				l.stop(errRemoved)
				delete(links, name)
				g.log.InfoContext(ctx, "leaving a peer cluster", "cluster", name.String())
			}
		}
		for _, c := range v.snapshot.Clusters() {
			if len(c.Gateways) == 0 {
				continue
			}
			if l, ok := links[c.Name]; ok {
				l.wanted.Store(c)
				continue
			}
			linkCtx, stop := context.WithCancelCause(ctx)
			l := running{newLink(g, c), stop}
			links[c.Name] = l
			wg.Go(func() { l.run(linkCtx) })
		}
		byName := make(map[topology.ClusterName]*link, len(links))
		for name, l := range links {
			byName[name] = l.link
		}
		g.links.Store(&byName)
		g.linkChanged()
		g.followDrills(v.snapshot)
		g.endpoints.forget(v.snapshot)
		g.carried.judge(g.view)
		g.cfg.Guard.Recheck() // who may speak depends on who is a peer
		if c := g.checks.Load(); c != nil {
			if !g.draining() {
				c.Done("gateway")
			}
		}
		select {
		case <-changed:
		case <-g.leaving:
			for _, l := range links {
				l.wanted.Store(&topology.Cluster{Name: l.cluster, Domain: l.wanted.Load().Domain})
			}
			<-ctx.Done()
			return
		case <-ctx.Done():
			return
		}
	}
}

// linkChanged makes the state of the links be reported soon.
func (g *Gateway) linkChanged() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}
