// Package gateway carries encrypted streams between clusters.
//
// A gateway stands between the sidecars of its own cluster and the gateways of others. It moves ciphertext: the two sidecars
// speak TLS with each other inside the streams, and no gateway holds a key that could read them or stand in for a workload.
//
//	sidecar ─TLS, TCP─▶ Gateway ─QUIC─▶ Gateway (far) ─TCP─▶ sidecar (far)
//
// Ways out. For each peer cluster of the snapshot there is one link: several QUIC connections, spread over all of that
// cluster's gateways, each redialed for as long as the snapshot names its gateway. The first stream of a connection is its
// control stream: the dialer probes the acceptor, the acceptor says how many ready copies each service has and when it
// drains. A connection on which nothing was heard for too long is closed at once, so that what it carried fails now and not
// later. A stream takes the connection with the fewest; until its far gateway has answered it can be moved to another one,
// because its first bytes are kept. Its answer is never waited for before bytes are sent on.
//
// A stream that turns out to be bulk goes on over TCP, where that carries it better (move.go).
//
// Ways in. A stream from a gateway of a known peer goes to a copy of a service that the own cluster exports to that peer, and
// nowhere else: never to a third cluster, so there can be no loop.
//
// What was cut short never looks complete: a stream that breaks is reset on the other side, be that QUIC, TLS or TCP.
//
// Concurrency: New, then Run once, which owns every goroutine and returns when all have ended. A snapshot is read from
// Config.Snapshots and never changed. Locks are held for map lookups, never across I/O.
//
// Standards: QUIC, RFC 9000; TLS 1.3, RFC 8446; W3C Trace Context. The framing is that of internal/preamble.
package gateway
