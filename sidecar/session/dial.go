// Package session keeps the inner sessions of a sidecar: TLS 1.3 from workload to workload, over a TCP connection to a copy in
// the own cluster, or inside a stream that a gateway opens to another one (docs/dataplane.md).
//
// A Dialer opens one; a Pool keeps several to one place and spreads requests over them; a Set owns the pools, renews sessions
// and closes those that nobody uses. The sidecar's outbound side uses it. All types are safe for concurrent use; Set.Run is the
// parent of every goroutine that is started here.
package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/propagation"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/sidecar/conn"
	"github.com/isthmus-mesh/isthmus/sidecar/datagram"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// How long opening a session may take.
const (
	connectTimeout = 1 * time.Second // TCP, to a copy or to a gateway: both are in the own cluster
	openTimeout    = 5 * time.Second // all of it, through up to maxGateways
	maxGateways    = 3
)

// Destination is one place that sessions go to: one port of one copy in the own cluster, or of another cluster's copies as a whole.
type Destination struct {
	Service  topology.ServiceName
	Port     uint16
	Cluster  topology.ClusterName
	Endpoint *topology.Endpoint // a copy in the own cluster, else nil
	Remote   *topology.Remote   // another cluster, else nil
	Host     netip.Addr         // of Remote: the one copy there; invalid: any
	// Datagrams: the port is the one for datagrams.
	Datagrams bool
}

// Target returns what health is kept by.
func (d Destination) Target() topology.Target {
	t := topology.Target{Service: d.Service, Port: d.Port, Cluster: d.Cluster, Datagrams: d.Datagrams}
	if d.Endpoint != nil {
		t.Endpoint = d.Endpoint.ID
	}
	if d.Host.IsValid() {
		t.Endpoint = d.Host.String()
	}
	return t
}

// servers returns who may answer there.
func (d Destination) servers() []spiffeid.ID {
	if d.Endpoint != nil {
		return []spiffeid.ID{d.Endpoint.Server}
	}
	return d.Remote.Servers
}

// Error says why a session could not be opened. Nothing of a request was sent.
type Error struct {
	Verdict balance.Verdict
	Err     error
}

// Error returns the reason in words.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

// Dialer opens sessions.
type Dialer struct {
	Identity   *trust.Identity
	Bundles    *trust.Bundles
	Guard      *trust.Guard
	Snapshots  *live.Value[*topology.Snapshot] // for the gateways of the own cluster
	Propagator propagation.TextMapPropagator
	// Connect opens a TCP connection; never nil.
	Connect func(ctx context.Context, address string) (net.Conn, error)
	Now     func() time.Time
	// Heard is called whenever something comes from the other end of a session; nil: nobody listens.
	Heard func(topology.Target)

	gateways balance.Health[string] // by id

	mu   sync.Mutex
	open map[string]int // guarded by mu; streams now open by gateway
}

// Conn is an open inner session: the TLS connection to the workload at the other end.
type Conn struct {
	*tls.Conn
	Peer    trust.Peer
	Gateway string   // of the own cluster, that carries it; empty within the cluster
	Path    []string // the gateways crossed, nearest first
	Expires time.Time
	Records *datagram.Conn // of a session for datagrams, else nil

	raw net.Conn
}

// Abort closes the session so that the other end sees it break, not end.
func (c *Conn) Abort(error) {
	conn.Reset(c.raw)
	_ = c.Close()
}

// Dial opens a session that speaks the given protocol (ALPN). closed is called once, when its connection has been closed by
// whoever. Errors are *Error; what a gateway refused is a *preamble.Refusal within.
func (d *Dialer) Dial(ctx context.Context, to Destination, protocol string, closed func()) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if to.Endpoint != nil {
		return d.dialEndpoint(ctx, to, protocol, closed)
	}
	return d.dialCluster(ctx, to, protocol, closed)
}

func (d *Dialer) dialEndpoint(ctx context.Context, to Destination, protocol string, closed func()) (*Conn, error) {
	raw, err := d.connect(ctx, to.Endpoint.Address.String())
	if err != nil {
		return nil, &Error{balance.Broken, err}
	}
	beneath, records := recorded(raw, protocol)
	inner, err := d.handshake(ctx, conn.Carry(beneath, closed), to, protocol)
	if err != nil {
		return nil, &Error{balance.Broken, err}
	}
	inner.raw, inner.Records = raw, records
	return inner, nil
}

// recorded returns what a session runs over: c, or for datagrams what lets them stand between the records of TLS.
func recorded(c net.Conn, protocol string) (net.Conn, *datagram.Conn) {
	if protocol != UDP {
		return c, nil
	}
	records := datagram.NewConn(c)
	records.Start()
	return records, records
}

