package gateway

import (
	"sync"

	"github.com/quic-go/quic-go"

	"github.com/isthmus-mesh/isthmus/topology"
)

// windows shares windowBudget among the connections with all peer clusters. A cluster may have as much as it leaves for others: the first half
// of the budget, a second one a third when the first has all that it may, and so on. However many take all that they may, whoever comes next finds
// as much as each of them has. Safe for concurrent use.
type windows struct {
	mu    sync.Mutex
	total uint64                          // guarded by mu
	of    map[topology.ClusterName]uint64 // guarded by mu: total by cluster
	conns map[*quic.Conn]*grown           // guarded by mu
}

// grown is by how much the window of a connection has grown.
type grown struct {
	cluster topology.ClusterName
	bytes   uint64
}

// assign says whose a connection is: its window may grow from now on. Call release when it has ended.
func (w *windows) assign(c *quic.Conn, cluster topology.ClusterName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conns == nil {
		w.conns, w.of = make(map[*quic.Conn]*grown), make(map[topology.ClusterName]uint64)
	}
	w.conns[c] = &grown{cluster: cluster}
}

// grow is quic-go's AllowConnectionWindowIncrease. It must not call into the connection.
func (w *windows) grow(c *quic.Conn, delta uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.conns[c]
	if g == nil || w.total+delta > windowBudget || w.of[g.cluster]+delta > windowBudget-w.total-delta {
		return false
	}
	g.bytes += delta
	w.of[g.cluster] += delta
	w.total += delta
	return true
}

// release gives back what c was granted.
func (w *windows) release(c *quic.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.conns[c]
	if g == nil {
		return
	}
	delete(w.conns, c)
	w.total -= g.bytes
	if w.of[g.cluster] -= g.bytes; w.of[g.cluster] == 0 {
		delete(w.of, g.cluster)
	}
}
