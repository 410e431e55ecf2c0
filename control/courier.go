package control

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/federation"
)

// Courier opens the buses that federation's records travel on: NATS in the programs, memory in tests in virtual time.
type Courier interface {
	// Serve starts the cluster's own server, known to clients by key, and returns the bus through it. clients yields, at any time, the
	// public bus keys of those who may connect; a client that is no longer among them is put out soon.
	Serve(ctx context.Context, key ed25519.PrivateKey, clients func() []string) (Line, error)
	// Dial returns a client of a peer's server that connects, and connects again, by itself. It does not wait.
	Dial(key ed25519.PrivateKey, to Neighbour) (Line, error)
}

// Line is a bus that was opened, and must be closed.
type Line interface {
	federation.Bus
	// State is "connected" or "connecting".
	State() string
	Close()
}

// Neighbour is where a peer's bus server is, and the public key that it must have.
type Neighbour struct {
	Cluster string
	URLs    []string
	Key     string // public NKey, "U…"
}

func (n Neighbour) equal(o Neighbour) bool {
	return n.Cluster == o.Cluster && n.Key == o.Key && slices.Equal(n.URLs, o.URLs)
}

// ownBus is the name of the own server's bus; no cluster can have it.
const ownBus = "(own)"

// neighbours are the open lines. Of the owner loop.
type neighbours struct {
	courier Courier
	key     ed25519.PrivateKey
	own     Line
	lines   map[string]neighbourLine // by cluster
	log     *slog.Logger
}

type neighbourLine struct {
	Line
	to Neighbour
}

// reconcile opens and closes lines so that there is one to each peer that has URLs, and returns all of them, the own one
// included, by name. changed tells whether it did something.
func (n *neighbours) reconcile(ctx context.Context, peers []ClusterPeer) (buses map[string]federation.Bus, changed bool) {
	wanted := make(map[string]Neighbour, len(peers))
	for _, p := range peers {
		if len(p.BusURLs) > 0 {
			wanted[p.Cluster.String()] = Neighbour{Cluster: p.Cluster.String(), URLs: p.BusURLs, Key: p.BusKey}
		}
	}
	for name, line := range n.lines {
		if !line.to.equal(wanted[name]) {
			line.Close()
			delete(n.lines, name)
			changed = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		if _, open := n.lines[name]; open {
			continue
		}
		line, err := n.courier.Dial(n.key, wanted[name])
		if err != nil {
			n.log.ErrorContext(ctx, "bus of a peer can't be used", "peer", name, "urls", strings.Join(wanted[name].URLs, " "), "error", err)
			continue
		}
		n.lines[name] = neighbourLine{line, wanted[name]}
		changed = true
	}
	buses = map[string]federation.Bus{ownBus: n.own}
	for name, line := range n.lines {
		buses[name] = line.Line
	}
	return buses, changed
}

// states returns the state of each line, by cluster.
func (n *neighbours) states() map[string]func() string {
	out := make(map[string]func() string, len(n.lines))
	for name, line := range n.lines {
		out[name] = line.State
	}
	return out
}

func (n *neighbours) close() {
	for _, line := range n.lines {
		line.Close()
	}
	n.own.Close()
}