func (d *Dialer) connect(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return d.Connect(ctx, address)
}

// handshake speaks inner TLS over carrier, which it closes on failure.
func (d *Dialer) handshake(ctx context.Context, carrier *conn.Told, to Destination, protocol string) (*Conn, error) {
	policy := trust.AllowIDs(to.servers()...)
	inner := tls.Client(d.audible(carrier, to), trust.ClientConfig(trust.TLS{
		Identity:   d.Identity,
		Bundles:    d.Bundles,
		Policy:     policy,
		Protocols:  []string{protocol},
		ServerName: preamble.ServerName(to.Service, to.Port, to.Host),
		Now:        d.Now,
	}))
	if err := inner.HandshakeContext(ctx); err != nil {
		_ = carrier.Close()
		return nil, fmt.Errorf("inner handshake: %w", inWords(err))
	}
	state := inner.ConnectionState()
	peer, err := trust.PeerOf(state)
	if err != nil {
		_ = carrier.Close()
		return nil, err
	}
	expires := peer.NotAfter
	if own, err := d.Identity.SVID(); err == nil && own.Certificates[0].NotAfter.Before(expires) {
		expires = own.Certificates[0].NotAfter // the other end watches us, too
	}
	carrier.OnClose(d.Guard.Watch(state, policy, func(error) { _ = carrier.Close() }))
	return &Conn{Conn: inner, Peer: peer, Expires: expires}, nil
}

// audible returns c as a connection that tells when something came over it.
func (d *Dialer) audible(c net.Conn, to Destination) net.Conn {
	if d.Heard == nil {
		return c
	}
	target := to.Target()
	return &audible{c, func() { d.Heard(target) }}
}

type audible struct {
	net.Conn
	heard func()
}

// Read reads.
func (a *audible) Read(p []byte) (int, error) {
	n, err := a.Conn.Read(p)
	if n > 0 {
		a.heard()
	}
	return n, err
}

// dialCluster asks one gateway after another. What a gateway itself can't do, another may.
func (d *Dialer) dialCluster(ctx context.Context, to Destination, protocol string, closed func()) (*Conn, error) {
	var errs []error
	for _, g := range d.order() {
		inner, err := d.dialThrough(ctx, g, to, protocol, closed)
		if err == nil {
			d.gateways.Succeeded(d.Now(), g.ID)
			return inner, nil
		}
		if ctx.Err() != nil {
			return nil, &Error{balance.Broken, fmt.Errorf("gateway %s: %w", g.ID, err)}
		}
		refusal, refused := errors.AsType[*preamble.Refusal](err)
		if refused && !anotherGateway(refusal) {
			return nil, &Error{verdict(refusal), refusal}
		}
		if !refused {
			d.gateways.Failed(d.Now(), g.ID, balance.Broken, err.Error())
		}
		errs = append(errs, fmt.Errorf("gateway %s: %w", g.ID, err))
	}
	if len(errs) == 0 {
		return nil, &Error{balance.Broken, errors.New("the own cluster has no gateway")}
	}
	last, _ := errors.AsType[*preamble.Refusal](errs[len(errs)-1])
	return nil, &Error{verdict(last), errors.Join(errs...)}
}

// order returns the gateways to ask: those that work before those that failed, the less used before the more used.
func (d *Dialer) order() []topology.Gateway {
	snapshot := d.Snapshots.Load()
	if snapshot == nil {
		return nil
	}
	all := slices.Clone(snapshot.Gateways())
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] }) //nolint:gosec // G404: it spreads load, it guards nothing
	failed, _ := d.gateways.Evidence()
	d.mu.Lock()
	defer d.mu.Unlock()
	rank := func(g topology.Gateway) (int, int) {
		class := 0
		if _, bad := failed[g.ID]; bad && !d.gateways.Probe(d.Now(), g.ID, 0) {
			class = 1
		}
		if g.Draining {
			class = 2
		}
		return class, d.open[g.ID]
	}
	type ranked struct {
		topology.Gateway
		class, open int
	}
	order := make([]ranked, 0, len(all))
	for _, g := range all {
		class, open := rank(g)
		order = append(order, ranked{g, class, open})
	}
	slices.SortStableFunc(order, func(a, b ranked) int {
		if a.class != b.class {
			return a.class - b.class
		}
		return a.open - b.open
	})
	out := make([]topology.Gateway, 0, maxGateways)
	for _, r := range order[:min(len(order), maxGateways)] {
		out = append(out, r.Gateway)
	}
	return out
}

