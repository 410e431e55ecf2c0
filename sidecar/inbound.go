package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/isthmus-mesh/isthmus/internal/drain"
	"github.com/isthmus-mesh/isthmus/internal/drill"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/sidecar/conn"
	"github.com/isthmus-mesh/isthmus/sidecar/datagram"
	"github.com/isthmus-mesh/isthmus/sidecar/limit"
	"github.com/isthmus-mesh/isthmus/sidecar/session"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/access"
	"github.com/isthmus-mesh/isthmus/trust/enduser"
)

const (
	handshakeTimeout = 3 * time.Second
	// inboundIdle ends an inner session that carries nothing; the caller's side gives up long before.
	inboundIdle = 10 * time.Minute
)

// Inbound takes calls from other workloads and hands them to the application.
type Inbound struct {
	identity     *trust.Identity
	bundles      *trust.Bundles
	guard        *trust.Guard
	snapshots    *live.Value[*topology.Snapshot]
	users        *enduser.Verifier
	keeper       *keeper
	refusals     *refusals
	decisions    *decisions
	apps         *apps
	metrics      *metrics
	tracer       trace.Tracer
	propagator   propagation.TextMapPropagator
	log          *slog.Logger
	requestLevel slog.Level
	now          func() time.Time

	config   *tls.Config
	policy   trust.Policy
	server   *http.Server // of sessions with wide windows
	narrow   *http.Server // of the others
	proxy    *httputil.ReverseProxy
	work     drain.Drain // requests and opaque connections
	services services
	streams  streams[*visit]
	drills   drill.Board
	door     door
	// sockets are those of flows of datagrams, to the application.
	sockets sockets
	answers *datagram.Budget // of datagrams that wait for callers
	// arrivals are those of sessions on their way to server, by their connection.
	arrivals sync.Map
}

// init makes what is made of the other fields.
func (in *Inbound) init() {
	in.keeper = &keeper{snapshots: in.snapshots, users: in.users, log: in.log, now: in.now}
	in.refusals = &refusals{log: in.log, now: in.now}
	in.decisions = newDecisions(in.now)
	in.answers = datagram.NewBudget(maxUDPAnswers)
	// Who may open a session at all. What it may call is asked of authorize, for each request.
	in.policy = func(p trust.Peer) error { return mayOpen(in.keeper.present(), p) }
	config := func(protocols ...string) *tls.Config {
		return trust.ServerConfig(trust.TLS{
			Identity: in.identity, Bundles: in.bundles, Policy: in.policy, Protocols: protocols, Now: in.now,
		})
	}
	in.config = config(session.HTTP2, session.HTTP1, session.TCP)
	// Requests are told apart where they can be: opaque bytes would reach the application with whatever they say of their caller.
	requests := config(session.HTTP2, session.HTTP1)
	// A service that isn't served here is refused in the handshake, where the caller knows that nothing was sent yet.
	datagrams := config(session.UDP)
	in.config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if err := in.drilled(hello); err != nil {
			return nil, err
		}
		udp := slices.Contains(hello.SupportedProtos, session.UDP)
		to, err := in.route(hello.ServerName, udp)
		if err == nil && udp {
			beneath(hello.Conn).Start() // a caller says no more until we have
			return datagrams, nil
		}
		if err == nil && to.Protocol.IsHTTP() {
			return requests, nil
		}
		return nil, err
	}
	in.proxy = &httputil.ReverseProxy{
		Rewrite:        in.rewrite,
		Transport:      in.apps,
		BufferPool:     newBuffers(),
		ModifyResponse: in.modifyResponse,
		ErrorHandler:   in.answerError,
		ErrorLog:       slog.NewLogLogger(in.log.Handler(), slog.LevelDebug),
	}
	in.server, in.narrow = in.newServer(), in.newServer()
	in.narrow.HTTP2.MaxReceiveBufferPerConnection, in.narrow.HTTP2.MaxReceiveBufferPerStream = narrowWindow, narrowWindow
}

// newServer returns a server of inner sessions.
func (in *Inbound) newServer() *http.Server {
	s := newServer(http.HandlerFunc(in.serve), in.log)
	s.IdleTimeout = inboundIdle
	s.Protocols.SetHTTP2(true)
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		a, _ := in.arrivals.LoadAndDelete(c) // run puts it there
		return context.WithValue(ctx, arrivalKey{}, a)
	}
	return s
}

// mayOpen lets in callers alone. What is no workload's identity in a cluster may be one in a trust domain that is no cluster's: there, the
// policies know by whole SPIFFE IDs whom they let in.
func mayOpen(g *guards, p trust.Peer) error {
	err := onlyCallers(p)
	if err != nil && g != nil && !g.isPeer(p.ID) && !strings.HasPrefix(p.ID.Path()+"/", "/isthmus/") {
		return nil
	}
	return err
}

// onlyCallers lets workloads in, and the node proxies that stand in for them. A gateway carries calls; it makes none.
func onlyCallers(p trust.Peer) error {
	if _, _, ok := trust.ParseWorkload(p.ID); ok {
		return nil
	}
	if _, ok := trust.ParseNode(p.ID); ok {
		return nil
	}
	return errNoCaller
}

var (
	errNoCaller    = errors.New("neither a workload nor a node proxy")
	errNoPeer      = errors.New("its trust domain is no peer's")
	errNotExported = errors.New("the service is not exported to its cluster")
	errFull        = errors.New("too many sessions are open")
)

// authorize says whether a caller may call a service that is served here at all; an error refuses it. Those of the own trust domain may;
// others where the service is exported to their cluster, and those of no cluster where a policy names them. The gateway has asked the same
// of the service that the stream was opened for, but the name inside of the session is the caller's to choose.
func (g *guards) authorize(caller spiffeid.ID, service topology.ServiceName) error {
	if g == nil {
		return errNotServed
	}
	if caller.TrustDomain() == g.of.Self().Domain {
		return nil
	}
	cluster := g.clusters[caller.TrustDomain()]
	served := g.of.Inbound(service)
	switch {
	case cluster.IsZero() && g.guard(service) == nil:
		return errNoPeer
	case cluster.IsZero():
		return nil // its policies decide, and only what they allow by name
	case served == nil || !served.Exported || len(served.Audience) > 0 && !slices.Contains(served.Audience, cluster):
		return errNotExported
	default:
		return nil
	}
}

// open says whether a session may be: whether there is anything that its caller may ask for on it. What it asks for is decided again.
func (g *guards) open(a *arrival) error {
	if err := g.authorize(a.peer.ID, a.service); err != nil {
		return err
	}
	guard := g.guard(a.service)
	if guard == nil {
		return nil
	}
	to := g.portOf(a)
	if to == nil {
		return errNotServed
	}
	peer := g.isPeer(a.peer.ID)
	switch {
	case guard.err != nil:
		return errNoRules
	case a.opaque && !guard.decide(&access.Request{Caller: a.peer.ID}, to, peer).Allowed, !a.opaque && !guard.admits(a.peer.ID, to, peer):
		return errRefused
	default:
		return nil
	}
}

// arrival is what the handshake of an inner session settled.
type arrival struct {
	peer    trust.Peer
	service topology.ServiceName
	port    uint16
	host    netip.Addr // the one copy of a headless service that it is for; invalid: any
	opaque  bool       // it carries bytes, or datagrams, that nobody reads
	// datagrams: it is for the port for datagrams.
	datagrams bool
	caller    *guest
	served    *served
	from      *busy // of served: what comes from the caller's cluster
	limiter   *limit.Limiter
	share     *limit.Caller // of limiter: what the caller has
	// admitted: it could call its service at some time. From then on it is closed when it no longer may.
	admitted atomic.Bool
}

type arrivalKey struct{}

func arrivalOf(c *tls.Conn) (*arrival, error) {
	state := c.ConnectionState()
	peer, err := trust.PeerOf(state)
	if err != nil {
		return nil, err
	}
	service, port, host, err := preamble.ParseServerName(state.ServerName)
	if err != nil {
		return nil, err
	}
	udp := state.NegotiatedProtocol == session.UDP
	return &arrival{peer: peer, service: service, port: port, host: host, opaque: udp || state.NegotiatedProtocol == session.TCP, datagrams: udp}, nil
}

var errNotServed = errors.New("not served here")

// route finds the port that a session asks for, by the name it gave in its handshake.
func (in *Inbound) route(serverName string, datagrams bool) (*topology.InboundPort, error) {
	service, port, host, err := preamble.ParseServerName(serverName)
	if err != nil {
		return nil, err
	}
	if p := in.keeper.present().portFor(service, port, host, datagrams); p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%s port %d: %w", service, port, errNotServed)
}

// port returns where the traffic of a service port that is reached over TCP goes; of one copy, where a host is named. Nil when it is not served
// here.
func (g *guards) port(service topology.ServiceName, number uint16, host netip.Addr) *topology.InboundPort {
	return g.portFor(service, number, host, false)
}

// portOf returns where what comes on a session goes.
func (g *guards) portOf(a *arrival) *topology.InboundPort {
	return g.portFor(a.service, a.port, a.host, a.datagrams)
}

// portFor is port, for datagrams or else over TCP.
func (g *guards) portFor(service topology.ServiceName, number uint16, host netip.Addr, datagrams bool) *topology.InboundPort {
	if g == nil {
		return nil
	}
	served := g.of.Inbound(service)
	if served == nil {
		return nil
	}
	for i := range served.Ports {
		if served.Ports[i].Number == number && (served.Ports[i].Protocol == topology.UDP) == datagrams {
			return only(&served.Ports[i], host)
		}
	}
	return nil
}

// only leaves of a port's targets that of one copy: whoever named it gets that one or none. Nil when it isn't there.
func only(p *topology.InboundPort, host netip.Addr) *topology.InboundPort {
	if !host.IsValid() {
		return p
	}
	for _, t := range p.Targets {
		if t.Addr() == host {
			return &topology.InboundPort{Number: p.Number, Protocol: p.Protocol, Targets: []netip.AddrPort{t}}
		}
	}
	return nil
}