// draining returns the gateways of all clusters that take nothing new, named as in Conn.Path.
func (d *Dialer) draining() map[string]struct{} {
	snapshot := d.Snapshots.Load()
	if snapshot == nil {
		return nil
	}
	out := make(map[string]struct{})
	note := func(cluster topology.ClusterName, gateways []topology.Gateway) {
		for _, g := range gateways {
			if g.Draining {
				out[cluster.String()+"/"+g.ID] = struct{}{}
			}
		}
	}
	note(snapshot.Self().Cluster, snapshot.Gateways())
	for _, c := range snapshot.Clusters() {
		note(c.Name, c.Gateways)
	}
	return out
}

// anotherGateway reports whether a refusal speaks of the gateway that was asked, and not of the other cluster.
func anotherGateway(r *preamble.Refusal) bool {
	if len(r.Path) > 1 {
		return false
	}
	switch r.Code {
	case streamv1.Code_CODE_LINK_DOWN, streamv1.Code_CODE_DRAINING, streamv1.Code_CODE_OVERLOADED, streamv1.Code_CODE_INTERNAL:
		return true
	default:
		return false
	}
}

func verdict(r *preamble.Refusal) balance.Verdict {
	if r == nil {
		return balance.Broken
	}
	switch r.Code {
	case streamv1.Code_CODE_UNKNOWN_CLUSTER, streamv1.Code_CODE_LINK_DOWN, streamv1.Code_CODE_NO_ENDPOINT,
		streamv1.Code_CODE_ENDPOINT_UNREACHABLE, streamv1.Code_CODE_NOT_EXPORTED, streamv1.Code_CODE_NOT_ALLOWED:
		return balance.Refused
	default:
		return balance.Broken
	}
}

// dialThrough opens a stream through one gateway: the preamble and the inner ClientHello leave in one flight.
func (d *Dialer) dialThrough(ctx context.Context, g topology.Gateway, to Destination, protocol string, closed func()) (*Conn, error) {
	raw, err := d.connect(ctx, g.Address)
	if err != nil {
		return nil, err
	}
	policy := trust.AllowIDs(g.Identity)
	outer := tls.Client(raw, trust.ClientConfig(trust.TLS{
		Identity:  d.Identity,
		Bundles:   d.Bundles,
		Policy:    policy,
		Protocols: []string{preamble.ALPNStream},
		Now:       d.Now,
	}))
	if err = outer.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	headers := propagation.MapCarrier{}
	d.Propagator.Inject(ctx, headers)
	stream := &stream{Conn: outer, opening: preamble.Preamble{
		Cluster:     to.Cluster,
		Service:     to.Service,
		Port:        to.Port,
		Host:        to.Host,
		Datagrams:   to.Datagrams,
		Traceparent: headers["traceparent"],
		Tracestate:  headers["tracestate"],
	}.Append(nil)}
	beneath, records := recorded(stream, protocol)
	carrier := conn.Carry(beneath, closed, d.count(g.ID))
	carrier.OnClose(d.Guard.Watch(outer.ConnectionState(), policy, func(error) { _ = carrier.Close() }))
	inner, err := d.handshake(ctx, carrier, to, protocol)
	switch {
	case stream.refused != nil:
		return nil, stream.refused
	case err != nil:
		return nil, err
	}
	inner.raw, inner.Records, inner.Gateway, inner.Path = raw, records, g.ID, stream.reply.Path
	return inner, nil
}

// count counts a stream through a gateway in, and returns what counts it out.
func (d *Dialer) count(gateway string) func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open == nil {
		d.open = make(map[string]int)
	}
	d.open[gateway]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.open[gateway]--; d.open[gateway] == 0 {
			delete(d.open, gateway)
		}
	}
}

// stream is the connection to a gateway once it carries a stream: the opening goes before the first bytes that are written,
// the answer is taken off before the first that are read.
type stream struct {
	*tls.Conn
	opening  []byte // only Write uses it; nil once sent
	answered bool   // only Read uses it, and what follows
	reply    preamble.Reply
	refused  *preamble.Refusal
}

func (s *stream) Write(p []byte) (int, error) {
	if s.opening == nil {
		return s.Conn.Write(p)
	}
	opening := s.opening
	s.opening = nil
	n, err := s.Conn.Write(append(opening, p...))
	return max(0, n-len(opening)), err
}

func (s *stream) Read(p []byte) (int, error) {
	if !s.answered {
		reply, err := preamble.ReadReply(s.Conn)
		if err != nil {
			s.refused, _ = errors.AsType[*preamble.Refusal](err)
			return 0, err
		}
		s.answered, s.reply = true, reply
	}
	return s.Conn.Read(p)
}

// key tells pools apart. A copy that came back at another address is another place.
type key struct {
	target  topology.Target
	address netip.AddrPort
}

func (d Destination) key() key {
	k := key{target: d.Target()}
	if d.Endpoint != nil {
		k.address = d.Endpoint.Address
	}
	return k
}