// run takes connections until ctx ends; work is what they run in.
func (in *Inbound) run(ctx, work context.Context, ln net.Listener) error {
	requests, narrow := conn.NewHandoff(ln.Addr()), conn.NewHandoff(ln.Addr())
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	for server, sessions := range map[*http.Server]*conn.Handoff{in.server: requests, in.narrow: narrow} {
		server.BaseContext = func(net.Listener) context.Context { return work }
		wg.Go(func() { _ = serve(ctx, server, sessions) }) // it ends with them
		defer func() { _ = sessions.Close() }()
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { in.recheck(watching) })
	for {
		raw, err := acceptFrom(ctx, ln)
		if raw == nil {
			return err
		}
		done := in.door.knock(raw)
		wg.Go(func() {
			c, a, err := in.handshake(work, raw)
			done()
			switch {
			case errors.Is(err, errFull): // it has no place among those who have still to say who they are
				in.log.DebugContext(work, "session turned away", slog.String("from", raw.RemoteAddr().String()), slog.Any("error", err))
				turnAway(c)
			case err != nil:
				in.log.DebugContext(work, "session refused", slog.String("from", raw.RemoteAddr().String()), slog.Any("error", err))
			case a.datagrams:
				in.carryDatagrams(ctx, work, c, raw, a)
			case a.opaque:
				in.tunnel(work, c, raw, a)
			default:
				in.arrivals.Store(c, a)
				to := requests
				if c.ConnectionState().NegotiatedProtocol == session.HTTP2 { // HTTP/1.1 has no window
					if leave := in.door.widen(a.caller); leave != nil {
						c.NetConn().(*conn.Told).OnClose(leave) // nothing else is given to tls.Server
					} else {
						to = narrow
					}
				}
				if !to.Offer(c) {
					turnAway(c)
				}
			}
		})
	}
}

// beneath returns what a session's TLS runs over, as handshake made it.
func beneath(c net.Conn) *datagram.Conn {
	return c.(*conn.Told).Conn.(*datagram.Conn) // nothing else is given to tls.Server
}

// handshake makes c of raw, which it closes on failure; but not on errFull, with which c is returned.
func (in *Inbound) handshake(ctx context.Context, raw net.Conn) (*tls.Conn, *arrival, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	open := in.metrics.connections.WithLabelValues(inbound)
	open.Inc()
	hush := newHushed(raw, &in.drills)
	told := conn.Carry(datagram.NewConn(hush), open.Dec)
	c := tls.Server(told, in.config)
	err := c.HandshakeContext(ctx)
	var a *arrival
	if err == nil {
		a, err = arrivalOf(c)
	}
	if err == nil {
		a.served = in.services.of(a.service)
		hush.watch(a.service)
		a.from = a.served.from(in.keeper.present().clusterOf(a.peer.ID.TrustDomain()))
	}
	var leave func()
	if err == nil {
		if a.caller, leave = in.door.enter(a.peer.ID); a.caller == nil {
			return c, nil, errFull
		} else {
			a.limiter = a.served.limiter(a.port)
			a.share = a.caller.share(a.limiter)
		}
	}
	if err != nil {
		_ = told.Close()
		return nil, nil, err
	}
	told.OnClose(leave)
	told.OnClose(in.guard.Watch(c.ConnectionState(), in.lasting(a), func(error) { _ = told.Close() }))
	told.OnClose(func() { in.arrivals.Delete(c) })
	return c, a, nil
}

// lasting is the policy that an open session has to go on meeting. Once it may call its service, it is closed when it no longer may,
// whatever runs in it. As long as it may not, it is refused request by request, in words; an export that comes later lets it in, and then
// binds it like any other. The guard asks whenever what decides may have changed.
func (in *Inbound) lasting(a *arrival) trust.Policy {
	return func(p trust.Peer) error {
		if err := in.policy(p); err != nil {
			return err
		}
		if err := in.admit(in.keeper.present(), a); err != nil && a.admitted.Load() {
			return err
		}
		return nil
	}
}

// admit says whether a session may call its service now, and remembers that it once could.
func (in *Inbound) admit(g *guards, a *arrival) error {
	err := g.open(a)
	if err == nil && !a.admitted.Swap(true) {
		err = in.keeper.present().open(a) // it may have lost that before the guard could know of it
	}
	return err
}

// recheck has open sessions judged anew whenever what they are judged by may have changed.
func (in *Inbound) recheck(ctx context.Context) {
	for {
		changed := in.snapshots.Changed()
		in.followDrills()
		in.keeper.present() // compiles what is new, so that no request has to wait for it
		in.guard.Recheck()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// acceptFrom returns the next connection; nil when ctx has ended. What passes by itself (no file descriptors) is waited out.
func acceptFrom(ctx context.Context, ln net.Listener) (net.Conn, error) {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		c, err := ln.Accept()
		switch {
		case err == nil:
			return c, nil
		case ctx.Err() != nil:
			return nil, nil //nolint:nilnil // said above
		}
		if passing, ok := errors.AsType[interface {
			error
			Temporary() bool
		}](err); !ok || !passing.Temporary() {
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, nil //nolint:nilnil // said above
		}
	}
}
